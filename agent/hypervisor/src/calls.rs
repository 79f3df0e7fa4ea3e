//! Owns the threads on which libvirt is called, one per call.
//!
//! Promises: a caller waits no longer than its deadline; a call that hangs is left on its own thread, where it
//! may still take effect; when too many hang, no further one is begun. Must not do: retry.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use virt::error::Error;

use crate::error::CallError;
use crate::refusal::{Refusal, RefusalKind, refusal};

/// Calls under way at once: far more than a healthy libvirtd ever sees from one agent, few enough to spare the
/// host when a hung one swallows every call.
const UNDER_WAY_MAX: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Calls {
    under_way: Arc<AtomicUsize>,
}

/// A call under way.
pub(crate) struct Pending<T> {
    call: &'static str,
    answer: Receiver<Result<T, Error>>,
}

/// Counts a call from its beginning to its real end, however late.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Calls {
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<Pending<T>, CallError> {
        let hanging = self.under_way.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.under_way));
        if hanging >= UNDER_WAY_MAX {
            return Err(CallError::Saturated { hanging });
        }
        let (sender, answer) = channel();
        let begun = std::thread::Builder::new().name(format!("lv {call}")).spawn(move || {
            let result = work();
            drop(counted);
            if sender.send(result).is_err() {
                tracing::warn!(call, "a call to libvirt came back after its deadline");
            }
        });
        match begun {
            Ok(_) => Ok(Pending { call, answer }),
            Err(error) => Err(failed(call, &format!("no thread for the call: {error}"))),
        }
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        self.begin(call, work)?.wait(deadline)
    }
}

impl<T> Pending<T> {
    /// Waits for the answer. After a time-out it may be waited for again.
    pub(crate) fn wait(&self, deadline: Duration) -> Result<T, CallError> {
        match self.answer.recv_timeout(deadline) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(CallError::Refused { call: self.call, refusal: refusal(&error) }),
            Err(RecvTimeoutError::Timeout) => Err(CallError::TimedOut { call: self.call, after: deadline }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(failed(self.call, "the call's thread ended without an answer"))
            }
        }
    }
}

fn failed(call: &'static str, message: &str) -> CallError {
    CallError::Refused { call, refusal: Refusal { kind: RefusalKind::Other, message: message.to_owned() } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_hangs_does_not_hold_its_caller_and_may_be_waited_for_again() {
        let calls = Calls::default();
        let (release, held) = channel::<()>();
        let pending = calls.begin("hang", move || Ok(held.recv().is_ok())).unwrap();
        assert!(matches!(
            pending.wait(Duration::from_millis(20)),
            Err(CallError::TimedOut { call: "hang", .. })
        ));
        release.send(()).unwrap();
        assert!(pending.wait(Duration::from_secs(20)).unwrap());
    }

    #[test]
    fn when_too_many_hang_no_further_one_is_begun_until_one_ends() {
        let calls = Calls::default();
        let mut releases = Vec::new();
        let mut pending = Vec::new();
        for _ in 0..UNDER_WAY_MAX {
            let (release, held) = channel::<()>();
            releases.push(release);
            pending.push(calls.begin("hang", move || Ok(held.recv().is_ok())).unwrap());
        }
        let one_more = calls.run("one more", Duration::from_secs(1), || Ok(()));
        assert!(matches!(one_more, Err(CallError::Saturated { hanging: UNDER_WAY_MAX })));
        drop(releases);
        for call in pending {
            call.wait(Duration::from_secs(20)).unwrap();
        }
        calls.run("one more", Duration::from_secs(20), || Ok(())).unwrap();
    }

    #[test]
    fn a_call_whose_thread_panics_is_a_failed_call() {
        let result: Result<(), _> =
            Calls::default().run("bad", Duration::from_secs(20), || panic!("in the call"));
        assert_eq!(result.unwrap_err().refused(), Some(RefusalKind::Other));
    }
}
