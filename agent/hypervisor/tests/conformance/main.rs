//! One suite for every hypervisor: the double, libvirt's own simulation, and real qemu in a host of its own.

mod hook;
mod host;
mod real;
mod simulated;
mod suite;
