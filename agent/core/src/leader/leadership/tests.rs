//! Tables of leading: what is bid for, what ends a term, and what is decided when.

mod properties;
mod rig;

use std::time::Duration;

use super::*;
use crate::fixture::{host, node};
use crate::keys::Key;
use crate::leader::{Policies, Reply};
use crate::model::ids::Epoch;
use crate::transaction::Condition;
use rig::{Rig, me, set};

/// Who the record of the leadership names, and in which term.
type Named = Option<(&'static str, u64)>;
type Happens = fn(&mut Rig);
type Over = Option<fn(Term) -> Notice>;

const NO_RECORD: Named = None;

fn led_by(rig: &mut Rig, leader: Named) {
    if let Some((name, term)) = leader {
        rig.put(Key::Leader, &LeaderRecord { host: Some(host(name)), term: Term(term) });
        rig.show();
    }
}

fn bids(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Bid(_))).count()
}

fn assigns(effects: &[Effect]) -> usize {
    let is_one = |request: &WriteRequest| matches!(request.what, What::Assign { .. });
    effects.iter().filter(|effect| matches!(effect, Effect::Write(request) if is_one(request))).count()
}

#[test]
fn a_vacant_leadership_is_bid_for_and_no_other() {
    let nothing: Happens = |_| {};
    let table: [(&str, Named, Happens, bool); 10] = [
        ("nobody ever led", NO_RECORD, nothing, true),
        ("its own earlier life", Some(("host1", 4)), nothing, true),
        ("another leads", Some(("host2", 4)), nothing, false),
        (
            "the last one resigned",
            NO_RECORD,
            |rig| {
                rig.put(Key::Leader, &LeaderRecord { host: None, term: Term(4) });
            },
            true,
        ),
        ("its lease is over", Some(("host2", 4)), |rig| rig.expire("host2"), true),
        ("its host is not there", Some(("host9", 4)), nothing, true),
        ("its host is gone", Some(("host2", 4)), |rig| rig.delete(Key::Lease(host("host2"))), true),
        ("silent for too short", Some(("host2", 4)), |rig| rig.pass(Duration::from_millis(6_999)), false),
        ("silent", Some(("host2", 4)), |rig| rig.pass(Duration::from_secs(7)), true),
        ("its own lease is closed", NO_RECORD, |rig| rig.lease_open = false, false),
    ];
    for (what, leader, happens, bid) in table {
        let mut rig = Rig::new();
        led_by(&mut rig, leader);
        happens(&mut rig);
        rig.show();
        let effects = rig.look();
        assert_eq!(bids(&effects) == 1, bid, "{what}: {effects:?}");
        if bid {
            assert_eq!(effects, [Effect::Bid(rig.cache.leader.clone())], "{what}");
            assert_eq!(rig.look(), [], "{what}: one bid at a time");
        }
    }
}

/// Another stands in line: without renewals nobody's silence is known, and a bid or an expiry could be conditional on none.
#[test]
fn an_agent_that_does_not_follow_renewals_neither_bids_nor_decides() {
    let mut rig = Rig::new();
    rig.list(false);
    assert_eq!(bids(&rig.look()), 0);
    rig.list(true);
    assert_eq!(bids(&rig.look()), 1);
    let mut rig = Rig::leading();
    rig.list(false);
    rig.pass(Duration::from_secs(7));
    assert!(rig.look().is_empty(), "it decides nothing");
    rig.list(true);
    let seen: Vec<_> =
        rig.cache.view().hosts.values().map(|seen| seen.silent_for(rig.now.boottime)).collect();
    assert!(seen.iter().all(Duration::is_zero), "what was before was not seen: {seen:?}");
}

/// It was cut off, and another leads by now: it must not go on to be shown, or asked, as a leader.
#[test]
fn a_term_that_is_over_ends_also_where_the_agent_follows_no_renewals_or_has_no_lease() {
    for (lease_open, renewals) in [(true, false), (false, true), (false, false)] {
        let mut rig = Rig::leading();
        led_by(&mut rig, Some(("host2", 9)));
        rig.show();
        rig.list(renewals);
        rig.lease_open = lease_open;
        let effects = rig.look();
        assert!(matches!(effects[..], [Effect::Notice(Notice::AnotherLeads(_))]), "{effects:?}");
        assert_eq!(rig.leadership.term(), None);
    }
}

#[test]
fn a_bid_that_was_lost_or_failed_is_followed_by_another_while_nobody_leads() {
    let mut rig = Rig::new();
    assert_eq!(bids(&rig.look()), 1);
    assert_eq!(rig.tell(Input::BidEnded(BidOutcome::Lost)), []);
    assert_eq!(rig.leadership.term(), None);
    assert_eq!(bids(&rig.look()), 1);
    // A store that refuses at once is not asked without a pause.
    assert_eq!(rig.tell(Input::BidEnded(BidOutcome::Failed)), []);
    assert_eq!(rig.look(), []);
    assert_eq!(rig.leadership.due(&rig.cache), Some(rig.now.boottime + AGAIN));
    rig.pass(AGAIN);
    assert_eq!(bids(&rig.look()), 1);
}

/// Its silence has no event of its own.
#[test]
fn a_leader_that_falls_silent_is_looked_at_in_the_moment_in_which_it_may_be_replaced() {
    let mut rig = Rig::new();
    led_by(&mut rig, Some(("host2", 4)));
    rig.show();
    assert_eq!(rig.look(), []);
    let due = rig.leadership.due(&rig.cache).unwrap();
    rig.pass(due.since(rig.now.boottime) - Duration::from_nanos(1));
    assert_eq!(rig.look(), []);
    rig.pass(Duration::from_nanos(1));
    assert_eq!(bids(&rig.look()), 1);
}

#[test]
fn nothing_is_decided_before_the_store_cache_shows_the_term() {
    let mut rig = Rig::new();
    assert_eq!(rig.win(), Term(1));
    assert_eq!(rig.look(), []);
    assert!(rig.leadership.machine().is_none());
    rig.show();
    assert_eq!(assigns(&rig.look()), 2);
    assert_eq!(rig.look(), [], "it is decided once");
}

#[test]
fn a_store_cache_that_is_behind_ends_no_term_and_one_that_shows_another_leadership_does() {
    let mut rig = Rig::new();
    led_by(&mut rig, Some(("host1", 4)));
    assert_eq!(rig.win(), Term(5));
    assert_eq!((rig.look(), rig.leadership.term()), (Vec::new(), Some(Term(5))));
    rig.show();
    rig.depose("host2");
    assert_eq!(assigns(&rig.look()), 2, "it cannot know yet");
    rig.show();
    assert_eq!(rig.look(), [Effect::Notice(Notice::AnotherLeads(Term(5)))]);
    assert_eq!(rig.leadership.term(), None);

    // An operator removed the record.
    let mut rig = Rig::leading();
    rig.delete(Key::Leader);
    rig.show();
    assert_eq!(rig.look(), [Effect::Notice(Notice::AnotherLeads(Term(1))), Effect::Bid(None)]);
}

#[test]
fn after_a_write_of_unknown_outcome_or_one_refused_for_the_leadership_only_a_new_term_decides() {
    let table: [(WriteOutcome, Over); 4] = [
        (WriteOutcome::Applied(99), None),
        (WriteOutcome::Refused { deposed: false }, None),
        (WriteOutcome::Refused { deposed: true }, Some(Notice::Deposed)),
        (WriteOutcome::Unknown, Some(Notice::OutcomeUnknown)),
    ];
    for (outcome, over) in table {
        let mut rig = Rig::leading();
        rig.look();
        let reported = rig.end_write(outcome);
        let notice = over.map(|over| Effect::Notice(over(Term(1))));
        assert_eq!(reported, notice.clone().into_iter().collect::<Vec<_>>(), "{outcome:?}");
        assert_eq!(rig.leadership.term(), notice.is_none().then_some(Term(1)), "{outcome:?}");
        if over.is_some() {
            assert_eq!(rig.win(), Term(2));
            let late = rig.writes.remove(0);
            assert_eq!(rig.commit(&late.transaction), WriteOutcome::Refused { deposed: true });
            // What comes of the earlier term says nothing about this one.
            assert_eq!(rig.tell(Input::Written(late.id, WriteOutcome::Unknown)), []);
            assert_eq!(rig.leadership.term(), Some(Term(2)));
            rig.show();
            assert_eq!(assigns(&rig.look()), 2);
        }
    }
}

#[test]
fn what_was_asked_in_an_earlier_term_is_not_answered_in_this_one() {
    let mut rig = Rig::leading();
    rig.policies = Policies { placement: true, backup_count: false, version: 1 };
    rig.look();
    let (asking, question) = rig.asked[0].clone();
    let reply = Reply::unavailable(question);
    let other = Asking { term: Term(asking.term.0 + 1), ..asking };
    rig.tell(Input::Reply(other, reply.clone()));
    assert_eq!((rig.look(), rig.asked.len()), (Vec::new(), 1));
    rig.tell(Input::Reply(asking, reply));
    assert_ne!(rig.look(), []);
}

/// The same question is asked of the next set too: the answer of the one before would decide in its name.
#[test]
fn what_the_policies_of_before_answer_late_is_no_answer() {
    let mut rig = Rig::leading();
    rig.policies = Policies { placement: true, backup_count: false, version: 1 };
    rig.look();
    let (asking, question) = rig.asked[0].clone();
    rig.policies.version = 2;
    rig.look();
    let (again, same) = rig.asked.last().unwrap().clone();
    assert_eq!((again.version, &same), (2, &question), "it is asked again");
    let reply = Reply::unavailable(question);
    rig.tell(Input::Reply(asking, reply.clone()));
    assert_eq!(rig.look(), []);
    rig.tell(Input::Reply(again, reply));
    assert_ne!(rig.look(), []);
}

#[test]
fn a_candidate_is_settled_before_anything_is_decided_and_not_while_an_assignment_is_being_written() {
    let mut rig = Rig::leading();
    assert_eq!(assigns(&rig.look()), 2);
    rig.put(Key::PolicyCandidate, &set(1));
    rig.all_have(1);
    rig.show();
    assert_eq!(rig.look(), [], "the set of before is still being written");
    rig.end_all_writes();
    rig.show();
    rig.look();
    let [request] = rig.writes.as_slice() else { panic!("{:?}", rig.writes) };
    assert_eq!(request.what, What::Activate(set(1)));
    rig.sets.ready.insert(1);
    assert_eq!(rig.look(), [], "it is being written");
    rig.end_all_writes();
    assert!(rig.holds(&Key::PolicyActive, &set(1)) && rig.written(&Key::PolicyCandidate).is_empty());
    assert_eq!(rig.look(), [], "the cache does not show it");
    rig.show();
    assert_ne!(rig.look(), []);
}

#[test]
fn a_change_of_the_sets_of_unknown_outcome_is_followed_by_a_new_term() {
    let mut rig = Rig::leading();
    rig.put(Key::PolicyCandidate, &set(1));
    rig.all_have(1);
    rig.show();
    rig.look();
    assert_eq!(rig.end_write(WriteOutcome::Unknown), [Effect::Notice(Notice::OutcomeUnknown(Term(1)))]);
    assert_eq!(rig.win(), Term(2));
}

#[test]
fn an_answer_that_comes_while_a_set_is_settled_decides_nothing_before_that_is_over() {
    let mut rig = Rig::leading();
    rig.policies = Policies { placement: true, backup_count: false, version: 1 };
    rig.look();
    let (asking, question) = rig.asked[0].clone();
    rig.put(Key::PolicyCandidate, &set(1));
    rig.report("host3", |facts| {
        facts.policies.faults.insert(1, crate::sets::SetFault::Unusable("does not compile".to_owned()));
    });
    rig.show();
    rig.look();
    assert!(matches!(rig.writes.as_slice(), [WriteRequest { what: What::Refuse(_), .. }]));
    rig.tell(Input::Reply(asking, Reply::unavailable(question)));
    assert_eq!(rig.look(), []);
    rig.end_all_writes();
    rig.show();
    rig.look();
    assert!(!rig.writes.is_empty() || rig.asked.len() > 1);
}

#[test]
fn an_agent_whose_policies_are_not_ready_gives_up_what_it_has_and_had_in_an_earlier_life() {
    let active = |rig: &mut Rig| {
        rig.put(Key::PolicyActive, &set(3));
        rig.show();
    };
    let mut leads = Rig::leading();
    let mut led = Rig::new();
    led_by(&mut led, Some(("host1", 1)));
    let mut follows = Rig::new();
    led_by(&mut follows, Some(("host2", 1)));
    for (rig, resigns) in [(&mut leads, true), (&mut led, true), (&mut follows, false)] {
        active(rig);
        let own = rig.cache.leader.clone().unwrap();
        let effects = rig.look();
        if resigns {
            assert_eq!(effects, [Effect::Notice(Notice::NotReady(Term(1))), Effect::Resign(own)]);
        } else {
            assert_eq!(effects, []);
        }
        assert_eq!((rig.leadership.term(), rig.look()), (None, Vec::new()));
        // Ready by now: while the resignation is being written it does not bid.
        rig.sets.ready.insert(3);
        assert_eq!(rig.look(), []);
        rig.tell(Input::Resigned);
        assert_eq!(bids(&rig.look()) == 1, resigns);
    }
}

#[test]
fn an_agent_that_stops_resigns_what_it_has_and_bids_no_more() {
    let mut rig = Rig::leading();
    let own = rig.cache.leader.clone().unwrap();
    assert_eq!(rig.tell(Input::Stop), [Effect::Resign(own)]);
    assert_eq!(rig.look(), []);
    let mut rig = Rig::new();
    assert_eq!((rig.tell(Input::Stop), rig.look()), (Vec::new(), Vec::new()));
    let mut rig = Rig::new();
    rig.look();
    assert_eq!(rig.tell(Input::Stop), []);
    let won = rig.bid(&me(), None);
    assert_eq!((rig.tell(Input::BidEnded(won)), rig.leadership.term()), (Vec::new(), None));
}

#[test]
fn a_policy_that_failed_is_suspended_once_by_any_host_and_by_a_leader_before_it_decides() {
    let mut follows = Rig::new();
    led_by(&mut follows, Some(("host2", 1)));
    for mut rig in [follows, Rig::leading()] {
        rig.put(Key::PolicyActive, &set(3));
        rig.show();
        rig.sets.ready.insert(3);
        let (name, digest) = ("spread".to_owned(), "aa".to_owned());
        rig.failed = vec![FailedPolicy { name, digest, reason: "traps".to_owned() }];
        rig.look();
        let [request] = rig.writes.as_slice() else { panic!("{:?}", rig.writes) };
        let What::Suspend(record) = request.what.clone() else { panic!("{request:?}") };
        assert_eq!((request.id.term, record.suspended["spread"].as_str()), (None, "traps"));
        assert_eq!(rig.look(), []);
        rig.end_all_writes();
        assert_eq!(rig.look(), [], "the cache does not show it");
        rig.show();
        rig.look();
        assert!(rig.writes.iter().all(|request| matches!(request.what, What::Assign { .. })));
    }
}

#[test]
fn a_write_is_conditional_on_the_leadership_and_on_all_that_it_was_decided_from() {
    let rig = {
        let mut rig = Rig::leading();
        rig.look();
        rig
    };
    let State::Leading(leading) = &rig.leadership.state else { panic!("it leads") };
    let What::Assign { assignment, .. } = rig.writes[0].what.clone() else { panic!("an assignment") };
    let condition = |key, revision| Condition { key, revision: Some(revision) };
    let known = [
        condition(Key::Leader, leading.held.revision),
        condition(Key::Node(assignment.node.clone()), assignment.revision),
    ];
    let one = Assignment { leases: vec![(host("host2"), 5)], ..assignment };
    let expected: Vec<Condition> =
        known.into_iter().chain([condition(Key::Lease(host("host2")), 5)]).collect();
    assert_eq!(assignment_txn(&leading.held, &one).conditions, expected);
}

#[test]
fn an_assignment_that_breaks_an_invariant_is_reported_and_not_written() {
    let mut rig = Rig::leading();
    rig.look();
    let What::Assign { assignment, .. } = rig.writes[0].what.clone() else { panic!("an assignment") };
    let State::Leading(leading) = &mut rig.leadership.state else { panic!("it leads") };
    let mut broken = assignment;
    broken.record.epoch = Epoch(0);
    let effect = leading.assign(broken, rig.now);
    assert!(matches!(effect, Some(Effect::Notice(Notice::Broken(..)))), "{effect:?}");
}

#[test]
fn a_look_without_changes_asks_for_nothing_until_it_is_due() {
    let mut rig = Rig::leading();
    rig.look();
    rig.end_all_writes();
    rig.show();
    while !rig.look().is_empty() {
        rig.end_all_writes();
        rig.show();
    }
    let due = rig.leadership.due(&rig.cache).unwrap();
    rig.pass(due.since(rig.now.boottime) - Duration::from_millis(1));
    assert_eq!(rig.look(), []);
    rig.pass(Duration::from_millis(1));
    assert!(matches!(rig.look().as_slice(), [Effect::Write(_), ..]), "silent leases are expired");
    assert!(rig.cache.view().nodes.contains_key(&node("alice/display")));
}
