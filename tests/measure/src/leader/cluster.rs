//! Owns the cluster that the leader is measured with: its records, and what becomes of them.
//!
//! Promises: every host has [`NODES`] primaries, which are its running instances, and as many places reserved for
//! backups of other hosts' primaries; all nodes are protected execution nodes with one backup and a checkpoint there,
//! four to a terminal; there is room for all after the loss of a host, and nothing to decide before it. Must not do:
//! decide, or measure.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use understudy_core::invariants::broken_by;
use understudy_core::leader::{AskCopies, Assignment, Leader};
use understudy_core::model::ids::{BootId, Epoch, HostId, InstanceId, NodeId, Role, TerminalId};
use understudy_core::model::records::{
    Age, Capacity, Checkpoint, CheckpointId, HostFacts, HostIntent, InstanceFact, Kept, Labels, LeaseExpiry,
    LeaseRecord, Member, Newest, NodeRecord, NodeSpec, Origin, Phase, Protection, Screen, WindowsSent,
};
use understudy_core::model::units::{Boottime, MiB, Now, UnixMillis, Vcpus};
use understudy_core::model::view::{HostView, Versioned, View};

/// Nodes of which a host has the primary, and of which it has the backup.
pub(crate) const NODES: usize = 20;
/// Nodes of a terminal.
const OF_TERMINAL: usize = 4;
/// Memory of a member.
const MEMORY: MiB = MiB(2048);
/// Members for which a host has room: half as many again as it has.
const MEMBERS_MAX: u64 = 60;
const EPOCH: Epoch = Epoch(1);

/// A cluster, as the store holds it.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) view: View,
    pub(crate) now: Now,
    /// Who has a checkpoint of each node, and which.
    checkpoints: BTreeMap<NodeId, (HostId, Checkpoint)>,
    revision: u64,
}

/// The name of the host of this number, counted from 0.
pub(crate) fn host(number: usize) -> Result<HostId> {
    Ok(format!("host-{number:05}").parse()?)
}

/// What a member of a node needs.
pub(crate) fn spec(role: Role) -> NodeSpec {
    NodeSpec {
        memory: MEMORY,
        vcpus: Vcpus(2),
        protected: role == Role::Execution,
        environment: "desktop".to_owned(),
        applications: Vec::new(),
        labels: Labels::from([("floor".to_owned(), "2".to_owned())]),
        environment_labels: Labels::new(),
        screen: Screen { width: 1920, height: 1080 },
    }
}

impl Cluster {
    /// A cluster of so many hosts, at rest.
    pub(crate) fn of(hosts: usize) -> Result<Self> {
        let now = Now { boottime: Boottime(1_000_000_000_000), wall: UnixMillis(1_800_000_000_000) };
        let mut cluster = Self { view: View::default(), now, revision: 0, checkpoints: BTreeMap::new() };
        let mut running = vec![BTreeMap::new(); hosts];
        for number in 0..hosts * NODES {
            let terminal: TerminalId = format!("terminal-{:06}", number / OF_TERMINAL).parse()?;
            let node = NodeId::execution(&terminal, u32::try_from(number % OF_TERMINAL + 1)?);
            // Each round over the hosts has its backups further on, so that those of one host's primaries are spread.
            let (at, round) = (number % hosts, number / hosts);
            let backup = (at + 1 + round * 7 % (hosts - 1)) % hosts;
            let instance = cluster.add_node(&node, host(at)?, host(backup)?);
            running[at].insert(instance, fact(&node, now.wall));
        }
        let mut protected = BTreeMap::<HostId, BTreeMap<NodeId, Protection>>::new();
        for (node, known) in &cluster.view.nodes {
            let primary = known.value.primary.as_ref().context("it has no primary")?;
            let newest = Newest { place: 0, age: Age::Fresh };
            let hosts = known.value.backups.iter().map(|backup| (backup.host.clone(), newest)).collect();
            let known = Protection { incarnation: EPOCH, hosts, bytes: 64 << 20 };
            protected.entry(primary.host.clone()).or_default().insert(node.clone(), known);
        }
        for (number, instances) in running.into_iter().enumerate() {
            let protection = protected.remove(&host(number)?).unwrap_or_default();
            cluster.add_host(number, instances, protection)?;
        }
        Ok(cluster)
    }

    fn add_node(&mut self, node: &NodeId, at: HostId, backup: HostId) -> InstanceId {
        let instance = InstanceId::derived(node, EPOCH, &at, 0);
        let mut record = NodeRecord::new(spec(node.role()), "00112233445566778899aabbccddeeff".to_owned());
        (record.epoch, record.incarnation) = (EPOCH, EPOCH);
        record.primary =
            Some(Member { host: at, lease: 1, instance: Some(instance), origin: Origin::Created, place: 0 });
        record.backups = vec![Member {
            host: backup.clone(),
            lease: 1,
            instance: None,
            origin: Origin::Reserved,
            place: 0,
        }];
        let checkpoint = Checkpoint {
            id: CheckpointId { epoch: EPOCH, sequence: 7 },
            taken: UnixMillis(self.now.wall.0 - 3_000),
            instance,
            pause_ms: 12,
        };
        let revision = self.bump();
        self.view.nodes.insert(node.clone(), Versioned { value: record, revision });
        self.checkpoints.insert(node.clone(), (backup, checkpoint));
        instance
    }

    fn add_host(
        &mut self,
        number: usize,
        instances: BTreeMap<InstanceId, InstanceFact>,
        protection: BTreeMap<NodeId, Protection>,
    ) -> Result<()> {
        let name = host(number)?;
        let facts = HostFacts {
            lease: 1,
            capacity: Capacity { vcpus: Vcpus(128), memory: MiB(MEMORY.0 * MEMBERS_MAX) },
            labels: Labels::from([
                ("zone".to_owned(), format!("zone-{}", number % 4)),
                ("rack".to_owned(), format!("rack-{}", number / 40)),
            ]),
            api: format!("{name}:7420"),
            gateway: format!("https://{name}:8443"),
            migration_uri: format!("qemu+tls://{name}/system"),
            load_milli: 4_000,
            instances,
            protection,
            version: "0.1.0".to_owned(),
            ..HostFacts::default()
        };
        let lease = LeaseRecord::open(BootId(format!("boot-{number}")), Default::default(), 1);
        let seen = HostView {
            facts: Some(facts.into()),
            lease: Versioned { value: lease, revision: self.bump() },
            renewed: 0,
            silent_since: Some(self.now.boottime),
            intent: HostIntent::default(),
        };
        self.view.hosts.insert(name, seen.into());
        Ok(())
    }

    fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn host_mut(&mut self, name: &HostId) -> Result<&mut HostView> {
        let seen = self.view.hosts.get_mut(name).with_context(|| format!("there is no {name}"))?;
        Ok(Arc::make_mut(seen))
    }

    /// The host's lease is expired. The revision of that.
    pub(crate) fn lose(&mut self, name: &HostId) -> Result<u64> {
        let (revision, at) = (self.bump(), self.now.wall);
        let lease = &mut self.host_mut(name)?.lease;
        let reason = "lease not renewed for 7000 ms".to_owned();
        lease.revision = revision;
        lease.value.expired = Some(LeaseExpiry { reason, silent_since: UnixMillis(at.0 - 7_000), at });
        Ok(revision)
    }

    /// The host renews its lease, as it does once a second.
    pub(crate) fn renew(&mut self, name: &HostId) -> Result<()> {
        let (revision, since) = (self.bump(), self.now.boottime);
        let seen = self.host_mut(name)?;
        (seen.renewed, seen.silent_since) = (revision, Some(since));
        Ok(())
    }

    /// The host reports that one of its instances has sent its windows at this moment. What it reports.
    pub(crate) fn show(&mut self, name: &HostId) -> Result<HostFacts> {
        let at = self.now.wall;
        let facts = self.host_mut(name)?.facts.as_mut().context("it has not reported")?;
        let (&display, fact) = Arc::make_mut(facts).instances.iter_mut().next().context("it runs nothing")?;
        // That they were sent to itself is not looked at where there is no display node.
        fact.windows = Some(WindowsSent { display, display_incarnation: EPOCH, incarnation: EPOCH, at });
        Ok(facts.as_ref().clone())
    }

    /// Writes what this leader has decided. The revision at which it stands from now on.
    pub(crate) fn write(&mut self, assignment: &Assignment, leader: &Leader) -> Result<u64> {
        let node = &assignment.node;
        let broken = broken_by(leader.decided_from(), &leader.heard(node), assignment);
        ensure!(broken.is_empty(), "{node}: {broken:?}");
        let known = self.view.nodes.get(node).with_context(|| format!("there is no {node}"))?;
        ensure!(known.revision == assignment.revision, "{node} was decided from another record");
        let revision = self.bump();
        let record = Versioned { value: assignment.record.clone(), revision };
        self.view.nodes.insert(node.clone(), record);
        Ok(revision)
    }

    /// What a host answers.
    pub(crate) fn says(&self, ask: &AskCopies) -> Kept {
        let here = self.checkpoints.get(&ask.node).filter(|(host, _)| *host == ask.host);
        Kept { complete: here.map(|(_, copy)| copy.clone()).into_iter().collect(), ..Kept::default() }
    }

    /// That every node has its primary on an open host and its backup on another, and that no host has more members than
    /// it has room for.
    pub(crate) fn check(&self) -> Result<()> {
        let mut members = BTreeMap::<&HostId, u64>::new();
        for (node, known) in &self.view.nodes {
            let record = &known.value;
            let all: Vec<&Member> = record.members().collect();
            let [primary, backup] = all[..] else { anyhow::bail!("{node} has {} members", all.len()) };
            ensure!(record.primary.as_ref() == Some(primary), "{node} has no primary");
            ensure!(primary.host != backup.host, "{node} has both members on {}", primary.host);
            for member in [primary, backup] {
                let open = self.view.hosts.get(&member.host).filter(|seen| seen.is_open());
                let lease = open.map(|seen| seen.lease.value.number);
                ensure!(lease == Some(member.lease), "{node} has a member on {}", member.host);
                *members.entry(&member.host).or_default() += 1;
            }
        }
        let over = members.iter().find(|(_, count)| **count > MEMBERS_MAX);
        ensure!(over.is_none(), "more members than there is room for: {over:?}");
        Ok(())
    }
}

fn fact(node: &NodeId, since: UnixMillis) -> InstanceFact {
    InstanceFact {
        phase: Phase::Ready,
        node: Some(node.clone()),
        epoch: EPOCH,
        address: Some([10, 0, 0, 1].into()),
        memory: MEMORY,
        vcpus: Vcpus(2),
        since,
        windows: None,
        admitted: BTreeMap::new(),
        migration_failed: None,
    }
}
