//! Questions for native tests of a policy, so that a test says only what matters to it.
//!
//! ```
//! use understudy_policy_sdk::placement::{Answer, Question};
//! use understudy_policy_sdk::testing;
//!
//! fn calm(question: &Question<'_>) -> Answer {
//!     Ok(question.best(|host| host.suits().then(|| host.load_permille())))
//! }
//!
//! let asked = testing::placement(3).load_permille(0, 900).draining(1);
//! assert_eq!(asked.rows(calm), Ok(vec![2, 0]));
//! ```

use crate::wit::types::{Label, Parameter, Part, Role};
use crate::wit::{backup_count, placement};
use placement::{HostState, Hosts, NodeMember, Pick, Purpose, Request, SiblingMember};

/// A question for a place, with what its answer is made of.
#[derive(Debug, Clone)]
pub struct Placement {
    /// What is asked for.
    pub request: Request,
    /// The hosts.
    pub hosts: Hosts,
    /// The policy's parameters.
    pub parameters: Vec<Parameter>,
}

/// A first primary of the node `alice/exec-1`, which asks for 2 processors and 2048 MiB, among `hosts` ready and empty
/// hosts of 16 processors and 65 536 MiB, without zones, labels or idle instances. Ten picks are wanted, without
/// reasons; an idle instance would have to be of the template `standard`.
#[must_use]
pub fn placement(hosts: usize) -> Placement {
    Placement { request: request(), hosts: empty_hosts(hosts), parameters: Vec::new() }
}

/// Setters of a column's number for one row.
macro_rules! cells {
    ($($name:ident: $type:ty,)+) => {
        /// Numbers of one host.
        impl Placement {
            $(
                #[doc = concat!("Sets `", stringify!($name), "` of a row.")]
                #[must_use]
                pub fn $name(mut self, row: usize, value: $type) -> Self {
                    self.hosts.$name[row] = value;
                    self
                }
            )+
        }
    };
}

cells! {
    state: HostState,
    total_vcpus: u32,
    free_vcpus: u32,
    total_memory_mib: u64,
    free_memory_mib: u64,
    load_permille: u32,
    display_primaries: u32,
    display_backups: u32,
    execution_primaries: u32,
    execution_backups: u32,
    migrations_in: u32,
    migrations_out: u32,
    restores: u32,
    checkpoint_in_kib_s: u32,
    checkpoint_out_kib_s: u32,
}

/// What is asked, and of whom.
impl Placement {
    /// The rows that a policy picks.
    ///
    /// # Errors
    /// What the policy says.
    pub fn rows(
        &self,
        policy: impl FnOnce(&crate::placement::Question<'_>) -> crate::placement::Answer,
    ) -> Result<Vec<u32>, String> {
        self.picks(policy).map(|picks| picks.iter().map(|pick| pick.host).collect())
    }

    /// The reasons of a policy's picks, as the operator would read them.
    ///
    /// # Errors
    /// What the policy says.
    pub fn reasons(
        &self,
        policy: impl FnOnce(&crate::placement::Question<'_>) -> crate::placement::Answer,
    ) -> Result<Vec<String>, String> {
        let mut asked = self.clone();
        asked.request.reasons = true;
        let picks = asked.picks(policy)?;
        Ok(picks.into_iter().map(|pick| pick.reason.unwrap_or_default()).collect())
    }

    /// The picks of a policy.
    ///
    /// # Errors
    /// What the policy says.
    pub fn picks(
        &self,
        policy: impl FnOnce(&crate::placement::Question<'_>) -> crate::placement::Answer,
    ) -> Result<Vec<Pick>, String> {
        policy(&crate::placement::Question::new(&self.request, &self.hosts, &self.parameters))
    }

    /// Sets why a place is looked for.
    #[must_use]
    pub fn purpose(mut self, purpose: Purpose) -> Self {
        self.request.purpose = purpose;
        self
    }

    /// Sets how many picks are of use.
    #[must_use]
    pub fn wanted(mut self, wanted: u32) -> Self {
        self.request.wanted = wanted;
        self
    }

    /// Puts a member of the node on a row.
    #[must_use]
    pub fn member(mut self, row: u32, part: Part) -> Self {
        self.request.members.push(NodeMember { host: row, part });
        self
    }

    /// Puts the primary of the terminal's display node on a row.
    #[must_use]
    pub fn sibling(mut self, row: u32) -> Self {
        let sibling = SiblingMember { host: row, role: Role::Display, part: Part::Primary };
        self.request.siblings.push(sibling);
        self
    }

    /// Gives the policy a parameter.
    #[must_use]
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.parameters.push(Parameter { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// Gives the terminal a label.
    #[must_use]
    pub fn terminal_label(mut self, key: &str, value: &str) -> Self {
        let id = label_id(&mut self.hosts.labels, key, value);
        self.request.terminal_labels.push(id);
        self
    }

    /// Gives the environment a label.
    #[must_use]
    pub fn environment_label(mut self, key: &str, value: &str) -> Self {
        let id = label_id(&mut self.hosts.labels, key, value);
        self.request.environment_labels.push(id);
        self
    }

    /// Gives a row a label.
    #[must_use]
    pub fn label(mut self, row: usize, key: &str, value: &str) -> Self {
        let id = label_id(&mut self.hosts.labels, key, value);
        self.hosts.label_ids.insert(self.hosts.label_start[row + 1] as usize, id);
        self.hosts.label_start[row + 1..].iter_mut().for_each(|start| *start += 1);
        self
    }

    /// Gives a row idle instances of a template.
    #[must_use]
    pub fn idle(mut self, row: usize, template: &str, count: u32) -> Self {
        let template = text_id(&mut self.hosts.templates, template);
        let at = self.hosts.idle_start[row + 1] as usize;
        self.hosts.idle_template.insert(at, template);
        self.hosts.idle_count.insert(at, count);
        self.hosts.idle_start[row + 1..].iter_mut().for_each(|start| *start += 1);
        self
    }

    /// Puts a row into a zone.
    #[must_use]
    pub fn zone(mut self, row: usize, name: &str) -> Self {
        self.hosts.zone[row] = text_id(&mut self.hosts.zones, name);
        self
    }

    /// Puts a row into a rack.
    #[must_use]
    pub fn rack(mut self, row: usize, name: &str) -> Self {
        self.hosts.rack[row] = text_id(&mut self.hosts.racks, name);
        self
    }

    /// Empties a row.
    #[must_use]
    pub fn draining(self, row: usize) -> Self {
        self.state(row, HostState::Draining)
    }

    /// Leaves a row without room for an instance.
    #[must_use]
    pub fn full(self, row: usize) -> Self {
        self.free_memory_mib(row, 0).free_vcpus(row, 0)
    }
}

/// A question for the number of backups.
#[derive(Debug, Clone)]
pub struct BackupCount {
    /// The node that is asked about.
    pub request: backup_count::Request,
    /// The cluster.
    pub cluster: backup_count::Cluster,
    /// The policy's parameters.
    pub parameters: Vec<Parameter>,
}

/// The node `alice/display`, without labels, in a cluster of `hosts` hosts that are all ready.
#[must_use]
pub fn backup_count(hosts: u32) -> BackupCount {
    BackupCount {
        request: backup_count::Request {
            terminal: "alice".to_owned(),
            node: "alice/display".to_owned(),
            role: Role::Display,
            protected: false,
            terminal_labels: Vec::new(),
            environment_labels: Vec::new(),
            backups: 0,
            deficit: 0,
        },
        cluster: backup_count::Cluster { hosts, hosts_ready: hosts, failures_last_day: 0, deficit: 0 },
        parameters: Vec::new(),
    }
}

impl BackupCount {
    /// The backups that a policy wants.
    ///
    /// # Errors
    /// What the policy says.
    pub fn backups(
        &self,
        policy: impl FnOnce(&crate::backup_count::Question<'_>) -> crate::backup_count::Answer,
    ) -> Result<u32, String> {
        self.counts(policy).map(|counts| counts.backups)
    }

    /// What a policy wants.
    ///
    /// # Errors
    /// What the policy says.
    pub fn counts(
        &self,
        policy: impl FnOnce(&crate::backup_count::Question<'_>) -> crate::backup_count::Answer,
    ) -> crate::backup_count::Answer {
        policy(&crate::backup_count::Question::new(&self.request, self.cluster, &self.parameters))
    }

    /// Sets what the node is for.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.request.role = role;
        self
    }

    /// Gives the terminal a label.
    #[must_use]
    pub fn terminal_label(mut self, key: &str, value: &str) -> Self {
        self.request.terminal_labels.push(label(key, value));
        self
    }

    /// Gives the environment a label.
    #[must_use]
    pub fn environment_label(mut self, key: &str, value: &str) -> Self {
        self.request.environment_labels.push(label(key, value));
        self
    }

    /// Sets how many primaries failed within a day.
    #[must_use]
    pub fn failures_last_day(mut self, failures: u32) -> Self {
        self.cluster.failures_last_day = failures;
        self
    }

    /// Gives the policy a parameter.
    #[must_use]
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.parameters.push(Parameter { key: key.to_owned(), value: value.to_owned() });
        self
    }
}

fn request() -> Request {
    Request {
        terminal: "alice".to_owned(),
        node: "alice/exec-1".to_owned(),
        role: Role::Execution,
        purpose: Purpose::Primary,
        wanted: 10,
        reasons: false,
        vcpus: 2,
        memory_mib: 2048,
        environment: "desktop".to_owned(),
        template: Some(0),
        terminal_labels: Vec::new(),
        environment_labels: Vec::new(),
        members: Vec::new(),
        siblings: Vec::new(),
    }
}

fn empty_hosts(n: usize) -> Hosts {
    Hosts {
        state: vec![HostState::Ready; n],
        zone: vec![0; n],
        zones: vec![String::new()],
        rack: vec![0; n],
        racks: vec![String::new()],
        label_start: vec![0; n + 1],
        label_ids: Vec::new(),
        labels: Vec::new(),
        total_vcpus: vec![16; n],
        free_vcpus: vec![16; n],
        total_memory_mib: vec![65_536; n],
        free_memory_mib: vec![65_536; n],
        load_permille: vec![0; n],
        idle_start: vec![0; n + 1],
        idle_template: Vec::new(),
        idle_count: Vec::new(),
        templates: vec!["standard".to_owned()],
        display_primaries: vec![0; n],
        display_backups: vec![0; n],
        execution_primaries: vec![0; n],
        execution_backups: vec![0; n],
        migrations_in: vec![0; n],
        migrations_out: vec![0; n],
        restores: vec![0; n],
        checkpoint_in_kib_s: vec![0; n],
        checkpoint_out_kib_s: vec![0; n],
    }
}

fn label(key: &str, value: &str) -> Label {
    Label { key: key.to_owned(), value: value.to_owned() }
}

fn label_id(labels: &mut Vec<Label>, key: &str, value: &str) -> u32 {
    let known = labels.iter().position(|l| l.key == key && l.value == value);
    let at = known.unwrap_or_else(|| {
        labels.push(label(key, value));
        labels.len() - 1
    });
    u32::try_from(at).expect("a test has few labels")
}

fn text_id(texts: &mut Vec<String>, text: &str) -> u32 {
    let at = texts.iter().position(|known| known == text).unwrap_or_else(|| {
        texts.push(text.to_owned());
        texts.len() - 1
    });
    u32::try_from(at).expect("a test has few names")
}
