//! What holds of checkpoints whatever the hosts, the store and time do.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Event {
    Begin,
    Accepts(usize, u64),
    Durable(usize),
    Refuses(usize),
    Writes,
    LosesAnswer,
    Pass(u64),
    Edit,
    Swap(usize),
    Lose(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Begin),
        2 => (0..2_usize, 1..BYTES).prop_map(|(at, bytes)| Event::Accepts(at, bytes)),
        4 => (0..2_usize).prop_map(Event::Durable),
        2 => (0..2_usize).prop_map(Event::Refuses),
        4 => Just(Event::Writes),
        1 => Just(Event::LosesAnswer),
        3 => (100..9_000_u64).prop_map(Event::Pass),
        1 => Just(Event::Edit),
        1 => (0..2_usize).prop_map(Event::Swap),
        1 => (0..2_usize).prop_map(Event::Lose),
    ]
}

/// The images on the hosts' disks, by what each host said of itself.
type Disks = BTreeMap<HostId, BTreeSet<CheckpointId>>;

struct World {
    rig: Rig,
    disks: Disks,
    /// Writes on their way to the store, with the revisions that they are conditional on.
    writes: Vec<(u64, Option<u64>, CheckpointRecord)>,
    busy_since: Option<Boottime>,
}

impl World {
    fn happens(&mut self, event: Event) {
        let backups: Vec<HostId> =
            self.rig.cluster.backup_hosts(NODE).iter().map(|name| host(name)).collect();
        match event {
            Event::Begin if self.busy_since.is_none() => {
                self.rig.begin();
                self.rig.saved();
                self.busy_since = Some(self.rig.cluster.now.boottime);
            }
            Event::Begin => {}
            Event::Accepts(at, bytes) => {
                self.rig.hear(CopyEvent::Accepted { host: backups[at].clone(), bytes, of: BYTES });
            }
            Event::Durable(at) => {
                let (host, id) = (backups[at].clone(), self.rig.id);
                self.disks.entry(host.clone()).or_default().insert(id);
                self.rig.durable(&host);
            }
            Event::Refuses(at) => self.rig.refused(&backups[at]),
            Event::Writes | Event::LosesAnswer => self.write(matches!(event, Event::Writes)),
            Event::Pass(ms) => self.rig.pass(Duration::from_millis(ms)),
            Event::Edit => self.rig.cluster.edit(NODE, |record| record.token.push('x')),
            // It leaves, drops what nothing names any more, and is a backup again.
            Event::Swap(at) => {
                self.rig.cluster.edit(NODE, |_| {});
                self.rig.cluster.edit(NODE, |_| {});
                let named = self.rig.cluster.view.checkpoints.get(&node(NODE)).cloned();
                let named = named.and_then(|known| known.value.on(&backups[at]).map(|copy| copy.id));
                self.disks.entry(backups[at].clone()).or_default().retain(|id| Some(*id) == named);
            }
            Event::Lose(at) => self.rig.cluster.reopen(backups[at].as_str()),
        }
        self.rig.review();
        for effect in std::mem::take(&mut self.rig.seen) {
            if let Effect::Record { revision, replaces, record, .. } = effect {
                self.writes.push((revision, replaces, *record));
            }
        }
        if !std::mem::take(&mut self.rig.over).is_empty() {
            self.busy_since = None;
        }
    }

    /// The store takes the oldest write that is on its way, if what it is conditional on stands.
    fn write(&mut self, answers: bool) {
        if self.writes.is_empty() {
            return;
        }
        let (revision, replaces, record) = self.writes.remove(0);
        let view = &self.rig.cluster.view;
        let known = view.checkpoints.get(&node(NODE)).map(|known| known.revision);
        let stands = view.nodes[&node(NODE)].revision == revision && known == replaces;
        let id = record.id;
        let said = if stands {
            let revision = self.rig.cluster.bump();
            self.rig
                .cluster
                .view
                .checkpoints
                .insert(node(NODE), Versioned { value: record, revision }.into());
            Recorded::Written(revision)
        } else {
            Recorded::Refused
        };
        let said = if answers { said } else { Recorded::Unknown("no answer".to_owned()) };
        if id == self.rig.id {
            self.rig.hear(CopyEvent::Recorded(said));
        }
    }

    /// SAFE-3: what the record names is on disk where it says; and nothing holds a node up for ever.
    fn check(&self, newest: &mut CheckpointId) {
        let known = &self.rig.cluster.view.checkpoints[&node(NODE)].value;
        for copy in known.copies() {
            assert!(!copy.hosts.is_empty());
            for host in &copy.hosts {
                let has = self.disks.get(host).is_some_and(|disk| disk.contains(&copy.id));
                assert!(has, "{host} does not have {}", copy.id);
            }
        }
        assert!(known.id >= *newest, "the newest is never taken back");
        *newest = known.id;
        if let Some(earlier) = &known.earlier {
            assert!(earlier.id < known.id && earlier.earlier.is_none());
            assert!(earlier.hosts.iter().all(|host| !known.hosts.contains(host)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_record_names_only_hosts_that_have_the_image(events in proptest::collection::vec(event(), 1..60)) {
        let rig = Rig::new();
        let first = rig.cluster.view.checkpoints[&node(NODE)].value.clone();
        let mut newest = first.id;
        let disks = first.hosts.iter().map(|host| (host.clone(), BTreeSet::from([first.id]))).collect();
        let mut world = World { rig, disks, writes: Vec::new(), busy_since: None };
        for event in events {
            world.happens(event);
            world.check(&mut newest);
        }
    }

    /// One host that says nothing, or little, costs the other's copies an interval and 10 s.
    #[test]
    fn a_host_that_does_not_take_it_holds_nothing_up(
        accepts in proptest::collection::vec((1..8_u64, 0..BYTES), 0..20),
        durable in 0..3_000_u64,
    ) {
        let mut rig = Rig::begun();
        let [one, other] = rig.backups();
        rig.pass(Duration::from_millis(durable));
        rig.durable(&one);
        let mut spent = durable;
        let mut next = accepts.into_iter();
        let mut recorded = None;
        while rig.over.is_empty() {
            let (wait, bytes) = next.next().unwrap_or((7, 0));
            for _ in 0..wait {
                rig.pass(Duration::from_millis(250));
                spent += 250;
                if rig.seen.iter().any(|effect| matches!(effect, Effect::Record { .. })) {
                    rig.written();
                    recorded.get_or_insert(spent);
                }
            }
            rig.hear(CopyEvent::Accepted { host: other.clone(), bytes, of: BYTES });
            prop_assert!(spent <= 17_000, "held up for {} ms", spent);
        }
        prop_assert!(recorded.is_some_and(|at| at <= durable + 1_250), "recorded after {:?}", recorded);
    }
}
