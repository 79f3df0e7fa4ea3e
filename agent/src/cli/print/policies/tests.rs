//! What an operator reads, word by word: lists, explanations, replays.

use std::collections::BTreeMap;

use understudy_core::model::ids::HostId;
use understudy_core::model::units::{MiB, UnixMillis};
use understudy_core::policy::{BuiltIn, HostState, Interface, RefusedPick, Unusable};
use understudy_core::sets::RefusedSet;

use super::*;
use crate::policy_manager::explain::{ExplainedHost, ExplainedShadow};
use crate::policy_manager::records::{Fault, PolicyId, Said};
use crate::policy_manager::replay::Difference;
use crate::policy_manager::status::{CandidateStatus, PolicyStatus, ShadowStatus};

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn policy(name: &str, digest: char, decides: &[&str]) -> PolicyStatus {
    let words: Vec<String> = decides.iter().map(|&word| word.to_owned()).collect();
    PolicyStatus {
        name: name.to_owned(),
        digest: digest.to_string().repeat(64),
        mode: "decide".to_owned(),
        exports: words.clone(),
        decides: words,
        shadows: Vec::new(),
        suspended: None,
        deadline_ms: 500,
        memory_mib: 64,
    }
}

fn deciders(placement: Option<&str>, count: Option<&str>) -> BTreeMap<String, Option<String>> {
    let name = |name: Option<&str>| name.map(str::to_owned);
    [("backup-count".to_owned(), name(count)), ("placement".to_owned(), name(placement))].into()
}

/// Compares line by line, so that the first that differs is shown.
fn reads(text: &str, expected: &[&str]) {
    for (at, (is, wanted)) in text.lines().zip(expected).enumerate() {
        assert_eq!(is, *wanted, "line {} of\n{text}", at + 1);
    }
    assert_eq!(text.lines().count(), expected.len(), "{text}");
    assert!(text.ends_with('\n'));
}

#[test]
fn a_list_without_policies_says_who_decides_in_their_place() {
    let status = PoliciesStatus { deciding: deciders(None, None), ready: true, ..Default::default() };
    reads(
        &list(&status),
        &[
            "no set of policies decides",
            "backup-count is decided by the built-in rule",
            "placement is decided by the built-in rule",
        ],
    );
}

#[test]
fn a_list_shows_who_decides_who_looks_on_and_who_is_suspended() {
    let mut shadow = policy("pack", 'c', &[]);
    shadow.mode = "shadow".to_owned();
    shadow.shadows = vec![ShadowStatus { interface: "placement".to_owned(), answers: 120, differences: 7 }];
    let mut suspended = policy("count", 'a', &[]);
    suspended.suspended = Some("failed 3 times in a row, last: trap: out of ideas".to_owned());
    let mut spread = policy("spread", 'b', &["placement"]);
    (spread.deadline_ms, spread.memory_mib) = (10_000, 1_024);
    let status = PoliciesStatus {
        generation: 12,
        by: Some(host("host2")),
        deciding: deciders(Some("spread"), None),
        policies: vec![suspended, shadow, spread],
        ready: true,
        differs: vec!["pack.wasm".to_owned(), "policies.toml".to_owned()],
        unproposed: vec!["pack.wasm".to_owned()],
        ..Default::default()
    };
    reads(
        &list(&status),
        &[
            "set 12, from the folder of host2",
            "POLICY  DIGEST        MODE       DECIDES    SHADOWS                      DEADLINE    MEMORY",
            "count   aaaaaaaaaaaa  suspended  -          -                              500 ms    64 MiB",
            "pack    cccccccccccc  shadow     -          placement (7 of 120 differ)    500 ms    64 MiB",
            "spread  bbbbbbbbbbbb  decide     placement  -                            10000 ms  1024 MiB",
            "backup-count is decided by the built-in rule",
            "placement is decided by policy spread",
            "policy count is suspended: it failed 3 times in a row, last: trap: out of ideas",
            "    it comes back with a new file, or by `understudy policy restore count`",
            "this host's folder differs from what decides: pack.wasm, policies.toml",
            "    to have pack.wasm of this host decide: `understudy policy propose`",
        ],
    );
}

#[test]
fn a_list_says_what_waits_for_whom_what_was_refused_and_what_is_wrong() {
    let waits = |hosts: &[&str]| CandidateStatus {
        generation: 4,
        by: host("host1"),
        waits: hosts.iter().map(|&host| host.to_owned()).collect(),
    };
    let refused = RefusedSet {
        generation: 3,
        by: host("host1"),
        reason: "host3: no room".to_owned(),
        at: UnixMillis(0),
        refusers: BTreeMap::new(),
    };
    let mut status = PoliciesStatus {
        generation: 2,
        by: Some(host("host1")),
        deciding: deciders(Some("spread"), Some("count")),
        candidate: Some(waits(&["host2", "host3"])),
        refused: Some(refused),
        ready: false,
        faults: vec!["/p/bad.wasm: is a core module, not a component".to_owned()],
        ..Default::default()
    };
    let printed = [
        "backup-count is decided by policy count",
        "placement is decided by policy spread",
        "set 4 of host1 takes over as soon as host2, host3 has it",
        "set 3 of host1 was refused: host3: no room",
        "this host cannot lead: set 2 is not ready on it",
        "    /p/bad.wasm: is a core module, not a component",
    ];
    // `status` begins with the same lines.
    reads(&deciding(&status), &printed);
    status.candidate = Some(waits(&[]));
    assert!(deciding(&status).contains("set 4 of host1 takes over as soon as the leader has it\n"));
}

fn row(
    name: &str,
    state: HostState,
    rank: Option<usize>,
    excluded: Option<&str>,
    reason: Option<&str>,
) -> ExplainedHost {
    let text = |text: Option<&str>| text.map(str::to_owned);
    ExplainedHost {
        host: host(name),
        state,
        free_memory: MiB(4_096),
        idle: 1,
        excluded: text(excluded),
        rank,
        reason: text(reason),
    }
}

fn explanation() -> Explained {
    let id = PolicyId { name: "spread".to_owned(), digest: "b".repeat(64) };
    Explained {
        node: "alice/exec-1".parse().unwrap(),
        purpose: Purpose::HeldBackup,
        memory: MiB(512),
        said: Said { policy: Some(id), took_us: 87, answer: None, fault: None },
        built_in: None,
        first: Some(host("host3")),
        hosts: vec![
            row("host1", HostState::Ready, None, Some("has a member of this node"), None),
            row("host2", HostState::Ready, Some(2), None, None),
            row("host3", HostState::Ready, Some(1), None, Some("most room")),
            row("host4", HostState::Draining, None, Some("is draining"), Some("empty")),
            row("host5", HostState::Degraded, None, None, None),
        ],
        refused: vec![
            RefusedPick { index: 9, host: None, why: Unusable::Repeated, detail: String::new() },
            RefusedPick {
                index: 1,
                host: Some(host("host2")),
                why: Unusable::Repeated,
                detail: String::new(),
            },
        ],
        shadows: Vec::new(),
    }
}

#[test]
fn an_explanation_shows_what_shadows_would_have_done() {
    let shadow = |name: &str, fault: Option<&str>, built_in, ranked: &[&str], differs| ExplainedShadow {
        said: Said {
            policy: Some(PolicyId { name: name.to_owned(), digest: "c".repeat(64) }),
            took_us: 9,
            answer: None,
            fault: fault.map(|text| Fault { kind: "trap".to_owned(), message: text.to_owned() }),
        },
        built_in,
        ranked: ranked.iter().map(|name| host(name)).collect(),
        differs,
    };
    let mut shown = explanation();
    shown.shadows = vec![
        shadow("pack", None, None, &["host2", "host3"], true),
        shadow("zones", None, None, &["host3"], false),
        shadow("odd", None, Some(BuiltIn::NothingUsable), &["host3"], false),
        shadow("broken", Some("policy broken broke off: out of ideas"), None, &["host3"], false),
    ];
    let lines = explained(&shown);
    let lines: Vec<&str> = lines.lines().filter(|line| line.starts_with("shadow")).collect();
    let printed = [
        "shadow pack would try host2, host3 (another first)",
        "shadow zones would try host3 (the same first)",
        "shadow odd answered and would not be used: nothing-usable",
        "shadow broken did not answer: policy broken broke off: out of ideas",
    ];
    assert_eq!(lines, printed);
}

#[test]
fn an_explanation_shows_each_host_in_the_order_in_which_it_would_be_tried() {
    reads(
        &explained(&explanation()),
        &[
            "alice/exec-1 needs 512 MiB for another backup (a reserved place)",
            "policy spread (bbbbbbbbbbbb) answered in 87 us",
            "RANK  HOST   STATE         FREE  IDLE  WHY",
            "   1  host3  ready     4096 MiB     1  most room",
            "   2  host2  ready     4096 MiB     1",
            "   -  host1  ready     4096 MiB     1  not eligible: it has a member of this node",
            "   -  host4  draining  4096 MiB     1  not eligible: it is draining (policy: empty)",
            "   -  host5  degraded  4096 MiB     1  eligible, not picked",
            "refused: pick 9 is no host",
            "refused: host2 was picked twice",
        ],
    );
}

#[test]
fn an_explanation_says_why_the_built_in_rule_decides() {
    let second = |shown: &Explained| explained(shown).lines().nth(1).unwrap().to_owned();
    let mut shown = explanation();
    shown.built_in = Some(BuiltIn::NothingUsable);
    assert_eq!(second(&shown), "policy spread answered and the built-in rule decides: nothing-usable");
    shown.said.fault =
        Some(Fault { kind: "suspended".to_owned(), message: "failed 3 times in a row".to_owned() });
    assert_eq!(second(&shown), "the built-in rule decides: failed 3 times in a row");
    (shown.said.policy, shown.said.fault) = (None, None);
    assert_eq!(second(&shown), "the built-in rule decides");
}

#[test]
fn a_replay_tells_each_difference_and_then_how_many_there_were() {
    let difference = |interface, was: &str, by: &str, would: &str, why: Option<&str>| Difference {
        at: UnixMillis(1_798_761_599_000),
        interface,
        node: "alice/display".parse().unwrap(),
        was: was.to_owned(),
        by: by.to_owned(),
        would: would.to_owned(),
        why: why.map(str::to_owned),
    };
    let shown = Replayed {
        questions: 40,
        same: 38,
        differences: vec![
            difference(Interface::Placement, "host1", "spread", "host2", Some("fewest hosts")),
            difference(Interface::BackupCount, "1 backups", "built-in rule", "2 backups", None),
        ],
        failures: 1,
        passed_over: 6,
        unreadable: 2,
    };
    reads(
        &replayed(&shown),
        &[
            "2026-12-31T23:59:59Z placement of alice/display: host1 by spread, would be host2 (fewest hosts)",
            "2026-12-31T23:59:59Z backup-count of alice/display: 1 backups by built-in rule, would be 2 backups",
            "40 questions: 38 alike, 2 otherwise, 1 not answered; 6 passed over, 2 lines unreadable",
        ],
    );
    reads(
        &replayed(&Replayed::default()),
        &["0 questions: 0 alike, 0 otherwise, 0 not answered; 0 passed over, 0 lines unreadable"],
    );
}

#[test]
fn times_are_shown_in_utc() {
    for (millis, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399_999, "2000-02-28T23:59:59Z"),
        (951_782_400_000, "2000-02-29T00:00:00Z"),
        (1_798_761_599_000, "2026-12-31T23:59:59Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(utc(millis), text);
    }
}
