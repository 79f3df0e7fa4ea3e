//! Owns the talk with the agent inside a guest.
//!
//! Promises: a silent agent is told from one that refused; a command's end is waited for within its deadline.
//! Must not do: know what any command means.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use understudy_core::model::ids::InstanceId;

use super::Libvirt;
use crate::api::Hypervisor;
use crate::error::{CallError, GuestError};
use crate::refusal::RefusalKind;
use crate::types::{GuestCommand, GuestOutput, InstanceState, Liveness};

/// The guest's agent has no event for a command's end, so it is asked: soon at first, for most commands are
/// short, then at a pace that costs little and hears of the end at most an eighth later than it came.
const ASK_FIRST: Duration = Duration::from_millis(10);
const ASK_MAX: Duration = Duration::from_millis(200);
const ASK_AFTER: u32 = 8;

/// Setting a clock is a matter of milliseconds, even for an emulated guest that is busy.
const CLOCK_DEADLINE: Duration = Duration::from_secs(10);
const CLOCK_OFF_MAX: Duration = Duration::from_secs(1);

impl Libvirt {
    pub(super) fn ping(&self, id: InstanceId, deadline: Duration) -> Result<(), GuestError> {
        self.ask(id, "guest-ping", &json!({}), deadline)?;
        self.trial.answered(id, false);
        Ok(())
    }

    pub(super) fn exec(&self, id: InstanceId, command: &GuestCommand) -> Result<GuestOutput, GuestError> {
        let began = Instant::now();
        let until = began + command.deadline;
        let Some((program, arguments)) = command.argv.split_first() else {
            return Err(unusable(id, "guest-exec", "there is no program to run"));
        };
        let begin = json!({
            "path": program,
            "arg": arguments,
            "input-data": STANDARD.encode(&command.stdin),
            "capture-output": true,
        });
        let begun = self.ask_unless_saving(id, "guest-exec", &begin, until)?;
        let process = begun["pid"].as_i64().ok_or_else(|| unusable(id, "guest-exec", "no process id"))?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (program, after) = (program.clone(), command.deadline);
                return Err(GuestError::TimedOut { id, program, after });
            }
            let status =
                self.ask_unless_saving(id, "guest-exec-status", &json!({ "pid": process }), until)?;
            if status["exited"].as_bool() == Some(true) {
                return output(id, &status);
            }
            std::thread::sleep((began.elapsed() / ASK_AFTER).clamp(ASK_FIRST, ASK_MAX).min(left));
        }
    }

    pub(super) fn set_time(&self, id: InstanceId) -> Result<(), GuestError> {
        let nanos = i64::try_from(since_1970().as_nanos()).unwrap_or(i64::MAX);
        let set = self.ask(id, "guest-set-time", &json!({ "time": nanos }), CLOCK_DEADLINE);
        // The agent sets the system's clock and then calls `hwclock` for the one on the board; a guest without
        // that program answers with an error although its clock is right. So the clock itself is looked at.
        if let Err(error @ GuestError::Silent { .. }) = set {
            return Err(error);
        }
        let before = since_1970();
        let time = self.ask(id, "guest-get-time", &json!({}), CLOCK_DEADLINE)?;
        let after = since_1970();
        let time = time.as_u64().ok_or_else(|| unusable(id, "guest-get-time", "no time"))?;
        let time = Duration::from_nanos(time);
        let off = before.saturating_sub(time).max(time.saturating_sub(after));
        match set {
            _ if off <= CLOCK_OFF_MAX => Ok(()),
            Ok(_) => Err(GuestError::Clock { id, off }),
            Err(error) => Err(error),
        }
    }

    /// Sends one command to the guest's agent, and waits where the guest stands still: a checkpoint pauses it for a
    /// moment, and libvirt refuses to ask a guest that does not run.
    fn ask_unless_saving(
        &self,
        id: InstanceId,
        command: &'static str,
        arguments: &Value,
        until: Instant,
    ) -> Result<Value, GuestError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.ask(id, command, arguments, left.max(ASK_FIRST)) {
                Err(GuestError::Silent { source, .. })
                    if source.refused() == Some(RefusalKind::WrongState)
                        && left > ASK_MAX
                        && matches!(
                            self.liveness(id),
                            Ok(Liveness::Known(InstanceState::Paused(_) | InstanceState::Running))
                        ) =>
                {
                    std::thread::sleep(ASK_FIRST);
                }
                answer => return answer,
            }
        }
    }

    /// Sends one command to the guest's agent; the `return` of its answer.
    fn ask(
        &self,
        id: InstanceId,
        command: &'static str,
        arguments: &Value,
        deadline: Duration,
    ) -> Result<Value, GuestError> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        // libvirt counts whole seconds; the caller's own deadline is kept by the call's thread.
        let seconds = i32::try_from(deadline.as_secs().saturating_add(1)).unwrap_or(i32::MAX);
        let answer =
            self.on_domain(id, command, deadline, move |domain| domain.qemu_agent_command(&text, seconds, 0));
        let answer = answer.map_err(|source| match (&source, source.refused()) {
            (_, Some(RefusalKind::NoInstance)) => GuestError::NoInstance(id),
            (_, Some(RefusalKind::AgentSilent | RefusalKind::WrongState))
            | (CallError::TimedOut { .. }, _) => GuestError::Silent { id, source },
            _ => GuestError::Ask { id, source },
        })?;
        let mut answer: Value =
            serde_json::from_str(&answer).map_err(|error| unusable(id, command, &error.to_string()))?;
        Ok(answer["return"].take())
    }
}

fn unusable(id: InstanceId, command: &'static str, what: &str) -> GuestError {
    GuestError::Answer { id, command, what: what.to_owned() }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn output(id: InstanceId, status: &Value) -> Result<GuestOutput, GuestError> {
    let wrong = |what: &str| unusable(id, "guest-exec-status", what);
    for cut in ["out-truncated", "err-truncated"] {
        if status[cut].as_bool() == Some(true) {
            return Err(wrong("the command's output was cut off"));
        }
    }
    let stream = |name: &str| match status[name].as_str() {
        None => Ok(Vec::new()),
        Some(text) => STANDARD.decode(text).map_err(|error| wrong(&error.to_string())),
    };
    let number = |name: &str| status[name].as_i64().and_then(|number| i32::try_from(number).ok());
    let exit = number("exitcode")
        .or_else(|| number("signal").map(|signal| 128 + signal))
        .ok_or_else(|| wrong("neither exit code nor signal"))?;
    Ok(GuestOutput { exit, stdout: stream("out-data")?, stderr: stream("err-data")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> InstanceId {
        "11111111-2222-4333-8444-000000000001".parse().unwrap()
    }

    #[test]
    fn an_ended_command_is_read() {
        let status = json!({"exited": true, "exitcode": 3, "out-data": "aGk=", "err-data": "b2g="});
        let want = GuestOutput { exit: 3, stdout: b"hi".to_vec(), stderr: b"oh".to_vec() };
        assert_eq!(output(id(), &status).unwrap(), want);
        assert_eq!(output(id(), &json!({"exited": true, "signal": 9})).unwrap().exit, 137);
    }

    #[test]
    fn an_answer_that_is_not_whole_is_none() {
        for status in [
            json!({"exited": true}),
            json!({"exitcode": 0, "out-data": "!"}),
            json!({"exitcode": 0, "out-data": "aGk=", "out-truncated": true}),
        ] {
            assert!(matches!(output(id(), &status), Err(GuestError::Answer { .. })), "{status}");
        }
    }
}
