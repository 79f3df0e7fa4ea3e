//! A cluster's files and services, with stand-ins for the binaries. Needs root.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use understudy_lab::cluster::{AGENT, AGENT_TOML, Cluster, ClusterOptions, GUARD, HostFacts};
use understudy_lab::{LabError, LabOptions, ServiceState};

/// A program that writes its arguments and its configuration to its log and says that it is ready.
const STAND_IN: &str = "#!/usr/bin/perl
use Socket;
$| = 1;
print \"args @ARGV\\n\";
open(F, '<', '/etc/understudy/agent.toml') or die; print <F>; close F;
socket(S, PF_UNIX, SOCK_DGRAM, 0) or die;
send(S, 'READY=1', 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die;
sleep 100000;
";

fn parts(folder: &Path) {
    for name in ["understudy", "understudy-guard", "hook"] {
        let path = folder.join(name);
        fs::write(&path, STAND_IN).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make executable");
    }
    for name in
        ["images/vmlinuz", "images/initrd.img", "images/role.erofs", "images/template.xml", "policies/a.wasm"]
    {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("create");
        fs::write(&path, name).expect("write");
    }
}

fn options<'a>(
    folder: &Path,
    name: &str,
    toml: &'a (dyn Fn(&HostFacts) -> String + Sync),
) -> ClusterOptions<'a> {
    let (images, policies, hook) = (folder.join("images"), folder.join("policies"), folder.join("hook"));
    let mut options = ClusterOptions::new(folder, &images, &policies, &hook, toml);
    options.lab = LabOptions { etcd: true, libvirt: true, ..common::options(name, 2) };
    options
}

#[test]
#[ignore = "needs a lab"]
fn every_host_gets_its_files_and_runs_guard_and_agent_again_after_a_boot() {
    let folder = tempfile::tempdir().expect("a folder");
    parts(folder.path());
    let toml = |facts: &HostFacts| format!("# {} of {}, {}\n", facts.name, facts.hosts, facts.etcd.join(" "));
    let cluster = Cluster::raise(options(folder.path(), "cluster", &toml)).expect("raised");
    cluster.host(2).reboot().expect("reboot");
    for host in cluster.hosts() {
        let states: Vec<_> = host
            .services()
            .expect("on")
            .into_iter()
            .map(|s| (s.name, s.state == ServiceState::Ready))
            .collect();
        let wanted = ["etcd", "libvirtd", GUARD, AGENT].map(|name| (name.to_owned(), true));
        assert_eq!(states, wanted);
        let log =
            fs::read_to_string(host.on_disk("/var/log/agent.log").expect("on the disk")).expect("a log");
        assert!(log.starts_with(&format!("args agent --config {AGENT_TOML}\n")), "{log}");
        let line = format!("# {} of 2, https://10.77.0.11:2379 https://10.77.0.12:2379", host.name());
        assert!(log.contains(&line), "{log}");
        for (file, text) in [
            ("/etc/understudy/template.xml", "images/template.xml"),
            ("/etc/understudy/policies/a.wasm", "policies/a.wasm"),
            ("/var/lib/understudy/images/vmlinuz", "images/vmlinuz"),
            ("/var/lib/understudy/roles/role.erofs", "images/role.erofs"),
        ] {
            assert_eq!(host.run(["cat", file]).expect("readable"), text);
        }
        host.run(["test", "-x", "/etc/libvirt/hooks/qemu"]).expect("the hook is executable");
    }
}

#[test]
#[ignore = "needs a lab"]
fn missing_parts_are_all_named_before_anything_is_raised() {
    let folder = tempfile::tempdir().expect("a folder");
    parts(folder.path());
    fs::remove_file(folder.path().join("images/initrd.img")).expect("remove");
    fs::remove_file(folder.path().join("understudy-guard")).expect("remove");
    let toml = |_: &HostFacts| String::new();
    let refused = Cluster::raise(options(folder.path(), "parts", &toml)).expect_err("parts are missing");
    let LabError::BadOption(why) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("images/initrd.img") && why.contains("understudy-guard"), "{why}");
    assert!(common::traces(&common::prefix("parts")).is_empty());
}
