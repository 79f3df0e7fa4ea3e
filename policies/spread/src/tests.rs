//! The order of hosts, as sentences.

use understudy_policy_sdk::parameters::{self, Parameter};
use understudy_policy_sdk::placement::{
    HostState, Hosts, NodeMember, Part, Purpose, Question, Request, Role, SiblingMember,
};
use understudy_policy_sdk::testing;

use crate::{Weights, rank};

/// `n` equal, empty hosts.
fn hosts(n: usize) -> Hosts {
    testing::placement(n).hosts
}

/// The same with one idle instance on each of `rows`.
fn with_idle(mut hosts: Hosts, rows: &[usize]) -> Hosts {
    for row in 0..hosts.state.len() {
        if rows.contains(&row) {
            hosts.idle_template.push(0);
            hosts.idle_count.push(1);
        }
        hosts.idle_start[row + 1] = u32::try_from(hosts.idle_template.len()).unwrap();
    }
    hosts
}

fn request(purpose: Purpose) -> Request {
    testing::placement(0).purpose(purpose).request
}

fn order(request: &Request, hosts: &Hosts) -> Vec<u32> {
    let question = Question::new(request, hosts, &[]);
    rank(&question, Weights::default()).iter().map(|p| p.host).collect()
}

#[test]
fn equal_hosts_stay_in_their_order() {
    assert_eq!(order(&request(Purpose::Primary), &hosts(3)), [0, 1, 2]);
    assert!(order(&request(Purpose::Primary), &hosts(0)).is_empty());
}

#[test]
fn a_host_that_takes_no_work_is_never_picked_and_a_degraded_one_is_last() {
    let mut hosts = hosts(5);
    hosts.state = vec![
        HostState::Degraded,
        HostState::Draining,
        HostState::Ready,
        HostState::Fenced,
        HostState::Unknown,
    ];
    assert_eq!(order(&request(Purpose::Primary), &hosts), [2, 0]);
}

#[test]
fn a_host_without_room_is_never_picked() {
    let mut hosts = hosts(4);
    hosts.free_memory_mib = vec![2047, 2048, 65_536, 65_536];
    hosts.free_vcpus = vec![16, 2, 1, 16];
    assert_eq!(order(&request(Purpose::Primary), &hosts), [3, 1]);
}

#[test]
fn an_idle_instance_needs_no_more_room_and_comes_first() {
    let mut hosts = with_idle(hosts(3), &[2]);
    hosts.free_memory_mib[2] = 0;
    for (purpose, expected) in [
        (Purpose::Primary, &[2, 0, 1][..]),
        (Purpose::WarmBackup, &[2, 0, 1]),
        // These take none: a reserved place runs nothing, a migration brings its own.
        (Purpose::HeldBackup, &[0, 1]),
        (Purpose::Migration, &[0, 1]),
    ] {
        assert_eq!(order(&request(purpose), &hosts), expected, "{purpose:?}");
    }
    let other_template = Request { template: None, ..request(Purpose::Primary) };
    assert_eq!(order(&other_template, &hosts), [0, 1]);
}

#[test]
fn a_host_of_the_same_node_comes_after_all_others_the_primarys_last() {
    let mut hosts = hosts(4);
    hosts.load_permille = vec![0, 0, 900, 1200];
    hosts.state[3] = HostState::Degraded;
    let mut request = request(Purpose::WarmBackup);
    request.members =
        vec![NodeMember { host: 0, part: Part::Primary }, NodeMember { host: 1, part: Part::Backup }];
    assert_eq!(order(&request, &hosts), [2, 3, 1, 0]);
    // One host may have both while members move: it counts as the primary's.
    request.members.push(NodeMember { host: 0, part: Part::Backup });
    assert_eq!(order(&request, &hosts), [2, 3, 1, 0]);
}

#[test]
fn nodes_of_one_terminal_go_to_different_hosts() {
    let mut hosts = hosts(3);
    hosts.load_permille = vec![0, 0, 900];
    let mut request = request(Purpose::Primary);
    let sibling = |host| SiblingMember { host, role: Role::Display, part: Part::Primary };
    request.siblings = vec![sibling(0), sibling(0), sibling(1), sibling(99)];
    assert_eq!(order(&request, &hosts), [2, 1, 0]);
}

#[test]
fn load_room_and_traffic_count_by_their_weights() {
    let mut hosts = hosts(3);
    // Row 0 is half full, row 1 is busy, row 2 has three migrations coming in.
    hosts.free_memory_mib[0] = 32_768;
    hosts.load_permille[1] = 700;
    hosts.migrations_in[2] = 3;
    let order = |room, load, traffic| {
        let request = request(Purpose::HeldBackup);
        let picks = rank(&Question::new(&request, &hosts, &[]), Weights { room, load, traffic });
        picks.iter().map(|p| p.host).collect::<Vec<_>>()
    };
    assert_eq!(order(2, 1, 1), [2, 1, 0]);
    assert_eq!(order(0, 1, 1), [0, 2, 1]);
    assert_eq!(order(1, 0, 1), [1, 2, 0]);
    assert_eq!(order(1, 1, 0), [2, 0, 1]);
    assert_eq!(order(0, 0, 0), [0, 1, 2]);
}

#[test]
fn only_as_many_as_are_wanted_and_they_are_the_best() {
    let mut hosts = hosts(100);
    hosts.load_permille = (0..100).map(|i| (i * 37) % 100).collect();
    let request = Request { wanted: 5, ..request(Purpose::Primary) };
    let expected: Vec<u32> = (0..5).map(|load| (0..100).find(|i| (i * 37) % 100 == load).unwrap()).collect();
    assert_eq!(order(&request, &hosts), expected);
    assert!(order(&Request { wanted: 0, ..request }, &hosts).is_empty());
}

#[test]
fn a_host_of_nothing_is_full() {
    let mut hosts = hosts(2);
    hosts.total_memory_mib[0] = 0;
    hosts.free_memory_mib[0] = u64::MAX;
    assert_eq!(order(&request(Purpose::HeldBackup), &hosts), [1, 0]);
}

#[test]
fn reasons_come_only_when_they_are_read() {
    let mut hosts = with_idle(hosts(2), &[0]);
    hosts.state[1] = HostState::Degraded;
    let mut request = request(Purpose::WarmBackup);
    request.members = vec![NodeMember { host: 1, part: Part::Primary }];
    let reasons = |request: &Request| {
        let question = Question::new(request, &hosts, &[]);
        rank(&question, Weights::default()).into_iter().map(|p| p.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&request), [None, None]);
    request.reasons = true;
    assert_eq!(
        reasons(&request),
        [
            Some("ready to take it, strain 0, 65536 MiB free".to_owned()),
            Some("no idle instance, has the node's primary, degraded, strain 0, 65536 MiB free".to_owned()),
        ]
    );
}

#[test]
fn parameters_set_weights_and_bad_ones_are_refused() {
    let read = |key: &str, value: &str| {
        let given = [Parameter { key: key.to_owned(), value: value.to_owned() }];
        parameters::read(&given, Weights::read)
    };
    assert_eq!(parameters::read(&[], Weights::read), Ok(Weights::default()));
    assert_eq!(read("load-weight", "7"), Ok(Weights { load: 7, ..Weights::default() }));
    for (key, value, part) in [
        ("weight", "1", "'weight' is unknown"),
        ("load-weight", "101", "load-weight='101'"),
        ("room-weight", "-1", "room-weight='-1'"),
        ("traffic-weight", "", "traffic-weight=''"),
    ] {
        let text = read(key, value).unwrap_err();
        assert!(text.contains(part), "{text}");
    }
}
