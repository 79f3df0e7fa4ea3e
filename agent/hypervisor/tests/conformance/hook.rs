//! The permit hook's own logic, without libvirt: the script is run as libvirt runs it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use understudy_core::model::ids::Epoch;
use understudy_core::model::units::Boottime;
use understudy_hypervisor::permit::{Permits, boot_id};
use understudy_hypervisor::process::boottime;

use crate::host::{LONG, id};

const HOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/libvirt/qemu-hook");

struct Bench {
    folder: tempfile::TempDir,
    permits: Permits,
}

impl Bench {
    /// The hook as it is, but for the folder where it looks.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let permits = Permits::open(&folder.path().join("permits")).unwrap();
        let script = std::fs::read_to_string(HOOK).unwrap();
        let line = "\npermits=/run/understudy/permits\n";
        assert!(script.contains(line));
        let own = script.replace(line, &format!("\npermits={}\n", folder.path().join("permits").display()));
        std::fs::write(folder.path().join("hook"), own).unwrap();
        Self { folder, permits }
    }

    fn ask(&self, operation: &str, description: &str) -> Result<(), String> {
        let mut hook = Command::new("sh")
            .arg(self.folder.path().join("hook"))
            .args(["u1", operation, "begin", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_clear()
            .spawn()
            .unwrap();
        // The hook need not read it all.
        let _ = hook.stdin.take().unwrap().write_all(description.as_bytes());
        let output = hook.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"", "what it prints would replace the description");
        let text = String::from_utf8(output.stderr).unwrap();
        if output.status.success() { Ok(()) } else { Err(text) }
    }

    fn permit(&self) -> std::path::PathBuf {
        self.folder.path().join("permits").join(id(1).to_string())
    }
}

fn managed(epoch: &str) -> String {
    format!(
        "<domain type='qemu'>\n  <name>u1</name>\n  <uuid>{}</uuid>\n  <metadata>\n    \
         <understudy:instance xmlns:understudy=\"https://understudy.invalid/instance/1\" {epoch}/>\n    \
         <o:x xmlns:o=\"urn:o\" epoch=\"99\"/>\n  </metadata>\n  <memory>1</memory>\n</domain>\n",
        id(1)
    )
}

#[test]
fn a_domain_that_is_not_managed_is_never_held_up() {
    let bench = Bench::new();
    let plain = managed("").replace("https://understudy.invalid/instance/1", "urn:other");
    for operation in ["prepare", "start", "started", "restore", "migrate", "reconnect", "stopped", "release"]
    {
        assert_eq!(bench.ask(operation, &plain), Ok(()), "{operation}");
    }
    for operation in ["reconnect", "stopped", "release", "attach"] {
        assert_eq!(bench.ask(operation, &managed("epoch=\"3\"")), Ok(()), "{operation}");
    }
}

#[test]
fn a_managed_domain_comes_to_life_only_with_a_fresh_permit_and_once() {
    let bench = Bench::new();
    let domain = managed("epoch=\"3\"");
    for operation in ["prepare", "start", "restore", "migrate"] {
        let refused = bench.ask(operation, &domain).unwrap_err();
        assert!(refused.contains("there is no permit") && refused.contains("understudy status"), "{refused}");
    }
    bench.permits.grant(id(1), Epoch(3), boottime(), LONG).unwrap();
    for operation in ["restore", "prepare", "start", "started"] {
        assert_eq!(bench.ask(operation, &domain), Ok(()), "{operation}");
    }
    assert!(!bench.permit().exists(), "the permit is used up");
    assert!(bench.ask("prepare", &domain).is_err());
}

#[test]
fn a_permit_that_is_old_foreign_or_damaged_does_not_count() {
    let bench = Bench::new();
    let boot = boot_id().unwrap();
    let (uuid, now) = (id(1), boottime().0 / 1_000_000_000);
    let later = now + 1000;
    for (text, epoch, says) in [
        (format!("{uuid}\n2\n{boot}\n{later}\n"), "3", "epoch 2 is older than the domain's own, 3"),
        (format!("{uuid}\n3\n{boot}\n{now}\n"), "3", "ended"),
        (format!("{uuid}\n3\nanother-boot\n{later}\n"), "3", "another boot"),
        (format!("{}\n3\n{boot}\n{later}\n", id(2)), "3", "is for"),
        (format!("{uuid}\nx\n{boot}\n{later}\n"), "3", "damaged"),
        (format!("{uuid}\n3\n{boot}\n"), "3", "damaged"),
        (format!("{uuid}\n3\n{boot}\n99999999999999999999\n"), "3", "damaged"),
        (String::new(), "3", "is for nothing"),
        (format!("{uuid}\n3\n{boot}\n{later}\n"), "", "no epoch"),
        (format!("{uuid}\n3\n{boot}\n{later}\n"), "x", "no epoch"),
    ] {
        std::fs::write(bench.permit(), &text).unwrap();
        let refused = bench.ask("prepare", &managed(&format!("epoch=\"{epoch}\""))).unwrap_err();
        assert!(refused.contains(says), "{text:?}: {refused}");
    }
    std::fs::write(bench.permit(), format!("{uuid}\n3\n{boot}\n{later}\n")).unwrap();
    assert_eq!(bench.ask("prepare", &managed("epoch=\"3\"")), Ok(()), "the well-formed one does");
    bench.permits.raise(id(1), Epoch(4)).unwrap();
    let refused = bench.ask("prepare", &managed("epoch=\"3\"")).unwrap_err();
    assert!(refused.contains("older than 4, which this host knows of"), "{refused}");
}

#[test]
fn the_hook_and_the_writer_of_permits_agree_on_when_one_ends() {
    let bench = Bench::new();
    let ago = Boottime(boottime().0.saturating_sub(3_000_000_000));
    bench.permits.grant(id(1), Epoch(3), ago, std::time::Duration::from_secs(1)).unwrap();
    assert!(bench.ask("prepare", &managed("epoch=\"3\"")).unwrap_err().contains("ended"));
    bench.permits.grant(id(1), Epoch(3), boottime(), LONG).unwrap();
    let other_order =
        managed("").replace("<understudy:instance ", "<understudy:instance epoch='3' address='::1' ");
    for description in [managed("epoch='3'"), managed("address='::1' epoch=\"3\""), other_order] {
        assert_eq!(bench.ask("prepare", &description), Ok(()), "{description}");
    }
    let over_two_lines = managed("\nepoch=\"3\"");
    assert!(
        bench.ask("prepare", &over_two_lines).unwrap_err().contains("no epoch"),
        "what is not understood is refused"
    );
}

#[test]
fn the_hook_can_be_run_by_libvirt() {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(Path::new(HOOK)).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
}
