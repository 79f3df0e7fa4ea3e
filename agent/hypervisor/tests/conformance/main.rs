//! One suite for every hypervisor: the double, libvirt's own simulation, and real qemu in a host of its own.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod hook;
mod host;
mod moving;
mod real;
mod simulated;
mod snapshots;
mod suite;
