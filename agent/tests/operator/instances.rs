//! Owns the processes that stand for the instances of a played hypervisor: the guard is shown one for each, found by qemu's
//! name and the instance's UUID on its command line.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use understudy_core::model::ids::InstanceId;

use crate::rig::Agent;

/// They end with their owner.
pub(crate) struct Instances {
    /// Holds the shell under the name of qemu.
    folder: TempDir,
    processes: BTreeMap<InstanceId, Child>,
}

impl Default for Instances {
    fn default() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("qemu-stand-in")).unwrap();
        Self { folder, processes: BTreeMap::new() }
    }
}

impl Instances {
    /// Gives every instance that the agent has a process.
    pub(crate) fn follow(&mut self, agent: &Agent) {
        let seen = agent.snapshots.borrow().clone();
        for instance in seen.facts.iter().flat_map(|facts| facts.instances.keys()) {
            self.processes.entry(*instance).or_insert_with(|| {
                Command::new(self.folder.path().join("qemu-stand-in"))
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
        for child in self.processes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
