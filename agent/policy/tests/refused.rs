//! What core makes of guests that lie: the checks behind the sandbox, with real guests in front.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::time::Duration;

use common::planning::{host, planned};
use common::samples::spec;
use common::{Site, settings};
use understudy_core::invariants;
use understudy_core::model::ids::HostId;
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::MiB;
use understudy_core::model::view::{Versioned, View};
use understudy_core::policy::Interface;

const NODE: &str = "alice/display";

/// Row 0 is draining, row 1 is full, rows 2 and 3 would do; one node that has no member yet.
fn view() -> View {
    let name = |name: &str| name.parse::<HostId>().unwrap();
    let mut view = View::default();
    view.hosts.insert(name("a-draining"), host(MiB(4096), true));
    view.hosts.insert(name("b-full"), host(MiB(100), false));
    view.hosts.insert(name("c"), host(MiB(4096), false));
    view.hosts.insert(name("d"), host(MiB(8192), false));
    let record = NodeRecord::new(spec(), "token".to_owned());
    view.nodes.insert(NODE.parse().unwrap(), Versioned { value: record, revision: 2 });
    view
}

/// A guest that picks these rows for whatever it is asked: first for the primary, then for its backup.
fn picks(rows: &[i32]) -> String {
    let mut body = format!(
        "(i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const {}))",
        rows.len()
    );
    for (at, row) in rows.iter().enumerate() {
        body += &format!("(i32.store (i32.const {}) (i32.const {row}))", 2048 + 16 * at);
    }
    body
}

#[test]
fn no_guest_puts_a_member_where_none_may_be() {
    // What the guest does, whether core refuses its whole answer and with which words, and the primary's host.
    let cases: [(&str, String, Option<&str>, &str); 10] = [
        ("honest", picks(&[2, 3]), None, "c"),
        ("draining", picks(&[0]), Some("a-draining may not take it"), "d"),
        ("full", picks(&[1]), Some("b-full may not take it"), "d"),
        ("draining and full first", picks(&[0, 1, 2, 3]), None, "c"),
        ("out of range", picks(&[4, i32::MAX, -1]), Some("pick 4294967295 is no host"), "d"),
        ("repeated", picks(&[3, 3, 3]), Some("d may not take it"), "d"),
        ("nothing", picks(&[]), Some("it picked nothing"), "d"),
        ("a trap", "unreachable".to_owned(), None, "d"),
        ("a loop", "(loop $l (br $l))".to_owned(), None, "d"),
        ("too much memory", "(drop (memory.grow (i32.const 60000)))".to_owned(), None, "d"),
    ];
    for (what, body, refused, primary) in cases {
        let site = Site::new();
        // `alice` has five letters, as the trial's terminal does: the condition is another one here.
        let condition = "if (i32.ne (i32.load8_u (i32.load (local.get $request))) (i32.const 116))";
        let guest = common::component(&common::module(&body, condition), "placement-policy");
        site.add("guest", &guest);
        let (set, faults) = site.load(&settings(Duration::from_millis(500)));
        assert!(faults.is_empty(), "{what}: {faults:?}");
        let mut view = view();
        let (plan, report) = planned(&mut view, &set);
        let [assignment] = &plan.assignments[..] else { panic!("{what}: {plan:?}") };
        let placed = assignment.record.primary.as_ref().unwrap();
        assert_eq!(placed.host.as_str(), primary, "{what}");
        let broken = invariants::broken_by(&view, &Default::default(), assignment);
        assert!(broken.is_empty(), "{what}: {broken:?}");
        let said: Vec<&str> = report
            .refusals
            .iter()
            .filter(|(interface, _)| *interface == Interface::Placement)
            .map(|(_, reason)| reason.as_str())
            .collect();
        match refused {
            None => assert_eq!(said, [""; 0], "{what}"),
            Some(part) => assert!(said.iter().any(|reason| reason.contains(part)), "{what}: {said:?}"),
        }
    }
}
