//! Tables of what becomes of sets of policies.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{FolderState, OpenHosts, PolicySetRecord, PolicySets, Refusal, RefusedSet, SetFault, Verdict};
use crate::fixture::{Cluster, host};
use crate::model::units::{Boottime, UnixMillis};
use crate::model::view::Versioned;

const NOW: UnixMillis = UnixMillis(77);

fn components(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, digest)| (name.to_owned(), digest.to_owned())).collect()
}

fn set(generation: u64, pairs: &[(&str, &str)]) -> Versioned<PolicySetRecord> {
    let value = PolicySetRecord {
        generation,
        components: components(pairs),
        settings: String::new(),
        suspended: BTreeMap::new(),
        restored: BTreeMap::new(),
        by: host("host1"),
    };
    Versioned { value, revision: generation }
}

fn folder(pairs: &[(&str, &str)], settings: Option<&str>) -> FolderState {
    FolderState { components: components(pairs), settings: settings.map(str::to_owned) }
}

fn ready(cluster: &mut Cluster, name: &str, generations: &[u64]) {
    cluster.facts(name).policies.ready = generations.iter().copied().collect();
}

fn fails(cluster: &mut Cluster, name: &str, generation: u64, fault: SetFault) {
    cluster.facts(name).policies.faults.insert(generation, fault);
}

fn candidate() -> PolicySets {
    PolicySets {
        active: Some(set(1, &[("spread", "aa")])),
        candidate: Some(set(2, &[("spread", "bb"), ("count", "cc")])),
        refused: None,
    }
}

#[test]
fn a_candidate_becomes_active_only_when_every_open_host_has_it_ready() {
    let mut cluster = Cluster::of(3);
    let sets = candidate();
    let judge = |cluster: &Cluster| sets.judge(&cluster.view.hosts, NOW).unwrap();
    let hosts = |names: &[&str]| Verdict::Waits(names.iter().map(|name| host(name)).collect());
    assert_eq!(judge(&cluster), hosts(&["host1", "host2", "host3"]));
    ready(&mut cluster, "host1", &[1, 2]);
    ready(&mut cluster, "host2", &[1]);
    ready(&mut cluster, "host3", &[2]);
    assert_eq!(judge(&cluster), hosts(&["host2"]));
    // A host that has not reported in its open lease is one that may lead in a moment.
    ready(&mut cluster, "host2", &[1, 2]);
    cluster.facts("host3").lease = 0;
    assert_eq!(judge(&cluster), hosts(&["host3"]));
    // One that is lost has to catch up before it may lead.
    cluster.lose("host3");
    let Verdict::Activate(record) = judge(&cluster) else { panic!("{:?}", judge(&cluster)) };
    assert_eq!(
        (record.generation, &record.components),
        (2, &set(2, &[("spread", "bb"), ("count", "cc")]).value.components)
    );
    assert_eq!(PolicySets { candidate: None, ..sets.clone() }.judge(&cluster.view.hosts, NOW), None);
}

#[test]
fn a_host_that_cannot_use_a_candidate_refuses_it_and_says_why() {
    let mut cluster = Cluster::of(3);
    for name in ["host1", "host3"] {
        ready(&mut cluster, name, &[1, 2]);
    }
    // A fault of another generation is no fault of this one.
    fails(&mut cluster, "host2", 1, SetFault::Unusable("old".to_owned()));
    assert!(matches!(candidate().judge(&cluster.view.hosts, NOW), Some(Verdict::Waits(_))));
    fails(&mut cluster, "host2", 2, SetFault::Missing("nobody has bb".to_owned()));
    assert!(matches!(candidate().judge(&cluster.view.hosts, NOW), Some(Verdict::Waits(_))), "it may come");
    fails(&mut cluster, "host2", 2, SetFault::Unusable("spread: does not compile".to_owned()));
    let refused = RefusedSet {
        generation: 2,
        by: host("host1"),
        reason: "host2: spread: does not compile".to_owned(),
        at: NOW,
        refusers: [(host("host2"), Some(1))].into(),
    };
    assert_eq!(candidate().judge(&cluster.view.hosts, NOW), Some(Verdict::Refuse(refused)));
    cluster.lose("host2");
    assert!(
        matches!(candidate().judge(&cluster.view.hosts, NOW), Some(Verdict::Activate(_))),
        "a lost host has no say"
    );
}

#[test]
fn a_candidate_whose_components_are_lost_with_its_host_is_refused() {
    let mut cluster = Cluster::of(3);
    cluster.lose("host1");
    fails(&mut cluster, "host2", 2, SetFault::Missing("nobody".to_owned()));
    assert_eq!(
        candidate().judge(&cluster.view.hosts, NOW),
        Some(Verdict::Waits(vec![host("host2"), host("host3")]))
    );
    fails(&mut cluster, "host3", 2, SetFault::Missing("nobody".to_owned()));
    let Some(Verdict::Refuse(refused)) = candidate().judge(&cluster.view.hosts, NOW) else { panic!() };
    assert!(refused.reason.contains("host1"), "{}", refused.reason);
    let refusers = [(host("host1"), None), (host("host2"), Some(1)), (host("host3"), Some(1))];
    assert_eq!(refused.refusers, refusers.into());
}

#[test]
fn what_is_suspended_stays_so_until_its_component_changes() {
    let mut cluster = Cluster::of(1);
    ready(&mut cluster, "host1", &[2]);
    let mut sets = candidate();
    sets.active = Some(set(1, &[("spread", "aa"), ("count", "cc"), ("gone", "dd")]));
    for name in ["spread", "count", "gone"] {
        let record =
            sets.suspend(name, &sets.active.as_ref().unwrap().value.components[name], "3 traps").unwrap();
        sets.active.as_mut().unwrap().value = record;
    }
    let Some(Verdict::Activate(record)) = sets.judge(&cluster.view.hosts, NOW) else { panic!() };
    assert_eq!(
        record.suspended.into_iter().collect::<Vec<_>>(),
        [("count".to_owned(), "3 traps".to_owned())]
    );
}

#[test]
fn restores_are_counted_for_good() {
    let mut cluster = Cluster::of(1);
    ready(&mut cluster, "host1", &[2]);
    let mut sets = candidate();
    sets.active = Some(set(1, &[("spread", "aa"), ("gone", "dd")]));
    for name in ["gone", "spread", "spread"] {
        sets.active.as_mut().unwrap().value = sets.restored(name).unwrap();
    }
    let Some(Verdict::Activate(record)) = sets.judge(&cluster.view.hosts, NOW) else { panic!() };
    assert_eq!(record.restored, [("gone".to_owned(), 1), ("spread".to_owned(), 2)].into());
    // A record without restores is read, and written, as one of an agent that does not know of them.
    let text = serde_json::to_string(&set(1, &[]).value).unwrap();
    assert!(!text.contains("restored"), "{text}");
    assert_eq!(serde_json::from_str::<PolicySetRecord>(&text).unwrap(), set(1, &[]).value);
}

#[test]
fn a_policy_is_suspended_once_and_restored_once() {
    let mut sets = candidate();
    assert_eq!(
        sets.suspend("spread", "bb", "why"),
        None,
        "another component failed than the one that decides"
    );
    assert_eq!(sets.suspend("count", "cc", "why"), None, "it belongs to the candidate only");
    assert_eq!(sets.restored("count"), None);
    let record = sets.suspend("spread", "aa", "why").unwrap();
    assert_eq!(record.generation, 1, "the set is the same");
    sets.active = Some(Versioned { value: record, revision: 9 });
    assert_eq!(sets.suspend("spread", "aa", "why"), None);
    let back = sets.restored("spread").unwrap();
    assert_eq!(back.suspended, BTreeMap::new());
    assert_eq!(back.restored, [("spread".to_owned(), 1)].into());
    assert_eq!(PolicySets::default().restored("spread"), None);
}

#[test]
fn a_change_in_one_folder_is_made_to_the_newest_set_and_leaves_the_rest_of_it() {
    let me = host("host2");
    let with = |active, candidate| PolicySets { active, candidate, refused: None };
    let (none, one) = (folder(&[], None), folder(&[("spread", "aa")], Some("x")));
    // The first folder is the first candidate.
    let first = PolicySets::default().changed_by(&me, &none, &one).unwrap();
    assert_eq!((first.generation, first.by.clone(), first.settings.as_str()), (1, me.clone(), "x"));
    assert_eq!(PolicySets::default().changed_by(&me, &none, &none), None);
    // Added, changed and removed; what another folder brought stays, and so do the settings.
    let mut base = set(4, &[("a", "1"), ("b", "1"), ("theirs", "9")]);
    base.value.settings = "s".to_owned();
    let before = folder(&[("a", "1"), ("b", "1")], None);
    let after = folder(&[("b", "2"), ("c", "1")], None);
    let sets = with(Some(set(3, &[])), Some(base.clone()));
    let next = sets.changed_by(&me, &before, &after).unwrap();
    assert_eq!(next.components, components(&[("b", "2"), ("c", "1"), ("theirs", "9")]));
    assert_eq!((next.generation, next.settings.as_str()), (5, "s"));
    // A file that did not change is not proposed again, although the set has another.
    assert_eq!(sets.changed_by(&me, &after, &after), None);
    assert_eq!(
        sets.changed_by(&me, &folder(&[("b", "0")], None), &folder(&[("b", "1")], None)),
        None,
        "it has that already"
    );
    // Settings come and go with the file.
    let gone = sets.changed_by(&me, &folder(&[], Some("s")), &folder(&[], None)).unwrap();
    assert_eq!(gone.settings, "");
    assert_eq!(gone.components, base.value.components);
}

#[test]
fn generations_only_grow_also_over_refused_ones() {
    let refused = RefusedSet {
        generation: 8,
        by: host("host1"),
        reason: String::new(),
        at: NOW,
        refusers: BTreeMap::new(),
    };
    let sets = PolicySets { refused: Some(Versioned { value: refused, revision: 1 }), ..candidate() };
    assert_eq!(sets.newest(), 8);
    let next = sets.changed_by(&host("host1"), &folder(&[], None), &folder(&[("x", "1")], None)).unwrap();
    assert_eq!(next.generation, 9);
}

#[test]
fn only_who_has_the_active_set_may_lead_unless_nobody_can_have_it() {
    let mut cluster = Cluster::of(3);
    let sets = candidate();
    let may = |cluster: &mut Cluster, name: &str| {
        let own = cluster.facts(name).policies.clone();
        sets.may_lead(&own, &cluster.view.hosts)
    };
    assert!(!may(&mut cluster, "host1"), "it is still loading");
    ready(&mut cluster, "host1", &[2]);
    assert!(!may(&mut cluster, "host1"), "the candidate is not the active one");
    ready(&mut cluster, "host1", &[1]);
    assert!(may(&mut cluster, "host1"));
    assert!(PolicySets::default().may_lead(&Default::default(), &cluster.view.hosts), "there is no set");
    fails(&mut cluster, "host2", 1, SetFault::Unusable("x".to_owned()));
    assert!(!may(&mut cluster, "host2"), "another host has it");
    // All that are open cannot: the built-in rules are better than no leader.
    cluster.lose("host1");
    assert!(!may(&mut cluster, "host2"), "host3 is still loading");
    fails(&mut cluster, "host3", 1, SetFault::Missing("x".to_owned()));
    assert!(may(&mut cluster, "host2") && may(&mut cluster, "host3"));
    // One that comes back and may have it makes the others wait.
    cluster.reopen("host1");
    cluster.facts("host1").policies = Default::default();
    assert!(!may(&mut cluster, "host2"));
}

#[test]
fn records_read_back_as_they_were_written() {
    let record = set(3, &[("spread", "aa")]).value;
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<PolicySetRecord>(&text).unwrap(), record);
    let old = r#"{"generation":8,"by":"host1","reason":"why","at":77}"#;
    assert_eq!(serde_json::from_str::<RefusedSet>(old).unwrap().refusers, BTreeMap::new());
    let mut facts = super::SetFacts::default();
    facts.ready.insert(3);
    facts.faults.insert(4, SetFault::Missing("why".to_owned()));
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<super::SetFacts>(&text).unwrap(), facts);
}

const SECOND: Duration = Duration::from_secs(1);

fn open(pairs: &[(&str, u64)]) -> OpenHosts {
    pairs.iter().map(|&(name, lease)| (host(name), lease)).collect()
}

#[test]
fn a_refused_change_is_proposed_again_soon_after_a_sign_and_seldom_without() {
    let refused = |refusers: &[(&str, Option<u64>)]| RefusedSet {
        generation: 8,
        by: host("host1"),
        reason: "host2: no room".to_owned(),
        at: NOW,
        refusers: refusers.iter().map(|&(name, lease)| (host(name), lease)).collect(),
    };
    let loaded = [("host2", Some(3))];
    let lost = [("host1", None), ("host2", Some(3))];
    // What was refused by whom, which set decides, who is open, and after how many seconds it is due.
    let cases: [(&str, &[_], u64, &[_], u32); 9] = [
        ("nothing changed", &loaded, 5, &[("host1", 1), ("host2", 3)], 30),
        ("another host changed", &loaded, 5, &[("host1", 2), ("host2", 3), ("host3", 1)], 30),
        ("the host came back", &loaded, 5, &[("host1", 1), ("host2", 4)], 2),
        ("the host is gone", &loaded, 5, &[("host1", 1)], 2),
        ("another set decides", &loaded, 6, &[("host1", 1), ("host2", 3)], 2),
        ("the proposer is still gone", &lost, 5, &[("host2", 3)], 30),
        ("the proposer came back", &lost, 5, &[("host1", 2), ("host2", 3)], 2),
        ("one that lacked it came back", &lost, 5, &[("host2", 4)], 2),
        ("an old record names nobody", &[], 5, &[("host1", 1)], 30),
    ];
    let at = Boottime(7_000_000_000);
    for (what, refusers, active, hosts, seconds) in cases {
        let refusal = Refusal::by_hosts(None, &refused(refusers), 5, at);
        assert_eq!(refusal.due(active, &open(hosts)), at + SECOND * seconds, "{what}");
    }
}

#[test]
fn waits_double_with_each_refusal_up_to_a_bound() {
    let at = Boottime(0);
    let waits = |passes: bool| {
        let mut last: Option<Refusal> = None;
        let mut due = Vec::new();
        for times in 1..=100 {
            let refusal = Refusal::here(last.as_ref(), passes, 5, at);
            assert_eq!(refusal.times(), times);
            due.push(refusal.due(5, &open(&[])).since(at).as_secs());
            last = Some(refusal);
        }
        due
    };
    for (passes, first, longest) in [(false, [30, 60, 120, 240, 480], 900), (true, [2, 4, 8, 16, 32], 60)] {
        let waits = waits(passes);
        assert_eq!(waits[..5], first);
        assert!(waits[5..].iter().all(|wait| *wait == longest), "{waits:?}");
    }
}
