//! Owns the watch on qemu processes: one thread that waits on one pidfd per process.
//!
//! Promises: a process's death is told within milliseconds, exactly once, also while libvirtd is down; a death
//! of libvirtd is no death of an instance. Must not do: call libvirt; decide what a death means.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use understudy_core::model::ids::InstanceId;

use crate::process::{self, Pid};

/// How often the host's processes are read for qemu that nobody announced: a start while libvirtd's events
/// were missed. Everything else is announced, so this costs little and need not be quick.
const LOOK_EVERY: Duration = Duration::from_secs(10);

type Watched = Arc<Mutex<BTreeMap<(InstanceId, Pid), Arc<OwnedFd>>>>;

enum Order {
    Look,
    Stop,
}

/// The watch. Ends when dropped.
#[derive(Debug)]
pub struct PidWatch {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    watched: Watched,
    thread: Option<JoinHandle<()>>,
}

impl PidWatch {
    /// Begins to watch every qemu of this host that carries a UUID; `on_death` is called from the watch's own
    /// thread and must not block.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor or thread, or the host's processes cannot be read.
    pub fn start(on_death: impl Fn(InstanceId, Pid) + Send + 'static) -> io::Result<Self> {
        let (orders, inbox) = channel();
        let wake =
            Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let watched = Watched::default();
        look(&watched)?;
        let thread = {
            let (wake, watched) = (Arc::clone(&wake), Arc::clone(&watched));
            std::thread::Builder::new()
                .name("pidwatch".to_owned())
                .spawn(move || run(&inbox, &wake, &watched, &on_death))?
        };
        Ok(Self { orders, wake, watched, thread: Some(thread) })
    }

    /// Begins to watch a process that is known to run an instance. One that is watched already is fine.
    ///
    /// # Errors
    /// When the kernel gives no handle on it.
    pub fn watch(&self, id: InstanceId, pid: Pid) -> io::Result<()> {
        if add(&self.watched, id, pid)? {
            self.wake();
        }
        Ok(())
    }

    /// Reads the host's processes again, soon, on the watch's own thread.
    pub fn look(&self) {
        self.order(Order::Look);
    }

    /// What is watched at present.
    #[must_use]
    pub fn watched(&self) -> Vec<(InstanceId, Pid)> {
        lock(&self.watched).keys().copied().collect()
    }

    fn order(&self, order: Order) {
        // The thread ends only at `Stop`; what it does not hear after that does not matter.
        let _ = self.orders.send(order);
        self.wake();
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }
}

impl Drop for PidWatch {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn lock(watched: &Watched) -> std::sync::MutexGuard<'_, BTreeMap<(InstanceId, Pid), Arc<OwnedFd>>> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(watched: &Watched, id: InstanceId, pid: Pid) -> io::Result<bool> {
    if lock(watched).contains_key(&(id, pid)) {
        return Ok(false);
    }
    let Some(handle) = process::open(pid, id)? else { return Ok(false) };
    lock(watched).insert((id, pid), Arc::new(handle));
    Ok(true)
}

fn look(watched: &Watched) -> io::Result<()> {
    for (id, pid) in process::processes()?.carriers {
        add(watched, id, pid)?;
    }
    Ok(())
}

fn run(inbox: &Receiver<Order>, wake: &EventFd, watched: &Watched, on_death: &impl Fn(InstanceId, Pid)) {
    let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::MAX);
    loop {
        let now: Vec<_> = lock(watched).iter().map(|(&key, handle)| (key, Arc::clone(handle))).collect();
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(now.iter().map(|(_, handle)| PollFd::new(handle.as_fd(), PollFlags::POLLIN)));
        let ready = poll(&mut fds, timeout).unwrap_or_else(|error| {
            if error != nix::errno::Errno::EINTR {
                tracing::error!(%error, "cannot wait for qemu processes");
                std::thread::sleep(Duration::from_millis(100));
            }
            1
        });
        for (fd, &((id, pid), _)) in fds.iter().skip(1).zip(&now) {
            if fd.any().unwrap_or(false) {
                lock(watched).remove(&(id, pid));
                on_death(id, pid);
            }
        }
        let _ = wake.read();
        let mut wanted = ready == 0;
        for order in inbox.try_iter() {
            match order {
                Order::Look => wanted = true,
                Order::Stop => return,
            }
        }
        if wanted && let Err(error) = look(watched) {
            tracing::warn!(%error, "cannot read the host's processes");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::process::stand_in::carrier;

    fn id(last: u8) -> InstanceId {
        format!("11111111-2222-4333-8444-8888{:06x}{last:02x}", std::process::id()).parse().unwrap()
    }

    fn watch() -> (PidWatch, Receiver<(InstanceId, Pid)>) {
        let (sender, receiver) = channel();
        (PidWatch::start(move |id, pid| sender.send((id, pid)).unwrap_or(())).unwrap(), receiver)
    }

    fn death_of(deaths: &Receiver<(InstanceId, Pid)>, id: InstanceId) -> Pid {
        // Other tests' processes die too.
        loop {
            let (died, pid) = deaths.recv_timeout(Duration::from_secs(20)).expect("the death is told");
            if died == id {
                return pid;
            }
        }
    }

    #[test]
    fn a_death_is_reported_once_and_soon() {
        let id = id(1);
        let (mut child, pid) = carrier(id);
        let (watch, deaths) = watch();
        watch.watch(id, pid).unwrap();
        watch.watch(id, pid).unwrap();
        let killed = Instant::now();
        child.kill().unwrap();
        assert_eq!(death_of(&deaths, id), pid);
        assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
        child.wait().unwrap();
        assert!(!watch.watched().iter().any(|(watched, _)| *watched == id));
        drop(watch);
        assert!(!deaths.iter().any(|(died, _)| died == id), "told twice");
    }

    #[test]
    fn a_process_that_nobody_announced_is_found_by_a_look() {
        let (watch, deaths) = watch();
        let id = id(2);
        let (mut child, pid) = carrier(id);
        watch.look();
        let until = Instant::now() + Duration::from_secs(20);
        while !watch.watched().contains(&(id, pid)) {
            assert!(Instant::now() < until, "never found");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        assert_eq!(death_of(&deaths, id), pid);
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_gone_is_not_watched() {
        let id = id(3);
        let (mut child, pid) = carrier(id);
        child.kill().unwrap();
        child.wait().unwrap();
        let (watch, _deaths) = watch();
        watch.watch(id, pid).unwrap();
        assert!(!watch.watched().contains(&(id, pid)));
    }
}
