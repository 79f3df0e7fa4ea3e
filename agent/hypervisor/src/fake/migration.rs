//! Owns live migrations between the hosts of a site: begun by a caller, going on by themselves as time passes.
//!
//! ```text
//! begun ─▶ the destination is asked ─┬─ it takes it in: a part is there, paused ─▶ all of it is there, paused as asked
//!                                    └─ it cannot be reached, has it already, or there is no permit
//! ```
//!
//! Promises: a side that stands still or whose libvirt is away holds a migration up; a broken connection ends it after libvirt's
//! keepalive, and the destination keeps nothing; the outcome is judged from both sides as over libvirt; the blocking
//! operation runs on the same code. Must not do: begin by itself.

use std::time::Duration;

use understudy_core::model::ids::InstanceId;
use understudy_core::model::units::Boottime;

use super::guest::Memory;
use super::host::Host;
use super::{FakeHypervisor, Operation, World};
use crate::error::{CallError, MigrateError};
use crate::event::{Lifecycle, StartCause, StopCause};
use crate::process::Pid;
use crate::types::{MigrationOutcome, MigrationTarget, PauseCause};
use crate::verdict::{End, Side, judge};

/// A connection that carries nothing is given up by either side after this long.
const KEEPALIVE: Duration = Duration::from_secs(7);

/// How many migrations are remembered, those that have ended among them.
const REMEMBERED: usize = 64;

/// How a migration goes if nothing is in its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Course {
    /// How long until the destination is asked to take the instance in.
    pub opens: Duration,
    /// How long its memory travels.
    pub takes: Duration,
    /// The source does not hear of the end: both sides have the instance.
    pub loses_end: Option<Left>,
}

/// How libvirt leaves a source that does not hear of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It goes on.
    Running,
    /// It stands still, as where libvirt restarts in the last step.
    Paused,
}

pub(super) struct Migration {
    number: u64,
    id: InstanceId,
    from: String,
    to: String,
    source: Option<Pid>,
    /// The process at the destination, once that was asked.
    arrival: Option<Pid>,
    course: Course,
    begun: Boottime,
    /// When the destination is asked, then when all of it is there.
    next: Boottime,
    gives_up: Boottime,
    /// Since when the two cannot reach each other.
    cut_since: Option<Boottime>,
    outcome: Option<MigrationOutcome>,
}

impl<G: Memory> FakeHypervisor<G> {
    /// Begins a migration that goes on as the site's time passes; its number.
    ///
    /// # Errors
    /// As [`crate::Hypervisor::migrate`].
    pub fn begin_migration(
        &self,
        id: InstanceId,
        target: &MigrationTarget,
        deadline: Duration,
        course: Course,
    ) -> Result<u64, MigrateError> {
        self.begins(id)?;
        let begin =
            |world: &mut World<G>, uri: &str| world.begin_migration(id, (uri, &target.uri), deadline, course);
        self.attempt(Operation::Migrate, "migrate", begin)
            .map_err(|source| MigrateError::Begin { id, source })
    }

    /// What a migration that was begun here has come to; nothing while it goes on. It does so without libvirt too, but nobody
    /// hears of its end.
    #[must_use]
    pub fn migration(&self, number: u64) -> Option<MigrationOutcome> {
        let mut world = self.site.world();
        if !world.here(&self.uri).libvirt_up {
            return Some(unknown("libvirt does not answer"));
        }
        let known = world.migrations.iter().find(|migration| migration.number == number);
        known.map_or_else(|| Some(unknown("it is forgotten")), |known| known.outcome.clone())
    }

    pub(super) fn migrate_at_once(
        &self,
        id: InstanceId,
        to: &str,
        deadline: Duration,
    ) -> Result<MigrationOutcome, MigrateError> {
        self.begins(id)?;
        let run = |world: &mut World<G>, uri: &str| {
            let number = world.begin_migration(id, (uri, to), deadline, Course::default());
            // The destination is asked, and all of it has come, at the same moment.
            world.run_migrations();
            world.run_migrations();
            let known = world.migrations.iter().find(|migration| migration.number == number);
            known.map_or_else(
                || unknown("it is forgotten"),
                |known| known.outcome.clone().unwrap_or_else(|| world.judged(known, &End::Hangs)),
            )
        };
        match self.attempt(Operation::Migrate, "migrate", run) {
            Ok(outcome) => Ok(outcome),
            Err(source @ (CallError::Down { .. } | CallError::Saturated { .. })) => {
                Err(MigrateError::Begin { id, source })
            }
            Err(source @ CallError::TimedOut { .. }) => {
                let still_here = self.process_of(id).is_some();
                Ok(MigrationOutcome::Unknown { why: source.to_string(), still_here })
            }
            Err(source @ CallError::Refused { .. }) => {
                Ok(MigrationOutcome::StayedHere { why: source.to_string() })
            }
        }
    }

    /// Refuses to move what is not here.
    fn begins(&self, id: InstanceId) -> Result<(), MigrateError> {
        let found = self.on_instance(Operation::Query, "look up", id, |_| ());
        if found.is_ok_and(|found| found.is_none()) { Err(MigrateError::NoInstance(id)) } else { Ok(()) }
    }
}

fn unknown(why: &str) -> MigrationOutcome {
    MigrationOutcome::Unknown { why: why.to_owned(), still_here: true }
}

impl<G: Memory> World<G> {
    pub(super) fn begin_migration(
        &mut self,
        id: InstanceId,
        (from, to): (&str, &str),
        deadline: Duration,
        course: Course,
    ) -> u64 {
        self.next_migration += 1;
        let busy = self.moves(from, id);
        let (number, begun) = (self.next_migration, self.clock);
        let migration = Migration {
            number,
            id,
            from: from.to_owned(),
            to: to.to_owned(),
            source: self.process(from, id),
            arrival: None,
            course,
            begun,
            next: begun + course.opens,
            gives_up: begun + deadline,
            cut_since: None,
            outcome: busy.then(|| unknown("libvirt still has a job on it")),
        };
        self.migrations.push_back(migration);
        let forgotten = self.migrations.len().saturating_sub(REMEMBERED);
        self.migrations.drain(..forgotten);
        number
    }

    /// Whether an instance is on its way from a host.
    pub(super) fn moves(&self, from: &str, id: InstanceId) -> bool {
        self.migrations.iter().any(|known| known.outcome.is_none() && known.id == id && known.from == from)
    }

    /// Cancels the migration of an instance from a host. None is fine.
    pub(super) fn cancel_migration(&mut self, from: &str, id: InstanceId) {
        for mut migration in std::mem::take(&mut self.migrations) {
            if migration.outcome.is_none() && migration.id == id && migration.from == from {
                let end = self.give_up(&migration, "it was cancelled");
                migration.outcome = Some(self.judged(&migration, &end));
            }
            self.migrations.push_back(migration);
        }
    }

    /// Time has passed.
    pub(super) fn run_migrations(&mut self) {
        if self.migrations.iter().all(|migration| migration.outcome.is_some()) {
            return;
        }
        for mut migration in std::mem::take(&mut self.migrations) {
            if migration.outcome.is_none()
                && let Some(end) = self.run_migration(&mut migration)
            {
                migration.outcome = Some(self.judged(&migration, &end));
            }
            self.migrations.push_back(migration);
        }
    }

    /// How it has ended, if it has.
    fn run_migration(&mut self, migration: &mut Migration) -> Option<End> {
        let (id, from, to) = (migration.id, &*migration.from.clone(), &*migration.to.clone());
        let leaves = self.process(from, id);
        let here = leaves.is_some() && leaves == migration.source;
        let there = migration.arrival.is_some() && migration.arrival == self.process(to, id);
        if !here {
            return Some(self.give_up(migration, "the source has ended"));
        }
        if migration.arrival.is_some() && !there {
            return Some(End::Refused("the destination gave it up".to_owned()));
        }
        let runs = |uri: &str| self.hosts.get(uri).is_some_and(Host::runs);
        if migration.arrival.is_some() && !(runs(from) && runs(to)) {
            return None;
        }
        if migration.arrival.is_some() && !self.reach(from, to) {
            let since = *migration.cut_since.get_or_insert(self.clock);
            let over = self.clock.since(since) >= KEEPALIVE;
            return over.then(|| self.give_up(migration, "the connection was lost"));
        }
        migration.cut_since = None;
        let answers = |uri: &str| self.hosts.get(uri).is_some_and(Host::answers);
        if !answers(from) || self.clock < migration.next && self.clock < migration.gives_up {
            return None;
        }
        if self.clock < migration.next {
            return Some(self.give_up(migration, "it takes too long, and was cancelled"));
        }
        match migration.arrival {
            None => self.ask(migration),
            Some(_) if !answers(to) => None,
            Some(arrival) => Some(self.complete(migration, arrival)),
        }
    }

    /// The destination takes the instance in, or it does not.
    fn ask(&mut self, migration: &mut Migration) -> Option<End> {
        let Migration { id, from, to, .. } = &*migration;
        if !self.answers_to(from, to) {
            return Some(End::Refused(format!("cannot connect to {to}")));
        }
        if self.process(to, *id).is_some() {
            return Some(End::Refused(format!("{to} has it already")));
        }
        let mut arriving = self.here(from).instances.get(id)?.clone();
        arriving.arrives = true;
        arriving.pause(PauseCause::Migration);
        let (clock, pid) = (self.clock, self.new_pid());
        if self.here(to).begin(clock, arriving, (pid, StartCause::Migrated)).is_none() {
            return Some(End::Refused("there is no permit".to_owned()));
        }
        (migration.arrival, migration.next) = (Some(pid), clock + migration.course.takes);
        None
    }

    /// All of it has come.
    fn complete(&mut self, migration: &Migration, arrival: Pid) -> End {
        let (clock, id) = (self.clock, migration.id);
        let Some(mut arrived) = self.here(&migration.from).instances.get(&id).cloned() else {
            return End::Refused("the source has ended".to_owned());
        };
        arrived.pause(PauseCause::Asked);
        arrived.fact.pid = Some(arrival);
        let there = self.here(&migration.to);
        // Whether signals end it is its own process's.
        arrived.hangs = there.instances.get(&id).is_some_and(|one| one.hangs);
        there.instances.insert(id, arrived);
        there.tell_change(clock, id, Lifecycle::Suspended(PauseCause::Asked));
        if let Some(left) = migration.course.loses_end {
            if left == Left::Paused {
                let here = self.here(&migration.from);
                here.instances.get_mut(&id).into_iter().for_each(|left| left.pause(PauseCause::Migration));
                here.tell_change(clock, id, Lifecycle::Suspended(PauseCause::Migration));
            }
            return End::Refused("the end of it was not heard".to_owned());
        }
        self.here(&migration.from).end(clock, id, StopCause::Migrated);
        End::Well
    }

    /// Nothing stays at the destination.
    fn give_up(&mut self, migration: &Migration, why: &str) -> End {
        let (clock, id, to) = (self.clock, migration.id, &migration.to);
        if migration.arrival.is_some() && migration.arrival == self.process(to, id) {
            self.here(to).end(clock, id, StopCause::Failed);
        }
        End::Refused(why.to_owned())
    }

    fn judged(&self, migration: &Migration, end: &End) -> MigrationOutcome {
        let Migration { id, from, to, begun, .. } = migration;
        let side = |uri: &str, answers: bool| match self.hosts.get(uri) {
            Some(host) if answers => {
                let state = host.instances.get(id).map(|instance| instance.fact.state);
                state.map_or(Side::Nothing, Side::Has)
            }
            Some(_) | None => Side::Silent(format!("{uri} does not answer")),
        };
        let here = side(from, self.hosts.get(from).is_some_and(Host::answers));
        let there = side(to, self.answers_to(from, to));
        judge(end, &here, &there, self.clock.since(*begun))
    }

    /// Whether the libvirt of `to` answers that of `from`.
    fn answers_to(&self, from: &str, to: &str) -> bool {
        self.reach(from, to) && self.hosts.get(to).is_some_and(Host::answers)
    }

    fn process(&self, uri: &str, id: InstanceId) -> Option<Pid> {
        self.hosts.get(uri)?.instances.get(&id)?.fact.pid
    }
}
