//! What an author of a policy has: the check of a file, old questions answered again, a measurement.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Site, chain, component, module, placement_guest, question, settings};
use understudy_core::model::units::MiB;
use understudy_core::policy::Interface;
use understudy_policy::{
    BenchFault, CheckReport, Digest, FUEL, FileFault, Limits, PolicyFault, ReplayFault, Replayer, Wanted,
    bench, built_in, check,
};

/// Long enough that no guest that behaves is late.
const DEADLINE: Duration = Duration::from_secs(10);

fn checked(name: &str, bytes: &[u8]) -> CheckReport {
    let site = Site::new();
    site.add(name, bytes);
    check(&site.path().join(format!("{name}.wasm")), &settings(DEADLINE)).unwrap()
}

#[test]
fn a_check_tells_what_a_good_component_is_and_takes() {
    let bytes = placement_guest("");
    let report = checked("good", &bytes);
    assert!(report.fault.is_none(), "{report:?}");
    assert_eq!(report.digest, Some(Digest::of(&bytes)));
    assert_eq!(report.bytes, bytes.len() as u64);
    assert!(report.imports.iter().any(|name| name == "understudy:policy/log@0.1.0"), "{report:?}");
    assert_eq!(report.exports, ["understudy:policy/placement@0.1.0"]);
    assert_eq!(report.answers, BTreeSet::from([Interface::Placement]));
    assert!(report.compiled.is_some_and(|took| took > Duration::ZERO));
    let [trial] = &report.trials[..] else { panic!("{report:?}") };
    assert_eq!((trial.interface, &trial.outcome), (Interface::Placement, &Ok(())));
    assert!(trial.memory >= 1 << 20 && trial.memory < 2 << 20, "its memory has 16 pages: {trial:?}");
    assert!(trial.took > Duration::ZERO);
    assert_eq!(report.limits.deadline, DEADLINE);
}

#[test]
fn a_check_tells_as_much_as_can_be_known_of_a_bad_one() {
    let good = placement_guest("");
    let wasi = wat::parse_str(r#"(component (import "wasi:io/poll@0.2.9" (instance)))"#).unwrap();
    let trap = component(&module("unreachable", "if (i32.const 1)"), "placement-policy");
    let large = vec![0; (32 << 20) + 1];
    let cases: [(&str, &[u8], &str, usize); 5] = [
        ("wasi", &wasi, "imports wasi:io/poll", 0),
        ("truncated", &good[..good.len() / 2], "no whole WebAssembly", 0),
        ("traps", &trap, "failed the trial question for placement: policy traps broke off: wasm", 1),
        ("Bad-name", &good, "its name is not one", 0),
        ("large", &large, "larger than 32 MiB", 0),
    ];
    for (name, bytes, part, trials) in cases {
        let report = checked(name, bytes);
        let said = chain(report.fault.as_ref().unwrap());
        assert!(said.contains(part), "{name}: {said}");
        assert_eq!(report.bytes, bytes.len() as u64, "{name}");
        assert_eq!(report.trials.len(), trials, "{name}");
    }
    assert_eq!(checked("wasi", &wasi).imports, ["wasi:io/poll@0.2.9"]);
    let site = Site::new();
    let report = check(&site.path().join("absent.wasm"), &settings(DEADLINE)).unwrap();
    assert!(matches!(report.fault, Some(FileFault::Read(_))), "{report:?}");
    let report = check(site.path(), &settings(DEADLINE)).unwrap();
    assert!(matches!(report.fault, Some(FileFault::Kind)), "{report:?}");
}

fn replayer(body: &str, fuel: u64) -> Replayer {
    let guest = placement_guest(body);
    Replayer::new("old", &guest, &BTreeMap::new(), Limits::default(), fuel).unwrap()
}

#[test]
fn a_replay_answers_as_the_set_does() {
    let picks = "(i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 2))
                 (i32.store (i32.const 2048) (i32.const 2)) (i32.store (i32.const 2064) (i32.const 1))";
    let site = Site::new();
    site.add("old", &placement_guest(picks));
    let (set, _) = site.load(&settings(DEADLINE));
    let replayer = replayer(picks, FUEL);
    assert_eq!(*replayer.digest(), set.deciding(Interface::Placement).unwrap().digest);
    for name in ["villain", "trial"] {
        let question = question(name);
        assert_eq!(replayer.ask_placement(&question), set.ask_placement(&question).outcome, "{name}");
    }
}

#[test]
fn a_replay_ends_by_instructions_and_always_at_the_same_one() {
    // Counts in a global until its fuel is used up, and logs nothing: the outcome is the limit, whatever the machine.
    let looping = replayer("(loop $l (br $l))", 1_000_000);
    let fault = PolicyFault::Fuel { policy: "old".to_owned(), limit: 1_000_000 };
    for _ in 0..3 {
        assert_eq!(looping.ask_placement(&question("villain")), Err(fault.clone()));
    }
    assert_eq!(fault.kind(), "fuel");
    // One more than enough is enough, one less is not: instructions are counted, not guessed.
    let answers = |fuel| {
        let guest = placement_guest("");
        let replayer = Replayer::new("old", &guest, &BTreeMap::new(), Limits::default(), fuel);
        replayer.is_ok_and(|replayer| replayer.ask_placement(&question("villain")).is_ok())
    };
    let (mut short, mut enough) = (0, 1 << 20);
    assert!(!answers(short) && answers(enough));
    while enough - short > 1 {
        let middle = short + (enough - short) / 2;
        if answers(middle) { enough = middle } else { short = middle }
    }
    for _ in 0..3 {
        assert!(!answers(short) && answers(enough), "{short} are too few, {enough} enough");
    }
}

#[test]
fn what_is_no_policy_answers_no_old_questions() {
    let new = |bytes: &[u8]| Replayer::new("old", bytes, &BTreeMap::new(), Limits::default(), FUEL);
    let refuses = component(
        &module(
            "(i32.store8 (i32.const 1024) (i32.const 1))
             (i32.store (i32.const 1028) (i32.const 512)) (i32.store (i32.const 1032) (i32.const 12))",
            "if (i32.const 1)",
        ),
        "placement-policy",
    );
    for (what, bytes, part) in
        [("noise", &b"noise"[..], "no whole WebAssembly"), ("refuses", &refuses, "old says: out of ideas")]
    {
        let fault = new(bytes).unwrap_err();
        assert!(
            matches!(fault, ReplayFault::Component(_)) && chain(&fault).contains(part),
            "{what}: {fault:?}"
        );
    }
    let hungry = placement_guest("(drop (memory.grow (i32.const 64)))");
    let limits = Limits { memory: MiB(2), ..Limits::default() };
    let replayer = Replayer::new("old", &hungry, &BTreeMap::new(), limits, FUEL).unwrap();
    let fault = replayer.ask_placement(&question("villain")).unwrap_err();
    assert_eq!(fault, PolicyFault::Memory { policy: "old".to_owned(), limit: MiB(2) });
}

#[test]
fn a_measurement_has_a_row_for_each_number_of_hosts() {
    let guest = component(&module("", "if (i32.const 0)"), "placement-policy");
    let own = settings(DEADLINE).of("bench");
    let rows = bench(&guest, &own, (&[10, 100], Wanted::Few), Duration::ZERO, &built_in).unwrap();
    assert_eq!(rows.iter().map(|row| row.hosts).collect::<Vec<_>>(), [10, 100]);
    for row in rows {
        assert!(
            row.questions >= 20 && row.policy > Duration::ZERO && row.columns > Duration::ZERO,
            "{row:?}"
        );
        assert!(row.ratio() > 0.0 && row.per_second() > 0.0);
    }
    let traps = component(&module("unreachable", "if (i32.const 1)"), "placement-policy");
    let fault = bench(&traps, &own, (&[10], Wanted::All), Duration::ZERO, &built_in).unwrap_err();
    assert!(matches!(fault, BenchFault::Answer { hosts: 10, .. }), "{fault:?}");
}
