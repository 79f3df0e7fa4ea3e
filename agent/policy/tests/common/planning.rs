//! The leader's part: a view of hosts, and a plan whose questions a set of policies answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_core::bounds::Profile;
use understudy_core::leader::{Plan, Question, Reply, Report, plan_asking};
use understudy_core::model::ids::BootId;
use understudy_core::model::records::{HostIntent, LeaseRecord};
use understudy_core::model::units::{Boottime, MiB, Now, UnixMillis};
use understudy_core::model::view::{Answer, HostView, Versioned, View};
use understudy_policy::PolicySet;

use super::samples::facts;

const NOW: Now = Now { boottime: Boottime(1_000_000_000_000), wall: UnixMillis(1_000_000) };

/// An open host with this much memory.
pub(crate) fn host(memory: MiB, drain: bool) -> Arc<HostView> {
    let lease = LeaseRecord::open(BootId("boot".to_owned()), Default::default(), 1);
    Arc::new(HostView {
        facts: Some(facts(memory).into()),
        lease: Versioned { value: lease, revision: 1 },
        renewed: 0,
        silent_since: Some(NOW.boottime),
        intent: HostIntent { drain },
    })
}

/// Plans as the leader does: asks until it has no more questions. Backup counts are the built-in rule's.
pub(crate) fn planned(view: &mut View, set: &PolicySet) -> (Plan, Report) {
    let answer = |question| match question {
        Question::Placement(question) => {
            let answer = set.ask_placement(&question).outcome.map_or(Answer::Unavailable, Answer::Given);
            Reply::Placement(question, answer)
        }
        Question::BackupCount(question) => Reply::BackupCount(question, Answer::Unavailable),
    };
    plan_asking(view, &BTreeMap::new(), &Profile::Safe.bounds(), NOW, answer, |_| None)
}
