//! Owns the look-up of where a terminal's screen is, and of which gateways serve screens.
//!
//! Promises: what is asked about one terminal looks at its own records and at the host of its display's primary, and at
//! nothing else. Must not do: keep anything; whoever serves screens keeps what it served last.
//!
//! Cost, with T terminals, N nodes and H hosts: one terminal O(log T + log N + log H), without an allocation but for the
//! name of its display node; the gateways O(H); whether they changed O(hosts that changed).

use std::net::Ipv4Addr;

use super::{HostView, View, diff};
use crate::model::ids::{Epoch, NodeId, TerminalId};
use crate::model::records::Phase;

/// Where a terminal's screen is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Display {
    /// The epoch in which the display's running state began. It stands also while there is no primary, so that the one
    /// before cannot come back.
    pub epoch: Epoch,
    /// The address of the display primary's guest; none while no primary is ready.
    pub address: Option<Ipv4Addr>,
}

/// The gateways of a cluster by their advertised addresses (`http://host1:8443`), as a browser reaches them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateways {
    /// Those of open hosts.
    pub open: Vec<String>,
    /// Those of hosts that are lost. Nobody is sent there, but pages that were loaded from them live on.
    pub lost: Vec<String>,
}

impl Display {
    /// What a terminal is served that was served `standing` before: never an older epoch (SAFE-4).
    #[must_use]
    pub fn after(self, standing: Option<Self>) -> Self {
        standing.filter(|standing| self.epoch < standing.epoch).unwrap_or(self)
    }
}

impl View {
    /// Where a terminal's screen is; nothing for a terminal that does not exist.
    #[must_use]
    pub fn display(&self, terminal: &TerminalId) -> Option<Display> {
        self.terminals.get(terminal)?;
        let record = &self.nodes.get(&NodeId::display(terminal))?.value;
        let fact = record.primary.as_ref().and_then(|primary| self.fact(primary));
        let address = fact.filter(|fact| fact.phase == Phase::Ready).and_then(|fact| fact.address);
        Some(Display { epoch: record.incarnation, address })
    }

    /// The gateways of all hosts that have one.
    #[must_use]
    pub fn gateways(&self) -> Gateways {
        let of = |open: bool| {
            let all = self.hosts.values().filter_map(|host| gateway(host));
            all.filter(|(is_open, _)| *is_open == open).map(|(_, address)| address.to_owned()).collect()
        };
        Gateways { open: of(true), lost: of(false) }
    }

    /// Whether the gateways were others in `before`.
    #[must_use]
    pub fn moved_gateways(&self, before: &Self) -> bool {
        diff(&before.hosts, &self.hosts)
            .any(|(_, was, is)| was.and_then(|host| gateway(host)) != is.and_then(|host| gateway(host)))
    }
}

/// Whether a host is open, and its gateway's address, if it has a gateway.
fn gateway(host: &HostView) -> Option<(bool, &str)> {
    let address = host.facts.as_ref()?.gateway.as_str();
    (!address.is_empty()).then_some((host.is_open(), address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Cluster, host, node};
    use crate::model::records::{Screen, TerminalRecord};
    use crate::model::units::UnixMillis;

    fn terminal(name: &str) -> TerminalId {
        name.parse().unwrap()
    }

    /// Two terminals with their displays, on three hosts.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(3).with(&["alice/display", "alice/exec-1", "bob/display"]);
        for name in ["alice", "bob"] {
            let record = TerminalRecord {
                id: terminal(name),
                labels: Default::default(),
                screen: Screen { width: 1280, height: 720 },
                nodes: vec![NodeId::display(&terminal(name))],
                created: UnixMillis(1),
            };
            cluster.view.terminals.insert(terminal(name), record.into());
        }
        cluster
    }

    #[test]
    fn a_screen_is_where_the_ready_primary_of_the_display_node_is() {
        let mut cluster = cluster();
        let incarnation = cluster.record("alice/display").incarnation;
        let address = Some(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(cluster.view.display(&terminal("alice")), Some(Display { epoch: incarnation, address }));
        assert_eq!(cluster.view.display(&terminal("carol")), None, "there is no such terminal");

        let (host, instance) = cluster.primary("alice/display");
        let phase = |cluster: &mut Cluster, phase| {
            cluster.facts(host.as_str()).instances.get_mut(&instance).unwrap().phase = phase;
        };
        let waits = Some(Display { epoch: incarnation, address: None });
        for elsewhere in [Phase::Booting, Phase::Deploying, Phase::Restoring] {
            phase(&mut cluster, elsewhere.clone());
            assert_eq!(cluster.view.display(&terminal("alice")), waits, "{elsewhere:?}");
        }
        phase(&mut cluster, Phase::Ready);
        cluster.lose(host.as_str());
        assert_eq!(cluster.view.display(&terminal("alice")), waits, "what a lost host says");
        cluster.edit("bob/display", |record| record.primary = None);
        let waits = cluster.view.display(&terminal("bob")).unwrap();
        assert_eq!((waits.epoch, waits.address), (cluster.record("bob/display").incarnation, None));

        cluster.view.nodes.remove(&node("bob/display"));
        assert_eq!(cluster.view.display(&terminal("bob")), None, "its display node is deleted");
        cluster.view.terminals.remove(&terminal("alice"));
        assert_eq!(cluster.view.display(&terminal("alice")), None, "the terminal is deleted");
    }

    #[test]
    fn an_older_epoch_never_takes_the_place_of_a_newer_one() {
        let display = |epoch: u64, last: u8| Display {
            epoch: Epoch(epoch),
            address: Some(Ipv4Addr::new(10, 0, 0, last)),
        };
        assert_eq!(display(4, 1).after(None), display(4, 1));
        assert_eq!(display(4, 1).after(Some(display(5, 2))), display(5, 2));
        assert_eq!(display(5, 1).after(Some(display(5, 2))), display(5, 1));
        assert_eq!(display(6, 1).after(Some(display(5, 2))), display(6, 1));
    }

    #[test]
    fn gateways_change_with_their_addresses_and_their_hosts_leases_alone() {
        let mut cluster = cluster();
        let before = cluster.view.clone();
        assert_eq!(before.gateways(), Gateways::default());
        for name in ["host1", "host2"] {
            cluster.facts(name).gateway = format!("http://{name}:8443");
        }
        assert!(cluster.view.moved_gateways(&before) && !cluster.view.moved_gateways(&cluster.view));
        let both = ["http://host1:8443", "http://host2:8443"].map(str::to_owned).to_vec();
        assert_eq!(cluster.view.gateways(), Gateways { open: both, lost: Vec::new() });

        let before = cluster.view.clone();
        cluster.facts("host1").load_milli = 7;
        cluster.seen("host2").lease.revision += 1;
        assert!(!cluster.view.moved_gateways(&before), "a report and a renewal");
        cluster.lose("host2");
        assert!(cluster.view.moved_gateways(&before));
        let [open, lost] = ["http://host1:8443", "http://host2:8443"].map(|one| vec![one.to_owned()]);
        assert_eq!(cluster.view.gateways(), Gateways { open, lost });
        cluster.view.hosts.remove(&host("host2"));
        assert!(cluster.view.gateways().lost.is_empty());
    }
}
