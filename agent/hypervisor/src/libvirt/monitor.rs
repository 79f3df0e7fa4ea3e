//! Owns the line to qemu's monitor, for what libvirt has no interface for.
//!
//! Promises: a refusal is never taken for an answer; descriptors that are passed are the callee's own from then on. Must not
//! do: know what any command means. libvirt does not know what was asked, so no other job may be under way meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};
use understudy_core::model::ids::InstanceId;

use super::Libvirt;
use crate::error::{CallError, ControlError};
use crate::ffi;
use crate::refusal::RefusalKind;
use crate::snapshot::MonitorError;
use crate::xml::XmlError;

/// One question to qemu.
pub(super) struct Question<'a> {
    pub(super) command: &'static str,
    pub(super) arguments: Value,
    pub(super) file: Option<BorrowedFd<'a>>,
}

impl Question<'_> {
    pub(super) fn new(command: &'static str, arguments: Value) -> Self {
        Self { command, arguments, file: None }
    }
}

impl Libvirt {
    /// Asks qemu; what it returns.
    pub(super) fn ask_qemu(
        &self,
        id: InstanceId,
        question: Question<'_>,
        deadline: Duration,
    ) -> Result<Value, MonitorError> {
        let command = question.command;
        let mut text = json!({ "execute": command });
        if !question.arguments.is_null() {
            text["arguments"] = question.arguments;
        }
        let unusable = |what: String| MonitorError::Answer { command, what };
        let file = question.file.map(|file| file.try_clone_to_owned()).transpose();
        let file = file.map_err(|error| unusable(format!("the file cannot be passed: {error}")))?;
        let answer = self.send(id, text.to_string(), file.into_iter().collect(), deadline);
        let answer = answer.map_err(|source| MonitorError::Ask { command, source })?;
        let mut answer: Value = serde_json::from_str(&answer).map_err(|error| unusable(error.to_string()))?;
        if let Some(error) = answer.get("error") {
            let message = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            return Err(MonitorError::Refused { command, message });
        }
        answer.get_mut("return").map(Value::take).ok_or_else(|| unusable(answer.to_string()))
    }

    /// Passes a command on. The call's thread may outlive its caller, so the files are its own.
    fn send(
        &self,
        id: InstanceId,
        command: String,
        files: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<String, CallError> {
        self.on_domain(id, "monitor command", deadline, move |domain| {
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            ffi::monitor_with_files(domain, &command, &files)
        })
    }

    /// Sends a command to qemu's monitor with open files beside it. For mechanisms that libvirt has no interface
    /// for; libvirt does not know what was asked, so no other job may be under way on this instance.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn monitor_with_files(
        &self,
        id: InstanceId,
        command: &Value,
        files: &[BorrowedFd<'_>],
    ) -> Result<Value, ControlError> {
        let refuse = |message: String| ControlError::Describe(XmlError::Malformed(message));
        let owned: Result<Vec<_>, _> = files.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let owned = owned.map_err(|error| refuse(error.to_string()))?;
        let answer = self.send(id, command.to_string(), owned, self.deadlines.change);
        let answer = answer.map_err(|source| match source.refused() {
            Some(RefusalKind::NoInstance) => ControlError::NoInstance(id),
            _ => ControlError::Change { id, source },
        })?;
        serde_json::from_str(&answer).map_err(|error| refuse(error.to_string()))
    }

    /// Has qemu tell the switches of the segment that the instance's cards are here: RARP frames, the first at once,
    /// four more within 1.2 s (qemu's own pace after a live migration).
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn announce(&self, id: InstanceId) -> Result<(), ControlError> {
        let pace = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 });
        let command = json!({ "execute": "announce-self", "arguments": pace });
        let answer = self.monitor_with_files(id, &command, &[])?;
        match answer.get("error") {
            None => Ok(()),
            Some(error) => Err(ControlError::Describe(XmlError::Malformed(error.to_string()))),
        }
    }
}
