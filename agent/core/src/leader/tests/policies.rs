//! Tables of policies' answers.

use crate::fixture::{Cluster, Policy, host};
use crate::leader::{explain, recount, replace};
use crate::model::view::Answer;
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, BuiltIn, Interface, Pick, PlacementAnswer, PlacementQuestion,
    PlacementVerdict, Purpose, Unusable,
};

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
        cluster.facts("host3").capacity.memory = crate::model::units::MiB(100);
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

/// What became of the first placement question of the last plan.
fn first_verdict(cluster: &Cluster) -> &PlacementVerdict {
    &cluster.report.judged.placements[0].1
}

#[test]
fn the_report_says_what_became_of_each_pick() {
    let mut cluster = Cluster::of(4);
    cluster.seen("host2").intent.drain = true;
    cluster.add(&["alice/display"]);
    let plan = cluster.plan_with(&mut Says { picks: vec![1, 9, 3, 3, 0], count: Some((1, 0)) });
    cluster.apply(&plan);
    let verdict = first_verdict(&cluster);
    assert_eq!(verdict.chosen, Some(host("host4")));
    assert_eq!(verdict.built_in, None, "the policy's own pick was used");
    let refused: Vec<_> =
        verdict.refused.iter().map(|pick| (pick.index, pick.host.clone(), pick.why)).collect();
    assert_eq!(
        refused,
        [
            (1, Some(host("host2")), Unusable::NotEligible),
            (9, None, Unusable::NoHost),
            (3, Some(host("host4")), Unusable::Repeated),
        ]
    );
    assert_eq!(verdict.refused[0].detail, "is draining");
    assert_eq!(cluster.report.refusals, Vec::new(), "an answer of which something is of use is no refusal");
}

#[test]
fn the_report_says_which_built_in_rule_decided_and_why() {
    let nothing = || Says { picks: Vec::new(), count: Some((1, 0)) };
    let cases: [(Box<dyn Policy>, Option<BuiltIn>); 4] = [
        (Box::new(crate::fixture::BuiltIn), Some(BuiltIn::NoAnswer)),
        (Box::new(nothing()), Some(BuiltIn::NothingPicked)),
        (Box::new(Says { picks: vec![7, 8], ..nothing() }), Some(BuiltIn::NothingUsable)),
        (Box::new(Says { picks: vec![7, 0], ..nothing() }), None),
    ];
    for (mut policy, why) in cases {
        let mut cluster = Cluster::of(2);
        cluster.add(&["alice/display"]);
        cluster.plan_with(policy.as_mut());
        assert_eq!(first_verdict(&cluster).built_in, why);
        assert_eq!(first_verdict(&cluster).chosen, Some(host("host1")));
    }
    for (answer, why, backups) in
        [((1, 2), None, 2), ((1, 17), Some(BuiltIn::OutOfBounds), 1), ((2, 0), Some(BuiltIn::OutOfBounds), 1)]
    {
        let mut cluster = Cluster::of(3);
        cluster.add(&["alice/display"]);
        cluster.plan_with(&mut Says { picks: vec![0, 1, 2], count: Some(answer) });
        let (question, verdict) = &cluster.report.judged.backup_counts[0];
        assert_eq!(question.node, crate::fixture::node("alice/display"));
        assert_eq!((verdict.built_in, verdict.backups), (why, backups), "{answer:?}");
    }
}

#[test]
fn a_primary_takes_an_idle_instance_first_and_a_backup_the_first_pick() {
    let mut cluster = Cluster::of(4);
    cluster.idle("host3", 2);
    cluster.idle("host4", 1);
    cluster.add(&["alice/display"]);
    let plan = cluster.plan_with(&mut Says { picks: vec![0, 2, 3], count: Some((1, 1)) });
    cluster.apply(&plan);
    assert_eq!(cluster.primary_host("alice/display"), "host3", "it has an idle instance");
    assert_eq!(cluster.backup_hosts("alice/display"), ["host1"], "nobody waits for a backup");
    let verdicts = &cluster.report.judged.placements;
    let hosts = |at: usize| (verdicts[at].1.first.clone(), verdicts[at].1.chosen.clone());
    assert_eq!(hosts(0), (Some(host("host3")), Some(host("host3"))));
    assert_eq!(hosts(1), (Some(host("host1")), Some(host("host1"))));
}

#[test]
fn an_idle_instance_that_is_too_small_is_not_counted_for_a_question() {
    let mut cluster = Cluster::of(2);
    cluster.idle("host2", 1);
    cluster.add(&["alice/display", "alice/exec-1"]);
    cluster.edit("alice/display", |record| record.spec.memory = crate::model::units::MiB(4_000));
    cluster.plan_with(&mut Says { picks: vec![0, 1], count: Some((1, 0)) });
    for (question, verdict) in &cluster.report.judged.placements {
        let large = question.node == crate::fixture::node("alice/display");
        assert_eq!(question.hosts[1].idle.is_empty(), large, "{}", question.node);
        let first = if large { "host1" } else { "host2" };
        assert_eq!((&verdict.first, &verdict.chosen), (&Some(host(first)), &Some(host(first))));
    }
    assert_eq!(cluster.report.judged.placements.len(), 2);
}

#[test]
fn explain_shows_the_question_of_the_next_member_and_each_host_with_its_verdict() {
    let mut cluster = Cluster::of(5).with(&["alice/exec-1"]);
    let (primary, backup) =
        (cluster.primary_host("alice/exec-1"), cluster.backup_hosts("alice/exec-1").remove(0));
    let free: Vec<String> =
        (1..=5).map(|n| format!("host{n}")).filter(|h| *h != primary && *h != backup).collect();
    cluster.seen(&free[0]).intent.drain = true;
    cluster.facts(&free[1]).capacity.memory = crate::model::units::MiB(100);
    let id = crate::fixture::node("alice/exec-1");
    let shown = explain(&cluster.view, &id, &cluster.bounds, cluster.now).unwrap();
    assert_eq!((shown.question.purpose, shown.question.reasons), (Purpose::HeldBackup, true));
    assert_eq!(shown.question.hosts.len(), 5);
    assert_eq!(shown.eligible.iter().map(ToString::to_string).collect::<Vec<_>>(), [free[2].clone()]);
    for (name, why) in [
        (&primary, "has a member of this node"),
        (&backup, "has a member of this node"),
        (&free[0], "is draining"),
        (&free[1], "free of"),
    ] {
        assert!(shown.excluded[&host(name)].contains(why), "{name}: {:?}", shown.excluded);
    }
    // It is the plan's own question, but for the reasons.
    let mut asked = None;
    struct Sees<'a>(&'a mut Option<PlacementQuestion>);
    impl Policy for Sees<'_> {
        fn place(&mut self, question: &PlacementQuestion) -> Answer<PlacementAnswer> {
            self.0.get_or_insert_with(|| question.clone());
            Answer::Unavailable
        }
        fn count(&mut self, _: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
            Answer::Given(BackupCountAnswer { primaries: 1, backups: 2, reason: None })
        }
    }
    cluster.plan_with(&mut Sees(&mut asked));
    assert_eq!(asked, Some(PlacementQuestion { reasons: false, ..shown.question.clone() }));
    let answer =
        PlacementAnswer { picks: vec![Pick { index: 0, reason: None }, Pick { index: 99, reason: None }] };
    let (ranked, verdict) = shown.judge(Some(&answer));
    assert_eq!(ranked, [host(&free[2])], "the built-in rule");
    assert_eq!((verdict.built_in, verdict.refused.len()), (Some(BuiltIn::NothingUsable), 2));
    assert!(
        explain(&cluster.view, &crate::fixture::node("bob/display"), &cluster.bounds, cluster.now).is_none()
    );
}

#[test]
fn explain_ranks_hosts_as_the_plan_tries_them() {
    let mut cluster = Cluster::of(4);
    cluster.idle("host3", 1);
    cluster.add(&["alice/display"]);
    let id = crate::fixture::node("alice/display");
    let mut says = Says { picks: vec![3, 2, 0], count: Some((1, 1)) };
    let picks = [3, 2, 0].map(|index| Pick { index, reason: None });
    let answer = PlacementAnswer { picks: picks.into() };
    let ranked = |cluster: &Cluster| {
        let shown = explain(&cluster.view, &id, &cluster.bounds, cluster.now).unwrap();
        let (ranked, verdict) = shown.judge(Some(&answer));
        assert_eq!(verdict.first, ranked.first().cloned());
        ranked
    };
    assert_eq!(ranked(&cluster), [host("host3"), host("host4"), host("host1")], "an idle instance first");
    let plan = cluster.plan_with(&mut says);
    cluster.apply(&plan);
    assert_eq!(cluster.primary_host("alice/display"), "host3");
    cluster.settle();
    cluster.edit("alice/display", |record| record.backups.clear());
    cluster.idle("host1", 1);
    assert_eq!(ranked(&cluster), [host("host4"), host("host1")], "nobody waits for a backup");
}

#[test]
fn explain_asks_for_a_primary_where_there_is_none_that_lives() {
    let mut cluster = Cluster::of(2).with(&["alice/display"]);
    let id = crate::fixture::node("alice/display");
    let purpose = |cluster: &Cluster| {
        explain(&cluster.view, &id, &cluster.bounds, cluster.now).unwrap().question.purpose
    };
    assert_eq!(purpose(&cluster), Purpose::WarmBackup);
    cluster.kill_primary("alice/display");
    assert_eq!(purpose(&cluster), Purpose::Primary);
    let primary = host(&cluster.primary_host("alice/display"));
    let shown = explain(&cluster.view, &id, &cluster.bounds, cluster.now).unwrap();
    assert!(shown.eligible.contains(&primary), "the dead primary's host may take the new one");
}

#[test]
fn an_old_question_is_judged_again_as_it_was_then() {
    let mut cluster = Cluster::of(4);
    cluster.seen("host2").intent.drain = true;
    cluster.add(&["alice/display"]);
    cluster.plan_with(&mut Says { picks: vec![1, 3], count: Some((1, 0)) });
    let (question, verdict) = cluster.report.judged.placements[0].clone();
    assert_eq!((verdict.eligible.as_slice(), verdict.first.clone()), (&[0, 2, 3][..], Some(host("host4"))));
    let said = |picks: &[u32]| PlacementAnswer {
        picks: picks.iter().map(|&index| Pick { index, reason: None }).collect(),
    };
    for (picks, first, rule) in [
        (&[1, 3][..], "host4", None),
        (&[1, 2], "host3", None),
        (&[1, 9], "host1", Some(BuiltIn::NothingUsable)),
        (&[], "host1", Some(BuiltIn::NothingPicked)),
    ] {
        let again = replace(&question, &verdict.eligible, Some(&said(picks)));
        assert_eq!((again.first, again.built_in), (Some(host(first)), rule), "{picks:?}");
    }
    assert_eq!(replace(&question, &verdict.eligible, None).built_in, Some(BuiltIn::NoAnswer));
    let (question, _) = &cluster.report.judged.backup_counts[0];
    let said = |primaries, backups| BackupCountAnswer { primaries, backups, reason: None };
    assert_eq!(recount(question, Some(&said(1, 3))).backups, 3);
    assert_eq!(recount(question, Some(&said(0, 3))).built_in, Some(BuiltIn::OutOfBounds));
    assert_eq!(recount(question, None).backups, 1);
}

/// Ranks all hosts, the last of the question first, and keeps to what is wanted or not.
struct Backwards {
    cuts: bool,
    /// How many picks each question wanted.
    wanted: Vec<u32>,
}

impl Backwards {
    fn new(cuts: bool) -> Self {
        Self { cuts, wanted: Vec::new() }
    }
}

impl Policy for Backwards {
    fn place(&mut self, question: &PlacementQuestion) -> Answer<PlacementAnswer> {
        self.wanted.push(question.wanted);
        let all = (0..u32::try_from(question.hosts.len()).unwrap()).rev();
        let wanted = if self.cuts { question.wanted as usize } else { usize::MAX };
        let picks = all.take(wanted).map(|index| Pick { index, reason: None }).collect();
        Answer::Given(PlacementAnswer { picks })
    }

    fn count(&mut self, _: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
        Answer::Given(BackupCountAnswer { primaries: 1, backups: 1, reason: None })
    }
}

#[test]
fn of_many_hosts_a_few_are_asked_for_and_all_where_the_few_do_not_settle_it() {
    // By name, and so in the question, host1 is the first of twenty and host9 the last.
    let ranked_late = ["host1", "host10", "host11", "host12"];
    let names: Vec<String> = (1..=20).map(|number| format!("host{number}")).collect();
    let early = || names.iter().map(String::as_str).filter(|name| !ranked_late.contains(name));
    let drain_early = |cluster: &mut Cluster| early().for_each(|h| cluster.seen(h).intent.drain = true);
    // What the cluster is like, where the primary goes, and how many picks were wanted for it.
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Cluster), &'a str, &'a [u32]);
    let cases: [Case<'_>; 5] = [
        ("no idle instance anywhere", &|_| (), "host9", &[16]),
        ("one among the few", &|cluster| cluster.idle("host5", 1), "host5", &[16]),
        ("one beyond the few", &|cluster| cluster.idle("host11", 1), "host11", &[16, 20]),
        ("none of the few may take it", &drain_early, "host12", &[16, 20]),
        (
            "an idle one on a host that may not take it",
            &|cluster| {
                cluster.idle("host1", 1);
                cluster.seen("host1").intent.drain = true;
            },
            "host9",
            &[16],
        ),
    ];
    for (case, make, primary, wanted) in cases {
        let placed = [true, false].map(|cuts| {
            let mut cluster = Cluster::of(20);
            make(&mut cluster);
            cluster.add(&["alice/display"]);
            let mut policy = Backwards::new(cuts);
            let plan = cluster.plan_with(&mut policy);
            cluster.apply(&plan);
            assert_eq!(cluster.report.refusals, Vec::new(), "{case}");
            if cuts {
                assert_eq!(policy.wanted[..wanted.len()], *wanted, "{case}");
            }
            (cluster.primary_host("alice/display"), cluster.backup_hosts("alice/display"))
        });
        assert_eq!(placed[0].0, primary, "{case}");
        assert_eq!(placed[0], placed[1], "{case}: as if all had been given at once");
    }
}

#[test]
fn an_answer_that_names_fewer_than_wanted_is_whole() {
    let mut cluster = Cluster::of(20);
    cluster.idle("host1", 1);
    cluster.add(&["alice/display"]);
    let plan = cluster.plan_with(&mut Says { picks: vec![2, 1], count: Some((1, 0)) });
    cluster.apply(&plan);
    assert_eq!(
        cluster.primary_host("alice/display"),
        "host11",
        "host1 has an idle instance and was not picked"
    );
}
