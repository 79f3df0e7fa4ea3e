//! A view with screens at given addresses, for tests over gateways. Names nothing but core, so that the page's tests share
//! it.

use std::net::Ipv4Addr;

use understudy_core::model::ids::{BootId, Epoch, HostId, InstanceId, NodeId, TerminalId};
use understudy_core::model::records::{
    HostFacts, InstanceFact, LeaseExpiry, LeaseRecord, Member, NodeRecord, NodeSpec, Origin, Phase, Screen,
    TerminalRecord,
};
use understudy_core::model::units::{MiB, UnixMillis, Vcpus};
use understudy_core::model::view::{HostView, Versioned, View};

const SCREEN: Screen = Screen { width: 1280, height: 800 };

/// Terminals with the epochs and addresses of their displays, and hosts with these gateways, open and lost. Who runs the
/// displays has no gateway.
pub(crate) fn view(
    terminals: &[(&str, u64, Option<Ipv4Addr>)],
    open: &[impl AsRef<str>],
    lost: &[impl AsRef<str>],
) -> View {
    let mut view = View::default();
    let (mut facts, runner) = (HostFacts { lease: 1, ..HostFacts::default() }, id("runner"));
    for &(name, epoch, address) in terminals {
        let terminal: TerminalId = name.parse().expect("a terminal's name");
        let node = NodeId::display(&terminal);
        let instance = InstanceId::derived(&node, Epoch(epoch), &runner, 1);
        facts.instances.insert(instance, fact(&node, epoch, address));
        let member = Member {
            host: runner.clone(),
            lease: 1,
            instance: Some(instance),
            origin: Origin::Created,
            place: 0,
        };
        view.nodes.insert(node.clone(), Versioned { value: record(epoch, member), revision: 1 });
        let record = TerminalRecord {
            id: terminal.clone(),
            labels: Default::default(),
            screen: SCREEN,
            nodes: vec![node],
            created: UnixMillis(1),
        };
        view.terminals.insert(terminal, record.into());
    }
    view.hosts.insert(runner, host(facts, true).into());
    let open = open.iter().map(|url| (url.as_ref(), true));
    for (number, (url, is_open)) in open.chain(lost.iter().map(|url| (url.as_ref(), false))).enumerate() {
        let facts = HostFacts { lease: 1, gateway: url.to_owned(), ..HostFacts::default() };
        view.hosts.insert(id(&format!("gateway{number}")), host(facts, is_open).into());
    }
    view
}

fn id(name: &str) -> HostId {
    name.parse().expect("a host's name")
}

fn host(facts: HostFacts, is_open: bool) -> HostView {
    let end = LeaseExpiry { reason: "silent".to_owned(), silent_since: UnixMillis(1), at: UnixMillis(2) };
    let lease = LeaseRecord {
        boot: BootId("boot".to_owned()),
        machine: Default::default(),
        number: 1,
        expired: (!is_open).then_some(end),
    };
    HostView {
        facts: Some(facts.into()),
        lease: Versioned { value: lease, revision: 1 },
        renewed: 0,
        silent_since: None,
        intent: Default::default(),
    }
}

fn record(epoch: u64, primary: Member) -> NodeRecord {
    let spec = NodeSpec {
        memory: MiB(192),
        vcpus: Vcpus(1),
        protected: false,
        environment: "desktop".to_owned(),
        applications: Vec::new(),
        labels: Default::default(),
        environment_labels: Default::default(),
        screen: SCREEN,
    };
    NodeRecord {
        epoch: Epoch(epoch),
        incarnation: Epoch(epoch),
        primary: Some(primary),
        ..NodeRecord::new(spec, "token".to_owned())
    }
}

/// One without an address is not ready yet.
fn fact(node: &NodeId, epoch: u64, address: Option<Ipv4Addr>) -> InstanceFact {
    InstanceFact {
        phase: if address.is_some() { Phase::Ready } else { Phase::Deploying },
        node: Some(node.clone()),
        epoch: Epoch(epoch),
        address,
        memory: MiB(192),
        vcpus: Vcpus(1),
        since: UnixMillis(1),
        windows: None,
        admitted: Default::default(),
        migration_failed: None,
    }
}
