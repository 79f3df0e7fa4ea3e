//! Owns the meaning of libvirt's numbers for states and events.
//!
//! Promises: a number that this version does not know becomes a word that asks for care, never a guess. Must not
//! do: call libvirt.

use nix::libc::c_int;
use understudy_core::model::ids::InstanceId;
use virt_sys as sys;

use crate::event::{EventKind, Lifecycle, StartCause, StopCause, WatchdogAction};
use crate::types::{InstanceState, PauseCause};

/// A number as libvirt's constants have it; negative ones do not occur and match nothing.
fn number(raw: c_int) -> u32 {
    u32::try_from(raw).unwrap_or(u32::MAX)
}

pub(crate) fn state(state: u32, reason: c_int) -> InstanceState {
    match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => InstanceState::Running,
        sys::VIR_DOMAIN_PAUSED => InstanceState::Paused(pause_reason(number(reason))),
        sys::VIR_DOMAIN_SHUTDOWN => InstanceState::ShuttingDown,
        sys::VIR_DOMAIN_CRASHED => InstanceState::Crashed,
        sys::VIR_DOMAIN_SHUTOFF => InstanceState::Off,
        _ => InstanceState::Paused(PauseCause::Unknown),
    }
}

fn pause_reason(reason: u32) -> PauseCause {
    match reason {
        sys::VIR_DOMAIN_PAUSED_USER | sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT => PauseCause::Asked,
        sys::VIR_DOMAIN_PAUSED_MIGRATION
        | sys::VIR_DOMAIN_PAUSED_POSTCOPY
        | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED => PauseCause::Migration,
        sys::VIR_DOMAIN_PAUSED_SAVE | sys::VIR_DOMAIN_PAUSED_DUMP | sys::VIR_DOMAIN_PAUSED_SNAPSHOT => {
            PauseCause::Saving
        }
        sys::VIR_DOMAIN_PAUSED_IOERROR => PauseCause::IoError,
        sys::VIR_DOMAIN_PAUSED_WATCHDOG => PauseCause::Watchdog,
        sys::VIR_DOMAIN_PAUSED_CRASHED => PauseCause::Panicked,
        sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN | sys::VIR_DOMAIN_PAUSED_STARTING_UP => PauseCause::Changing,
        _ => PauseCause::Unknown,
    }
}

pub(crate) fn lifecycle(id: InstanceId, event: c_int, detail: c_int) -> EventKind {
    let detail = number(detail);
    let change = match number(event) {
        sys::VIR_DOMAIN_EVENT_CRASHED => return EventKind::Panicked { id },
        sys::VIR_DOMAIN_EVENT_STARTED => Lifecycle::Started(match detail {
            sys::VIR_DOMAIN_EVENT_STARTED_BOOTED => StartCause::Booted,
            sys::VIR_DOMAIN_EVENT_STARTED_MIGRATED => StartCause::Migrated,
            sys::VIR_DOMAIN_EVENT_STARTED_RESTORED => StartCause::Restored,
            _ => StartCause::Other,
        }),
        sys::VIR_DOMAIN_EVENT_SUSPENDED => Lifecycle::Suspended(match detail {
            // A save reports itself as a plain pause, which says nothing about who asked.
            sys::VIR_DOMAIN_EVENT_SUSPENDED_PAUSED
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_RESTORED
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_FROM_SNAPSHOT => PauseCause::Asked,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED => PauseCause::Migration,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR => PauseCause::IoError,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG => PauseCause::Watchdog,
            _ => PauseCause::Unknown,
        }),
        sys::VIR_DOMAIN_EVENT_RESUMED => Lifecycle::Resumed,
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => Lifecycle::ShutDown,
        sys::VIR_DOMAIN_EVENT_STOPPED => Lifecycle::Stopped(match detail {
            sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StopCause::ShutDown,
            sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StopCause::Destroyed,
            sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => StopCause::Crashed,
            sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StopCause::Migrated,
            sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => StopCause::Saved,
            sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => StopCause::Failed,
            _ => StopCause::Other,
        }),
        _ => Lifecycle::Other,
    };
    EventKind::Lifecycle { id, change }
}

pub(crate) fn watchdog(action: c_int) -> WatchdogAction {
    match number(action) {
        sys::VIR_DOMAIN_EVENT_WATCHDOG_NONE | sys::VIR_DOMAIN_EVENT_WATCHDOG_DEBUG => WatchdogAction::None,
        sys::VIR_DOMAIN_EVENT_WATCHDOG_PAUSE => WatchdogAction::Paused,
        _ => WatchdogAction::Ended,
    }
}

pub(crate) fn io_error_paused(action: c_int) -> bool {
    number(action) == sys::VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
}

pub(crate) fn agent_connected(state: c_int) -> bool {
    number(state) == sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_number_is_never_taken_for_a_running_or_a_stopped_instance() {
        for unknown in [99, u32::MAX] {
            assert_eq!(state(unknown, 0), InstanceState::Paused(PauseCause::Unknown));
        }
        assert_eq!(state(sys::VIR_DOMAIN_PAUSED, 99), InstanceState::Paused(PauseCause::Unknown));
        let id = "11111111-2222-4333-8444-000000000001".parse().unwrap();
        assert_eq!(lifecycle(id, 99, 0), EventKind::Lifecycle { id, change: Lifecycle::Other });
        assert_eq!(
            lifecycle(id, sys::VIR_DOMAIN_EVENT_STOPPED as c_int, 99),
            EventKind::Lifecycle { id, change: Lifecycle::Stopped(StopCause::Other) }
        );
    }
}
