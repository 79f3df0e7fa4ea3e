//! Tables of the template's faults.

use std::sync::Arc;

use understudy_core::model::ids::Epoch;
use understudy_core::model::units::{MiB, Vcpus};

use super::*;
use crate::types::Note;

const GOOD: &str = "<domain type='kvm'>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/i/vmlinuz</kernel><initrd>/i/initrd.img</initrd></os>
<features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
<on_crash>restart</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/></interface>
<serial type='file'><source path='/var/log/libvirt/@name@-@uuid@.serial'/><target port='0'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>";

fn spec(template: &Template) -> InstanceSpec {
    InstanceSpec {
        id: "11111111-2222-4333-8444-0000000000ab".parse().unwrap(),
        name: "u-1".to_owned(),
        template: Arc::new(template.clone()),
        memory: MiB(192),
        vcpus: Vcpus(2),
        mac: None,
        note: Note { epoch: Epoch(5), address: None },
    }
}

#[test]
fn an_instance_is_its_template_with_its_own_name_size_and_note() {
    let template = Template::parse(GOOD).unwrap();
    let spec = spec(&template);
    let domain = template.render(&spec, Accelerator::Tcg).unwrap();
    let again = Domain::parse(&domain.write().unwrap()).unwrap();
    assert_eq!(again.0.attribute("type"), Some("qemu"));
    assert_eq!(again.id().unwrap(), spec.id);
    assert_eq!(again.name().unwrap(), "u-1");
    assert_eq!(again.memory().unwrap(), MiB(192));
    assert_eq!(again.vcpus(), Vcpus(2));
    assert_eq!(again.note(), Some(spec.note));
    assert_eq!(again.mac().unwrap().to_string(), "52:54:00:00:00:ab");
    assert!(again.link_up());
    assert_eq!(again.0.child("on_crash").unwrap().text(), "preserve");
    let serial = again.0.path(&["devices", "serial", "source"]).unwrap().attribute("path").unwrap();
    assert_eq!(serial, "/var/log/libvirt/u-1-11111111-2222-4333-8444-0000000000ab.serial");
    assert!(again.0.path(&["features", "tcg"]).is_some());
}

#[test]
fn the_template_that_is_shipped_would_do() {
    let shipped = include_str!("../../../../config/guest/template.xml");
    let template = Template::parse(shipped).unwrap_or_else(|error| panic!("{error}"));
    assert!(template.ram_only());
}

#[test]
fn one_template_serves_both_accelerators() {
    let template = Template::parse(GOOD).unwrap();
    let domain = template.render(&spec(&template), Accelerator::Kvm).unwrap();
    assert_eq!(domain.0.attribute("type"), Some("kvm"));
    assert!(domain.0.path(&["features", "tcg"]).is_none());
    assert!(domain.0.path(&["features", "acpi"]).is_some());
}

#[test]
fn each_fault_is_named_with_what_would_be_right() {
    for (from, to, says) in [
        ("org.qemu.guest_agent.0", "org.example.0", "guest-agent channel: add <channel"),
        (
            "<interface type='bridge'><source bridge='vmbr0'/><model type='virtio'/></interface>",
            "",
            "add <interface",
        ),
        ("<interface type='bridge'>", "<interface type='user'>", "use type='bridge'"),
        ("machine='pc-q35-7.2'", "machine='q35'", "'q35' has no version"),
        ("machine='pc-q35-7.2'", "", "has no version"),
        ("mode='custom'", "mode='host-passthrough'", "'host-passthrough' depends on the host"),
        (
            "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>",
            "",
            "depends on the host",
        ),
        ("</devices>", "<hostdev mode='subsystem' type='pci'/></devices>", "remove <hostdev>"),
        ("</devices>", "<watchdog model='ib700' action='reset'/></devices>", "use action='none'"),
        ("</devices>", "<watchdog model='ib700'/></devices>", "use action='none'"),
        ("/usr/bin/qemu-system-x86_64", "qemu", "absolute path"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let Err(TemplateError::Faults(faults)) = Template::parse(&GOOD.replace(from, to)) else {
            panic!("accepted: {to}");
        };
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].to_string().contains(says), "{}", faults[0]);
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let error = Template::parse("<domain><os><type>hvm</type></os><devices/></domain>").unwrap_err();
    let TemplateError::Faults(faults) = &error else { panic!("{error}") };
    assert_eq!(faults.len(), 4, "{error}");
    assert_eq!(error.to_string().lines().count(), 5, "{error}");
    assert!(matches!(Template::parse("<network/>"), Err(TemplateError::Read(_))));
    assert!(matches!(Template::parse("<domain>"), Err(TemplateError::Read(_))));
}

#[test]
fn only_a_writable_disk_is_state_outside_memory() {
    let disk = |more: &str| {
        let disk = format!(
            "<disk type='file' device='disk'><source file='/d'/><target dev='vda'/>{more}</disk></devices>"
        );
        Template::parse(&GOOD.replace("</devices>", &disk)).unwrap().ram_only()
    };
    assert!(Template::parse(GOOD).unwrap().ram_only());
    assert!(disk("<readonly/>"));
    assert!(!disk(""));
}
