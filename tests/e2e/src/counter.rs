//! Owns the watching of a guest's counter: the number that lives in the memory of one process.
//!
//! Promises: every sample carries the time at which it was read; a process that began anew is seen as one. Must not
//! judge.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use understudy_lab::{Lab, NetNs};

/// Where the counter is served.
const PORT: u16 = 8080;
/// Between two samples.
const STEP: Duration = Duration::from_millis(50);
/// Longest wait for one sample: a guest that stands still must not hide when it goes on.
const PATIENCE: Duration = Duration::from_millis(400);
/// A connection that takes longer is overtaken by another. One whose first packet met no guest says nothing for as long as
/// it is waited for, although the guest may be there a moment later.
const OVERTAKEN: Duration = Duration::from_millis(100);
/// Longest wait for an answer that is needed.
const ANSWER: Duration = Duration::from_secs(30);

/// One reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When, since the watch began.
    pub at: Duration,
    /// The number.
    pub value: u64,
}

/// What a watch has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All readings, in order.
    pub samples: Vec<Sample>,
}

/// A thread that reads one counter again and again.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    begun: Instant,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Reads `path` of the guest's web server once, from inside the namespace.
fn read(ns: &NetNs, address: Ipv4Addr, path: &str) -> Result<String> {
    let stream = ns.connect(SocketAddr::from((address, PORT)), PATIENCE)?;
    ask(stream, path)
}

fn ask(mut stream: TcpStream, path: &str) -> Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no answer")?;
    Ok(body.trim().to_owned())
}

/// A connection: the first of several, which are begun one after the other until one succeeds. The others are closed.
fn first(ns: &Arc<NetNs>, address: Ipv4Addr, stopped: &AtomicBool) -> Option<TcpStream> {
    let (sender, connected) = std::sync::mpsc::channel();
    while !stopped.load(Ordering::Relaxed) {
        let (ns, sender) = (ns.clone(), sender.clone());
        let target = SocketAddr::from((address, PORT));
        std::thread::spawn(move || sender.send(ns.connect(target, PATIENCE)));
        match connected.recv_timeout(OVERTAKEN) {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(_)) => std::thread::sleep(STEP),
            Err(_) => {}
        }
    }
    None
}

impl Watch {
    /// Begins to read the counter at `address`.
    ///
    /// # Errors
    /// When the lab is gone.
    pub fn start(lab: &Lab, address: Ipv4Addr) -> Result<Self> {
        let ns = lab.switch()?;
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let begun = Instant::now();
        let (shared, stopped) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let ns = Arc::new(ns);
            while !stopped.load(Ordering::Relaxed) {
                if let Some(stream) = first(&ns, address, &stopped)
                    && let Ok(text) = ask(stream, "/counter")
                    && let Ok(value) = text.parse()
                {
                    let sample = Sample { at: begun.elapsed(), value };
                    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).samples.push(sample);
                }
                std::thread::sleep(STEP);
            }
        });
        Ok(Self { seen, stop, begun, thread: Some(thread) })
    }

    /// How long the watch has been on.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    /// The last reading before or at `at`.
    #[must_use]
    pub fn last_before(&self, at: Duration) -> Option<&Sample> {
        self.samples.iter().rev().find(|sample| sample.at <= at)
    }

    /// The first reading after `at`.
    #[must_use]
    pub fn first_after(&self, at: Duration) -> Option<&Sample> {
        self.samples.iter().find(|sample| sample.at > at)
    }

    /// The longest time between two readings from `from` on.
    #[must_use]
    pub fn longest_gap(&self, from: Duration) -> Duration {
        let after: Vec<&Sample> = self.samples.iter().filter(|sample| sample.at >= from).collect();
        after.windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default()
    }

    /// The longest time between `from` and `until` in which no reading was greater than all before it: what a counter that
    /// has stopped breaks, however it is read, and also when it stays so to the end.
    #[must_use]
    pub fn longest_standstill(&self, from: Duration, until: Duration) -> Duration {
        let mut greatest = self.last_before(from).map_or(0, |sample| sample.value);
        let (mut since, mut longest) = (from, Duration::ZERO);
        for sample in self.samples.iter().filter(|sample| sample.at > from && sample.at <= until) {
            if sample.value > greatest {
                longest = longest.max(sample.at - since);
                (greatest, since) = (sample.value, sample.at);
            }
        }
        longest.max(until.saturating_sub(since))
    }

    /// Whether the number never went back from `from` on.
    #[must_use]
    pub fn never_back(&self, from: Duration) -> bool {
        let after: Vec<&Sample> = self.samples.iter().filter(|sample| sample.at >= from).collect();
        after.windows(2).all(|pair| pair[1].value >= pair[0].value)
    }
}

/// The line that names the process which counts: another line means that it began anew. A guest that is being saved
/// at that moment is asked again.
///
/// # Errors
/// When the guest does not answer for a long while.
pub fn start_of(lab: &Lab, address: Ipv4Addr) -> Result<String> {
    let (ns, until) = (lab.switch()?, Instant::now() + ANSWER);
    loop {
        match read(&ns, address, "/start") {
            Err(_) if Instant::now() < until => std::thread::sleep(STEP),
            answer => return answer,
        }
    }
}

/// The number that the counter came back with when its guest was restored last: where it saw the clock jump.
///
/// # Errors
/// When the guest does not answer for a long while, or saw none.
pub fn came_back_with(lab: &Lab, address: Ipv4Addr) -> Result<u64> {
    let (ns, until) = (lab.switch()?, Instant::now() + ANSWER);
    loop {
        let jumps = read(&ns, address, "/jumps");
        let last =
            jumps.as_ref().ok().and_then(|text| text.lines().last()?.split_whitespace().next()?.parse().ok());
        match last {
            Some(value) => return Ok(value),
            None if Instant::now() < until => std::thread::sleep(STEP),
            None => anyhow::bail!("the counter saw no jump of its clock: {jumps:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[(u64, u64)]) -> Seen {
        let samples = values.iter().map(|&(ms, value)| Sample { at: Duration::from_millis(ms), value });
        Seen { samples: samples.collect() }
    }

    #[test]
    fn gaps_and_steps_back_are_seen() {
        let seen = seen(&[(0, 1), (100, 2), (600, 3), (650, 2)]);
        assert_eq!(seen.longest_gap(Duration::ZERO), Duration::from_millis(500));
        assert!(!seen.never_back(Duration::ZERO));
        assert!(seen.never_back(Duration::from_millis(650)));
        assert_eq!(seen.last_before(Duration::from_millis(599)).map(|sample| sample.value), Some(2));
        assert_eq!(seen.first_after(Duration::from_millis(100)).map(|sample| sample.value), Some(3));
    }

    #[test]
    fn a_counter_that_stops_stands_still_whether_it_is_silent_or_repeats_itself() {
        let ms = Duration::from_millis;
        let counts = seen(&[(0, 1), (100, 2), (600, 3), (700, 4)]);
        assert_eq!(counts.longest_standstill(Duration::ZERO, ms(800)), ms(500));
        assert_eq!(counts.longest_standstill(ms(600), ms(800)), ms(100), "counted from the given time on");
        assert_eq!(counts.longest_standstill(Duration::ZERO, ms(5_700)), ms(5_000), "silent to the end");
        let repeats = seen(&[(0, 1), (100, 2), (200, 2), (2_000, 2), (3_000, 2)]);
        assert_eq!(repeats.longest_standstill(Duration::ZERO, ms(3_000)), ms(2_900), "the same number");
        assert_eq!(seen(&[]).longest_standstill(ms(10), ms(1_010)), ms(1_000), "nothing was read");
    }
}
