//! Owns the view of one row over the columns.

use super::{HostState, Hosts, LabelRef, Question, label};

/// What a host has of the node that is asked about, the gravest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kin {
    /// Nothing.
    None,
    /// A backup.
    Backup,
    /// The primary, and a backup too at times, while members move.
    Primary,
}

/// One row of the hosts. Copying it copies two references and a number.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    question: &'a Question<'a>,
    hosts: &'a Hosts,
    row: usize,
}

/// Readings of columns with one number per row, each with its text.
macro_rules! columns {
    ($($(#[$doc:meta])+ $name:ident: $type:ty,)+) => {
        /// What the columns say of the host, as it is in `wit/placement.wit`.
        impl Host<'_> {
            $(
                $(#[$doc])+
                #[inline]
                #[must_use]
                pub fn $name(&self) -> $type {
                    self.hosts.$name[self.row]
                }
            )+
        }
    };
}

columns! {
    /// Whether the host takes work.
    state: HostState,
    /// Virtual processors that instances may have together.
    total_vcpus: u32,
    /// Those not taken by an instance, idle ones included, and not reserved for a backup.
    free_vcpus: u32,
    /// Memory that instances may have together, in MiB.
    total_memory_mib: u64,
    /// Memory not taken by an instance, idle ones included, and not reserved for a backup, in MiB.
    free_memory_mib: u64,
    /// How busy the host's processors are, in thousandths of all of them. May be above 1000.
    load_permille: u32,
    /// Primaries of display nodes.
    display_primaries: u32,
    /// Backups of display nodes.
    display_backups: u32,
    /// Primaries of execution nodes.
    execution_primaries: u32,
    /// Backups of execution nodes.
    execution_backups: u32,
    /// Live migrations on their way to the host.
    migrations_in: u32,
    /// Live migrations on their way from the host.
    migrations_out: u32,
    /// Restores from a checkpoint that are under way.
    restores: u32,
    /// Checkpoints that the host receives for its backups, in KiB per second.
    checkpoint_in_kib_s: u32,
    /// Checkpoints that the host sends for its primaries, in KiB per second.
    checkpoint_out_kib_s: u32,
}

impl<'a> Host<'a> {
    #[inline]
    pub(super) fn new(question: &'a Question<'a>, row: usize) -> Self {
        Self { question, hosts: question.hosts, row }
    }

    /// The host's row, as a pick names it.
    #[inline]
    #[must_use]
    pub fn row(&self) -> u32 {
        u32::try_from(self.row).unwrap_or(u32::MAX)
    }

    /// Whether the host takes work; the daemon refuses picks of hosts that do not.
    #[inline]
    #[must_use]
    pub fn takes_work(&self) -> bool {
        match self.state() {
            HostState::Ready | HostState::Degraded => true,
            HostState::Draining | HostState::Fenced | HostState::Unknown => false,
        }
    }

    /// Whether it takes work although something is wrong with it.
    #[inline]
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.state() == HostState::Degraded
    }

    /// Whether free processors and memory are enough for an instance.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.free_vcpus() >= self.question.request.vcpus
            && self.free_memory_mib() >= self.question.request.memory_mib
    }

    /// Whether an idle instance is there that would do for this request.
    #[inline]
    #[must_use]
    pub fn has_idle(&self) -> bool {
        self.question.idle_template.is_some_and(|template| self.idle(template) > 0)
    }

    /// Whether an instance must be created and booted first, although an idle one would do.
    #[inline]
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.question.takes_idle() && !self.has_idle()
    }

    /// Whether the host would do: it takes work, and has an idle instance or room.
    #[inline]
    #[must_use]
    pub fn suits(&self) -> bool {
        self.takes_work() && (self.has_room() || self.has_idle())
    }

    /// How many instances of a template are idle, see [`Question::template`].
    #[inline]
    #[must_use]
    pub fn idle(&self, template: u32) -> u32 {
        let hosts = self.hosts;
        let entries = hosts.idle_start[self.row] as usize..hosts.idle_start[self.row + 1] as usize;
        let of_template = entries.filter(|entry| hosts.idle_template[*entry] == template);
        of_template.map(|entry| hosts.idle_count[entry]).sum()
    }

    /// What the host has of the node.
    #[inline]
    #[must_use]
    pub fn kin(&self) -> Kin {
        self.question.kin[self.row]
    }

    /// Whether the node's primary runs here.
    #[inline]
    #[must_use]
    pub fn has_primary_of_node(&self) -> bool {
        self.kin() == Kin::Primary
    }

    /// Whether any member of the node is here.
    #[inline]
    #[must_use]
    pub fn has_member_of_node(&self) -> bool {
        self.kin() != Kin::None
    }

    /// Members of the terminal's other nodes that are here.
    #[inline]
    #[must_use]
    pub fn siblings(&self) -> u32 {
        self.question.siblings[self.row]
    }

    /// All members that are here, of any node.
    #[inline]
    #[must_use]
    pub fn members(&self) -> u32 {
        self.display_primaries()
            + self.display_backups()
            + self.execution_primaries()
            + self.execution_backups()
    }

    /// Migrations to and from the host and restores that are under way.
    #[inline]
    #[must_use]
    pub fn moves(&self) -> u32 {
        self.migrations_in() + self.migrations_out() + self.restores()
    }

    /// What is taken of memory or of processors, the larger share, in thousandths. Of nothing, all is taken.
    #[inline]
    #[must_use]
    pub fn taken_permille(&self) -> u64 {
        let memory = taken_permille(self.free_memory_mib(), self.total_memory_mib());
        memory.max(taken_permille(self.free_vcpus().into(), self.total_vcpus().into()))
    }

    /// The name of the host's zone; empty where it has none.
    #[inline]
    #[must_use]
    pub fn zone(&self) -> &'a str {
        &self.hosts.zones[self.zone_id() as usize]
    }

    /// The host's zone as a number that equals another host's where the zones do.
    #[inline]
    #[must_use]
    pub fn zone_id(&self) -> u32 {
        self.hosts.zone[self.row]
    }

    /// The name of the host's rack; empty where it has none.
    #[inline]
    #[must_use]
    pub fn rack(&self) -> &'a str {
        &self.hosts.racks[self.rack_id() as usize]
    }

    /// The host's rack as a number that equals another host's where the racks do.
    #[inline]
    #[must_use]
    pub fn rack_id(&self) -> u32 {
        self.hosts.rack[self.row]
    }

    /// The host's labels.
    pub fn labels(&self) -> impl Iterator<Item = LabelRef<'a>> + use<'a> {
        let hosts = self.hosts;
        self.label_ids().iter().filter_map(|id| label(hosts, *id))
    }

    /// The value of the host's label of that key. Compares texts: where thousands of hosts are compared with one
    /// label of the terminal, [`has`](Self::has) compares numbers.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&'a str> {
        self.labels().find(|label| label.key == key).map(|label| label.value)
    }

    /// Whether the host has this very label, key and value.
    #[inline]
    #[must_use]
    pub fn has(&self, label: LabelRef<'_>) -> bool {
        self.label_ids().contains(&label.id)
    }

    #[inline]
    fn label_ids(&self) -> &'a [u32] {
        let start = &self.hosts.label_start;
        &self.hosts.label_ids[start[self.row] as usize..start[self.row + 1] as usize]
    }
}

/// Thousandths that are not free.
#[inline]
fn taken_permille(free: u64, total: u64) -> u64 {
    free.min(total).saturating_mul(1000).checked_div(total).map_or(1000, |free| 1000 - free)
}
