//! The wires: one switch namespace with a management and an instances' bridge, two cables per host,
//! and the ways to cut, slow and filter them. Nothing is made in the machine's own network.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::error::{At, Doing, LabError};
use crate::proc::ProcessId;
use crate::tool;

/// The switch on the management network.
pub(crate) const MGMT_SWITCH: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The switch on the instances' segment.
pub(crate) const VM_SWITCH: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);

/// Management address of host `index`: 10.77.0.11 for the first.
pub(crate) fn mgmt(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + index)
}

/// Address of host `index` itself on the instances' segment (its `vmbr0`): 10.77.1.11 for the first.
pub(crate) fn vm(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 1, 10 + index)
}

/// `host1` for the first.
pub(crate) fn host_name(index: u8) -> String {
    format!("host{index}")
}

/// One of the two networks of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// Management, store and migration: 10.77.0.0/24, `eth0` of a host.
    Mgmt,
    /// The instances' segment: 10.77.1.0/24, `eth1` in `vmbr0` of a host.
    Vm,
}

impl Net {
    /// The switch's port for host `index`.
    fn port(self, index: u8) -> String {
        match self {
            Net::Mgmt => format!("m{index}"),
            Net::Vm => format!("v{index}"),
        }
    }
}

/// A network namespace, held open.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// The network namespace of a process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(id: ProcessId) -> Result<NetNs, LabError> {
        let path = Path::new("/proc").join(id.pid.to_string()).join("ns/net");
        let file = File::open(&path).at("open", &path)?;
        if id.alive() {
            Ok(NetNs { file })
        } else {
            Err(LabError::Off { host: format!("process {}", id.pid) })
        }
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets and processes that it makes belong
    /// to the namespace for good and may be handed out.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let entered = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).doing("enter a network namespace")?;
                    Ok(work())
                })
                .join()
        });
        entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A TCP connection opened from inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or nobody answers within `limit`.
    pub fn connect(&self, addr: SocketAddr, limit: Duration) -> Result<TcpStream, LabError> {
        self.run(|| TcpStream::connect_timeout(&addr, limit))?.doing(format!("connect to {addr}"))
    }
}

/// Builds the two bridges in the switch's namespace.
pub(crate) fn build_switch(switch: &NetNs) -> Result<(), LabError> {
    switch.run(|| {
        tool::ip(&format!(
            "link set lo up\n\
             link add mgmt type bridge\naddr add {MGMT_SWITCH}/24 dev mgmt\nlink set mgmt up\n\
             link add vms type bridge\naddr add {VM_SWITCH}/24 dev vms\nlink set vms up\n"
        ))
    })?
}

/// Plugs both cables of a host in. Hardware addresses stay the same over a reboot.
pub(crate) fn plug(switch: &NetNs, index: u8, init: ProcessId) -> Result<(), LabError> {
    let (m, v, pid) = (Net::Mgmt.port(index), Net::Vm.port(index), init.pid);
    unplug(switch, index)?;
    switch.run(|| {
        tool::ip(&format!(
            "link add {m} type veth peer name eth0 address 02:77:00:00:00:{index:02x} netns {pid}\n\
             link set {m} master mgmt up\n\
             link add {v} type veth peer name eth1 address 02:77:01:00:00:{index:02x} netns {pid}\n\
             link set {v} master vms up\n"
        ))
    })?
}

/// Takes the cables of a host away, whatever is left of them.
pub(crate) fn unplug(switch: &NetNs, index: u8) -> Result<(), LabError> {
    for port in [Net::Mgmt.port(index), Net::Vm.port(index)] {
        if port_exists(switch, &port)? {
            // With the host's namespace the kernel takes the cable away by itself, at a time of its own.
            let gone = switch.run(|| tool::ip(&format!("link del {port}")))?;
            if gone.is_err() && port_exists(switch, &port)? {
                return gone;
            }
        }
    }
    Ok(())
}

fn port_exists(switch: &NetNs, port: &str) -> Result<bool, LabError> {
    // An interface index is looked up by a socket of the thread's namespace; sysfs would show the machine's.
    switch.run(|| nix::net::if_::if_nametoindex(port).is_ok())
}

/// Link up or down at the switch's end.
pub(crate) fn link(switch: &NetNs, index: u8, net: Net, up: bool) -> Result<(), LabError> {
    let (port, state) = (net.port(index), if up { "up" } else { "down" });
    switch.run(|| tool::ip(&format!("link set {port} {state}")))?
}

/// The network of a host, configured from inside by its PID 1.
pub(crate) fn host_lines(mgmt: Ipv4Addr, vm: Ipv4Addr) -> String {
    format!(
        "link set lo up\n\
         addr add {mgmt}/24 dev eth0\nlink set eth0 up\nroute add default via {MGMT_SWITCH}\n\
         link add vmbr0 type bridge\nlink set eth1 master vmbr0 up\n\
         addr add {vm}/24 dev vmbr0\nlink set vmbr0 up\n"
    )
}

/// Limits the management cable in both directions (`20mbit`), or takes the limit away.
pub(crate) fn slow(switch: &NetNs, host: &NetNs, index: u8, rate: Option<&str>) -> Result<(), LabError> {
    let port = Net::Mgmt.port(index);
    for (ns, device) in [(switch, port.as_str()), (host, "eth0")] {
        ns.run(|| {
            let mut tc = Command::new("tc");
            match rate {
                Some(rate) => tc
                    .args(["qdisc", "replace", "dev", device, "root", "tbf", "rate", rate])
                    .args(["burst", "64k", "latency", "200ms"]),
                None => tc.args(["qdisc", "replace", "dev", device, "root", "pfifo"]),
            };
            tool::run(&mut tc, "").map(drop)
        })??;
    }
    Ok(())
}

/// A change to what a host does not hear.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hearing<'a> {
    /// These senders neither.
    Drop(&'a [Ipv4Addr]),
    /// These senders again.
    Hear(&'a [Ipv4Addr]),
    /// Everybody.
    All,
}

/// Filters what reaches a host. The kernel's own set is the only record of it: every process that has found
/// the lab sees the same.
pub(crate) fn hearing(host: &NetNs, change: Hearing<'_>) -> Result<(), LabError> {
    const SET: &str = "inet understudy_lab deaf";
    let elements = |addrs: &[Ipv4Addr]| {
        let list = addrs.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
        format!("element {SET} {{ {list} }}")
    };
    let change = match change {
        Hearing::Drop(addrs) => format!("add {}", elements(addrs)),
        // Only what is there can be deleted.
        Hearing::Hear(addrs) => format!("add {0}\ndelete {0}", elements(addrs)),
        Hearing::All => format!("flush set {SET}"),
    };
    let rules = format!(
        "table inet understudy_lab {{ set deaf {{ type ipv4_addr; }}; \
         chain hear {{ type filter hook input priority 0; }}; }}\n\
         flush chain inet understudy_lab hear\n\
         add rule inet understudy_lab hear ip saddr @deaf drop\n{change}\n"
    );
    host.run(|| tool::run(Command::new("nft").args(["-f", "-"]), &rules).map(drop))?
}
