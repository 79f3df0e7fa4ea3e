//! Questions that are the same in every run: some that stand for a case each, many pseudo-random.

use std::collections::BTreeMap;

use understudy_core::model::units::{MiB, Vcpus};
use understudy_core::policy::{HostState, NodeMember, Part, PlacementQuestion, Purpose, Rows};

use crate::common::{question, row};

/// A generator of its own, so that no release of a library changes the questions: Knuth's MMIX constants.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such a generator repeat soon.
        (self.0 >> 33) % n
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        let at = self.below(u64::try_from(choices.len()).unwrap());
        choices[usize::try_from(at).unwrap()].clone()
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for key in ["disk", "floor", "team"] {
            if self.below(2) == 0 {
                labels.insert(key.to_owned(), self.of(&["red", "blue", "größer"]).to_owned());
            }
        }
        labels
    }

    fn placement(&mut self) -> PlacementQuestion {
        let mut asked = question("alice");
        let hosts = self.below(40);
        asked.purpose =
            self.of(&[Purpose::Primary, Purpose::WarmBackup, Purpose::HeldBackup, Purpose::Migration]);
        asked.wanted = self.of(&[0, 1, 3, 10, u32::MAX]);
        asked.reasons = self.below(2) == 0;
        asked.template = self.of(&[None, Some("standard".to_owned()), Some("other".to_owned())]);
        asked.terminal_labels = self.labels();
        asked.environment_labels = self.labels();
        asked.hosts = (0..hosts).map(|i| row(&format!("host{i:02}"))).collect();
        for host in asked.hosts.iter_mut() {
            host.state = self.of(&[
                HostState::Ready,
                HostState::Ready,
                HostState::Ready,
                HostState::Degraded,
                HostState::Draining,
                HostState::Fenced,
                HostState::Unknown,
            ]);
            // Few values, so that many hosts are equal; one that no number of 32 bits holds.
            host.free_memory = MiB(self.of(&[0, 2047, 2048, 65_536, 65_536, 1 << 40]));
            host.free_vcpus = Vcpus(self.of(&[0, 1, 2, 16]));
            host.labels = self.labels();
            for template in ["other", "standard"] {
                if self.below(3) == 0 {
                    let count = u32::try_from(self.below(3)).unwrap();
                    host.idle.insert(template.to_owned(), count);
                }
            }
        }
        for part in [Part::Primary, Part::Backup, Part::Backup] {
            if hosts > 0 && self.below(2) == 0 {
                let host = format!("host{:02}", self.below(hosts)).parse().unwrap();
                asked.members.push(NodeMember { host, part });
            }
        }
        asked
    }
}

/// The first are the cases at the edge.
pub(crate) fn placements(n: usize) -> Vec<PlacementQuestion> {
    let nobody = PlacementQuestion { hosts: Rows::default(), ..question("alice") };
    let nothing_wanted = PlacementQuestion { wanted: 0, ..question("alice") };
    let mut random = Random(20_260_101);
    let edges = [question("alice"), nobody, nothing_wanted];
    edges.into_iter().chain(std::iter::repeat_with(|| random.placement())).take(n).collect()
}
