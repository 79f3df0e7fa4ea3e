//! The question how many members a node should have.

pub use crate::wit::backup_count::{Cluster, Counts, Request, Role};

use crate::parameters::{self, Parameter, Parameters};
use crate::wit::types::Label;

/// What the node should have, or a text for the operator that says what cannot be answered.
pub type Answer = Result<Counts, String>;

/// The node that is asked about, and the cluster.
#[derive(Debug)]
pub struct Question<'a> {
    /// The node that is asked about.
    pub request: &'a Request,
    /// The cluster as a whole.
    pub cluster: Cluster,
    parameters: &'a [Parameter],
}

impl<'a> Question<'a> {
    /// The view over what came in.
    #[must_use]
    pub fn new(request: &'a Request, cluster: Cluster, parameters: &'a [Parameter]) -> Self {
        Self { request, cluster, parameters }
    }

    /// Reads the policy's parameters by `read`, and refuses those that it did not ask for.
    ///
    /// # Errors
    /// A text for the operator, see [`parameters::read`].
    pub fn parameters<T>(
        &self,
        read: impl FnOnce(&mut Parameters<'a>) -> Result<T, String>,
    ) -> Result<T, String> {
        parameters::read(self.parameters, read)
    }

    /// Says that the policy has no parameters.
    ///
    /// # Errors
    /// A text for the operator where the site set one.
    pub fn no_parameters(&self) -> Result<(), String> {
        self.parameters(|_| Ok(()))
    }

    /// The value of the terminal's label of that key.
    #[must_use]
    pub fn terminal_label(&self, key: &str) -> Option<&'a str> {
        find(&self.request.terminal_labels, key)
    }

    /// The value of the environment's label of that key.
    #[must_use]
    pub fn environment_label(&self, key: &str) -> Option<&'a str> {
        find(&self.request.environment_labels, key)
    }

    /// Hosts that could have a backup besides the one with the primary. Those that are down count: what they lack
    /// is a deficit, not a smaller wish.
    #[must_use]
    pub fn other_hosts(&self) -> u32 {
        self.cluster.hosts.saturating_sub(1)
    }

    /// The number that a label holds.
    ///
    /// # Errors
    /// A text for the operator that names the label and the node.
    pub fn number(&self, key: &str, value: &str) -> Result<u32, String> {
        value
            .parse()
            .map_err(|_| format!("label {key}='{value}' of {} is no number from 0 on", self.request.node))
    }
}

impl Counts {
    /// One primary, as every node has, and so many backups.
    #[must_use]
    pub fn of_backups(backups: u32, reason: impl Into<String>) -> Self {
        Self { primaries: 1, backups, reason: Some(reason.into()) }
    }
}

fn find<'a>(labels: &'a [Label], key: &str) -> Option<&'a str> {
    labels.iter().find(|label| label.key == key).map(|label| label.value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// As many backups as the label says, two without one.
    fn by_label(question: &Question<'_>) -> Answer {
        question.no_parameters()?;
        let backups = match question.terminal_label("backups").or(question.environment_label("backups")) {
            Some(value) => question.number("backups", value)?,
            None => 2,
        };
        Ok(Counts::of_backups(backups.min(question.other_hosts()), "as asked"))
    }

    #[test]
    fn labels_parameters_and_hosts_are_read() {
        let asked = testing::backup_count(5);
        assert_eq!(asked.backups(by_label), Ok(2));
        assert_eq!(testing::backup_count(2).backups(by_label), Ok(1));
        assert_eq!(testing::backup_count(0).backups(by_label), Ok(0));
        let of_environment = testing::backup_count(5).environment_label("backups", "3");
        assert_eq!(of_environment.backups(by_label), Ok(3));
        assert_eq!(of_environment.terminal_label("backups", "1").backups(by_label), Ok(1));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let label = testing::backup_count(5).terminal_label("backups", "many").backups(by_label);
        assert_eq!(label, Err("label backups='many' of alice/display is no number from 0 on".to_owned()));
        let parameter = testing::backup_count(5).parameter("n", "1").backups(by_label);
        assert_eq!(parameter, Err("parameter 'n' is unknown: this policy has none".to_owned()));
    }
}
