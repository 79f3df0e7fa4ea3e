//! Owns the commands that the guest's `us` understands: `config/guest/README.md` is their contract.
//!
//! Promises: a role counts as deployed only when its own command said so. Must not do: know what is inside a role.

use std::net::Ipv4Addr;
use std::time::Duration;

use understudy_core::host::{Outcome, SendWindows};
use understudy_core::model::ids::{Epoch, InstanceId, NodeId, Role};
use understudy_core::model::records::{NodeSpec, WindowsSent};
use understudy_hypervisor::GuestCommand;

use super::super::{Parts, now};
use crate::exit::chain;

/// The one command of the guest's image.
const US: &str = "/sbin/us";
/// Where a display member's intake listens.
const INTAKE_PORT: u16 = 5500;
/// Mounting the role disk, setting an address.
const SHORT: Duration = Duration::from_secs(30);
/// Starting a role: X servers and applications, under emulation several at once.
const START: Duration = Duration::from_secs(240);
/// Letting windows in, sending windows.
const WINDOWS: Duration = Duration::from_secs(60);

fn us(
    parts: &Parts,
    instance: InstanceId,
    words: &[&str],
    stdin: &str,
    deadline: Duration,
) -> Result<(), String> {
    let argv = std::iter::once(US).chain(words.iter().copied()).map(str::to_owned).collect();
    let command = GuestCommand { argv, stdin: stdin.as_bytes().to_vec(), deadline };
    let output = parts.hypervisor.guest_exec(instance, &command).map_err(|error| chain(&error))?;
    if output.exit == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("'us {}' ended with {}: {said}", words.join(" "), output.exit))
}

/// The guest knows a node by a name without slashes, because it makes files of it.
fn guest_name(node: &NodeId) -> String {
    node.to_string().replace('/', ".")
}

pub(super) fn deploy(
    parts: &Parts,
    instance: InstanceId,
    node: &NodeId,
    spec: &NodeSpec,
    address: Option<Ipv4Addr>,
) -> Outcome {
    match try_deploy(parts, instance, node, spec, address) {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Unsure(reason),
    }
}

fn try_deploy(
    parts: &Parts,
    instance: InstanceId,
    node: &NodeId,
    spec: &NodeSpec,
    address: Option<Ipv4Addr>,
) -> Result<(), String> {
    let disk = parts.config.environments.get(&spec.environment).ok_or_else(|| {
        format!(
            "this host has no environment '{}': add it to [environments] of {}",
            spec.environment,
            parts.config.file.display()
        )
    })?;
    let address = address.ok_or("the instance has no address")?;
    parts.hypervisor.attach_role_disk(instance, disk).map_err(|error| chain(&error))?;
    us(parts, instance, &["deploy"], "", SHORT)?;
    us(parts, instance, &["net", &format!("{address}/{}", parts.config.addresses.prefix)], "", SHORT)?;
    match node.role() {
        Role::Display => us(parts, instance, &["display", "start", &spec.screen.to_string()], "", START),
        Role::Execution => {
            let applications: String = spec
                .applications
                .iter()
                .map(|app| format!("{}\t{}\t{}\t{}\n", app.name, app.geometry, app.title, app.command))
                .collect();
            us(parts, instance, &["exec", "start", &guest_name(node)], &applications, START)
        }
    }
}

pub(super) fn admit(
    parts: &Parts,
    instance: InstanceId,
    node: &NodeId,
    incarnation: Epoch,
    token: &str,
) -> Outcome {
    let words = ["display", "admit", &guest_name(node), &incarnation.to_string(), token];
    match us(parts, instance, &words, "", WINDOWS) {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Failed(reason),
    }
}

pub(super) fn send_windows(parts: &Parts, send: &SendWindows) -> Outcome {
    let to = format!("{}:{INTAKE_PORT}", send.address);
    let words = ["exec", "send", &guest_name(&send.node), &send.incarnation.to_string(), &send.token, &to];
    tracing::info!(node = %send.node, instance = %send.instance, display = %send.display, %to, "sending windows");
    match us(parts, send.instance, &words, "", WINDOWS) {
        Ok(()) => Outcome::WindowsSent(WindowsSent {
            display: send.display,
            display_incarnation: send.display_incarnation,
            incarnation: send.incarnation,
            at: now().wall,
        }),
        Err(reason) => Outcome::Failed(reason),
    }
}
