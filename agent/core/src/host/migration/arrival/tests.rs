//! Tables of what a destination makes of what it sees, and what holds of it whatever happens.

use proptest::prelude::*;

use super::*;
use crate::fixture::{Cluster, MEMBER, moved, node};
use crate::model::ids::Epoch;

const PATIENCE: Duration = Duration::from_secs(120);

/// alice's execution node on its way to another host.
struct Rig {
    cluster: Cluster,
    records: Records,
    arrival: Arrival,
    lease: Option<u64>,
}

impl Rig {
    /// The permit is asked for.
    fn new() -> Self {
        let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
        let (from, instance) = cluster.primary("alice/exec-1");
        cluster.seen(from.as_str()).intent.drain = true;
        cluster.step();
        let migration = cluster.record("alice/exec-1").migration.clone().unwrap();
        let epoch = migration.epoch;
        let action = HostAction::Accept { node: node("alice/exec-1"), instance, epoch, from };
        let lease = migration.to_lease;
        let job = Job { action, instance, address: None, sequence: None, memory: None, lease };
        let now = cluster.now.boottime;
        let (arrival, step) = Arrival::begin(migration.to, job, PATIENCE, now).unwrap();
        assert_eq!(step, MigrationStep::Permit { lasts: PATIENCE });
        let mut rig = Self { cluster, records: Records::default(), arrival, lease: Some(lease) };
        rig.read();
        rig
    }

    fn permitted() -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.answer(MigrationAnswer::Done), Next::Wait, "its source has it still");
        rig
    }

    /// Its source has released it, and a look at it is under way.
    fn looking() -> Self {
        let mut rig = Self::permitted();
        rig.release();
        assert_eq!(rig.review(), Next::Take(MigrationStep::Look));
        rig
    }

    fn landing() -> Self {
        let mut rig = Self::looking();
        assert_eq!(rig.sees(Presence::Paused), Next::Take(MigrationStep::Land));
        rig
    }

    fn release(&mut self) {
        let to = self.cluster.record("alice/exec-1").migration.as_ref().unwrap().to.clone();
        self.cluster.report_primary("alice/exec-1", |fact| fact.phase = moved(&to));
        self.read();
    }

    fn edit(&mut self, edit: impl FnOnce(&mut NodeRecord)) {
        self.cluster.edit("alice/exec-1", edit);
        self.read();
    }

    fn read(&mut self) {
        self.records.view = self.cluster.view.clone();
    }

    fn pass(&mut self, time: Duration) {
        self.cluster.now.boottime = self.cluster.now.boottime + time;
    }

    fn known(&self) -> Known<'_> {
        Known { records: &self.records, lease: self.lease, now: self.cluster.now.boottime }
    }

    fn review(&mut self) -> Next {
        let known = Known { records: &self.records, lease: self.lease, now: self.cluster.now.boottime };
        self.arrival.review(known)
    }

    fn answer(&mut self, answer: MigrationAnswer) -> Next {
        let known = Known { records: &self.records, lease: self.lease, now: self.cluster.now.boottime };
        self.arrival.answered(answer, known)
    }

    fn sees(&mut self, presence: Presence) -> Next {
        self.answer(MigrationAnswer::Seen(presence))
    }

    fn due_in(&self) -> Option<Duration> {
        let due = self.arrival.due(&self.records.view)?;
        Some(due.since(self.known().now))
    }
}

fn failed() -> MigrationAnswer {
    MigrationAnswer::Failed("no answer".to_owned())
}

fn again() -> Next {
    Next::End(Outcome::Failed("no answer".to_owned()))
}

const WITHDRAW: Next = Next::Take(MigrationStep::Withdraw);
const LAND: Next = Next::Take(MigrationStep::Land);

#[test]
fn nothing_is_looked_at_before_its_source_has_released_it() {
    let mut rig = Rig::permitted();
    assert_eq!(rig.due_in(), Some(PATIENCE));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.review(), Next::Wait);
    rig.release();
    assert_eq!(rig.review(), Next::Take(MigrationStep::Look), "at once, not at the next turn");
    assert_eq!((rig.review(), rig.due_in()), (Next::Wait, None), "one step at a time");
}

#[test]
fn what_has_come_runs_only_once_its_source_has_released_it() {
    for (presence, expected) in [
        (Presence::Running, LAND),
        (Presence::Paused, LAND),
        (Presence::Held, Next::Wait),
        (Presence::Other, Next::Wait),
        (Presence::Process, Next::Wait),
        (Presence::Gone, WITHDRAW),
    ] {
        assert_eq!(Rig::looking().sees(presence), expected, "{presence:?}");
    }
    assert_eq!(Rig::looking().answer(failed()), Next::Wait, "nobody could say");
}

#[test]
fn what_is_not_whole_is_looked_at_again_after_five_milliseconds_and_what_libvirt_does_not_know_later() {
    for (presence, after) in [(Presence::Held, 5), (Presence::Process, 100)] {
        let mut rig = Rig::looking();
        rig.sees(presence);
        assert_eq!(rig.due_in(), Some(Duration::from_millis(after)));
        rig.pass(Duration::from_millis(after - 1));
        assert_eq!(rig.review(), Next::Wait, "whatever the records do meanwhile");
        rig.pass(Duration::from_millis(1));
        assert_eq!(rig.review(), Next::Take(MigrationStep::Look));
        assert_eq!(rig.sees(Presence::Paused), LAND);
    }
}

#[test]
fn it_arrives_with_what_the_hypervisor_says_of_it_or_else_its_node() {
    let landed =
        Landed { memory: crate::model::units::MiB(7), vcpus: Vcpus(3), address: Some([10, 0, 0, 7].into()) };
    for (came, memory, vcpus, address) in
        [(Some(landed), landed.memory, landed.vcpus, landed.address), (None, MEMBER, Vcpus(1), None)]
    {
        let arrived = Outcome::Arrived { memory, vcpus, address };
        assert_eq!(Rig::landing().answer(MigrationAnswer::Landed(came)), Next::End(arrived));
    }
    assert_eq!(Rig::landing().answer(failed()), again());
}

#[test]
fn it_is_lost_only_once_it_was_withdrawn() {
    let mut rig = Rig::looking();
    assert_eq!(rig.sees(Presence::Gone), WITHDRAW);
    let mut fails = Rig::looking();
    fails.sees(Presence::Gone);
    assert_eq!(fails.answer(failed()), again(), "something of it may be here, or come");
    let outcome = rig.answer(MigrationAnswer::Done);
    assert!(matches!(outcome, Next::End(Outcome::Died(_))), "{outcome:?}");
}

#[test]
fn a_part_that_nothing_is_added_to_is_lost_after_a_while_and_one_that_becomes_whole_lands() {
    let part_for = |seconds: u64, before_last: MigrationAnswer, last: Presence| {
        let mut rig = Rig::looking();
        for answer in [MigrationAnswer::Seen(Presence::Held), before_last] {
            assert_eq!(rig.answer(answer), Next::Wait);
            rig.pass(Duration::from_millis(500 * seconds));
            assert_eq!(rig.review(), Next::Take(MigrationStep::Look));
        }
        rig.sees(last)
    };
    let part = || MigrationAnswer::Seen(Presence::Held);
    assert_eq!(part_for(29, part(), Presence::Held), Next::Wait);
    assert_eq!(part_for(30, part(), Presence::Held), WITHDRAW);
    assert_eq!(part_for(30, part(), Presence::Paused), LAND);
    assert_eq!(part_for(30, failed(), Presence::Held), Next::Wait, "nobody could say meanwhile");
    assert_eq!(part_for(30, MigrationAnswer::Seen(Presence::Process), Presence::Held), Next::Wait);
}

type Edit = fn(&mut NodeRecord);
const ENDS: [Edit; 5] = [
    |record| record.migration.as_mut().unwrap().abandoned = true,
    |record| record.migration = None,
    |record| record.migration.as_mut().unwrap().epoch = Epoch(9),
    |record| record.migration.as_mut().unwrap().to_lease = 9,
    |record| record.migration.as_mut().unwrap().to = "host9".parse().unwrap(),
];

#[test]
fn nothing_stays_of_a_migration_that_was_abandoned_is_over_or_is_another_one() {
    for end in ENDS {
        for released in [false, true] {
            let mut rig = Rig::permitted();
            if released {
                rig.release();
            }
            rig.edit(end);
            assert_eq!(rig.review(), WITHDRAW, "without a look");
            assert_eq!(rig.answer(MigrationAnswer::Done), Next::End(Outcome::Done));
        }
        let mut rig = Rig::looking();
        rig.edit(end);
        assert_eq!(rig.sees(Presence::Paused), WITHDRAW, "what was seen does not matter any more");
        let mut rig = Rig::new();
        rig.edit(end);
        assert_eq!(rig.answer(MigrationAnswer::Done), WITHDRAW, "permitted meanwhile");
    }
}

#[test]
fn what_was_to_come_under_a_lease_that_is_over_is_withdrawn() {
    for lease in [None, Some(9)] {
        let mut rig = Rig::permitted();
        rig.lease = lease;
        assert_eq!(rig.review(), WITHDRAW);
        let mut rig = Rig::landing();
        rig.lease = lease;
        assert_eq!(rig.answer(failed()), WITHDRAW, "the guard lets nothing run for it");
    }
}

/// Before, a record that could not be read any more after the store was listed anew counted as one that does not want the
/// instance: what had come was destroyed, and its source had released it.
#[test]
fn while_its_record_cannot_be_read_it_is_neither_let_run_nor_withdrawn() {
    for released in [false, true] {
        let mut rig = Rig::permitted();
        if released {
            rig.release();
        }
        let known = rig.records.view.nodes.get(&node("alice/exec-1")).unwrap().clone();
        rig.records.view.nodes.remove(&node("alice/exec-1"));
        rig.records.unreadable = true;
        assert_eq!(rig.review(), Next::Wait);
        let mut rig = if released { Rig::looking() } else { rig };
        if released {
            rig.records.view.nodes.remove(&node("alice/exec-1"));
            rig.records.unreadable = true;
            assert_eq!(rig.sees(Presence::Gone), Next::Wait);
            assert_eq!(rig.due_in(), Some(PATIENCE));
        }
        rig.records.view.nodes.insert(node("alice/exec-1"), (*known).clone());
        rig.pass(Duration::from_secs(1));
        let next = if released { Next::Take(MigrationStep::Look) } else { Next::Wait };
        assert_eq!(rig.review(), next, "it can be read again");
        rig.records.view.nodes.remove(&node("alice/exec-1"));
        rig.records.unreadable = false;
        let mut gone = rig;
        if !released {
            assert_eq!(gone.review(), WITHDRAW, "it was deleted");
        }
    }
}

#[test]
fn after_the_bound_it_is_tried_again_from_the_beginning() {
    for released in [false, true] {
        let mut rig = Rig::permitted();
        rig.pass(PATIENCE);
        if released {
            rig.release();
        }
        let outcome = rig.review();
        assert!(matches!(&outcome, Next::End(Outcome::Failed(why)) if why.contains("did not arrive")));
    }
    assert_eq!(Rig::new().answer(failed()), again(), "there is no permit");
}

#[derive(Debug, Clone)]
enum Event {
    Answer(MigrationAnswer),
    Release,
    End(usize),
    Lose,
    Pass(u64),
    Review,
}

fn event() -> impl Strategy<Value = Event> {
    use MigrationAnswer::{Done, Failed, Landed, Moved, Seen, Stayed};
    let presence = prop_oneof![
        Just(Presence::Gone),
        Just(Presence::Process),
        Just(Presence::Running),
        Just(Presence::Paused),
        Just(Presence::Held),
        Just(Presence::Other)
    ];
    let answer = prop_oneof![
        6 => Just(Done),
        8 => presence.prop_map(Seen),
        3 => Just(Failed("no".to_owned())),
        2 => Just(Landed(None)),
        1 => Just(Moved),
        1 => Just(Stayed("no".to_owned())),
    ];
    prop_oneof![
        20 => answer.prop_map(Event::Answer),
        3 => Just(Event::Release),
        1 => (0..ENDS.len()).prop_map(Event::End),
        1 => Just(Event::Lose),
        6 => (0..40_000_u64).prop_map(Event::Pass),
        6 => Just(Event::Review),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is answered and whenever: it lands only while it is wanted and released, on a look that was taken since
    /// then; it is lost only after a withdrawal; one step is under way at a time; and before it is due nothing follows from
    /// time alone.
    #[test]
    fn it_lands_only_on_a_look_since_its_source_released_it(events in proptest::collection::vec(event(), 1..60)) {
        let mut rig = Rig::new();
        let mut under_way = Some(MigrationStep::Permit { lasts: PATIENCE });
        let (mut released, mut ended, mut lost, mut looked) = (false, false, false, false);
        for event in events {
            let due = rig.arrival.due(&rig.records.view);
            let next = match event {
                Event::Release if !released && !ended => {
                    released = true;
                    rig.release();
                    continue;
                }
                Event::End(at) if !ended => {
                    ended = true;
                    rig.edit(ENDS[at]);
                    continue;
                }
                Event::Lose => {
                    lost = true;
                    rig.lease = None;
                    continue;
                }
                Event::Pass(ms) => {
                    rig.pass(Duration::from_millis(ms));
                    continue;
                }
                Event::Review => {
                    let early = due.is_none_or(|due| due > rig.known().now) && !ended && !lost;
                    let next = rig.review();
                    prop_assert!(!early || under_way.is_some() || next == Next::Wait, "{next:?} before {due:?}");
                    next
                }
                Event::Answer(answer) => rig.answer(answer),
                Event::Release | Event::End(_) => continue,
            };
            match next {
                Next::Wait => {}
                Next::Take(step) => {
                    let again = under_way.is_none_or(|before| before != step);
                    prop_assert!(again, "{step:?} twice");
                    let good = released && !ended && !lost;
                    prop_assert!(!matches!(step, MigrationStep::Look | MigrationStep::Land) || good, "{step:?}");
                    prop_assert!(step != MigrationStep::Land || under_way == Some(MigrationStep::Look));
                    looked |= step == MigrationStep::Look;
                    under_way = Some(step);
                }
                Next::End(outcome) => {
                    match &outcome {
                        Outcome::Died(_) => prop_assert!(looked && under_way == Some(MigrationStep::Withdraw)),
                        Outcome::Done => prop_assert_eq!(under_way, Some(MigrationStep::Withdraw)),
                        Outcome::Arrived { .. } => prop_assert_eq!(under_way, Some(MigrationStep::Land)),
                        Outcome::Failed(_) => {}
                        other => prop_assert!(false, "{:?}", other),
                    }
                    return Ok(());
                }
            }
            if matches!(rig.arrival.stage, Stage::Waiting(_)) {
                under_way = None;
            }
        }
    }
}
