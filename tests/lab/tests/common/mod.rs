//! What the lab's tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::{Path, PathBuf};

use understudy_lab::{Lab, LabOptions};

/// The binary that plays PID 1 of the hosts.
pub(crate) const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Options of a lab for one test: a prefix of its own, so that tests run beside each other.
pub(crate) fn options(name: &str, hosts: u8) -> LabOptions {
    LabOptions {
        prefix: prefix(name),
        hosts,
        etcd: false,
        libvirt: false,
        helper: Some(PathBuf::from(LAB)),
        replace_kept: true,
        ..LabOptions::default()
    }
}

pub(crate) fn prefix(name: &str) -> String {
    format!("ustlab-t-{name}")
}

/// A lab for one test, without libvirt and etcd.
pub(crate) fn bare(name: &str, hosts: u8) -> Lab {
    Lab::up(options(name, hosts)).unwrap_or_else(|error| panic!("{}", error.chain()))
}

/// Everything on the machine that carries the name of this lab: processes, cgroups, mounts, folders.
pub(crate) fn traces(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for folder in [format!("/run/understudy-lab/{prefix}"), format!("/var/tmp/understudy-lab-{prefix}")] {
        if Path::new(&folder).exists() {
            found.push(format!("folder {folder}"));
        }
    }
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|b| b.is_ascii_digit()) || name == std::process::id().to_string() {
            continue;
        }
        // A dead process that the machine's own init has not collected yet holds nothing any more.
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        if stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")) {
            continue;
        }
        for file in ["cmdline", "cgroup", "mountinfo"] {
            // A process that ends meanwhile leaves no trace.
            let text = fs::read(process.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            // The prefix as a whole word: another test's may begin with it.
            let hits = text
                .match_indices(prefix)
                .any(|(at, _)| !text[at + prefix.len()..].starts_with(|c: char| c.is_ascii_alphanumeric()));
            if hits {
                found.push(format!("process {name} by its {file}"));
            }
        }
    }
    for cgroups in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let entries = fs::read_dir(cgroups).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        found.extend(
            names
                .filter(|n| {
                    n.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("-h") || rest == "-sw")
                })
                .map(|n| format!("cgroup {n}")),
        );
    }
    found
}
