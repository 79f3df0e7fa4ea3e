//! Owns the clock of deadlines: a thread that advances the engine's epoch while questions are being asked and for a
//! moment after, and sleeps otherwise.
//!
//! Promises: a store that may run for `n` ticks is interrupted between `n - 1` and `n` ticks after it began (later
//! when the machine gives the thread no time). Must not do: wake an idle daemon.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// How far apart ticks are. Each costs a wake-up and no question waits for one, so it need not be finer than
/// what a deadline in tens of milliseconds asks for.
const TICK: Duration = Duration::from_millis(10);
/// How many ticks go on without a question: one question comes after another, and to wake a thread for each would cost
/// more than most of them take.
const IDLE_TICKS: u32 = 100;

#[derive(Debug, Default)]
struct State {
    /// Questions being asked.
    asking: usize,
    /// The thread waits to be woken.
    asleep: bool,
    stop: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A count and a flag are never half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, engine: &Engine) {
        let mut state = self.lock();
        let mut idle = 0;
        while !state.stop {
            idle = if state.asking == 0 { idle + 1 } else { 0 };
            if idle > IDLE_TICKS {
                state.asleep = true;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep = false;
                continue;
            }
            let (next, waited) = self.wake.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if waited.timed_out() {
                engine.increment_epoch();
            }
        }
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("policy-ticker".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            let engine = engine.clone();
            move || shared.run(&engine)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Tick for as long as the returned value lives.
    pub(crate) fn question(&self) -> Question<'_> {
        let mut state = self.shared.lock();
        state.asking += 1;
        if state.asleep {
            // Only then: a wake-up in the middle of a tick would start that tick again.
            self.shared.wake.notify_one();
        }
        Question { shared: &self.shared }
    }

    /// Ticks that cover `limit` also when the first one comes at once.
    pub(crate) fn ticks(limit: Duration) -> u64 {
        u64::try_from(limit.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
            + 1
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the policy ticker panicked");
        }
    }
}

/// One question being asked.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    shared: &'a Shared,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.shared.lock().asking -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_clock_sleeps_and_a_question_wakes_it() {
        let ticker = Ticker::start(&Engine::default()).unwrap();
        let give_up = std::time::Instant::now() + Duration::from_secs(30);
        let until = |asleep: bool| {
            while ticker.shared.lock().asleep != asleep {
                assert!(std::time::Instant::now() < give_up, "asleep is not {asleep}");
                std::thread::yield_now();
            }
        };
        until(true);
        let question = ticker.question();
        until(false);
        drop(question);
        until(true);
    }

    #[test]
    fn a_deadline_is_never_shorter_than_asked() {
        for (limit_ms, ticks) in [(0, 1), (1, 2), (10, 2), (11, 3), (500, 51)] {
            assert_eq!(Ticker::ticks(Duration::from_millis(limit_ms)), ticks, "{limit_ms} ms");
        }
        assert!(Ticker::ticks(Duration::MAX) > 1 << 32);
    }
}
