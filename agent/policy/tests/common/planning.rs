//! The leader's part: a view of hosts, and a plan whose questions a set of policies answers.

use std::sync::Arc;

use understudy_core::bounds::Profile;
use understudy_core::ids::BootId;
use understudy_core::plan::{Plan, Report, plan};
use understudy_core::records::{HostIntent, SessionRecord};
use understudy_core::units::{Boottime, MiB, Now, UnixMillis};
use understudy_core::view::{Answer, HostView, Versioned, View};
use understudy_policy::PolicySet;

use super::samples::facts;

const NOW: Now = Now { boottime: Boottime(1_000_000_000_000), wall: UnixMillis(1_000_000) };

/// An open host with this much memory.
pub(crate) fn host(memory: MiB, drain: bool) -> Arc<HostView> {
    let session = SessionRecord { boot: BootId("boot".to_owned()), number: 1, beat: 1, ended: None };
    Arc::new(HostView {
        facts: Some(facts(memory).into()),
        session: Versioned { value: session, revision: 1 },
        silent_since: NOW.boottime,
        intent: HostIntent { drain },
    })
}

/// Plans as the leader does: asks until the plan has no more questions. Backup counts are the built-in rule's where the
/// set does not answer.
pub(crate) fn planned(view: &mut View, set: &PolicySet) -> (Plan, Report) {
    for _ in 0..20 {
        let (plan, report) = plan(view, &Profile::Safe.bounds(), NOW);
        if !plan.has_questions() {
            return (plan, report);
        }
        for question in plan.placements {
            let answer = set.ask_placement(&question).outcome.map_or(Answer::Unavailable, Answer::Given);
            view.placements.insert(question, answer);
        }
        let counts = plan.backup_counts.into_iter().map(|question| (question, Answer::Unavailable));
        view.backup_counts.extend(counts);
    }
    panic!("the plan has ever new questions");
}
