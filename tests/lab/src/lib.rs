//! The lab: N libvirt hosts on one machine, made of namespaces, for the demo, the end-to-end tests
//! and the benchmarks.
//!
//! It owns everything between "a Linux machine with root" and "three hosts, each with its own
//! network, mounts, processes, libvirtd, etcd member and services, whose power, links and disks can
//! be taken away one by one". It promises that whatever it makes is recorded before it is made, so
//! that [`sweep`] removes all of a run that was killed in the middle, and that it never touches what
//! it has not recorded. It must not know what Understudy decides: it starts binaries and pulls plugs.
//!
//! A host is the tree of processes in one cgroup, whose first process is PID 1 of its own PID
//! namespace ([`init_if_asked`]). Namespaces are held by processes alone: no named network namespace,
//! no mount in the machine's own mount namespace. Killing the cgroup therefore removes the host.
//!
//! ```no_run
//! use understudy_lab::{Lab, LabOptions};
//!
//! # fn main() -> Result<(), understudy_lab::LabError> {
//! understudy_lab::init_if_asked(); // first thing in main: hosts are re-executions of this binary
//! let lab = Lab::up(LabOptions::default())?;
//! let host = lab.host(1);
//! println!("{}", host.run(["virsh", "list"])?);
//! host.power_off()?;
//! host.boot()?;
//! # Ok(())
//! # }
//! ```

mod cgroup;
pub mod cluster;
mod disk;
mod enter;
mod error;
mod etcd;
mod exec;
mod forward;
mod helper;
mod host;
mod init;
mod interrupt;
mod journal;
mod lab;
mod net;
mod options;
pub mod packages;
mod pki;
mod proc;
mod service;
mod sweep;
mod tool;
pub mod wait;

pub use disk::Bind;
pub use error::LabError;
pub use exec::{HostChild, HostCommand, Output};
pub use forward::Forward;
pub use helper::init_if_asked;
pub use host::{Host, Service};
pub use interrupt::{tear_down_on_signals, wait_for_signal};
pub use lab::Lab;
pub use net::{Net, NetNs};
pub use options::LabOptions;
pub use proc::ProcessId;
pub use service::{Ready, Restart, ServiceSpec, ServiceState, ServiceStatus};
pub use sweep::{Swept, sweep, sweep_dead};
