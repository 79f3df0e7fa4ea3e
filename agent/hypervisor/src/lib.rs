//! The hypervisor of one host: what runs on it, and how it is brought to run something else.
//!
//! Owns the words for instances ([`InstanceFact`], [`InstanceSpec`], …), the [`Hypervisor`] trait, its
//! implementation over libvirt ([`Libvirt`]), a deterministic double for simulations ([`fake`]), the watch on
//! qemu processes ([`pidwatch`]) and the permits that libvirt's hook asks for ([`permit`]).
//!
//! Promises: every operation may be repeated, ends within its deadline and says so when it could not learn the
//! outcome; no libvirt number or type leaves this crate. Must not do: decide anything; know of nodes, terminals
//! or the store. No other crate names `virt`.

mod accelerator;
mod api;
mod calls;
mod domain;
mod error;
mod event;
pub mod fake;
#[expect(unsafe_code, reason = "the one place for C calls without a safe wrapper")]
mod ffi;
mod jobs;
mod libvirt;
mod link;
mod numbers;
pub mod permit;
pub mod pidwatch;
pub mod process;
mod refusal;
mod reserved;
mod restoring;
mod role_disk;
mod snapshot;
mod template;
mod types;
mod verdict;
mod xml;

pub use accelerator::{Accelerator, AcceleratorError, AcceleratorSetting};
pub use api::Hypervisor;
pub use error::{
    CallError, CapacityError, ControlError, CreateError, DestroyError, GuestError, ListError, MigrateError,
    RestoreError, RoleDiskError, SaveError, StartError,
};
pub use event::{EventKind, HypervisorEvent, Lifecycle, StartCause, StopCause, WatchdogAction};
pub use libvirt::{Deadlines, Libvirt, LibvirtConfig};
pub use process::Pid;
pub use refusal::{Refusal, RefusalKind};
pub use role_disk::check as check_role_disk;
pub use snapshot::{MonitorError, ProbeError, Snapshot, SnapshotError, Tier};
pub use template::{Template, TemplateError, TemplateFault};
pub use types::{
    BlockStats, Capacity, GuestCommand, GuestOutput, InstanceFact, InstanceSpec, InstanceState,
    InstanceStats, InterfaceStats, Liveness, MacAddress, MacError, MigrationOutcome, MigrationTarget, Note,
    PauseCause, RestoreSpec, SavedMemory,
};

/// The serial by which a guest finds the disk that holds its environment.
pub const ROLE_DISK_SERIAL: &str = "understudy-role";

/// The namespace of the element in a domain's metadata that makes the domain one of ours.
pub const METADATA_NAMESPACE: &str = "https://understudy.invalid/instance/1";
