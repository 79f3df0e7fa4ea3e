//! Owns the snapshot by qemu's `background-snapshot`: the guest stands still for the devices' state, and runs on while its
//! memory is written as it was at that moment (userfaultfd holds a page that the guest is about to change until it is
//! written).
//!
//! ```text
//! look ─ memory reserved ─ earlier one reset ─ getfd ─ capability on, read back ─ migrate fd: ─┬─ completed ────────────┐
//!                                                                │                           └─ late, failed, unknown: │
//!                                                                └─ refused: closefd ─────────── no more is taken,      │
//!                                                                                                migrate_cancel ────────┤
//! resumed, if stopped by this ◄─ capability off, read back ◄─ qemu has cleaned up behind it ◄───────────────────────────┘
//! ```
//!
//! libvirt has no interface for it and does not know of it, so that every answer of qemu's counts: a `migrate` that follows a
//! refused capability is an ordinary one, which leaves the guest paused. One capability that stays on makes libvirt's next
//! save or migration another thing than what it says: [`Libvirt::reset_held`] is asked before each of them.
//!
//! `max-bandwidth` is left as it is: qemu takes no notice of it here (set to 100 kB/s, 1.1 MB came in 0.2 s). Since 9.1 qemu
//! writes one line into the domain's log for each stream into a file: `file:` would be its newer word, which cuts the file
//! off first and so gives back what was reserved.
//!
//! Promises: `migrate` is sent right after the capability was read back as on, and never else; in the end it reads back as off
//! or an error says so; a guest that was stopped by this and not by anybody else is resumed. Must not do: wait for a reader,
//! a disk or a network.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use understudy_core::model::ids::InstanceId;
use virt::error::Error;
use virt_sys as sys;

use super::monitor::Question;
use super::state::{Seen, see};
use super::{Libvirt, find};
use crate::domain::Domain;
use crate::refusal::RefusalKind;
use crate::reserved::{Reserved, header};
use crate::snapshot::{MonitorError, Snapshot, SnapshotError};
use crate::types::{InstanceState, PauseCause, SavedMemory};

const CAPABILITY: &str = "background-snapshot";
/// The name of the descriptor in qemu.
const DESCRIPTOR: &str = "understudy-snapshot";
/// How long a stream may go on after it was broken off, and qemu's cleaning up after one that has ended. That is a matter of
/// milliseconds (5 at the most were measured), and qemu refuses the next one before it.
const AFTER_END: Duration = Duration::from_secs(5);
/// libvirt passes qemu's event for a stream's end on to nobody, so it is asked for: soon at first, then at a pace that costs
/// little and hears of it at most an eighth later than it came.
const ASK_FIRST: Duration = Duration::from_millis(4);
const ASK_MAX: Duration = Duration::from_millis(100);
const ASK_AFTER: u32 = 8;
/// The words by which qemu says that it was stopped from outside of the guest. By `background-snapshot` it is `paused`, by an
/// ordinary migration the others.
const STOPPED: [&str; 3] = ["paused", "postmigrate", "finish-migrate"];

/// What qemu says of its migration.
pub(super) struct Stream {
    pub(super) state: String,
    message: String,
    pause: Option<Duration>,
}

impl Stream {
    /// Whether it has ended; one that never was has.
    pub(super) fn ended(&self) -> bool {
        ["none", "completed", "failed", "cancelled"].contains(&self.state.as_str())
    }
}

impl Libvirt {
    pub(super) fn take_snapshot(
        &self,
        id: InstanceId,
        deadline: Duration,
    ) -> Result<Snapshot, SnapshotError> {
        let until = Instant::now() + deadline;
        let busy = SnapshotError::Busy { id, after: deadline };
        let _job = self.jobs.begin(id, deadline).ok_or(busy)?;
        // Whatever an earlier one left: a guest that it stopped, or memory that qemu still has.
        self.reset_held(id).map_err(|source| SnapshotError::Reset { id, source })?;
        let reserved = self.reserve(id)?;
        let begun = Instant::now();
        let streamed = self.stream(id, &reserved, until, deadline);
        if streamed.is_err() {
            self.break_off(id, &reserved);
        }
        let took = begun.elapsed();
        let left = self.leave(id);
        self.keep_running(id)?;
        if let (Err(_), Err(error)) = (&streamed, &left) {
            tracing::error!(%id, %error, "a failed snapshot leaves the instance's qemu other than it was");
        }
        let pause = streamed?.pause.unwrap_or(took);
        left.map_err(|source| SnapshotError::Leave { id, source })?;
        let (image, bytes) = reserved.into_written().map_err(SnapshotError::Image)?;
        Ok(Snapshot { image, saved: SavedMemory { bytes, took, pause } })
    }

    /// Looks at the instance, and reserves what it may take.
    fn reserve(&self, id: InstanceId) -> Result<Reserved, SnapshotError> {
        let flags = sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE;
        let look = self.link.call("look up", self.deadlines.query, move |connect| {
            let domain = find(connect, id)?;
            Ok::<(Seen, String), Error>((see(&domain)?, domain.get_xml_desc(flags)?))
        });
        let (seen, migratable) = look.map_err(|source| match source.refused() {
            Some(RefusalKind::NoInstance) => SnapshotError::NoInstance(id),
            _ => SnapshotError::Look { id, source },
        })?;
        if seen.state != InstanceState::Running {
            return Err(SnapshotError::NotRunning(id));
        }
        let domain = Domain::parse(&seen.xml).map_err(SnapshotError::Describe)?;
        if let Some(disk) = domain.writable_disk() {
            return Err(SnapshotError::WritableDisk { id, disk: disk.source.unwrap_or_default() });
        }
        if let Some(what) = domain.shared_memory() {
            return Err(SnapshotError::SharedMemory { id, what });
        }
        let header = header(&migratable, &domain).map_err(SnapshotError::Describe)?;
        let memory = domain.memory().map_err(SnapshotError::Describe)?;
        let bytes = Reserved::bytes_for(memory) + domain.video_memory().bytes();
        Reserved::new(&header, bytes).map_err(|source| SnapshotError::Memory { bytes, source })
    }

    /// Has qemu write into the memory; what it says at the end.
    fn stream(
        &self,
        id: InstanceId,
        reserved: &Reserved,
        until: Instant,
        deadline: Duration,
    ) -> Result<Stream, SnapshotError> {
        // Somebody's late word may have switched it off before qemu began; from then on nobody can. Without it this is an
        // ordinary migration, which ends with a guest that stands still.
        let begun = self.begin_stream(id, reserved.as_fd()).and_then(|()| self.read_back(id, true));
        begun.map_err(|source| SnapshotError::Begin { id, source })?;
        let ended = self.wait_ended(id, until).map_err(|source| SnapshotError::Lost { id, source })?;
        match ended {
            None => Err(SnapshotError::TimedOut { id, after: deadline }),
            Some(stream) if stream.state == "completed" => Ok(stream),
            Some(Stream { state, message, .. }) => Err(SnapshotError::Broken { id, state, message }),
        }
    }

    /// Begins a background snapshot into a file. Asks nothing more once it has begun: whoever passes a pipe may have stopped
    /// qemu's monitor by it.
    pub(super) fn begin_stream(
        &self,
        id: InstanceId,
        file: std::os::fd::BorrowedFd<'_>,
    ) -> Result<(), MonitorError> {
        let pass =
            Question { command: "getfd", arguments: json!({ "fdname": DESCRIPTOR }), file: Some(file) };
        let passed = self.ask_qemu(id, pass, self.deadlines.query);
        let begun = passed.and_then(|_| {
            let migrate = Question::new("migrate", json!({ "uri": format!("fd:{DESCRIPTOR}") }));
            self.switch(id, true)?;
            self.ask_qemu(id, migrate, self.deadlines.query)
        });
        if begun.is_err() {
            self.close_passed(id);
        }
        begun.map(drop)
    }

    /// Has qemu let go of a file that was passed to it and not used: there is none as a rule, or where `migrate` has taken it.
    fn close_passed(&self, id: InstanceId) {
        let named = json!({ "fdname": DESCRIPTOR });
        let _ = self.ask_qemu(id, Question::new("closefd", named), self.deadlines.query);
    }

    /// Waits for the end of the stream; none when it still goes on when time is up.
    pub(super) fn wait_ended(&self, id: InstanceId, until: Instant) -> Result<Option<Stream>, MonitorError> {
        let begun = Instant::now();
        loop {
            let stream = self.look_at_stream(id)?;
            if stream.ended() {
                return Ok(Some(stream));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep((begun.elapsed() / ASK_AFTER).clamp(ASK_FIRST, ASK_MAX).min(left));
        }
    }

    pub(super) fn look_at_stream(&self, id: InstanceId) -> Result<Stream, MonitorError> {
        let question = Question::new("query-migrate", Value::Null);
        let answer = self.ask_qemu(id, question, self.deadlines.query)?;
        let text = |key: &str| answer[key].as_str().map(str::to_owned);
        Ok(Stream {
            state: text("status").unwrap_or_else(|| "none".to_owned()),
            message: text("error-desc").unwrap_or_else(|| "qemu gives no reason".to_owned()),
            // From before qemu stops the guest to after it lets it go, by its own clock: what the guest saw, without what
            // libvirt's events and this process's threads add. In whole milliseconds, so that 0 is less than one.
            pause: answer["downtime"].as_u64().map(|ms| Duration::from_millis(ms.max(1))),
        })
    }

    /// Ends a stream that is not wanted any more, in any state it may have.
    fn break_off(&self, id: InstanceId, reserved: &Reserved) {
        // qemu's next write fails by this, also where no libvirtd passes anything on, and whatever it still has is empty.
        if let Err(error) = reserved.close() {
            tracing::warn!(%id, %error, "the memory of a snapshot that failed goes on being written");
        }
        if let Err(error) = self.cancel_stream(id) {
            tracing::warn!(%id, %error, "cannot cancel a snapshot that failed");
        }
    }

    pub(super) fn cancel_stream(&self, id: InstanceId) -> Result<(), MonitorError> {
        if self.look_at_stream(id)?.ended() {
            return Ok(());
        }
        self.ask_qemu(id, Question::new("migrate_cancel", Value::Null), self.deadlines.query)?;
        match self.wait_ended(id, Instant::now() + AFTER_END)? {
            Some(_) => Ok(()),
            None => Err(MonitorError::NoEnd { state: self.look_at_stream(id)?.state }),
        }
    }

    /// Waits until qemu has cleaned up behind a stream that has ended, and switches the capability off.
    pub(super) fn leave(&self, id: InstanceId) -> Result<(), MonitorError> {
        let until = Instant::now() + AFTER_END;
        // Until then the state says `completed` already, and another `migrate` fails halfway ("duplicate yank instance") and
        // leaves qemu in a state that refuses all that follow.
        while self.cleans_up(id)? && Instant::now() < until {
            std::thread::sleep(ASK_FIRST);
        }
        self.switch(id, false)
    }

    fn cleans_up(&self, id: InstanceId) -> Result<bool, MonitorError> {
        let question = Question::new("query-yank", Value::Null);
        let answer = self.ask_qemu(id, question, self.deadlines.query)?;
        Ok(answer.as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "migration")))
    }

    /// Switches the capability, and reads it back.
    fn switch(&self, id: InstanceId, on: bool) -> Result<(), MonitorError> {
        let wanted = json!({ "capabilities": [{ "capability": CAPABILITY, "state": on }] });
        let set = Question::new("migrate-set-capabilities", wanted);
        self.ask_qemu(id, set, self.deadlines.query)?;
        self.read_back(id, on)
    }

    fn read_back(&self, id: InstanceId, on: bool) -> Result<(), MonitorError> {
        let word = |on: bool| if on { "on" } else { "off" };
        let found = self.is_on(id)?;
        if found == on { Ok(()) } else { Err(MonitorError::NotTaken { asked: word(on), found: word(found) }) }
    }

    fn is_on(&self, id: InstanceId) -> Result<bool, MonitorError> {
        let question = Question::new("query-migrate-capabilities", Value::Null);
        let answer = self.ask_qemu(id, question, self.deadlines.query)?;
        let all = answer.as_array().ok_or_else(|| MonitorError::Answer {
            command: "query-migrate-capabilities",
            what: answer.to_string(),
        })?;
        // A qemu that does not know the word cannot have it on.
        let ours = all.iter().find(|one| one["capability"] == CAPABILITY);
        Ok(ours.is_some_and(|ours| ours["state"] == true))
    }

    /// Sets right what an earlier agent left in the middle of a snapshot of this instance: two questions where there is
    /// nothing. To be asked at the start and before each job of libvirt's; whoever asks works on the instance alone.
    pub(super) fn reset_held(&self, id: InstanceId) -> Result<(), MonitorError> {
        match self.is_on(id) {
            Ok(true) => {}
            Ok(false) => {
                self.close_passed(id);
                return Ok(());
            }
            // A hypervisor without such a line has no snapshots either, and one that is not there has left nothing.
            Err(MonitorError::Ask { source, .. })
                if matches!(
                    source.refused(),
                    Some(RefusalKind::Unsupported | RefusalKind::NoInstance | RefusalKind::WrongState)
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        tracing::warn!(%id, "an earlier snapshot was left in the middle and is set right");
        if self.wait_ended(id, Instant::now() + AFTER_END)?.is_none() {
            self.cancel_stream(id)?;
        }
        self.leave(id)?;
        self.close_passed(id);
        if let Err(error) = self.keep_running(id) {
            tracing::error!(%id, %error, "an instance stands still after an earlier agent's snapshot");
        }
        Ok(())
    }

    /// Lets the guest go on where a snapshot has stopped it. One that somebody has suspended stays so.
    fn keep_running(&self, id: InstanceId) -> Result<(), SnapshotError> {
        let state = match self.word_of(id) {
            Ok(state) => state,
            // Nobody can tell, and nobody can resume: what is known of the instance is its process.
            Err(error) => {
                tracing::warn!(%id, %error, "cannot look whether an instance runs on after a snapshot");
                return Ok(());
            }
        };
        if !STOPPED.contains(&state.as_str()) || self.is_asked_for(id) {
            return Ok(());
        }
        tracing::warn!(%id, state, "an instance stands still after a snapshot and is resumed");
        // libvirt may not have heard that it stands still, and then resumes nothing; qemu has.
        let resumed = self.run(id).map_err(|error| tracing::warn!(%id, %error, "libvirt does not resume it"));
        if resumed.is_err() || self.word_of(id).is_ok_and(|state| state != "running") {
            let _ = self.ask_qemu(id, Question::new("cont", Value::Null), self.deadlines.query);
        }
        match self.word_of(id) {
            Ok(state) if state == "running" => Ok(()),
            Ok(state) => Err(SnapshotError::StandsStill { id, state }),
            Err(_) => Err(SnapshotError::StandsStill { id, state }),
        }
    }

    /// qemu's word for what the guest does.
    fn word_of(&self, id: InstanceId) -> Result<String, MonitorError> {
        let answer = self.ask_qemu(id, Question::new("query-status", Value::Null), self.deadlines.query)?;
        let word = answer["status"].as_str().map(str::to_owned);
        word.ok_or_else(|| MonitorError::Answer { command: "query-status", what: answer.to_string() })
    }

    /// Whether libvirt was told to make it stand still, or does so itself.
    fn is_asked_for(&self, id: InstanceId) -> bool {
        let seen = self.look_up(id).ok().flatten();
        seen.is_none_or(|seen| match seen.state {
            InstanceState::Running => false,
            InstanceState::Paused(cause) => cause != PauseCause::Unknown,
            InstanceState::ShuttingDown | InstanceState::Crashed | InstanceState::Off => true,
        })
    }
}
