//! What the versions of `wit/` say, as Rust: one module each, served side by side.
#![allow(missing_docs, unsafe_code, unreachable_pub, dead_code, clippy::all, reason = "generated from wit/")]

/// What policies are built for.
pub(crate) mod v01 {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "policy",
    });
}

/// The trial version.
pub(crate) mod v02 {
    wasmtime::component::bindgen!({ path: "../../wit/0.2", world: "policy" });
}
