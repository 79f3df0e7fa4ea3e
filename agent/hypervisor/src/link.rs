//! Owns the connection to libvirt: one event loop for the process, and one supervisor thread per connection that
//! opens it again whenever it breaks.
//!
//! ```text
//!            opened                        closed (close callback, keepalive)
//!   down ──────────────> up: calls go through ──────────────> down, retry soon
//! ```
//!
//! Promises: the event loop runs before the first connection is opened; a call while the connection is down fails
//! at once; loss and return are told as events. Must not do: retry a call.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc::c_int;
use virt::connect::Connect;
use virt::error::Error;

use crate::calls::{Calls, Pending};
use crate::error::{CallError, StartError};
use crate::event::{EventKind, Hub};
use crate::ffi::{self, OnClose, Sink};
use crate::refusal::{Refusal, RefusalKind, refusal};

/// A libvirtd that has hung is found after `SECONDS * (COUNT + 1)` = 4 s, so that its host says within 5 s that it takes no
/// work; one that has died at once. Instances run on either way.
const KEEPALIVE_SECONDS: i32 = 1;
const KEEPALIVE_COUNT: u32 = 3;
/// Opening a local connection takes milliseconds; a remote one a few round trips and a TLS handshake.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// libvirtd needs about half a second to start; no use in asking much more often, nor much less.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// An open connection with its callbacks.
struct Live {
    connect: Connect,
    handles: Vec<c_int>,
}

impl Live {
    fn open(uri: &str, sink: &Sink, on_close: OnClose) -> Result<Self, Error> {
        let connect = Connect::open(Some(uri))?;
        // A driver inside this process has no peer to keep alive.
        let _ = connect.set_keep_alive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT);
        ffi::register_close(&connect, on_close)?;
        let mut live = Self { connect, handles: Vec::new() };
        live.handles = ffi::register_events(&live.connect, sink)?;
        Ok(live)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        ffi::deregister_events(&self.connect, &self.handles);
        ffi::deregister_close(&self.connect);
    }
}

enum Order {
    /// The connection of this number closed.
    Closed(u64),
    Stop,
}

#[derive(Default)]
struct Slot {
    live: Option<Arc<Live>>,
    last: Option<Refusal>,
}

struct Shared {
    uri: String,
    calls: Calls,
    slot: Mutex<Slot>,
    hub: Arc<Hub>,
    sink: Sink,
}

/// A connection that re-opens itself. Ends when dropped.
pub(crate) struct Link {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    supervisor: Option<JoinHandle<()>>,
}

impl Link {
    /// Opens the connection, or begins to try to. `sink` gets the domain events.
    pub(crate) fn start(uri: &str, hub: Arc<Hub>, sink: Sink) -> Result<Self, StartError> {
        run_event_loop()?;
        let shared = Arc::new(Shared {
            uri: uri.to_owned(),
            calls: Calls::default(),
            slot: Mutex::default(),
            hub,
            sink,
        });
        let (orders, inbox) = channel();
        let first = shared.open(0, &orders);
        if let Err(CallError::Refused { refusal, .. }) = &first
            && refusal.kind != RefusalKind::ConnectionLost
        {
            return Err(StartError::Uri { uri: uri.to_owned(), refusal: refusal.clone() });
        }
        let supervisor = {
            let (shared, orders) = (Arc::clone(&shared), orders.clone());
            std::thread::Builder::new()
                .name("libvirt link".to_owned())
                .spawn(move || supervise(&shared, &orders, &inbox))
                .map_err(StartError::Thread)?
        };
        Ok(Self { shared, orders, supervisor: Some(supervisor) })
    }

    pub(crate) fn begin<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<Pending<T>, CallError> {
        let live = {
            let slot = self.shared.slot();
            slot.live
                .clone()
                .ok_or_else(|| CallError::Down { uri: self.shared.uri.clone(), last: slot.last.clone() })?
        };
        self.shared.calls.begin(call, move || work(&live.connect))
    }

    pub(crate) fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        self.begin(call, work)?.wait(deadline)
    }

    /// Calls another libvirtd, once, on a connection of its own.
    pub(crate) fn call_other<T: Send + 'static>(
        &self,
        uri: &str,
        call: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, CallError> {
        let uri = uri.to_owned();
        self.shared.calls.run(call, deadline, move || work(&Connect::open(Some(&uri))?))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, number: u64, orders: &Sender<Order>) -> Result<(), CallError> {
        let (uri, sink, orders) = (self.uri.clone(), Arc::clone(&self.sink), orders.clone());
        let on_close: OnClose = Arc::new(move || {
            let _ = orders.send(Order::Closed(number));
        });
        let opened = self.calls.run("open", OPEN_DEADLINE, move || Live::open(&uri, &sink, on_close));
        let mut slot = self.slot();
        match opened {
            Ok(live) => {
                slot.live = Some(Arc::new(live));
                slot.last = None;
                Ok(())
            }
            Err(error) => {
                if let CallError::Refused { refusal, .. } = &error {
                    slot.last = Some(refusal.clone());
                }
                Err(error)
            }
        }
    }
}

fn supervise(shared: &Shared, orders: &Sender<Order>, inbox: &Receiver<Order>) {
    let mut number = 0;
    let mut wait = RETRY_FIRST;
    loop {
        let up = shared.slot().live.is_some();
        let order = if up {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(wait)
        };
        match order {
            Ok(Order::Closed(closed)) if closed == number && up => {
                let lost = shared.slot().live.take();
                // Giving up a dead connection's callbacks may hang as any call may.
                let _ = shared.calls.begin("close", move || {
                    drop(lost);
                    Ok(())
                });
                tracing::warn!(uri = shared.uri, from = "up", to = "down", "lost the connection to libvirt");
                shared.hub.tell(EventKind::ConnectionLost);
                wait = RETRY_FIRST;
            }
            // A connection that was given up closes late.
            Ok(Order::Closed(_)) => {}
            Err(RecvTimeoutError::Timeout) => {
                number += 1;
                match shared.open(number, orders) {
                    Ok(()) => {
                        tracing::info!(uri = shared.uri, from = "down", to = "up", "connected to libvirt");
                        shared.hub.tell(EventKind::ConnectionRegained);
                    }
                    Err(error) => {
                        tracing::debug!(uri = shared.uri, %error, "cannot connect to libvirt");
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                }
            }
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => {
                let last = shared.slot().live.take();
                let _ = shared.calls.run("close", OPEN_DEADLINE, move || {
                    drop(last);
                    Ok(())
                });
                return;
            }
        }
    }
}

/// libvirt has one event loop per process, and connections must be opened after it was registered.
fn run_event_loop() -> Result<(), StartError> {
    static STARTED: OnceLock<Result<(), Refusal>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // libvirt else writes every error to standard error, beside our own log.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(|error| refusal(&error))?;
        let turn = || {
            loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::error!(%error, "libvirt's event loop failed a turn");
                    std::thread::sleep(RETRY_FIRST);
                }
            }
        };
        std::thread::Builder::new().name("libvirt events".to_owned()).spawn(turn).map(|_| ()).map_err(
            |error| Refusal {
                kind: RefusalKind::Other,
                message: format!("cannot start the event thread: {error}"),
            },
        )
    });
    started.clone().map_err(StartError::EventLoop)
}
