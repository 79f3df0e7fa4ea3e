//! The versions of the interface, served side by side.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{NOT_TRIAL, Site, component, component_v02, module, module_of, question, settings};
use understudy_core::policy::{Interface, Pick};
use understudy_policy::{Mode, PolicyFault, Settings};

/// Long enough that no guest is ever late.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where the columns of hosts begin behind a request of 0.1 and of 0.2, and in them `idle-count` and `idle`.
const IDLE: [usize; 2] = [88 + 120, 80 + 104];

/// One pick, which is the number of idle instances of the column's second entry.
fn picks_the_idle(column: usize) -> String {
    format!(
        "(i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 1))
         (i32.store (i32.const 2048) (i32.load offset=4 (i32.load offset={column} (local.get $request))))"
    )
}

fn with_mode(name: &str, mode: Mode) -> Settings {
    let mut all = settings(DEADLINE);
    let mut policy = all.of(name);
    policy.mode = mode;
    all.policies.insert(name.to_owned(), policy);
    all
}

#[test]
fn a_component_of_each_version_is_asked_the_same_question() {
    let site = Site::new();
    let [old, new] = IDLE.map(picks_the_idle);
    site.add("old", &component(&module(&old, NOT_TRIAL), "placement-policy"));
    site.add("new", &component_v02(&module_of("0.2.0", &new, NOT_TRIAL), "placement-policy"));
    let mut asked = question("anyone");
    asked.template = Some("standard".to_owned());
    // In 0.1 the second entry of all rows together, in 0.2 what the second row has of the template asked for.
    asked.hosts[0].idle = BTreeMap::from([("standard".to_owned(), 3)]);
    asked.hosts[1].idle = BTreeMap::from([("other".to_owned(), 7), ("standard".to_owned(), 5)]);
    for (shadow, decider) in [("new", "old"), ("old", "new")] {
        let (set, faults) = site.load(&with_mode(shadow, Mode::Shadow));
        assert!(faults.is_empty(), "{faults:?}");
        let pick = |index| vec![Pick { index, reason: None }];
        let rows = |name: &str| if name == "old" { pick(7) } else { pick(5) };
        let answer = set.ask_placement(&asked);
        assert_eq!(answer.by.unwrap().name, decider);
        assert_eq!(answer.outcome.unwrap().picks, rows(decider));
        assert_eq!(set.shadow_placement(&asked).remove(0).outcome.unwrap().picks, rows(shadow));
    }
}

#[test]
fn the_trial_version_tells_wrong_parameters_from_questions_that_cannot_be_answered() {
    // A result that is an error, whose case is at 1028 and whose text is at 1032.
    let refuses = |case: u32| {
        format!(
            "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1028) (i32.const {case}))
             (i32.store (i32.const 1032) (i32.const 512)) (i32.store (i32.const 1036) (i32.const 12))"
        )
    };
    let always =
        |case| component_v02(&module_of("0.2.0", &refuses(case), "if (i32.const 1)"), "placement-policy");
    let site = Site::new();
    site.add("parameters", &always(0));
    site.add("question", &always(1));
    let (set, faults) = site.load(&settings(DEADLINE));
    let said: Vec<String> = faults.iter().map(|fault| common::chain(fault)).collect();
    let part = "policy parameters cannot use its parameters: out of ideas";
    assert!(said.len() == 1 && said[0].contains(part), "{said:?}");
    assert_eq!(set.deciding(Interface::Placement).unwrap().name, "question");
    let fault = set.ask_placement(&question("anyone")).outcome.unwrap_err();
    assert!(matches!(&fault, PolicyFault::Guest { message, .. } if message == "out of ideas"), "{fault:?}");

    // In 0.1 an error is a text, so that any error at the trial is taken for the graver.
    let site = Site::new();
    let error = "(i32.store8 (i32.const 1024) (i32.const 1))
                 (i32.store (i32.const 1028) (i32.const 512)) (i32.store (i32.const 1032) (i32.const 12))";
    site.add("old", &component(&module(error, "if (i32.const 1)"), "placement-policy"));
    let (_, faults) = site.load(&settings(DEADLINE));
    assert_eq!(faults.len(), 1, "{faults:?}");
}

#[test]
fn what_a_policy_of_the_trial_version_logs_becomes_its_reason() {
    let body = "(call $log (i32.const 0) (i32.const 512) (i32.const 12)) unreachable";
    let site = Site::new();
    site.add("new", &component_v02(&module_of("0.2.0", body, NOT_TRIAL), "placement-policy"));
    let (set, faults) = site.load(&settings(DEADLINE));
    assert!(faults.is_empty(), "{faults:?}");
    let fault = set.ask_placement(&question("anyone")).outcome.unwrap_err().to_string();
    assert!(fault.contains("out of ideas") && fault.contains("unreachable"), "{fault}");
}
