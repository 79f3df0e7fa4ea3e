//! Owns the processes that stand for the instances of a played hypervisor: the guard is shown one for each, found by the
//! instance's UUID on its command line.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use understudy_core::ids::InstanceId;

use crate::rig::Agent;

/// They end with their owner.
#[derive(Default)]
pub(crate) struct Instances(BTreeMap<InstanceId, Child>);

impl Instances {
    /// Gives every instance that the agent has a process.
    pub(crate) fn follow(&mut self, agent: &Agent) {
        let seen = agent.snapshots.borrow().clone();
        for instance in seen.facts.iter().flat_map(|facts| facts.instances.keys()) {
            self.0.entry(*instance).or_insert_with(|| {
                Command::new("sh")
                    .args(["-c", "read line", "qemu", "-uuid", &instance.to_string()])
                    .stdin(Stdio::piped())
                    .spawn()
                    .unwrap()
            });
        }
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        for child in self.0.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
