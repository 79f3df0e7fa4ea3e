//! What `wit/` says, as Rust.
#![allow(missing_docs, unsafe_code, unreachable_pub, dead_code, clippy::all, reason = "generated from wit/")]

wasmtime::component::bindgen!({ path: "../../wit", world: "policy" });
