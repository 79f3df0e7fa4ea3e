//! The registered primaries: their entries in the table, their pidfds, and the kill.
//!
//! Owns the table once it is open. Promises: an entry is in the table before its registration is acknowledged; a dead
//! process leaves by itself; [`Primaries::enforce`] neither allocates nor waits. Must not read the clock: it is told.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::log::{Uuid, error, info, warning};
use crate::process::{self, Reopened};
use crate::rules::{self, Admission, Held};
use crate::sys;
use crate::table::{Record, Table};
use crate::wire::{Class, Deadline, Entry, Fired, Refusal};

/// What a registration asks for.
pub(crate) struct Wanted {
    pub(crate) uuid: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) lease: u64,
    pub(crate) pid: u32,
    pub(crate) class: Class,
}

struct Live {
    record: Record,
    pidfd: OwnedFd,
    /// It was sent SIGKILL.
    killed: bool,
}

pub(crate) struct Primaries {
    table: Table,
    live: Box<[Option<Live>]>,
    registered: u32,
    /// Added to a slot, it is the token under which its pidfd is watched.
    token: u64,
}

impl Primaries {
    pub(crate) fn new(table: Table, capacity: usize, token: u64) -> Self {
        let live = (0..capacity).map(|_| None).collect();
        Self { table, live, registered: 0, token }
    }

    /// Finds the processes of the table again. `Err`: how many could not be looked at, so that nothing can be
    /// promised about them.
    pub(crate) fn recover(&mut self, epoll: &Epoll) -> Result<(), usize> {
        let mut failed = 0;
        for slot in 0..self.live.len() {
            let Ok(found) = self.table.read(slot) else {
                error!("an entry of the table does not verify and is dropped slot={slot}");
                self.table.clear(slot);
                continue;
            };
            let Some(record) = found else { continue };
            match process::reopen(record.process) {
                Reopened::Alive(pidfd) => {
                    if self.watch(epoll, slot, record, pidfd).is_err() {
                        failed += 1;
                    } else {
                        self.drop_older(epoll, slot, &record);
                    }
                }
                Reopened::Gone => {
                    info!(
                        "primary gone while no guard ran uuid={} pid={}",
                        Uuid(record.uuid),
                        record.process.pid
                    );
                    self.table.clear(slot);
                }
                Reopened::Failed(errno) => {
                    let pid = record.process.pid;
                    error!("cannot watch a primary uuid={} pid={pid} error={errno}", Uuid(record.uuid));
                    failed += 1;
                }
            }
        }
        if failed == 0 { Ok(()) } else { Err(failed) }
    }

    /// A predecessor that died between writing an instance's new entry and clearing the old one leaves both.
    fn drop_older(&mut self, epoll: &Epoll, slot: usize, record: &Record) {
        let other = (0..slot).find_map(|at| {
            let live = self.live[at].as_ref()?;
            (live.record.uuid == record.uuid).then_some((at, live.record.epoch))
        });
        if let Some((at, epoch)) = other {
            self.remove(epoll, if epoch < record.epoch { at } else { slot });
        }
    }

    pub(crate) fn register(
        &mut self,
        epoll: &Epoll,
        wanted: &Wanted,
        pidfd: Option<OwnedFd>,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        rules::asking(self.table.deadline(), wanted.lease, now_ns)?;
        let pidfd = pidfd.ok_or(Refusal::WrongPidfd)?;
        if process::is_dead(pidfd.as_fd()) {
            return Err(Refusal::Dead);
        }
        if process::pid_of(pidfd.as_fd()) != Some(wanted.pid) {
            return Err(Refusal::WrongPidfd);
        }
        let process = process::identify(wanted.pid, pidfd.as_fd()).ok_or(Refusal::Dead)?;
        let older = self.slot_of(wanted.uuid);
        match rules::registration(self.held(older), wanted.epoch, process)? {
            Admission::Repeated => return Ok(()),
            Admission::Write => {}
        }
        if older.and_then(|slot| self.live[slot].as_ref()).is_some_and(|live| live.killed) {
            return Err(Refusal::Dead);
        }
        let slot = self.live.iter().position(Option::is_none).ok_or(Refusal::Full)?;
        let record = Record { uuid: wanted.uuid, epoch: wanted.epoch, process, class: wanted.class };
        self.watch(epoll, slot, record, pidfd).map_err(|_| Refusal::Failed)?;
        self.table.write(slot, &record);
        if let Some(older) = older {
            self.remove(epoll, older);
        }
        info!("primary registered uuid={} epoch={} pid={}", Uuid(record.uuid), record.epoch, wanted.pid);
        Ok(())
    }

    pub(crate) fn forget(&mut self, epoll: &Epoll, uuid: [u8; 16], epoch: u64) -> Result<(), Refusal> {
        let slot = self.slot_of(uuid);
        rules::forgetting(self.held(slot), epoch)?;
        if let Some(slot) = slot {
            self.remove(epoll, slot);
            info!("primary forgotten uuid={} epoch={epoch}", Uuid(uuid));
        }
        Ok(())
    }

    /// The first deadline of a newer lease closes the one before for good: what was registered under that does not run
    /// on under this.
    pub(crate) fn set_deadline(&mut self, asked: Deadline, now_ns: u64) -> Result<(), Refusal> {
        let current = self.table.deadline();
        rules::deadline(current, asked, now_ns)?;
        if let Some(older) = current.filter(|current| current.lease < asked.lease && self.registered > 0) {
            if !rules::expired(Some(older), now_ns) {
                self.table.set_deadline(Deadline { boottime_ns: now_ns, ..older });
            }
            self.enforce(now_ns);
            return Err(Refusal::Closing);
        }
        if current != Some(asked) {
            self.table.set_deadline(asked);
        }
        if current.is_none_or(|current| current.lease != asked.lease) {
            info!("armed for a new lease lease={}", asked.lease);
        }
        Ok(())
    }

    /// The kill path: SIGKILL to every primary once the deadline has passed. Safe to call at any time; what could not
    /// be signalled is tried again by the next call.
    pub(crate) fn enforce(&mut self, now_ns: u64) {
        let Some(deadline) = self.table.deadline() else { return };
        if rules::expired(Some(deadline), now_ns) {
            self.kill_all(deadline.boottime_ns, now_ns);
        }
    }

    /// Kills whatever is registered. `deadline_ns` and `now_ns` are for the record.
    pub(crate) fn kill_all(&mut self, deadline_ns: u64, now_ns: u64) {
        let (mut kills, mut failed) = (0, None);
        for live in self.live.iter_mut().flatten().filter(|live| !live.killed) {
            match sys::pidfd_kill(live.pidfd.as_fd()) {
                Ok(()) => {
                    live.killed = true;
                    kills += 1;
                }
                // Dead already; its pidfd is readable and takes it out of the table.
                Err(Errno::ESRCH) => live.killed = true,
                Err(errno) => failed = Some(errno),
            }
        }
        if kills > 0 {
            let sent_ns = sys::boottime_ns();
            self.table.note_fired(kills, Fired { deadline_ns, sent_ns, gone_ns: None });
            let late_us = now_ns.saturating_sub(deadline_ns) / 1_000;
            warning!("deadline passed, primaries killed count={kills} late_us={late_us}");
        }
        if let Some(errno) = failed {
            error!("cannot kill a primary, trying again error={errno}");
        }
    }

    /// The pidfd of a slot became readable.
    pub(crate) fn ended(&mut self, epoll: &Epoll, slot: usize, now_ns: u64) {
        // The event may be of an entry that left this slot within the same round.
        let Some(live) = self.live[slot].as_ref().filter(|live| process::is_dead(live.pidfd.as_fd())) else {
            return;
        };
        let (uuid, pid, killed) = (Uuid(live.record.uuid), live.record.process.pid, live.killed);
        info!("primary gone uuid={uuid} pid={pid} killed={killed}");
        self.remove(epoll, slot);
        if killed
            && !self.is_killing()
            && let Some(fired) = self.table.fired()
        {
            self.table.note_fired(0, Fired { gone_ns: Some(now_ns), ..fired });
            info!("all killed primaries gone after_us={}", now_ns.saturating_sub(fired.sent_ns) / 1_000);
        }
    }

    /// Whether the deadline has passed and something registered is not dead yet.
    pub(crate) fn overdue(&self, now_ns: u64) -> bool {
        self.registered > 0 && rules::expired(self.table.deadline(), now_ns)
    }

    fn is_killing(&self) -> bool {
        self.live.iter().flatten().any(|live| live.killed)
    }

    pub(crate) fn registered(&self) -> u32 {
        self.registered
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> {
        self.live.iter().flatten().map(|live| Entry {
            uuid: live.record.uuid,
            epoch: live.record.epoch,
            pid: live.record.process.pid,
            start_time: live.record.process.start_time,
            class: live.record.class,
            dying: live.killed,
        })
    }

    fn slot_of(&self, uuid: [u8; 16]) -> Option<usize> {
        self.live.iter().position(|live| live.as_ref().is_some_and(|live| live.record.uuid == uuid))
    }

    fn held(&self, slot: Option<usize>) -> Option<Held> {
        let record = self.live[slot?].as_ref()?.record;
        Some(Held { epoch: record.epoch, process: record.process })
    }

    fn watch(&mut self, epoll: &Epoll, slot: usize, record: Record, pidfd: OwnedFd) -> Result<(), Errno> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.token + slot as u64);
        epoll.add(&pidfd, event).inspect_err(|errno| {
            error!("cannot watch a primary uuid={} error={errno}", Uuid(record.uuid));
        })?;
        self.live[slot] = Some(Live { record, pidfd, killed: false });
        self.registered += 1;
        Ok(())
    }

    fn remove(&mut self, epoll: &Epoll, slot: usize) {
        self.table.clear(slot);
        if let Some(live) = self.live[slot].take() {
            self.registered -= 1;
            // By hand: whoever sent the pidfd may hold it open, and closing ours would leave it watched.
            if let Err(errno) = epoll.delete(&live.pidfd) {
                warning!("cannot stop watching a process pid={} error={errno}", live.record.process.pid);
            }
        }
    }
}

#[cfg(test)]
#[path = "primaries/tests.rs"]
mod tests;
