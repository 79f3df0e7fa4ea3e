//! Owns what the page's tests stand on: real X screens with something recognisable on them, and gateways that
//! can be killed or frozen like a host.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use tokio::sync::oneshot;
use understudy::gateway::{GatewayState, Limits, Publisher, directory, router};
use understudy_core::model::view::View;
use understudy_e2e::browser::picture::Colour;

#[path = "../../../../agent/src/gateway/tests/view.rs"]
mod view;
use view::view;

/// The port of every screen of these tests, as 5900 is of guests: each has an address of loopback to itself. Held on
/// another address, so that nobody else is given it.
static SCREENS: LazyLock<(u16, TcpListener)> = LazyLock::new(|| {
    let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
    (held.local_addr().expect("it is bound").port(), held)
});

/// A process that dies with this test, however the test ends.
struct Owned(Child);

impl Owned {
    fn spawn(program: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program]).args(arguments);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        prepare(&mut command);
        Self(command.spawn().expect("setpriv is part of util-linux"))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.kill().expect("a child of this process");
        self.0.wait().expect("a child of this process");
    }
}

/// An X screen that speaks VNC, filled with one colour and with a terminal window that names it.
pub(crate) struct Screen {
    pub(crate) address: Ipv4Addr,
    _client: Owned,
    _server: Owned,
}

impl Screen {
    pub(crate) fn start(name: &str, colour: Colour) -> Self {
        static GIVEN: AtomicU8 = AtomicU8::new(1);
        let address = Ipv4Addr::new(127, 2, 0, GIVEN.fetch_add(1, Ordering::Relaxed));
        let options = format!(
            "-displayfd 1 -geometry 1024x700 -depth 24 -SecurityTypes None -interface {address} -rfbport {} \
             -AlwaysShared -nolisten tcp",
            SCREENS.0
        );
        let options: Vec<_> = options.split_whitespace().collect();
        let mut server = Owned::spawn("Xtigervnc", &options, |command| {
            command.stdout(Stdio::piped());
        });
        let mut number = String::new();
        let stdout = server.0.stdout.take().expect("piped above");
        BufReader::new(stdout).read_line(&mut number).expect("Xtigervnc names its display when it is ready");
        let number: u16 = number.trim().parse().expect("a display number");
        let display = format!(":{number}");
        let [red, green, blue] = colour;
        let painted = Command::new("xsetroot")
            .args(["-display", &display, "-solid", &format!("#{red:02x}{green:02x}{blue:02x}")])
            .status()
            .expect("looked for in `missing`");
        assert!(painted.success(), "xsetroot: {painted}");
        let script = format!("printf '\\n  display {name}\\n'; while :; do sleep 60; done");
        let look =
            ["-display", &display, "-geometry", "22x4+80+90", "-fn", "10x20", "-e", "sh", "-c", &script];
        let client = Owned::spawn("xterm", &look, |command| {
            command.stdout(Stdio::null());
        });
        TcpStream::connect((address, SCREENS.0)).expect("a display that named its number takes connections");
        Self { address, _client: client, _server: server }
    }
}

/// A gateway in a thread and a runtime of its own.
pub(crate) struct Gateway {
    pub(crate) url: String,
    pub(crate) publisher: Publisher,
    orders: Option<oneshot::Sender<Order>>,
    /// Dropped, it lets a frozen gateway go, so that its thread can end.
    thaw: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Die,
    Freeze(mpsc::Receiver<()>),
}

impl Gateway {
    pub(crate) fn start(view: View) -> Self {
        let (publisher, directory) = directory();
        publisher.publish(view);
        let (orders, ordered) = oneshot::channel();
        let (bound, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
                let routes = router(GatewayState::new(directory, SCREENS.0, Limits::default()));
                tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
                match ordered.await {
                    // As a stopped host: sockets stay open, connections are taken by the kernel, nobody speaks.
                    Ok(Order::Freeze(thawed)) => drop(thawed.recv()),
                    Ok(Order::Die) | Err(_) => {}
                }
            });
        });
        let url = format!("http://{}", address.recv().expect("the gateway's thread binds or panics"));
        Self { url, publisher, orders: Some(orders), thaw: None, thread: Some(thread) }
    }

    /// Ends it with all its sockets, as a killed process.
    pub(crate) fn kill(&mut self) {
        self.order(Order::Die);
        self.join();
    }

    /// Stops it without a sign to anyone.
    pub(crate) fn freeze(&mut self) {
        let (thaw, thawed) = mpsc::channel();
        self.thaw = Some(thaw);
        self.order(Order::Freeze(thawed));
    }

    fn order(&mut self, order: Order) {
        if let Some(orders) = self.orders.take() {
            // Its thread has ended already: there is nothing to order.
            drop(orders.send(order));
        }
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a gateway's thread panicked");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.order(Order::Die);
        drop(self.thaw.take());
        self.join();
    }
}

/// A view with the one terminal `alice`.
pub(crate) fn alice(epoch: u64, address: Option<Ipv4Addr>, gateways: &[&str]) -> View {
    view(&[("alice", epoch, address)], gateways, &[] as &[&str])
}

/// The folders of browsers in the machine's folder for temporary files.
pub(crate) fn left_by_browsers() -> BTreeSet<String> {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.to_lowercase().contains("chromium")).collect()
}

/// Ids of the processes whose command line names `text`.
pub(crate) fn processes_naming(text: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(text).then_some(pid)
    });
    processes.collect()
}

/// A network namespace of this test's own, with nothing but loopback.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// Makes it, or says why that is not possible here.
    pub(crate) fn add() -> Result<Self, String> {
        let name = format!("ustlab-page-{}", std::process::id());
        let ip = |arguments: &[&str]| {
            let output =
                Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(()) } else { Err(format!("ip {arguments:?}: {said}")) }
        };
        ip(&["netns", "add", &name])?;
        let made = Self { name };
        ip(&["-n", &made.name, "link", "set", "lo", "up"])?;
        Ok(made)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the network namespace {} stays behind", self.name);
        }
    }
}

/// Waits until `holds`.
pub(crate) fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
