//! Owns what acts come to: phases with their times, verdicts, and the table that ends a story.
//!
//! Promises: an act that cannot go on keeps what it has reached, and a verdict of its own says why it broke off. Must not
//! look at the cluster.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::Value;

/// One verdict with what it rests on.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What was promised.
    pub promise: String,
    /// Whether it held.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

/// One act: its phases with their times, and its verdicts.
#[derive(Debug, Clone, Default)]
pub struct Act {
    /// What was done.
    pub title: String,
    /// Phases with the time since the fault, in the order in which they ended.
    pub phases: Vec<(String, Duration)>,
    /// The verdicts.
    pub verdicts: Vec<Verdict>,
    /// Screenshots taken.
    pub pictures: Vec<PathBuf>,
    /// Whether it could not be told to its end.
    pub broken_off: bool,
}

impl Act {
    /// An act that could not even begin.
    #[must_use]
    pub fn not_begun(title: &str, error: &anyhow::Error) -> Self {
        let mut act = Self { title: title.to_owned(), ..Self::default() };
        act.break_off(error);
        act
    }

    pub(super) fn begin(&mut self, title: impl Into<String>) {
        self.title = title.into();
    }

    pub(super) fn judge(&mut self, promise: impl Into<String>, holds: bool, seen: impl Into<String>) {
        self.verdicts.push(Verdict { promise: promise.into(), holds, seen: seen.into() });
    }

    pub(super) fn phase(&mut self, name: &str, since: Duration) {
        self.phases.push((name.to_owned(), since));
    }

    /// The agents' own timeline of a node's last failover, from the fault on: the lab's hosts have the clock of the machine.
    pub(super) fn incident_phases(&mut self, node: &Value, fault: UnixMs) {
        let incident = &node["incident"];
        let at = |name: &str| incident[name].as_u64();
        let Some(found) = at("found") else { return };
        self.judge(
            "the record is of this failure: found after it",
            found >= fault.0,
            format!("fault at {} ms, found at {found} ms", fault.0),
        );
        for (from, name, label) in [
            (fault.0, "found", "fault to found (agents' clocks)"),
            (found, "decided", "found to decided (agents' clocks)"),
            (found, "ready", "found to ready (agents' clocks)"),
            (found, "windows", "found to windows back (agents' clocks)"),
        ] {
            if let Some(then) = at(name) {
                self.phase(label, Duration::from_millis(then.saturating_sub(from)));
            }
        }
    }

    /// Whether every verdict holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.broken_off && self.verdicts.iter().all(|verdict| verdict.holds)
    }

    fn break_off(&mut self, error: &anyhow::Error) {
        self.broken_off = true;
        self.judge("the act can be told to its end", false, format!("{error:#}"));
    }
}

/// A time as the agents' records have it: milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnixMs(u64);

impl UnixMs {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// One act to be told.
pub type Part<'a> = &'a dyn Fn(&mut Act) -> Result<()>;

/// Tells the acts in order, up to and with the first that breaks off: those after it would rest on it.
pub fn tell(parts: &[Part<'_>], say: &dyn Fn(&str)) -> Vec<Act> {
    let mut acts = Vec::new();
    for part in parts {
        let mut act = Act::default();
        if let Err(error) = part(&mut act) {
            act.break_off(&error);
        }
        let outcome = match (act.broken_off, act.holds()) {
            (true, _) => "BROKE OFF",
            (false, true) => "holds",
            (false, false) => "DOES NOT HOLD",
        };
        say(&format!("{}: {outcome}", act.title));
        acts.push(act);
        if acts.last().is_some_and(|act| act.broken_off) {
            break;
        }
    }
    acts
}

/// The table that ends the demo.
#[must_use]
pub fn table(acts: &[Act]) -> String {
    let mut out = String::new();
    for act in acts {
        let _ = writeln!(out, "\n{}", act.title);
        for (phase, took) in &act.phases {
            let _ = writeln!(out, "  {phase:58} {:>8.3} s", took.as_secs_f64());
        }
        for verdict in &act.verdicts {
            let word = if verdict.holds { "holds" } else { "DOES NOT HOLD" };
            let _ = writeln!(out, "  {word}: {} ({})", verdict.promise, verdict.seen);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use serde_json::json;

    use super::*;

    fn first(act: &mut Act) -> Result<()> {
        act.begin("the first");
        act.judge("it holds", true, "so it was seen");
        Ok(())
    }

    fn second(act: &mut Act) -> Result<()> {
        act.begin("the second");
        act.phase("reached", Duration::from_millis(1500));
        act.judge("what was judged before", true, "seen");
        Err(anyhow!("node is null")).context("the node is restored: not within 120s")
    }

    #[test]
    fn an_act_that_breaks_off_keeps_what_was_reached_and_ends_the_story() {
        let said = std::cell::RefCell::new(Vec::new());
        let say = |text: &str| said.borrow_mut().push(text.to_owned());
        let third = |_: &mut Act| -> Result<()> { panic!("rests on the second") };
        let acts = tell(&[&first, &second, &third], &say);
        assert_eq!(*said.borrow(), ["the first: holds", "the second: BROKE OFF"]);
        assert_eq!(acts.iter().map(Act::holds).collect::<Vec<_>>(), [true, false]);
        let expected = "\nthe first\n  holds: it holds (so it was seen)\n\nthe second\n  \
            reached                                                       1.500 s\n  \
            holds: what was judged before (seen)\n  \
            DOES NOT HOLD: the act can be told to its end (the node is restored: not within 120s: node is null)\n";
        assert_eq!(table(&acts), expected);
    }

    #[test]
    fn a_verdict_that_does_not_hold_does_not_end_the_story() {
        let judged = |act: &mut Act| -> Result<()> {
            act.judge("a promise", false, "not kept");
            Ok(())
        };
        let acts = tell(&[&judged, &first], &|_| {});
        assert_eq!(acts.iter().map(Act::holds).collect::<Vec<_>>(), [false, true]);
        assert!(!Act::not_begun("no browser", &anyhow!("not installed")).holds());
    }

    #[test]
    fn the_time_from_the_fault_until_it_was_found_is_a_phase_of_its_own() {
        let node =
            json!({ "incident": { "found": 7_200, "decided": 7_250, "ready": 8_000, "windows": null } });
        let mut act = Act::default();
        act.incident_phases(&node, UnixMs(1_000));
        let phases: Vec<(&str, u128)> =
            act.phases.iter().map(|(name, took)| (name.as_str(), took.as_millis())).collect();
        assert_eq!(
            phases,
            [
                ("fault to found (agents' clocks)", 6_200),
                ("found to decided (agents' clocks)", 50),
                ("found to ready (agents' clocks)", 800)
            ]
        );
        assert!(act.holds());
        act.incident_phases(&node, UnixMs(7_201));
        assert!(!act.holds(), "an older incident is not taken for this one");
    }
}
