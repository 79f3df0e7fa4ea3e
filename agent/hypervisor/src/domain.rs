//! Owns what this product reads from and writes into a domain's description.
//!
//! Promises: an element counts as ours by its namespace, whatever its prefix. Must not do: call libvirt.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use understudy_core::model::ids::{Epoch, InstanceId};
use understudy_core::model::units::{MiB, Vcpus};

use crate::types::{MacAddress, Note};
use crate::xml::{Element, Node, XmlError};
use crate::{METADATA_NAMESPACE, ROLE_DISK_SERIAL};

/// The prefix with which our metadata element is written.
pub(crate) const METADATA_PREFIX: &str = "understudy";

/// The name of the guest agent's channel.
pub(crate) const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// Where libvirt puts the sockets of channels that ask for no path of their own; such a path belongs to one host.
const LIBVIRT_CHANNEL_FOLDERS: [&str; 2] = ["/var/lib/libvirt/qemu/channel/", "/run/libvirt/qemu/channel/"];

/// A domain's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain(pub(crate) Element);

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) source: Option<PathBuf>,
    pub(crate) target: String,
    pub(crate) serial: Option<String>,
    pub(crate) readonly: bool,
}

impl Domain {
    pub(crate) fn parse(text: &str) -> Result<Self, XmlError> {
        let root = Element::parse(text)?;
        if root.name == "domain" { Ok(Self(root)) } else { Err(XmlError::Lacks("domain element")) }
    }

    pub(crate) fn write(&self) -> Result<String, XmlError> {
        self.0.write()
    }

    pub(crate) fn id(&self) -> Result<InstanceId, XmlError> {
        self.0.child("uuid").and_then(|uuid| uuid.text().parse().ok()).ok_or(XmlError::Lacks("uuid"))
    }

    pub(crate) fn name(&self) -> Result<String, XmlError> {
        self.0.child("name").map(Element::text).filter(|name| !name.is_empty()).ok_or(XmlError::Lacks("name"))
    }

    pub(crate) fn memory(&self) -> Result<MiB, XmlError> {
        let memory = self.0.child("memory").ok_or(XmlError::Lacks("memory"))?;
        let amount: u64 = memory.text().parse().map_err(|_| XmlError::Lacks("memory"))?;
        let unit = match memory.attribute("unit").unwrap_or("KiB") {
            "b" | "bytes" => 1,
            "KB" => 1_000,
            "k" | "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "M" | "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "G" | "GiB" => 1 << 30,
            _ => return Err(XmlError::Lacks("unit of memory")),
        };
        Ok(MiB(amount.saturating_mul(unit) >> 20))
    }

    pub(crate) fn vcpus(&self) -> Vcpus {
        Vcpus(self.0.child("vcpu").and_then(|vcpu| vcpu.text().parse().ok()).unwrap_or(1))
    }

    /// Whether the host's own processor runs it.
    pub(crate) fn by_kvm(&self) -> bool {
        self.0.attribute("type") == Some("kvm")
    }

    /// What the agent wrote onto the domain; `None` when the domain is not managed.
    pub(crate) fn note(&self) -> Option<Note> {
        let metadata = self.0.child("metadata")?;
        let element = metadata.elements().find(|element| is_ours(element, &[metadata, &self.0]))?;
        Some(Note {
            epoch: Epoch(element.attribute("epoch").and_then(|text| text.parse().ok()).unwrap_or(0)),
            address: element.attribute("address").and_then(|text| text.parse::<IpAddr>().ok()),
        })
    }

    pub(crate) fn set_note(&mut self, note: &Note) {
        let ancestors = [self.0.child("metadata").cloned().unwrap_or_default(), self.0.clone()];
        let outer: Vec<&Element> = ancestors.iter().collect();
        let mut metadata = self.0.child("metadata").cloned().unwrap_or_else(|| Element::new("metadata"));
        metadata.children.retain(|node| !matches!(node, Node::Element(element) if is_ours(element, &outer)));
        let mut element = note_element(&format!("{METADATA_PREFIX}:instance"), note);
        element.attributes.insert(0, (format!("xmlns:{METADATA_PREFIX}"), METADATA_NAMESPACE.to_owned()));
        metadata.children.push(Node::Element(element));
        self.0.put(metadata);
    }

    pub(crate) fn devices(&self) -> Option<&Element> {
        self.0.child("devices")
    }

    pub(crate) fn devices_mut(&mut self) -> Result<&mut Element, XmlError> {
        self.0.child_mut("devices").ok_or(XmlError::Lacks("devices"))
    }

    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Element> {
        self.devices().into_iter().flat_map(|devices| devices.all("interface"))
    }

    pub(crate) fn mac(&self) -> Option<MacAddress> {
        self.interfaces().next()?.child("mac")?.attribute("address")?.parse().ok()
    }

    pub(crate) fn link_up(&self) -> bool {
        self.interfaces().next().is_none_or(link_up)
    }

    pub(crate) fn agent_channel(&self) -> Option<&Element> {
        self.devices()?.all("channel").find_map(|channel| {
            channel.child("target").filter(|target| target.attribute("name") == Some(AGENT_CHANNEL))
        })
    }

    pub(crate) fn agent_connected(&self) -> bool {
        self.agent_channel().and_then(|target| target.attribute("state")) == Some("connected")
    }

    pub(crate) fn disks(&self) -> Vec<Disk> {
        let disks = self.devices().into_iter().flat_map(|devices| devices.all("disk"));
        disks
            .map(|disk| Disk {
                source: disk
                    .child("source")
                    .and_then(|source| ["file", "dev", "name"].iter().find_map(|key| source.attribute(key)))
                    .map(PathBuf::from),
                target: disk.child("target").and_then(|t| t.attribute("dev")).unwrap_or_default().to_owned(),
                serial: disk.child("serial").map(Element::text),
                readonly: disk.child("readonly").is_some()
                    || matches!(disk.attribute("device"), Some("cdrom" | "floppy")),
            })
            .collect()
    }

    /// By what others than qemu itself write into the guest's memory, or may: what is saved of that while the guest runs is not
    /// of one moment.
    pub(crate) fn shared_memory(&self) -> Option<String> {
        let backing = self.0.child("memoryBacking");
        let access =
            backing.and_then(|backing| backing.child("access")).and_then(|one| one.attribute("mode"));
        let source =
            backing.and_then(|backing| backing.child("source")).and_then(|one| one.attribute("type"));
        let outside =
            |device: &&Element| device.name == "filesystem" || device.attribute("type") == Some("vhostuser");
        let device = self.devices().and_then(|devices| devices.elements().find(outside));
        match (access, source, device) {
            (Some("shared"), ..) => Some("memoryBacking/access mode 'shared'".to_owned()),
            (_, Some(source @ ("file" | "memfd")), _) => {
                Some(format!("memoryBacking/source type '{source}'"))
            }
            (_, _, Some(device)) => Some(format!("a device '{}' outside of qemu", device.name)),
            (_, _, None) => None,
        }
    }

    /// What the graphics cards have, as far as the description says it (in KiB).
    pub(crate) fn video_memory(&self) -> MiB {
        let models = self.devices().into_iter().flat_map(|devices| devices.all("video"));
        let models = models.filter_map(|video| video.child("model"));
        let kib = |model: &Element| -> u64 {
            let of =
                |name: &str| model.attribute(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            (of("ram") + of("vram") + of("vgamem")) * of("heads").max(1)
        };
        MiB(models.map(kib).sum::<u64>().div_ceil(1024))
    }

    pub(crate) fn role_disk(&self) -> Option<PathBuf> {
        let disk = self.disks().into_iter().find(|disk| disk.serial.as_deref() == Some(ROLE_DISK_SERIAL))?;
        disk.source
    }

    pub(crate) fn writable_disk(&self) -> Option<Disk> {
        self.disks().into_iter().find(|disk| !disk.readonly)
    }

    /// The name that the guest's next virtio disk gets.
    fn free_target(&self) -> String {
        let taken: Vec<String> = self.disks().into_iter().map(|disk| disk.target).collect();
        ('a'..='z').map(|letter| format!("vd{letter}")).find(|name| !taken.contains(name)).unwrap_or_default()
    }

    pub(crate) fn role_disk_to_attach(&self, path: &Path) -> Element {
        let mut disk = Element::new("disk").with("type", "file").with("device", "disk");
        let parts = [
            Element::new("driver").with("name", "qemu").with("type", "raw"),
            Element::new("source").with("file", &path.to_string_lossy()),
            Element::new("target").with("dev", &self.free_target()).with("bus", "virtio"),
            Element::new("readonly"),
            Element::text_child("serial", ROLE_DISK_SERIAL),
        ];
        disk.children.extend(parts.into_iter().map(Node::Element));
        disk
    }

    /// The description of an external snapshot that holds the memory alone.
    pub(crate) fn memory_snapshot(&self, path: &Path) -> Element {
        let memory =
            Element::new("memory").with("snapshot", "external").with("file", &path.to_string_lossy());
        let mut disks = Element::new("disks");
        for disk in self.disks() {
            disks
                .children
                .push(Node::Element(Element::new("disk").with("name", &disk.target).with("snapshot", "no")));
        }
        let mut snapshot = Element::new("domainsnapshot");
        snapshot.children = vec![Node::Element(memory), Node::Element(disks)];
        snapshot
    }

    /// Makes every channel's socket path libvirt's choice again.
    pub(crate) fn forget_channel_paths(&mut self) -> Result<(), XmlError> {
        for channel in self.devices_mut()?.elements_mut().filter(|element| element.name == "channel") {
            let chosen_by_libvirt = channel
                .child("source")
                .and_then(|source| source.attribute("path"))
                .is_some_and(|path| LIBVIRT_CHANNEL_FOLDERS.iter().any(|folder| path.starts_with(folder)));
            if chosen_by_libvirt {
                channel.remove("source");
            }
        }
        Ok(())
    }
}

pub(crate) fn link_up(interface: &Element) -> bool {
    interface.child("link").and_then(|link| link.attribute("state")) != Some("down")
}

pub(crate) fn set_link(interface: &mut Element, up: bool) {
    interface.put(Element::new("link").with("state", if up { "up" } else { "down" }));
}

/// The element that carries the note, under the name that the caller needs.
pub(crate) fn note_element(name: &str, note: &Note) -> Element {
    let element = Element::new(name).with("epoch", &note.epoch.to_string());
    match note.address {
        Some(address) => element.with("address", &address.to_string()),
        None => element,
    }
}

fn is_ours(element: &Element, outer: &[&Element]) -> bool {
    let (declaration, local) = match element.name.split_once(':') {
        Some((prefix, local)) => (format!("xmlns:{prefix}"), local),
        None => ("xmlns".to_owned(), element.name.as_str()),
    };
    let namespace = std::iter::once(element)
        .chain(outer.iter().copied())
        .find_map(|element| element.attribute(&declaration));
    local == "instance" && namespace == Some(METADATA_NAMESPACE)
}

#[cfg(test)]
mod tests;
