//! What holds of checkpoints whatever the hosts, the store and time do.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Event {
    Begin,
    Accepts(usize, u64),
    Durable(usize),
    Refuses(usize),
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
            Event::Pass(ms) => self.rig.pass(Duration::from_millis(ms)),
            Event::Edit => self.rig.cluster.edit(NODE, |record| record.token.push('x')),
            // It leaves, drops what it has, and is a backup again: nobody here has looked meanwhile.
            Event::Swap(at) => {
                self.disks.remove(&backups[at]);
                self.rig.cluster.edit(NODE, |record| record.backups[at].place += 1);
            }
            Event::Lose(at) => self.rig.cluster.reopen(backups[at].as_str()),
        }
        self.rig.review();
        if !std::mem::take(&mut self.rig.over).is_empty() {
            self.busy_since = None;
        }
    }

    /// SAFE-3: whoever is reported has it on disk, and it is of this life.
    fn check(&self) {
        for host in self.rig.ages().keys() {
            let since = self.rig.cluster.record(NODE).incarnation;
            let has = self.disks.get(host).is_some_and(|disk| disk.iter().any(|id| id.epoch >= since));
            assert!(has, "{host} has nothing");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn only_hosts_that_have_the_image_are_reported(events in proptest::collection::vec(event(), 1..60)) {
        let mut world = World { rig: Rig::new(), disks: Disks::new(), busy_since: None };
        for event in events {
            world.happens(event);
            world.check();
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
        prop_assert!(rig.told());
        let mut spent = durable;
        let mut next = accepts.into_iter();
        while rig.over.is_empty() {
            let (wait, bytes) = next.next().unwrap_or((7, 0));
            for _ in 0..wait {
                rig.pass(Duration::from_millis(250));
                spent += 250;
            }
            rig.hear(CopyEvent::Accepted { host: other.clone(), bytes, of: BYTES });
            prop_assert!(spent <= 17_000, "held up for {} ms", spent);
        }
    }
}
