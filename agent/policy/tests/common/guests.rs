//! Guests from text: components as small as a case needs, built where no wasm target is installed.
//!
//! The tests of the agent and the fuzz target include this file too.
#![allow(dead_code, reason = "each that includes it uses a part")]

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

/// A component from a core module in text form.
pub(crate) fn component(module: &str, world: &str) -> Vec<u8> {
    component_of(module, world, "wit")
}

/// The same for the trial version of the interface.
pub(crate) fn component_v02(module: &str, world: &str) -> Vec<u8> {
    component_of(module, world, "wit/0.2")
}

fn component_of(module: &str, world: &str, wit: &str) -> Vec<u8> {
    let mut bytes = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    // Whichever crate includes this file lies somewhere below the interface's folder.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let wit = above.map(|folder| folder.join(wit)).find(|folder| folder.is_dir()).unwrap();
    let (package, _) = resolve.push_dir(wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    wit_component::embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&bytes).unwrap().validate(true).encode().unwrap()
}

/// A module that exports `place`: runs `body` where `condition` holds, then returns the result at 1024, which is
/// an empty list of picks unless `body` wrote another.
pub(crate) fn module(body: &str, condition: &str) -> String {
    module_of("0.1.0", body, condition)
}

pub(crate) fn module_of(version: &str, body: &str, condition: &str) -> String {
    format!(
        r#"(module
            (import "understudy:policy/log@{version}" "write" (func $log (param i32 i32 i32)))
            (memory (export "memory") 16)
            (table $t 1 funcref)
            (global $top (mut i32) (i32.const 4096))
            (data (i32.const 512) "out of ideas....two\0alines")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
                (global.set $top (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
            (func $deep (call $deep) (call $deep))
            (func (export "understudy:policy/placement@{version}#place") (param $request i32) (result i32)
                ({condition} (then {body}))
                (i32.const 1024)))"#
    )
}

/// Whether the terminal's name is another than that of the trial question, five letters long. A record is laid out in
/// the order of its fields, and the name is the first: its address at 0, its length at 4.
pub(crate) const NOT_TRIAL: &str = "if (i32.ne (i32.load offset=4 (local.get $request)) (i32.const 5))";

/// A policy that behaves while the terminal's name has five letters.
pub(crate) fn placement_guest(body: &str) -> Vec<u8> {
    component(&module(body, NOT_TRIAL), "placement-policy")
}
