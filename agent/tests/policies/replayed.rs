//! Recorded questions are put again with the parameters of their time.

use std::path::Path;

use understudy::policy_manager::records::{
    self, Asking, Decision, Log, Matter, PolicyId, RecordedPolicy, Said, SetLine, VERSION,
};
use understudy::policy_manager::replay::{NoReplay, Replayed, replay};
use understudy_core::model::units::{MiB, UnixMillis};
use understudy_core::policy::PlacementVerdict;
use understudy_policy::{FUEL, Limits, Replayer};

use crate::rig::guest;
use crate::rig::guests::{component, module};
use crate::rig::samples::question;

/// Where the list of parameters lies behind a request (88 bytes) and 26 columns: its address, then its length. The value
/// of a parameter lies 8 bytes behind its name.
const FIRST_DIGIT: &str =
    "(i32.sub (i32.load8_u (i32.load offset=8 (i32.load offset=296 (local.get $request)))) (i32.const 48))";

/// Picks the host whose place is the value of its one parameter.
fn picks_its_parameter() -> Vec<u8> {
    guest(
        &format!(
            "(i32.store (i32.const 2048) {FIRST_DIGIT})
            (i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 1))"
        ),
        "1",
    )
}

fn set(generation: u64, place: &str) -> SetLine {
    let policy = RecordedPolicy {
        digest: "d".repeat(64),
        mode: "decide".to_owned(),
        decides: Default::default(),
        deadline_ms: 500,
        memory: MiB(64),
        parameters: [("place".to_owned(), place.to_owned())].into(),
    };
    SetLine { v: VERSION, at: UnixMillis(0), generation, set: [("mine".to_owned(), policy)].into() }
}

/// A question that the first host was the answer to.
fn decision(generation: u64) -> Decision {
    let question = question("villain");
    let first = Some(question.hosts[0].host.clone());
    let made = PlacementVerdict {
        eligible: vec![0, 1],
        chosen: first.clone(),
        first,
        refused: Vec::new(),
        built_in: None,
    };
    let id = PolicyId { name: "mine".to_owned(), digest: "d".repeat(64) };
    let decided = Said { policy: Some(id), took_us: 1, answer: None, fault: None };
    let asking = Asking { question, decided, made: Some(made), shadows: Vec::new() };
    Decision {
        v: VERSION,
        at: UnixMillis(generation),
        generation,
        term: Some(1),
        matter: Matter::Placement(asking),
    }
}

/// Two decisions of a set that picks the first host, three of one that picks the second.
fn again(dir: &Path, name: &str, policy: &[u8], as_recorded: bool) -> Result<Replayed, NoReplay> {
    let mut log = Log::new(dir, MiB(1));
    for generation in [1, 1, 2, 2, 2] {
        let line = set(generation, if generation == 1 { "0" } else { "1" });
        log.append(&line, &decision(generation)).unwrap();
    }
    let history = records::read(dir, UnixMillis(0)).unwrap();
    let parameters = [("place".to_owned(), "1".to_owned())].into();
    let mut replayer = Replayer::new(name, policy, &parameters, Limits::default(), FUEL).unwrap();
    replay(&history, &mut replayer, as_recorded)
}

#[test]
fn a_question_is_put_with_the_parameters_of_its_time_unless_others_are_given() {
    let policy = picks_its_parameter();
    for (name, as_recorded, differences) in [
        ("mine", true, vec![2, 2, 2]),
        ("mine", false, vec![1, 1, 2, 2, 2]),
        ("other", true, vec![1, 1, 2, 2, 2]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let replayed = again(dir.path(), name, &policy, as_recorded).unwrap();
        let at: Vec<u64> = replayed.differences.iter().map(|difference| difference.at.0).collect();
        assert_eq!((replayed.questions, at), (5, differences), "{name}, {as_recorded}");
        assert!(replayed.differences.iter().all(|difference| difference.would != difference.was));
    }
}

#[test]
fn parameters_of_a_set_that_a_policy_refuses_end_the_replay_with_what_to_do() {
    // It traps at any question, the trial's too, where its parameter is 0.
    let body = format!("(if (i32.eqz {FIRST_DIGIT}) (then unreachable))");
    let text = module(&body, "if (i32.load offset=300 (local.get $request))");
    let policy = component(&text, "placement-policy");
    let dir = tempfile::tempdir().unwrap();
    let fault = again(dir.path(), "mine", &policy, true).unwrap_err();
    assert_eq!(fault.to_string(), "with its parameters of set 1: give it others by --settings");
}
