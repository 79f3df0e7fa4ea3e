//! Lets a browser in the machine's own network reach an address of the lab.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Doing, LabError};
use crate::net::NetNs;

/// A silent target is given up after this time, so that a page may go on to another gateway.
const CONNECT: Duration = Duration::from_secs(3);

/// A TCP forwarder. Dropping it closes its port and every connection through it.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    closed: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Forward {
    /// Listens on 127.0.0.1:`port` (0 for a free one) and carries each connection to `target`.
    pub(crate) fn open(ns: NetNs, port: u16, target: SocketAddr) -> Result<Forward, LabError> {
        let listener =
            TcpListener::bind(("127.0.0.1", port)).doing(format!("listen on 127.0.0.1 port {port}"))?;
        let local = listener.local_addr().doing("ask for the forwarder's port")?;
        let shared = Arc::new(Shared::default());
        let (ns, held) = (Arc::new(ns), Arc::clone(&shared));
        let acceptor = thread::spawn(move || {
            for client in listener.incoming() {
                if held.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let (ns, held) = (Arc::clone(&ns), Arc::clone(&held));
                thread::spawn(move || {
                    // A target that cannot be reached shows as a closed connection, as behind any proxy.
                    if let Ok(server) = ns.connect(target, CONNECT) {
                        let _ = held.carry(&client, &server);
                    }
                });
            }
        });
        Ok(Forward { local, shared, acceptor: Some(acceptor) })
    }

    /// The address that it listens on.
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

impl Shared {
    /// Copies both directions until both are at their end.
    fn carry(&self, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
        {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            if self.closed.load(Ordering::SeqCst) {
                return Ok(());
            }
            streams.retain(|stream| stream.peer_addr().is_ok());
            streams.extend([client.try_clone()?, server.try_clone()?]);
        }
        for stream in [client, server] {
            stream.set_nodelay(true)?;
        }
        thread::scope(|scope| {
            scope.spawn(|| one_way(client, server));
            one_way(server, client);
        });
        // The list holds duplicates of both sockets: only a shutdown ends the connections.
        for stream in [client, server] {
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }
}

/// Copies until the end or an error; an orderly end is passed on, an error ends both directions.
fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect(self.local);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
