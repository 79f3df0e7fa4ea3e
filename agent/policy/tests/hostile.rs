//! Guests that misbehave: whatever they do, the question ends in a named fault, and the next one is answered.
//!
//! Each guest is a core module in text form, made into a component by the same tool that linkers use. It behaves
//! while the terminal's name is that of the trial question, five letters long, and misbehaves for any other.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Site, component, placement_guest, question, settings};
use understudy_core::model::units::MiB;
use understudy_core::policy::{Interface, Pick, PlacementAnswer};
use understudy_policy::{LoadFault, PolicyFault, PolicySet, Settings};

/// Generous: on a busy machine a thread may wait for its turn much longer than a deadline lasts.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough that a guest that behaves is never late, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(1);

/// A set of this one guest, which has passed its trial.
fn set_with(body: &str) -> PolicySet {
    let site = Site::new();
    site.add("hostile", &placement_guest(body));
    let (set, faults) = site.load(&settings(DEADLINE));
    assert!(faults.is_empty(), "{faults:?}");
    set
}

/// What comes of a question that the guest misbehaves at; afterwards it must answer one that it likes.
fn misbehave(body: &str) -> Result<PlacementAnswer, PolicyFault> {
    let set = set_with(body);
    let outcome = set.ask_placement(&question("villain")).outcome;
    assert_eq!(
        set.ask_placement(&question("trial")).outcome,
        Ok(PlacementAnswer::default()),
        "after {outcome:?}"
    );
    outcome
}

#[test]
fn an_endless_loop_ends_at_the_deadline() {
    let set = set_with("(loop $l (br $l))");
    let start = Instant::now();
    let fault = set.ask_placement(&question("villain")).outcome.unwrap_err();
    assert_eq!(fault, PolicyFault::Deadline { policy: "hostile".to_owned(), limit: DEADLINE });
    assert!(start.elapsed() >= DEADLINE, "{:?}", start.elapsed());
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(fault.to_string(), "policy hostile did not answer within 1000 ms");
}

/// Many more questions than an engine has room for, by far more than twice.
const CROWD: usize = 160;

/// Asks as many questions at once as there are threads, and some of them have to wait. What came of each.
fn crowd(set: &PolicySet, threads: usize) -> Vec<Result<PlacementAnswer, PolicyFault>> {
    let start = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        let ask = || {
            start.wait();
            set.ask_placement(&question("villain")).outcome
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn more_questions_than_there_is_room_for_wait_and_are_answered() {
    // Counts for some tenths of a second, so that all are under way at once.
    let slow = "(local.set $request (i32.const 500000000))
        (loop $l (br_if $l (local.tee $request (i32.sub (local.get $request) (i32.const 1)))))";
    let site = Site::new();
    site.add("slow", &placement_guest(slow));
    let (set, faults) = site.load(&settings(PATIENCE));
    assert!(faults.is_empty(), "{faults:?}");
    let outcomes = crowd(&set, 40);
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(PlacementAnswer::default())), "{outcomes:?}");
}

#[test]
fn who_waits_for_room_in_vain_is_told_so_and_it_is_no_fault_of_the_policy() {
    let set = set_with("(loop $l (br $l))");
    // Those that got in end at their deadline; at that moment those that waited gave up, or have come in at last.
    let (mut late, mut busy) = (0, 0);
    for outcome in crowd(&set, CROWD) {
        match outcome {
            Err(PolicyFault::Deadline { .. }) => late += 1,
            Err(PolicyFault::Busy { policy }) => busy += usize::from(policy == "hostile"),
            other => panic!("{other:?}"),
        }
    }
    assert!(late >= 32 && late + busy == CROWD, "{late} were late, {busy} waited in vain");
    assert!(busy > 0, "{CROWD} questions of one second each do not fit into two seconds, 32 at a time");
}

#[test]
fn an_endless_loop_holds_up_no_other_question() {
    let site = Site::new();
    site.add("hostile", &placement_guest("(loop $l (br $l))"));
    site.add("honest", &placement_guest(""));
    let choose = |name: &str, deadline: Duration| Settings {
        choice: [(Interface::Placement, name.to_owned())].into(),
        ..settings(deadline)
    };
    let (hostile, _) = site.load(&choose("hostile", Duration::from_millis(500)));
    let (honest, _) = site.load(&choose("honest", PATIENCE));
    let (done, looped) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(hostile.ask_placement(&question("villain")).outcome));
        // Until the loop has ended, the other policy is asked again and again.
        let mut answers = 0;
        let outcome = loop {
            assert!(honest.ask_placement(&question("villain")).outcome.is_ok());
            answers += 1;
            if let Ok(outcome) = looped.try_recv() {
                break outcome;
            }
        };
        assert!(matches!(outcome, Err(PolicyFault::Deadline { .. })), "{outcome:?}");
        assert!(answers > 1);
    });
}

#[test]
fn an_endless_log_ends_at_the_deadline() {
    let outcome =
        misbehave("(loop $l (call $log (i32.const 2) (i32.const 524288) (i32.const 65536)) (br $l))");
    assert!(matches!(outcome, Err(PolicyFault::Deadline { .. })), "{outcome:?}");
}

#[test]
fn memory_ends_at_the_limit() {
    for (kind, body) in [
        ("memory", "(loop $l (drop (memory.grow (i32.const 64))) (br $l))"),
        ("at once", "(drop (memory.grow (i32.const 60000)))"),
        ("table", "(drop (table.grow $t (ref.null func) (i32.const 5000000)))"),
    ] {
        let fault = misbehave(body).unwrap_err();
        assert_eq!(fault, PolicyFault::Memory { policy: "hostile".to_owned(), limit: MiB(64) }, "{kind}");
    }
}

#[test]
fn a_trap_is_reported_with_what_the_guest_said_last() {
    for (body, parts) in [
        ("unreachable", &["unreachable"][..]),
        ("(call $deep)", &["stack"]),
        ("(drop (i32.load (i32.const 0x7fffffff)))", &["out of bounds"]),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", &["divide by zero"]),
        (
            "(call $log (i32.const 0) (i32.const 512) (i32.const 12)) unreachable",
            &["out of ideas", "unreachable"],
        ),
        // An answer that is neither `ok` nor `error`.
        ("(i32.store8 (i32.const 1024) (i32.const 7))", &["discriminant"]),
        // A list of picks beyond the end of memory.
        (
            "(i32.store (i32.const 1028) (i32.const 0x7ffffff0)) (i32.store (i32.const 1032) (i32.const 9))",
            &["bounds"],
        ),
        // An error text that is no UTF-8.
        (
            "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 0) (i32.const 255))
             (i32.store (i32.const 1028) (i32.const 0)) (i32.store (i32.const 1032) (i32.const 1))",
            &["utf-8"],
        ),
    ] {
        match misbehave(body) {
            Err(PolicyFault::Trap { message, .. }) => {
                assert!(parts.iter().all(|p| message.contains(p)), "{body}: {message}");
            }
            outcome => panic!("{body}: {outcome:?}"),
        }
    }
}

#[test]
fn an_answer_too_large_is_not_copied() {
    let grow = "(drop (memory.grow (i32.const 512)))";
    for (kind, tag, items) in [("a million picks", 0, 1_000_000), ("an error of 16 MiB", 1, 16 << 20)] {
        let fault = misbehave(&format!(
            "{grow} (i32.store8 (i32.const 1024) (i32.const {tag}))
             (i32.store (i32.const 1028) (i32.const 0)) (i32.store (i32.const 1032) (i32.const {items}))"
        ))
        .unwrap_err();
        assert_eq!(fault, PolicyFault::TooLarge { policy: "hostile".to_owned(), limit: MiB(4) }, "{kind}");
    }
    let log = format!("{grow} (call $log (i32.const 2) (i32.const 0) (i32.const {}))", 16 << 20);
    assert_eq!(misbehave(&log).unwrap_err().kind(), "too-large");
}

#[test]
fn lies_are_passed_on_for_core_to_refuse() {
    // Three picks at 2048: row 4294967295 without a reason, row 0 twice with a reason of two lines.
    let answer = misbehave(
        "(i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 3))
         (i32.store (i32.const 2048) (i32.const -1))
         (i32.store (i32.const 2068) (i32.const 1)) (i32.store (i32.const 2072) (i32.const 528))
         (i32.store (i32.const 2076) (i32.const 7))",
    )
    .unwrap();
    let pick = |index, reason: Option<&str>| Pick { index, reason: reason.map(str::to_owned) };
    assert_eq!(answer.picks, [pick(u32::MAX, None), pick(0, Some("two lin")), pick(0, None)]);
}

#[test]
fn a_number_that_is_none_is_the_same_on_every_machine() {
    // The interface has no numbers with a point, but a guest may make an answer out of the bits of one: picks the upper
    // half of 0/0 and of the square root of -1, whose bits are the processor's to choose.
    let upper = |nan: &str| format!("(i32.wrap_i64 (i64.shr_u (i64.reinterpret_f64 {nan}) (i64.const 32)))");
    let zeros = upper("(f64.div (f64.const 0) (f64.const 0))");
    let root = upper("(f64.neg (f64.neg (f64.sqrt (f64.const -1))))");
    let answer = misbehave(&format!(
        "(i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 2))
         (i32.store (i32.const 2048) {zeros}) (i32.store (i32.const 2064) {root})"
    ))
    .unwrap();
    let rows: Vec<u32> = answer.picks.iter().map(|pick| pick.index).collect();
    assert_eq!(rows, [0x7ff8_0000, 0x7ff8_0000], "{rows:x?}");
}

#[test]
fn what_happens_before_the_first_question_is_limited_as_well() {
    let honest = common::module("", "if (i32.const 0)");
    let with = |from: &str, to: &str| {
        let module = honest.replace(from, to);
        assert_ne!(module, honest);
        component(&module, "placement-policy")
    };
    let site = Site::new();
    site.add("starts", &with("(table $t", "(func $s (loop $l (br $l))) (start $s) (table $t"));
    site.add("hoards", &with(r#"(memory (export "memory") 16)"#, r#"(memory (export "memory") 2000)"#));
    site.add("vast", &with(r#"(memory (export "memory") 16)"#, r#"(memory (export "memory") 65536)"#));
    site.add("tables", &with("(table $t 1 ", "(table $t 1000000 "));
    let mut settings = settings(Duration::from_millis(200));
    settings.defaults.memory = MiB(8);
    let (set, faults) = site.load(&settings);
    let said: Vec<String> = faults.iter().map(|f| common::chain(f)).collect();
    // No policy may have the memory that `vast` asks for, whatever its settings: it does not even get to a trial.
    let expected =
        [("hoards", "8 MiB"), ("starts", "within 200 ms"), ("tables", "8 MiB"), ("vast", "does not compile")];
    for (name, part) in expected {
        let hits = said.iter().filter(|s| s.contains(&format!("policy {name} ")) && s.contains(part)).count();
        assert_eq!(hits, 1, "{name}: {said:#?}");
    }
    assert_eq!(set.policies().count(), 0);
}

#[test]
fn picks_beyond_those_wanted_are_cut_off() {
    let set = set_with(
        "(i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 100))",
    );
    let mut asked = question("villain");
    asked.wanted = 2;
    assert_eq!(set.ask_placement(&asked).outcome.unwrap().picks.len(), 2);
}

#[test]
fn an_error_of_the_guest_is_its_own_words_on_one_line() {
    let outcome = misbehave(
        "(i32.store8 (i32.const 1024) (i32.const 1))
         (i32.store (i32.const 1028) (i32.const 528)) (i32.store (i32.const 1032) (i32.const 9))",
    );
    assert_eq!(outcome.unwrap_err().to_string(), "policy hostile says: two lines");
}

#[test]
fn a_guest_that_fails_its_trial_is_not_used() {
    let site = Site::new();
    let at_trial = |body: &str| component(&common::module(body, "if (i32.const 1)"), "placement-policy");
    site.add("loops", &at_trial("(loop $l (br $l))"));
    site.add("hogs", &at_trial("(drop (memory.grow (i32.const 60000)))"));
    site.add("traps", &at_trial("unreachable"));
    site.add("honest", &placement_guest(""));
    let (set, faults) = site.load(&settings(DEADLINE));
    let said: Vec<String> = faults.iter().map(|f| common::chain(f)).collect();
    for (name, part) in [("hogs", "64 MiB"), ("loops", "within 1000 ms"), ("traps", "unreachable")] {
        let hits = said.iter().filter(|s| s.contains(&format!("policy {name} ")) && s.contains(part)).count();
        assert_eq!(hits, 1, "{name}: {said:#?}");
    }
    assert_eq!(faults.len(), 3, "{said:#?}");
    assert!(faults.iter().all(|f| matches!(f, LoadFault::Policy { .. })));
    assert_eq!(set.deciding(Interface::Placement).unwrap().name, "honest");
    assert!(set.ask_placement(&question("anyone")).outcome.is_ok());
}
