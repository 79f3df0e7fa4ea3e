//! Tables of the domain's description.

use super::*;

const LIVE: &str = "<domain type='qemu' id='3'><name>u1</name><uuid>11111111-2222-4333-8444-000000000001</uuid>
<metadata><x:instance xmlns:x='https://understudy.invalid/instance/1' epoch='7' address='10.77.1.9'/>
<other:thing xmlns:other='urn:other' epoch='9'/></metadata>
<memory unit='KiB'>196608</memory><vcpu placement='static'>2</vcpu>
<devices>
<disk type='file' device='disk'><source file='/r/a.erofs'/><target dev='vda' bus='virtio'/><readonly/><serial>understudy-role</serial></disk>
<disk type='file' device='disk'><source file='/r/w.qcow2'/><target dev='vdc' bus='virtio'/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='vmbr0'/><target dev='vnet3'/><link state='down'/></interface>
<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-u1/org.qemu.guest_agent.0'/><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
</devices></domain>";

fn live() -> Domain {
    Domain::parse(LIVE).unwrap()
}

#[test]
fn a_live_description_is_read() {
    let domain = live();
    assert_eq!(domain.id().unwrap().to_string(), "11111111-2222-4333-8444-000000000001");
    assert_eq!(domain.name().unwrap(), "u1");
    assert_eq!(domain.memory().unwrap(), MiB(192));
    assert_eq!(domain.vcpus(), Vcpus(2));
    assert_eq!(domain.note().unwrap(), Note { epoch: Epoch(7), address: Some("10.77.1.9".parse().unwrap()) });
    assert_eq!(domain.mac().unwrap().to_string(), "52:54:00:00:00:01");
    assert!(!domain.link_up());
    assert!(domain.agent_connected());
    assert_eq!(domain.role_disk().unwrap(), Path::new("/r/a.erofs"));
    assert_eq!(domain.writable_disk().unwrap().target, "vdc");
}

#[test]
fn a_domain_is_managed_by_the_namespace_and_not_by_the_prefix() {
    let other =
        LIVE.replace("https://understudy.invalid/instance/1", "https://understudy.invalid/instance/2");
    assert_eq!(Domain::parse(&other).unwrap().note(), None);
    let outside = LIVE
        .replace(" xmlns:x='https://understudy.invalid/instance/1'", "")
        .replace("<domain ", "<domain xmlns:x='https://understudy.invalid/instance/1' ");
    assert!(Domain::parse(&outside).unwrap().note().is_some());
}

#[test]
fn a_new_note_takes_the_place_of_the_old_one_and_of_nothing_else() {
    let mut domain = live();
    let note = Note { epoch: Epoch(8), address: None };
    domain.set_note(&note);
    let again = Domain::parse(&domain.write().unwrap()).unwrap();
    assert_eq!(again.note(), Some(note));
    let metadata = again.0.child("metadata").unwrap();
    assert_eq!(metadata.elements().count(), 2);
    assert!(metadata.child("other:thing").is_some());
}

#[test]
fn a_new_disk_gets_a_free_name() {
    let disk = live().role_disk_to_attach(Path::new("/r/b & c.erofs"));
    assert_eq!(disk.child("target").unwrap().attribute("dev"), Some("vdb"));
    assert!(disk.write().unwrap().contains("/r/b &amp; c.erofs"));
}

#[test]
fn a_memory_snapshot_names_every_disk_as_not_taken() {
    let text = live().memory_snapshot(Path::new("/s/m")).write().unwrap();
    assert_eq!(text.matches("snapshot=\"no\"").count(), 2, "{text}");
    assert!(text.contains("file=\"/s/m\""), "{text}");
}

#[test]
fn only_socket_paths_of_libvirts_choice_are_forgotten() {
    let mut domain = live();
    domain.forget_channel_paths().unwrap();
    assert!(domain.devices().unwrap().child("channel").unwrap().child("source").is_none());
    let mut own = Domain::parse(&LIVE.replace("/var/lib/libvirt/qemu/channel/target", "/srv")).unwrap();
    own.forget_channel_paths().unwrap();
    assert!(own.devices().unwrap().child("channel").unwrap().child("source").is_some());
}

#[test]
fn memory_is_read_in_every_unit_that_a_template_may_use() {
    for (given, want) in [
        ("<memory>2048</memory>", Some(2)),
        ("<memory unit='MiB'>192</memory>", Some(192)),
        ("<memory unit='G'>1</memory>", Some(1024)),
        ("<memory unit='furlong'>1</memory>", None),
        ("<memory>much</memory>", None),
    ] {
        let domain = Domain::parse(&format!("<domain>{given}</domain>")).unwrap();
        assert_eq!(domain.memory().ok(), want.map(MiB), "{given}");
    }
}

#[test]
fn memory_that_others_write_into_is_found() {
    let with = |before: &str, device: &str| {
        let text = LIVE.replace("<devices>", &format!("{before}<devices>{device}"));
        Domain::parse(&text).unwrap().shared_memory()
    };
    assert_eq!(with("", ""), None);
    assert_eq!(with("<memoryBacking><hugepages/></memoryBacking>", ""), None);
    assert_eq!(with("<memoryBacking><access mode='private'/></memoryBacking>", ""), None);
    let shared = with("<memoryBacking><access mode='shared'/></memoryBacking>", "");
    assert_eq!(shared.as_deref(), Some("memoryBacking/access mode 'shared'"));
    let memfd = with("<memoryBacking><source type='memfd'/></memoryBacking>", "");
    assert_eq!(memfd.as_deref(), Some("memoryBacking/source type 'memfd'"));
    let device = with("", "<filesystem type='mount'><driver type='virtiofs'/></filesystem>");
    assert_eq!(device.as_deref(), Some("a device 'filesystem' outside of qemu"));
    let device =
        with("", "<interface type='vhostuser'><source type='unix' path='/s' mode='client'/></interface>");
    assert_eq!(device.as_deref(), Some("a device 'interface' outside of qemu"));
}

#[test]
fn the_memory_of_graphics_cards_is_counted() {
    let with = |device: &str| {
        Domain::parse(&LIVE.replace("<devices>", &format!("<devices>{device}"))).unwrap().video_memory()
    };
    assert_eq!(with(""), MiB(0));
    assert_eq!(with("<video><model type='vga' vram='16384' heads='1' primary='yes'/></video>"), MiB(16));
    let qxl = "<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='2'/></video>";
    assert_eq!(with(&format!("{qxl}<video><model type='none'/></video>")), MiB(288));
}
