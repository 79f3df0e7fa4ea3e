//! Owns what a simulated guest keeps in its memory, what its one command does, and what every guest here is made from.
//!
//! Promises: all of it travels with a save, a restore and a live migration, as memory does. Must not do: know where it runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use understudy_core::model::ids::{Epoch, InstanceId, NodeId};
use understudy_hypervisor::fake::{self, Guest, Instance};
use understudy_hypervisor::{GuestCommand, GuestOutput, Template};

/// The role disk of every environment, on every host.
pub(crate) const ROLE_DISK: &str = "/roles/any.erofs";
/// One that nobody put anywhere.
pub(crate) const NO_ROLE_DISK: &str = "/roles/none.erofs";

const TEMPLATE: &str = "<domain><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<cpu mode='custom'><model>qemu64</model></cpu>
<devices><interface type='bridge'><source bridge='vmbr0'/></interface>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>";

/// What a guest keeps in its memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// One start of one guest: it goes along with a live migration; a restore is another life.
    pub(crate) life: u64,
    /// What it was deployed for.
    pub(crate) node: Option<NodeId>,
    /// The secret of the node that it was deployed for.
    pub(crate) token: String,
    /// It was its node's primary at some time in this life: a mark of the judge's.
    pub(crate) acts: bool,
    /// Which of the node's states this is: a fresh start begins another.
    pub(crate) generation: u64,
    /// Counts while it runs: the state that a failover should keep.
    pub(crate) counter: u64,
    /// Which windows of which epoch its intake lets in (display members).
    pub(crate) admitted: BTreeMap<NodeId, Epoch>,
    /// The life of the display that has its windows, and its epoch when they were sent (execution members).
    pub(crate) windows: Option<(u64, Epoch)>,
}

impl fake::Memory for Memory {
    fn run(&mut self, _: Duration) {
        self.counter += 1;
    }
}

/// Whether an instance is a member of a node and runs.
pub(crate) fn is_member(instance: &Instance<Memory>) -> bool {
    instance.runs() && instance.memory().node.is_some()
}

/// What all instances are made from.
pub(crate) fn template() -> Arc<Template> {
    Arc::new(Template::parse(TEMPLATE).expect("this template is whole"))
}

/// How guests answer: 0 when it is done, 1 when it is not, 127 when nothing is called so.
pub(crate) fn commands() -> Arc<Guest<Memory>> {
    Arc::new(|_: InstanceId, memory: &mut Memory, command: &GuestCommand| {
        let words: Vec<&str> = command.argv.iter().map(String::as_str).collect();
        let exit = done(memory, &words).map_or(127, |done| if done { 0 } else { 1 });
        GuestOutput { exit, stdout: Vec::new(), stderr: Vec::new() }
    })
}

/// Whether it is done; nothing where the words are none of its.
fn done(memory: &mut Memory, words: &[&str]) -> Option<bool> {
    match words {
        ["deploy", node, token, generation] => {
            if memory.node.is_none() {
                memory.generation = generation.parse().ok()?;
            }
            (memory.node, memory.token) = (Some(node.parse().ok()?), (*token).to_owned());
            Some(true)
        }
        ["admit", node, incarnation] => {
            let incarnation = Epoch(incarnation.parse().ok()?);
            let admitted = memory.admitted.entry(node.parse().ok()?).or_default();
            let fits = incarnation >= *admitted && memory.node.is_some();
            if fits {
                *admitted = incarnation;
            }
            Some(fits)
        }
        ["sent", life, incarnation] => {
            let sent = (life.parse().ok()?, Epoch(incarnation.parse().ok()?));
            memory.windows = memory.node.is_some().then_some(sent);
            Some(memory.node.is_some())
        }
        _ => None,
    }
}

/// Its command, as words.
pub(crate) fn command(words: &[&str]) -> GuestCommand {
    let argv = words.iter().map(|word| (*word).to_owned()).collect();
    GuestCommand { argv, stdin: Vec::new(), deadline: Duration::from_secs(60) }
}

/// The role disk that a job finds, or does not.
pub(crate) fn role_disk(found: bool) -> &'static Path {
    Path::new(if found { ROLE_DISK } else { NO_ROLE_DISK })
}
