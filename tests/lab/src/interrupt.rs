//! SIGINT, SIGTERM and SIGHUP tear the process's labs down before they end it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Doing, LabError};
use crate::journal::Journal;
use crate::sweep;

/// What a signal has to take down.
struct Owned {
    /// Journals of the labs that this process owns and that are not kept.
    journals: Vec<Arc<Journal>>,
    /// Whether a signal has come.
    interrupted: bool,
}

static OWNED: Mutex<Owned> = Mutex::new(Owned { journals: Vec::new(), interrupted: false });

fn owned() -> MutexGuard<'static, Owned> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on a signal takes the lab of this journal down.
pub(crate) fn own(journal: &Arc<Journal>) {
    let mut owned = owned();
    if owned.interrupted {
        wait_for_the_end(owned);
    }
    owned.journals.push(Arc::clone(journal));
}

/// The caller takes the lab down itself or leaves it standing: a signal waits until that is done. When a
/// signal has come before, the caller never returns: it would end the process in the middle of its work.
pub(crate) fn release<T>(journal: &Arc<Journal>, work: impl FnOnce() -> T) -> T {
    let mut owned = owned();
    if owned.interrupted {
        wait_for_the_end(owned);
    }
    let done = work();
    owned.journals.retain(|other| !Arc::ptr_eq(other, journal));
    done
}

fn wait_for_the_end(owned: MutexGuard<'_, Owned>) -> ! {
    drop(owned);
    wait_for_signal()
}

/// Stays until a signal ends the process, by the thread that [`tear_down_on_signals`] started.
pub fn wait_for_signal() -> ! {
    loop {
        thread::park();
    }
}

/// Call it in `main` right after [`crate::init_if_asked`], before any other thread is started: a signal is
/// blocked in the calling thread and in all that it starts from then on, and handled by a thread of the lab.
/// The process ends with 128 + signal. Children of the process inherit the blocked signals.
///
/// # Errors
/// When the signals cannot be blocked.
pub fn tear_down_on_signals() -> Result<(), LabError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().doing("block the signals that end a process")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        let journals = {
            let mut owned = owned();
            owned.interrupted = true;
            std::mem::take(&mut owned.journals)
        };
        if !journals.is_empty() {
            eprintln!("{signal}: taking the lab down");
        }
        for journal in journals {
            journal.close();
            if let Err(error) = sweep::tear_down(journal.run_dir()) {
                eprintln!("{}", error.chain());
            }
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}
