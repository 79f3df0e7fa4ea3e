//! The number of backups, as sentences.

use understudy_policy_sdk::backup_count::{Answer, Cluster, Question, Request, Role};
use understudy_policy_sdk::parameters::{self, Parameter};
use understudy_policy_sdk::{Label, testing};

use crate::Defaults;

type Pairs = &'static [(&'static str, &'static str)];

fn labels(pairs: &[(&str, &str)]) -> Vec<Label> {
    pairs.iter().map(|&(k, v)| Label { key: k.to_owned(), value: v.to_owned() }).collect()
}

fn request(role: Role, terminal: &[(&str, &str)], environment: &[(&str, &str)]) -> Request {
    Request {
        terminal_labels: labels(terminal),
        environment_labels: labels(environment),
        ..testing::backup_count(0).role(role).request
    }
}

fn cluster(hosts: u32, failures_last_day: u32) -> Cluster {
    testing::backup_count(hosts).failures_last_day(failures_last_day).cluster
}

fn count(request: &Request, cluster: &Cluster, defaults: Defaults) -> Answer {
    crate::count(&Question::new(request, *cluster, &[]), defaults)
}

#[test]
fn the_nearest_label_wins() {
    let cases: [(Pairs, Pairs, u32, u32); 6] = [
        (&[], &[], 1, 1),
        (&[("floor", "2")], &[("backups", "3")], 3, 3),
        (&[("backups", "2")], &[("backups", "3")], 2, 2),
        (&[("backups.display", "4"), ("backups", "2")], &[("backups", "3")], 4, 2),
        (&[("backups.execution", "0")], &[], 1, 0),
        (&[("backups", "0")], &[("backups", "3")], 0, 0),
    ];
    for (terminal, environment, display, execution) in cases {
        for (role, wanted) in [(Role::Display, display), (Role::Execution, execution)] {
            let request = request(role, terminal, environment);
            let counts = count(&request, &cluster(9, 0), Defaults::default()).unwrap();
            assert_eq!(
                (counts.primaries, counts.backups),
                (1, wanted),
                "{role:?} {terminal:?} {environment:?}"
            );
        }
    }
}

#[test]
fn there_are_never_more_backups_than_other_hosts() {
    let request = request(Role::Display, &[("backups", "3")], &[]);
    for (hosts, wanted) in [(0, 0), (1, 0), (2, 1), (4, 3), (5, 3)] {
        let counts = count(&request, &cluster(hosts, 0), Defaults::default()).unwrap();
        assert_eq!(counts.backups, wanted, "{hosts} hosts");
    }
    let reason = count(&request, &cluster(2, 0), Defaults::default()).unwrap().reason;
    assert_eq!(reason.as_deref(), Some("label backups=3, but only 1 other host(s)"));
}

#[test]
fn a_host_that_is_down_leaves_the_number_as_it_is() {
    let cluster = Cluster { hosts_ready: 1, ..cluster(3, 0) };
    let request = request(Role::Display, &[("backups", "2")], &[]);
    assert_eq!(count(&request, &cluster, Defaults::default()).unwrap().backups, 2);
}

#[test]
fn failures_add_a_backup_only_where_asked_and_without_a_label() {
    for (threshold, failures, label, wanted) in
        [(0, 50, None, 1), (3, 2, None, 1), (3, 3, None, 2), (3, 9, None, 2), (3, 9, Some("1"), 1)]
    {
        let labels: Vec<(&str, &str)> = label.map(|l| ("backups", l)).into_iter().collect();
        let defaults = Defaults { failures: threshold, ..Defaults::default() };
        let counts = count(&request(Role::Execution, &labels, &[]), &cluster(9, failures), defaults).unwrap();
        assert_eq!(counts.backups, wanted, "{threshold} {failures} {label:?}");
    }
}

#[test]
fn a_label_that_is_no_number_is_named() {
    for value in ["", "two", "-1", "1.5", "99999999999"] {
        let text =
            count(&request(Role::Display, &[("backups", value)], &[]), &cluster(3, 0), Defaults::default())
                .unwrap_err();
        assert_eq!(text, format!("label backups='{value}' of alice/display is no number from 0 on"));
    }
}

#[test]
fn parameters_set_defaults_and_bad_ones_are_refused() {
    let read = |key: &str, value: &str| {
        let given = [Parameter { key: key.to_owned(), value: value.to_owned() }];
        parameters::read(&given, Defaults::read)
    };
    assert_eq!(read("display", "2"), Ok(Defaults { display: 2, ..Defaults::default() }));
    assert_eq!(read("execution", "0"), Ok(Defaults { execution: 0, ..Defaults::default() }));
    assert_eq!(read("failures", "5"), Ok(Defaults { failures: 5, ..Defaults::default() }));
    assert!(read("backups", "2").unwrap_err().contains("'backups' is unknown"));
    assert!(read("display", "some").unwrap_err().contains("display='some'"));
}
