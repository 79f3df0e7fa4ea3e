//! Owns the recipe of C policies: Debian's clang, unpacked, and the linker that every rustup toolchain ships.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use wit_bindgen_core::Files;
use wit_parser::Resolve;

use super::{Job, WORLD, installed};
use crate::policies;
use crate::run::run;

/// What compiles and what is linked: the compiler with its libraries, the headers and library of C for WebAssembly,
/// and the functions that the compiler calls.
const PACKAGES: [&str; 6] = [
    "clang-19",
    "libclang-common-19-dev",
    "libclang-cpp19",
    "libllvm19",
    "libclang-rt-19-dev-wasm32",
    "wasi-libc",
];
/// Another version of the compiler gets another folder.
const FOLDER: &str = "clang-19";

pub(super) fn build(job: &Job) -> Result<()> {
    let tools = job.tools.join(FOLDER);
    installed(&tools, |folder| policies::unpack_packages(&PACKAGES, folder))?;
    let bindings = job.scratch.join("bindings");
    write_bindings(&job.wit, &bindings)?;
    let linker = policies::rustup_bin()?.join(policies::LINKER);
    let libraries = tools.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    run(Command::new(tools.join("usr/lib/llvm-19/bin/clang"))
        .env("LD_LIBRARY_PATH", libraries)
        .env("PATH", policies::linkers_path()?)
        .args([
            "--target=wasm32-wasi",
            "-mexec-model=reactor",
            "-std=c17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
        ])
        .arg(format!("--sysroot={}", tools.join("usr").display()))
        .arg("-resource-dir")
        .arg(tools.join("usr/lib/llvm-19/lib/clang/19"))
        .arg("-I")
        .arg(&bindings)
        .arg(job.folder.join("policy.c"))
        .arg(bindings.join("placement_policy.c"))
        .arg(bindings.join("placement_policy_component_type.o"))
        .arg(format!("-fuse-ld={}", linker.display()))
        .args(["-Wl,--strip-debug", "-o"])
        .arg(&job.component))
}

/// What `wit-bindgen c` writes: a header, glue, and an object that tells the linker what the component is.
fn write_bindings(wit: &Path, folder: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(wit).with_context(|| format!("read {}", wit.display()))?;
    let world = resolve.select_world(&[package], Some(WORLD))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    for (name, bytes) in files.iter() {
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
