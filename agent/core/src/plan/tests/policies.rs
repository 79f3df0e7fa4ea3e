//! Tables of policies' answers.

use crate::fixture::{Cluster, Policy, host};
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, Interface, Pick, PlacementAnswer, PlacementQuestion,
};
use crate::view::Answer;

/// Always the same answer.
struct Says {
    picks: Vec<u32>,
    count: Option<(u32, u32)>,
}

impl Policy for Says {
    fn place(&mut self, _: &PlacementQuestion) -> Answer<PlacementAnswer> {
        let pick = |&index: &u32| Pick { index, reason: None };
        Answer::Given(PlacementAnswer { picks: self.picks.iter().map(pick).collect() })
    }
    fn count(&mut self, _: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
        self.count.map_or(Answer::Unavailable, |(primaries, backups)| {
            Answer::Given(BackupCountAnswer { primaries, backups, reason: None })
        })
    }
}

#[test]
fn a_policys_first_usable_pick_is_taken() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display"]);
    let plan = cluster.plan_with(&mut Says { picks: vec![2, 1, 0], count: Some((1, 1)) });
    cluster.apply(&plan);
    assert_eq!(cluster.primary_host("alice/display"), "host3");
    assert_eq!(cluster.backup_hosts("alice/display"), ["host2"], "host3 has the primary");
    assert_eq!(cluster.report.refusals, Vec::new());
}

#[test]
fn an_answer_without_a_usable_pick_is_refused_counted_and_done_without() {
    let cases: [(&str, Vec<u32>, &str); 5] = [
        ("empty", vec![], "it picked nothing"),
        ("out of range", vec![9], "pick 9 is no host"),
        ("draining", vec![1], "host2 may not take it"),
        ("full", vec![2], "host3 may not take it"),
        ("lost", vec![3, 3], "host4 may not take it"),
    ];
    for (case, picks, why) in cases {
        let mut cluster = Cluster::of(4);
        cluster.seen("host2").intent.drain = true;
        cluster.facts("host3").capacity.memory = crate::units::MiB(100);
        cluster.lose("host4");
        cluster.add(&["alice/display"]);
        let plan = cluster.plan_with(&mut Says { picks, count: Some((1, 0)) });
        cluster.apply(&plan);
        assert_eq!(cluster.primary_host("alice/display"), "host1", "{case}");
        let (interface, reason) = &cluster.report.refusals[0];
        assert_eq!(*interface, Interface::Placement, "{case}");
        assert!(reason.contains(why), "{case}: {reason}");
    }
}

#[test]
fn a_pick_that_is_repeated_counts_once() {
    let mut cluster = Cluster::of(3);
    cluster.add(&["alice/display"]);
    let plan = cluster.plan_with(&mut Says { picks: vec![1, 1, 1, 0], count: Some((1, 1)) });
    cluster.apply(&plan);
    assert_eq!(cluster.primary_host("alice/display"), "host2");
    assert_eq!(cluster.backup_hosts("alice/display"), ["host1"]);
}

#[test]
fn a_count_that_cannot_be_had_is_refused_and_the_built_in_rule_decides() {
    for answer in [(0, 1), (2, 1), (1, 17), (1, u32::MAX)] {
        let mut cluster = Cluster::of(3);
        cluster.add(&["alice/display"]);
        let plan = cluster.plan_with(&mut Says { picks: vec![0, 1, 2], count: Some(answer) });
        cluster.apply(&plan);
        assert_eq!(cluster.record("alice/display").backups.len(), 1, "{answer:?}");
        let (interface, reason) = &cluster.report.refusals[0];
        assert_eq!(*interface, Interface::BackupCount, "{answer:?}");
        assert!(reason.contains("alice/display"), "{reason}");
    }
}

#[test]
fn without_a_policy_the_label_says_how_many_backups_and_members_spread() {
    let mut cluster = Cluster::of(4);
    cluster.add(&["alice/display"]);
    cluster.edit("alice/display", |record| {
        record.spec.labels.insert("backups".to_owned(), "3".to_owned());
    });
    cluster.step();
    let mut hosts = cluster.backup_hosts("alice/display");
    hosts.push(cluster.primary_host("alice/display"));
    hosts.sort();
    assert_eq!(hosts, ["host1", "host2", "host3", "host4"]);
    assert_eq!(cluster.report.refusals, Vec::new(), "no policy is no refusal");
}

#[test]
fn a_question_names_the_hosts_in_order_and_what_is_free() {
    struct Sees(Option<PlacementQuestion>);
    impl Policy for Sees {
        fn place(&mut self, question: &PlacementQuestion) -> Answer<PlacementAnswer> {
            self.0.get_or_insert_with(|| question.clone());
            Answer::Unavailable
        }
    }
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    cluster.idle("host3", 2);
    cluster.add(&["bob/display"]);
    let mut sees = Sees(None);
    cluster.plan_with(&mut sees);
    let question = sees.0.unwrap();
    let hosts: Vec<_> = question.hosts.iter().map(|row| row.host.clone()).collect();
    assert_eq!(hosts, [host("host1"), host("host2"), host("host3")]);
    assert_eq!(question.hosts[2].idle["default"], 2);
    for row in &question.hosts {
        assert_eq!(row.free_memory, cluster.view.free_memory(&row.host), "{}", row.host);
    }
    assert_eq!(question.siblings, Vec::new(), "bob has no other node");
}
