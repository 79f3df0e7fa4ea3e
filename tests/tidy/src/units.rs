//! The systemd units: accepted by systemd's own checker, hardened, and with the settings that safety rests on.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::repository::{expect_none, read, root};

const UNITS: [&str; 2] = ["understudy-guard.service", "understudy.service"];

/// What `systemd-analyze security` may find at most, in tenths of its exposure level.
const EXPOSURE_MAX: u32 = 35;

fn text(unit: &str) -> String {
    read(&format!("config/systemd/{unit}"))
}

/// The last value of each key, as systemd takes it for the keys asked about here.
fn settings(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '[']));
    lines.filter_map(|line| line.split_once('=')).collect()
}

/// Copies of the units that start a program which every machine has: the checker wants it to exist.
fn copies(folder: &Path) -> Vec<PathBuf> {
    let copy = |unit: &&str| {
        let replaced: String = text(unit)
            .lines()
            .map(|line| match line.strip_prefix("ExecStart=") {
                Some(command) => {
                    assert!(command.starts_with("/usr/bin/understudy"), "{unit}: {command}");
                    "ExecStart=/bin/true\n".to_owned()
                }
                None => format!("{line}\n"),
            })
            .collect();
        let path = folder.join(unit);
        std::fs::write(&path, replaced).unwrap();
        path
    };
    UNITS.iter().map(copy).collect()
}

/// Runs systemd's checker.
fn analyze(arguments: &[&str], units: &[PathBuf]) -> String {
    let mut command = Command::new("systemd-analyze");
    let output = command.args(arguments).args(units).env("SYSTEMD_COLORS", "0").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if output.status.success() { said } else { format!("{said} ({})", output.status) }
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_accepts_the_units() {
    let folder = tempfile::tempdir().unwrap();
    // An unknown key is a line on stderr and success: nothing may be said at all.
    assert_eq!(analyze(&["verify", "--man=no"], &copies(folder.path())), "");
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_finds_the_units_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    for unit in copies(folder.path()) {
        let arguments = ["security", "--offline=true", "--no-pager", &threshold];
        let said = analyze(&arguments, &[unit]);
        assert!(!said.contains("exit status"), "{said}");
    }
}

#[test]
#[ignore = "needs systemd-analyze"]
fn the_checker_finds_faults() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("wrong.service");
    std::fs::write(&unit, "[Service]\nExecStart=/bin/true\nKilMode=process\n").unwrap();
    let said = analyze(&["verify", "--man=no"], std::slice::from_ref(&unit));
    assert!(said.contains("KilMode"), "{said}");
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold=35"];
    let said = analyze(&arguments, &[unit]);
    assert!(said.contains("exit status"), "{said}");
}

#[test]
fn no_stop_of_ours_reaches_a_guest_and_the_table_outlives_both() {
    let mut faults = Vec::new();
    let wanted = [
        ("Type", "notify"),
        ("KillMode", "process"),
        ("Restart", "always"),
        ("StartLimitIntervalSec", "0"),
        ("RuntimeDirectory", "understudy"),
        ("RuntimeDirectoryPreserve", "yes"),
    ];
    for unit in UNITS {
        let text = text(unit);
        let settings = settings(&text);
        for (key, value) in wanted {
            if settings.get(key) != Some(&value) {
                faults.push(format!("{unit}: {key}={value} is missing, it has {:?}", settings.get(key)));
            }
        }
        if !settings.contains_key("WatchdogSec") {
            faults.push(format!("{unit}: WatchdogSec is missing"));
        }
    }
    expect_none(&faults);
}

#[test]
fn the_guard_runs_when_nothing_else_does_and_before_the_agent() {
    let text = text("understudy-guard.service");
    let guard = settings(&text);
    assert_eq!(guard["CPUSchedulingPolicy"], "rr");
    assert_eq!(guard["LimitMEMLOCK"], "infinity");
    assert_eq!(guard["OOMScoreAdjust"], "-1000");
    assert!(guard["Before"].split(' ').any(|unit| unit == "understudy.service"));
    let agent = self::text("understudy.service");
    // Requires= or BindsTo= would take the agent down with a guard that restarts.
    assert!(!agent.lines().any(|line| line.starts_with("Requires=") || line.starts_with("BindsTo=")));
    assert!(settings(&agent)["Wants"].contains("understudy-guard.service"));
}

#[test]
fn every_unit_in_the_folder_is_checked() {
    let entries = std::fs::read_dir(root().join("config/systemd")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".service"));
    names.sort();
    assert_eq!(names, UNITS);
}
