//! The policy `count`: how many backups a node has, by role and label.
//!
//! Owns the number, see [`count`]. Promises one primary, and never more backups than there are other hosts.
//! Must not do: guess; a label or parameter that it cannot read is refused with a text for the operator.

#[cfg(test)]
mod tests;

/// What `wit/` says, as Rust.
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all, reason = "generated from wit/")]
pub mod wit {
    wit_bindgen::generate!({ path: "../../wit", world: "backup-count-policy" });
}

use wit::exports::understudy::policy::backup_count::{
    Cluster, Counts, Guest, Label, Parameter, Request, Role,
};

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
    /// A text for the operator where a key is unknown or a value is no number.
    pub fn read(parameters: &[Parameter]) -> Result<Self, String> {
        let mut defaults = Self::default();
        for Parameter { key, value } in parameters {
            let field = match key.as_str() {
                "display" => &mut defaults.display,
                "execution" => &mut defaults.execution,
                "failures" => &mut defaults.failures,
                _ => return Err(format!("parameter '{key}' is unknown: use display, execution or failures")),
            };
            *field =
                value.parse().map_err(|_| format!("parameter {key}='{value}' is no number from 0 on"))?;
        }
        Ok(defaults)
    }
}

/// How many members the node should have. The label of the nearest thing wins: the terminal's for this role,
/// the terminal's, the environment's, then the default of the role.
///
/// # Errors
/// A text for the operator where a label holds no number.
pub fn count(request: &Request, cluster: &Cluster, defaults: Defaults) -> Result<Counts, String> {
    let (role, default) = match request.role {
        Role::Display => ("display", defaults.display),
        Role::Execution => ("execution", defaults.execution),
    };
    let role_key = format!("backups.{role}");
    let label = find(&request.terminal_labels, &role_key)
        .or_else(|| find(&request.terminal_labels, "backups"))
        .or_else(|| find(&request.environment_labels, "backups"));
    let (asked, why) = match label {
        Some(Label { key, value }) => {
            let asked = value
                .parse::<u32>()
                .map_err(|_| format!("label {key}='{value}' of {} is no number from 0 on", request.node))?;
            (asked, format!("label {key}={asked}"))
        }
        None if defaults.failures > 0 && cluster.failures_last_day >= defaults.failures => {
            let why =
                format!("{role} default {default}, one more after {} failures", cluster.failures_last_day);
            (default.saturating_add(1), why)
        }
        None => (default, format!("{role} default {default}")),
    };
    // Known hosts, not ready ones: a host that is down for an hour must show as a deficit.
    let others = cluster.hosts.saturating_sub(1);
    let reason = if asked > others { format!("{why}, but only {others} other host(s)") } else { why };
    Ok(Counts { primaries: 1, backups: asked.min(others), reason: Some(reason) })
}

fn find<'a>(labels: &'a [Label], key: &str) -> Option<&'a Label> {
    labels.iter().find(|label| label.key == key)
}

/// The component.
struct Count;

impl Guest for Count {
    fn count(request: Request, cluster: Cluster, parameters: Vec<Parameter>) -> Result<Counts, String> {
        #[cfg(target_family = "wasm")]
        component::report_panics();
        count(&request, &cluster, Defaults::read(&parameters)?)
    }
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "generated from wit/")]
mod component {
    use super::Count;
    use super::wit::understudy::policy::log::{Level, write};

    super::wit::export!(Count with_types_in super::wit);

    /// A trap says only `unreachable`; the daemon adds the last error of the log to it.
    pub(super) fn report_panics() {
        std::panic::set_hook(Box::new(|panic| write(Level::Error, &panic.to_string())));
    }
}
