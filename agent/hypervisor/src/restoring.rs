//! Owns the fitting of a description that came with an image to the host that restores it.
//!
//! Promises: what a guest can see stays as it was, because libvirt refuses anything else; what names a place on
//! the host it came from is replaced by this host's. Must not do: call libvirt.

use crate::ROLE_DISK_SERIAL;
use crate::domain::{Domain, set_link};
use crate::template::{fill, same_device};
use crate::types::RestoreSpec;
use crate::xml::{Element, Node, XmlError};

/// The image's description, fitted to this host: this host's emulator, kernel files, bridge and log paths, links
/// down, the new note.
pub(crate) fn fitted(image: &Domain, spec: &RestoreSpec) -> Result<Domain, XmlError> {
    let (name, uuid) = (image.name()?, image.id()?.to_string());
    let mut here = spec.template.domain().0.clone();
    here.for_each_value(&|value| fill(value, &name, &uuid));
    let mut domain = image.clone();
    if let (Some(os), Some(here)) = (domain.0.child_mut("os"), here.child("os")) {
        for part in ["kernel", "initrd"] {
            if let (Some(_), Some(file)) = (os.child(part), here.child(part)) {
                os.put(file.clone());
            }
        }
    }
    domain.forget_channel_paths()?;
    domain.set_note(&spec.note);
    let here = here.child("devices").ok_or(XmlError::Lacks("devices"))?;
    let devices = domain.devices_mut()?;
    match here.child("emulator") {
        Some(emulator) => devices.put(emulator.clone()),
        None => devices.remove("emulator"),
    }
    for device in devices.elements_mut() {
        match device.name.as_str() {
            "interface" => fit_card(device, here),
            "serial" | "console" => fit_log(device, here),
            "disk" => fit_disk(device, spec),
            _ => {}
        }
    }
    Ok(domain)
}

fn fit_card(card: &mut Element, here: &Element) {
    if let Some(source) = here.child("interface").and_then(|card| card.child("source")) {
        card.put(source.clone());
    }
    // The tap device was named by the other host.
    card.remove("target");
    set_link(card, false);
}

fn fit_log(device: &mut Element, here: &Element) {
    let source = same_device(here, device)
        .filter(|same| same.attribute("type") == device.attribute("type"))
        .and_then(|same| same.child("source"));
    if let Some(source) = source {
        device.put(source.clone());
    }
}

fn fit_disk(disk: &mut Element, spec: &RestoreSpec) {
    let is_role = disk.child("serial").is_some_and(|serial| serial.text() == ROLE_DISK_SERIAL);
    if let (true, Some(path)) = (is_role, &spec.role_disk) {
        disk.children.retain(|node| !matches!(node, Node::Element(element) if element.name == "source"));
        disk.put(Element::new("source").with("file", &path.to_string_lossy()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use understudy_core::model::ids::Epoch;

    use super::*;
    use crate::template::Template;
    use crate::types::Note;

    const IMAGE: &str = "<domain type='qemu'><name>u1</name><uuid>11111111-2222-4333-8444-000000000001</uuid>
<memory unit='KiB'>196608</memory>
<os><type machine='pc-q35-7.2'>hvm</type><kernel>/a/vmlinuz</kernel><initrd>/a/initrd</initrd><cmdline>quiet</cmdline></os>
<devices><emulator>/a/qemu</emulator>
<disk type='file' device='disk'><source file='/a/role'/><target dev='vda'/><readonly/><serial>understudy-role</serial></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br-a'/><target dev='vnet7'/></interface>
<serial type='file'><source path='/a/u1.log'/><target port='0'/></serial>
<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-1-u1/x'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
</devices></domain>";

    const HERE: &str = "<domain><os><type machine='pc-q35-7.2'>hvm</type><kernel>/b/vmlinuz</kernel></os>
<cpu mode='custom'><model>qemu64</model></cpu>
<devices><emulator>/b/qemu</emulator><interface type='bridge'><source bridge='br-b'/></interface>
<serial type='file'><source path='/b/@name@.log'/><target port='0'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>";

    #[test]
    fn every_place_on_the_old_host_becomes_one_on_this_host() {
        let image = Domain::parse(IMAGE).unwrap();
        let spec = RestoreSpec {
            image: "/image".into(),
            id: image.id().unwrap(),
            template: Arc::new(Template::parse(HERE).unwrap()),
            role_disk: Some("/b/role".into()),
            note: Note { epoch: Epoch(9), address: None },
        };
        let domain = fitted(&image, &spec).unwrap();
        let text = domain.write().unwrap();
        for kept in ["52:54:00:00:00:01", "<cmdline>quiet</cmdline>", "/a/initrd", "pc-q35-7.2"] {
            assert!(text.contains(kept), "lost {kept}: {text}");
        }
        for here in ["/b/vmlinuz", "/b/qemu", "/b/u1.log", "/b/role", "br-b"] {
            assert!(text.contains(here), "not fitted to {here}: {text}");
        }
        for there in ["/a/vmlinuz", "/a/qemu", "/a/u1.log", "/a/role", "br-a", "vnet7", "domain-1-u1"] {
            assert!(!text.contains(there), "kept {there}: {text}");
        }
        assert!(!domain.link_up());
        assert_eq!(domain.note(), Some(spec.note));
    }
}
