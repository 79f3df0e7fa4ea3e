//! The simulation as a test: known seeds, a few new ones, and whether it would notice.

use understudy_sim::{Options, REGRESSIONS, Weakness, run, run_or_panic, seeds};

/// How many seeds are run here; `cargo xtask sim` runs more.
fn count() -> u64 {
    std::env::var("UNDERSTUDY_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

#[test]
fn what_failed_once_holds() {
    let known = seeds(REGRESSIONS);
    assert!(!known.is_empty(), "regressions.txt has no seeds");
    for seed in known {
        run_or_panic(seed, Options::default());
    }
}

#[test]
fn the_guarantees_hold_whatever_fails_and_a_healed_cluster_comes_to_rest() {
    let (mut counts, mut in_line) = ([0; 3], 0);
    for seed in 1..=count() {
        let outcome = run_or_panic(seed, Options::default());
        in_line += outcome.events.iter().filter(|event| event.contains("is in line to lead")).count();
        for (sum, count) in counts.iter_mut().zip(outcome.counts) {
            *sum += count;
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "failovers, restores and migrations happen: {counts:?}");
    assert!(in_line > 20, "only {in_line} times did somebody take a place in the line");
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in [3, 4] {
        assert_eq!(run(seed, Options::default()).events, run(seed, Options::default()).events);
    }
}

/// A leader without the active set never plans, what is written was decided by the set that was active then, and a set
/// that was proposed is decided in the end.
#[test]
fn a_leader_change_never_changes_who_decides() {
    let options = Options { sets: true, ..Options::default() };
    let (mut changes, mut again) = (0, 0);
    for seed in 1..=count() {
        let outcome = run_or_panic(seed, options);
        let count = |what: &str| outcome.events.iter().filter(|event| event.contains(what)).count();
        changes += count("decides from here on");
        again += count("proposes again what was refused");
    }
    assert!(changes > 100, "only {changes} sets became active");
    assert!(again > 20, "only {again} refused sets were proposed again");
    let weak = Options { weakness: Some(Weakness::LeadsWithoutSet), hosts: Some(3), ..options };
    let noticed = (1..=100).filter_map(|seed| run(seed, weak).failure).find(|why| why.contains("SETS"));
    assert!(noticed.is_some(), "an agent that leads without the set breaks nothing in 100 seeds");
    let weak = Options { weakness: Some(Weakness::GivesUpSets), ..weak };
    let noticed = (1..=20).filter_map(|seed| run(seed, weak).failure).find(|why| why.contains("refused"));
    assert!(noticed.is_some(), "an agent that gives a refused set up is missed in 20 seeds");
}

/// An instance that resists its end, or that is ended while it is being made, is not dead yet; and what a record that
/// cannot be read may name belongs to its node.
#[test]
fn what_is_not_known_to_be_dead_or_free_is_taken_for_neither() {
    let options = Options { ailing: true, ..Options::default() };
    let mut counts = [0; 6];
    for seed in 1..=count() {
        let outcome = run_or_panic(seed, options);
        let events = [
            "destroys nothing",
            "an operator wants a failover",
            "an agent that cannot read",
            "refused before it had begun",
            "takes no images",
            "in the middle of images",
        ];
        for (sum, what) in counts.iter_mut().zip(events) {
            *sum += outcome.events.iter().filter(|event| event.contains(what)).count();
        }
    }
    // A host refuses only what it was given a moment before its libvirtd went away.
    let enough = counts.iter().zip([100, 100, 100, 30, 100, 100]).all(|(count, least)| *count > least);
    assert!(enough, "{counts:?}");
    for weakness in [Weakness::TrustsDestroys, Weakness::ForgetsUnread, Weakness::TrustsCopies] {
        let weak = Options { weakness: Some(weakness), hosts: Some(3), ..options };
        let named = |why: &String| why.contains(weakness.breaks());
        let noticed = (1..=30).filter_map(|seed| run(seed, weak).failure).find(named);
        assert!(noticed.is_some(), "{weakness:?} does not break {} in 30 seeds", weakness.breaks());
    }
}

/// A host was asked what it has, and got it a moment later; a host that left and came back as a backup had dropped what it
/// was counted on for; a deleted node's copies came back under its name.
#[test]
fn seeds_that_broke_something_where_hosts_are_asked_for_their_copies_hold() {
    for seed in [294, 428, 1345, 2211] {
        run_or_panic(seed, Options { ailing: true, ..Options::default() });
    }
    run_or_panic(2312, Options { sets: true, ..Options::default() });
}

/// Where the seeds begin with which parts of hosts fail.
const PARTIAL: u64 = 60_001;

/// A job that was late ended what a newer decision had begun under the same name; an agent that could not read what its
/// predecessor had reported made a dead member anew in the same epoch.
#[test]
fn seeds_that_broke_something_with_hosts_that_work_in_part_hold() {
    for seed in [511, 909, 1065, 1293, 1670, 2542, 2579, 3071, 3664, 4553] {
        run_or_panic(seed, Options { partial: true, ..Options::default() });
    }
}

/// What serves a host fails by itself, while the rest of the host works; and a guard that is gone, or was, is no licence.
#[test]
fn a_part_that_fails_takes_nothing_with_it() {
    let options = Options { partial: true, ..Options::default() };
    let events = [
        ": LostAnswer",
        "cannot be written",
        "stands still",
        "is stepped",
        "the guard of",
        "its table is damaged",
        "takes its time",
        "is heard by nobody",
        "hears nothing",
        "arrive twice",
        "panics",
        "error of its disk",
        "feed its watchdog",
        "is silent",
        "paused by hand",
        "is read-only",
        "cannot read",
    ];
    let mut counts = [0; 17];
    for seed in PARTIAL..PARTIAL + count() / 2 {
        let outcome = run_or_panic(seed, options);
        for (sum, what) in counts.iter_mut().zip(events) {
            *sum += outcome.events.iter().filter(|event| event.contains(what)).count();
        }
    }
    // Of six things that befall guests the rarest came nine times.
    assert!(counts.iter().all(|count| *count > 4), "{counts:?}");
    for weakness in [Weakness::GuardForgets, Weakness::SparesMembers] {
        let weak = Options { weakness: Some(weakness), hosts: Some(3), ..options };
        let named = |why: &String| why.contains(weakness.breaks());
        let noticed = (1..=30).filter_map(|seed| run(seed, weak).failure).find(named);
        assert!(noticed.is_some(), "{weakness:?} does not break {} in 30 seeds", weakness.breaks());
    }
}

#[test]
fn each_protection_that_is_switched_off_is_missed() {
    for weakness in [
        Weakness::DeadGuard,
        Weakness::EagerRestore,
        Weakness::EagerDestination,
        Weakness::CarelessReceiver,
        Weakness::StaysOpen,
        Weakness::BlindWrites,
    ] {
        let steps = Some(8_000);
        let options = Options { weakness: Some(weakness), hosts: Some(3), steps, ..Options::default() };
        let named = |why: &String| why.contains(weakness.breaks());
        let noticed = (1..=100).filter_map(|seed| run(seed, options).failure).find(named);
        assert!(noticed.is_some(), "{weakness:?} does not break {} in 100 seeds", weakness.breaks());
    }
}
