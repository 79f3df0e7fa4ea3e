//! Owns the template from which instances are made.
//!
//! Promises: a template that was accepted gives instances that can be deployed, migrated, saved and restored on
//! another host; one that was not is answered with everything that is wrong with it at once, and with what would
//! be right. Must not do: read files or call libvirt.

use std::fmt;
use std::path::Path;

use crate::accelerator::Accelerator;
use crate::domain::{AGENT_CHANNEL, Domain, set_link};
use crate::types::{InstanceSpec, MacAddress};
use crate::xml::{Element, Node, XmlError};

/// One thing that is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateFault {
    /// Nothing could reach into the guest.
    NoAgentChannel,
    /// Windows and viewers could not reach the guest.
    NoNetworkCard,
    /// A card on the host's own user network: no other host reaches it.
    UserNetwork,
    /// The machine type changes with QEMU's version.
    UnversionedMachine {
        /// What it says.
        found: String,
    },
    /// The processor is the host's, or libvirt's choice.
    HostCpu {
        /// What it says.
        found: String,
    },
    /// A device of the host is passed through.
    HostDevice,
    /// A watchdog that acts by itself.
    WatchdogActs {
        /// What it does.
        action: String,
    },
    /// A part that must be there is not.
    Lacks(&'static str),
}

impl fmt::Display for TemplateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgentChannel => write!(
                f,
                "no guest-agent channel: add <channel type='unix'><target type='virtio' name='{AGENT_CHANNEL}'/></channel> to <devices>"
            ),
            Self::NoNetworkCard => f.write_str(
                "no network card: add <interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/></interface> to <devices>",
            ),
            Self::UserNetwork => f.write_str(
                "a network card of type 'user', which other hosts cannot reach: use type='bridge' on the instances' bridge",
            ),
            Self::UnversionedMachine { found } => write!(
                f,
                "machine type '{found}' has no version, so two hosts may understand it differently: use one that all hosts have, such as machine='pc-q35-7.2'"
            ),
            Self::HostCpu { found } => write!(
                f,
                "processor mode '{found}' depends on the host: use <cpu mode='custom' match='exact'><model fallback='forbid'>…</model></cpu> with a model that all hosts have"
            ),
            Self::HostDevice => f.write_str("a host device is passed through, which can be neither moved nor saved: remove <hostdev>"),
            Self::WatchdogActs { action } => {
                write!(f, "the watchdog's action is '{action}', which ends state that could be kept: use action='none'")
            }
            Self::Lacks(what) => write!(f, "no usable {what}"),
        }
    }
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is no description of a domain.
    #[error("cannot read the template")]
    Read(#[source] XmlError),
    /// It describes a domain that would not do.
    #[error("the template would not do:{}", listed(.0))]
    Faults(Vec<TemplateFault>),
}

fn listed(faults: &[TemplateFault]) -> String {
    faults.iter().map(|fault| format!("\n  - {fault}")).collect()
}

/// A description from which instances are made. In any of its values `@name@` and `@uuid@` stand for the
/// instance's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Domain);

impl Template {
    /// Reads and checks a template.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let domain = Domain::parse(text).map_err(TemplateError::Read)?;
        let faults = faults(&domain);
        if faults.is_empty() { Ok(Self(domain)) } else { Err(TemplateError::Faults(faults)) }
    }

    /// Whether all state of its instances is in memory, so that saving memory saves everything.
    #[must_use]
    pub fn ram_only(&self) -> bool {
        self.0.writable_disk().is_none()
    }

    pub(crate) fn domain(&self) -> &Domain {
        &self.0
    }

    /// The description of one instance.
    pub(crate) fn render(&self, spec: &InstanceSpec, accelerator: Accelerator) -> Result<Domain, XmlError> {
        let mut domain = self.0.clone();
        let (name, uuid) = (spec.name.clone(), spec.id.to_string());
        domain.0.for_each_value(&|value| fill(value, &name, &uuid));
        let root = &mut domain.0;
        root.set("type", accelerator.domain_type());
        root.put(Element::text_child("name", &name));
        root.put(Element::text_child("uuid", &uuid));
        for amount in ["memory", "currentMemory"] {
            root.put(Element::text_child(amount, &spec.memory.0.to_string()).with("unit", "MiB"));
        }
        root.put(Element::text_child("vcpu", &spec.vcpus.0.to_string()));
        // A reset guest has lost its state; what replaces it is decided by the agent, not by qemu. A crashed one is
        // kept for a look until the agent destroys it.
        for (event, action) in
            [("on_poweroff", "destroy"), ("on_reboot", "destroy"), ("on_crash", "preserve")]
        {
            root.put(Element::text_child(event, action));
        }
        if accelerator == Accelerator::Kvm
            && let Some(features) = root.child_mut("features")
        {
            // libvirt refuses TCG's settings on a KVM domain, and one template serves both.
            features.remove("tcg");
        }
        let mac = spec.mac.unwrap_or_else(|| MacAddress::derived(spec.id));
        let devices = domain.devices_mut()?;
        let card = devices.child_mut("interface").ok_or(XmlError::Lacks("network card"))?;
        card.put(Element::new("mac").with("address", &mac.to_string()));
        set_link(card, true);
        domain.set_note(&spec.note);
        Ok(domain)
    }
}

/// Puts an instance's own name and UUID in the place of the marks.
pub(crate) fn fill(value: &mut String, name: &str, uuid: &str) {
    if value.contains('@') {
        *value = value.replace("@name@", name).replace("@uuid@", uuid);
    }
}

fn faults(domain: &Domain) -> Vec<TemplateFault> {
    let mut faults = Vec::new();
    match domain.0.path(&["os", "type"]) {
        None => faults.push(TemplateFault::Lacks("<os><type>")),
        Some(os) => {
            let machine = os.attribute("machine").unwrap_or_default();
            if !versioned(machine) {
                faults.push(TemplateFault::UnversionedMachine { found: machine.to_owned() });
            }
        }
    }
    let mode = domain.0.child("cpu").map_or("none given", |cpu| cpu.attribute("mode").unwrap_or("custom"));
    if mode != "custom" {
        faults.push(TemplateFault::HostCpu { found: mode.to_owned() });
    }
    let Some(devices) = domain.devices() else {
        faults.push(TemplateFault::Lacks("<devices>"));
        return faults;
    };
    if domain.agent_channel().is_none() {
        faults.push(TemplateFault::NoAgentChannel);
    }
    if domain.interfaces().next().is_none() {
        faults.push(TemplateFault::NoNetworkCard);
    }
    if domain.interfaces().any(|card| card.attribute("type") == Some("user")) {
        faults.push(TemplateFault::UserNetwork);
    }
    if devices.child("hostdev").is_some() {
        faults.push(TemplateFault::HostDevice);
    }
    for watchdog in devices.all("watchdog") {
        let action = watchdog.attribute("action").unwrap_or("reset");
        if action != "none" {
            faults.push(TemplateFault::WatchdogActs { action: action.to_owned() });
        }
    }
    if let Some(emulator) = devices.child("emulator")
        && !Path::new(&emulator.text()).is_absolute()
    {
        faults.push(TemplateFault::Lacks("absolute path in <emulator>"));
    }
    faults
}

/// Whether a machine type ends in a version: `pc-q35-7.2`, and neither `q35` nor `pc`.
fn versioned(machine: &str) -> bool {
    let Some((_, version)) = machine.rsplit_once('-') else { return false };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    version.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor))
}

/// The first element of `name` in `devices` whose `target` has the given port, or simply the first.
pub(crate) fn same_device<'a>(devices: &'a Element, device: &Element) -> Option<&'a Element> {
    let port =
        |element: &Element| element.child("target").and_then(|t| t.attribute("port").map(str::to_owned));
    let wanted = port(device);
    devices
        .children
        .iter()
        .filter_map(|node| match node {
            Node::Element(element) if element.name == device.name => Some(element),
            Node::Element(_) | Node::Text(_) => None,
        })
        .find(|element| wanted.is_none() || port(element).is_none() || port(element) == wanted)
}

#[cfg(test)]
mod tests;
