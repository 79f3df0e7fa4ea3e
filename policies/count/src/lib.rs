//! The policy `count`: how many backups a node has, by role and label.
//!
//! Owns the number, see [`count`]. Promises one primary, and never more backups than there are other hosts.
//! Must not do: guess; a label or parameter that it cannot read is refused with a text for the operator.

#[cfg(test)]
mod tests;

use understudy_policy_sdk::Role;
use understudy_policy_sdk::backup_count::{Answer, Counts, Question};
use understudy_policy_sdk::parameters::Parameters;

understudy_policy_sdk::backup_count!(answer);

/// What a site can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Backups of a display node without a label.
    pub display: u32,
    /// Backups of an execution node without a label.
    pub execution: u32,
    /// From this many failures within a day on, each node without a label has one backup more; 0 never.
    pub failures: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { display: 1, execution: 1, failures: 0 }
    }
}

impl Defaults {
    /// What a site asked for; the rest keeps its default.
    ///
    /// # Errors
    /// A text for the operator where a value is no number.
    pub fn read(parameters: &mut Parameters<'_>) -> Result<Self, String> {
        let default = Self::default();
        Ok(Self {
            display: parameters.number("display", default.display, 0..=u32::MAX)?,
            execution: parameters.number("execution", default.execution, 0..=u32::MAX)?,
            failures: parameters.number("failures", default.failures, 0..=u32::MAX)?,
        })
    }
}

/// How many members the node should have, with the site's defaults.
///
/// # Errors
/// A text for the operator where a label or a parameter cannot be read.
pub fn answer(question: &Question<'_>) -> Answer {
    count(question, question.parameters(Defaults::read)?)
}

/// How many members the node should have. The label of the nearest thing wins: the terminal's for this role,
/// the terminal's, the environment's, then the default of the role.
///
/// # Errors
/// A text for the operator where a label holds no number.
pub fn count(question: &Question<'_>, defaults: Defaults) -> Answer {
    let (role, default) = match question.request.role {
        Role::Display => ("display", defaults.display),
        Role::Execution => ("execution", defaults.execution),
    };
    let role_key = format!("backups.{role}");
    let of_terminal = |key| Some((key, question.terminal_label(key)?));
    let label = of_terminal(role_key.as_str())
        .or_else(|| of_terminal("backups"))
        .or_else(|| Some(("backups", question.environment_label("backups")?)));
    let failures = question.cluster.failures_last_day;
    let (asked, why) = match label {
        Some((key, value)) => {
            let asked = question.number(key, value)?;
            (asked, format!("label {key}={asked}"))
        }
        None if defaults.failures > 0 && failures >= defaults.failures => {
            let why = format!("{role} default {default}, one more after {failures} failures");
            (default.saturating_add(1), why)
        }
        None => (default, format!("{role} default {default}")),
    };
    let others = question.other_hosts();
    let reason = if asked > others { format!("{why}, but only {others} other host(s)") } else { why };
    Ok(Counts::of_backups(asked.min(others), reason))
}
