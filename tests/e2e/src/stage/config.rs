//! Owns the configuration of a lab host's agent.

use understudy_lab::cluster::HostFacts;

use super::{API_PORT, GATEWAY_PORT, PEERS_PORT};

pub(super) fn agent_toml(facts: &HostFacts, gateway_port: u16, reserved: u64, accelerator: &str) -> String {
    let HostFacts { index, name, mgmt, ca, cert, key, .. } = facts;
    let endpoints: Vec<String> = facts.etcd.iter().map(|endpoint| format!("{endpoint:?}")).collect();
    let (first, last) = (16 + u16::from(*index) * 16, 16 + u16::from(*index) * 16 + 15);
    format!(
        r#"[host]
name = "{name}"
labels = {{ zone = "zone-{index}" }}
reserved_memory_mib = {reserved}
vcpus_per_processor = 16

[libvirt]
accelerator = "{accelerator}"
migration_uri = "qemu+tls://{name}/system"

[store]
kind = "etcd"
endpoints = [{}]
ca = "{ca}"
cert = "{cert}"
key = "{key}"

[network]
addresses = "10.77.1.{first}-10.77.1.{last}"

[environments]
desktop = "/var/lib/understudy/roles/role.erofs"

[policies]
dir = "/etc/understudy/policies"

[api]
listen = "{mgmt}:{API_PORT}"

[peers]
listen = "{mgmt}:{PEERS_PORT}"
ca = "{ca}"
cert = "{cert}"
key = "{key}"

[gateway]
listen = "{mgmt}:{GATEWAY_PORT}"
advertise = "http://127.0.0.1:{gateway_port}"

[log]
format = "plain"
filter = "info,understudy=debug"
"#,
        endpoints.join(", ")
    )
}

/// The shipped configuration with what only a lab needs: its addresses, perhaps emulation, an API that can be asked from
/// outside.
pub(super) fn minimal_toml(shipped: &str, facts: &HostFacts, gateway_port: u16, accelerator: &str) -> String {
    let HostFacts { mgmt, .. } = facts;
    let lab = shipped
        .replace("192.168.122.200-192.168.122.219", "10.77.1.32-10.77.1.47")
        .replace("127.0.0.1:7481", &format!("{mgmt}:{GATEWAY_PORT}"));
    format!(
        r#"{lab}advertise = "http://127.0.0.1:{gateway_port}"

[libvirt]
accelerator = "{accelerator}"

[api]
listen = "{mgmt}:{API_PORT}"

[policies]
dir = "/etc/understudy/no-policies"

[log]
format = "plain"
filter = "info,understudy=debug"
"#
    )
}
