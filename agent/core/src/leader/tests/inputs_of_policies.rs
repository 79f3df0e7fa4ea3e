//! What policies are told, and what is written before they have answered.

use std::time::Duration;

use crate::fixture::{Cluster, Policy, node};
use crate::model::view::Answer;
use crate::policy::{BackupCountAnswer, BackupCountQuestion, PlacementAnswer, PlacementQuestion};

/// Keeps the questions, and says how many backups there are to be.
#[derive(Default)]
struct Listens {
    backups: u32,
    placements: Vec<PlacementQuestion>,
    counts: Vec<BackupCountQuestion>,
}

impl Policy for Listens {
    fn place(&mut self, question: &PlacementQuestion) -> Answer<PlacementAnswer> {
        self.placements.push(question.clone());
        Answer::Unavailable
    }
    fn count(&mut self, question: &BackupCountQuestion) -> Answer<BackupCountAnswer> {
        self.counts.push(question.clone());
        Answer::Given(BackupCountAnswer { primaries: 1, backups: self.backups, reason: None })
    }
}

#[test]
fn a_policy_is_shown_the_deficit_that_the_last_plan_found() {
    let mut cluster = Cluster::of(2);
    cluster.add(&["alice/display", "bob/display"]);
    // Two hosts have room for one backup of each, so that two of each are lacking in the end.
    for expected in [(0, 0), (3, 6), (2, 4), (2, 4)] {
        let mut policy = Listens { backups: 3, ..Listens::default() };
        let plan = cluster.plan_with(&mut policy);
        let reported: Vec<_> =
            policy.counts.iter().map(|reported| (reported.deficit, reported.cluster.deficit)).collect();
        assert!(
            !reported.is_empty() && reported.iter().all(|reported| *reported == expected),
            "{expected:?}: {reported:?}"
        );
        cluster.apply(&plan);
        let lacks = cluster.report.lacks.iter().filter(|(_, lack)| lack.backups > 0);
        cluster.deficits = lacks.map(|(node, lack)| (node.clone(), lack.backups)).collect();
        cluster.obey();
    }
}

#[test]
fn a_policy_is_shown_every_failure_of_the_last_day() {
    let failures = |cluster: &mut Cluster| {
        let mut policy = Listens { backups: 1, ..Listens::default() };
        let plan = cluster.plan_with(&mut policy);
        cluster.apply(&plan);
        cluster.obey();
        policy.counts.last().unwrap().cluster.failures_last_day
    };
    let mut cluster = Cluster::of(3).with(&["alice/display"]);
    assert_eq!(failures(&mut cluster), 0);
    for number in 1..=3 {
        cluster.pass(Duration::from_hours(7));
        cluster.kill_primary("alice/display");
        cluster.step();
        assert_eq!(failures(&mut cluster), number, "each counts, not the last of each node");
    }
    cluster.pass(Duration::from_hours(11));
    assert_eq!(failures(&mut cluster), 2, "the first is more than a day ago");
    cluster.pass(Duration::from_hours(24));
    assert_eq!(failures(&mut cluster), 0);
}

#[test]
fn a_policy_is_shown_the_labels_of_the_environment_and_of_the_checkpoints_by_their_interval() {
    let mut cluster = Cluster::of(3).with(&["alice/exec-1"]);
    let (primary, backup) =
        (cluster.primary_host("alice/exec-1"), cluster.backup_hosts("alice/exec-1").remove(0));
    cluster.edit("alice/exec-1", |record| {
        record.spec.environment_labels.insert("tier".to_owned(), "gold".to_owned());
    });
    let known = cluster.facts(&primary).protection.get_mut(&node("alice/exec-1")).unwrap();
    known.bytes = 40 << 20;
    for (interval, rate) in [(5, 8 << 10), (20, 2 << 10)] {
        cluster.bounds.checkpoint_interval = Duration::from_secs(interval);
        let mut policy = Listens { backups: 2, ..Listens::default() };
        cluster.plan_with(&mut policy);
        let (placed, counted) = (&policy.placements[0], &policy.counts[0]);
        assert_eq!(placed.environment_labels["tier"], "gold");
        assert_eq!(counted.environment_labels["tier"], "gold");
        for row in &placed.hosts {
            let traffic = (row.traffic.checkpoint_out_kib_s, row.traffic.checkpoint_in_kib_s);
            let expected = match row.host.as_str() {
                name if name == primary => (rate, 0),
                name if name == backup => (0, rate),
                _ => (0, 0),
            };
            assert_eq!(traffic, expected, "{} every {interval} s", row.host);
        }
    }
}
