//! Decisions about packages, on sample texts. The hosts are reserved names that exist nowhere.

use super::sources::{Stanza, parse_list, parse_sources};
use super::*;

const DEB822: &str = "\
Types: deb
# a snapshot would stand here
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

const ONE_LINE: &str = "\
# deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb-src http://mirror.invalid/debian bookworm main
deb http://mirror.invalid/debian-security bookworm-security main
deb [arch=amd64,i386 signed-by=/usr/share/keyrings/a.gpg] http://mirror.invalid/debian bookworm main contrib # x
";

const OLD: &str = "1:7.2+dfsg-7+deb12u18";
const NEW: &str = "1:10.0.2+ds-2+deb13u1~bpo12+1";
const BOTH: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// A machine with these packages of QEMU, whose suites have one version of it.
fn machine(installed: &[(&str, &str)], candidate: &str, entries: Vec<Stanza>) -> Machine {
    let own = |(name, version): &(&str, &str)| ((*name).to_owned(), (*version).to_owned());
    Machine {
        installed: installed.iter().map(own).collect(),
        candidates: BOTH.iter().map(|name| own(&(*name, candidate))).collect(),
        codename: "bookworm".to_owned(),
        entries,
        programs: BTreeSet::new(),
    }
}

fn step(machine: &Machine) -> Option<QemuStep> {
    Plan::of(&[], machine).expect("a plan").qemu
}

/// The entry that would be written on a machine with these entries and no QEMU.
fn entry(entries: Vec<Stanza>) -> Option<String> {
    let backports = step(&machine(&[], OLD, entries)).and_then(|qemu| qemu.backports).expect("backports");
    assert_eq!(backports.suite, "bookworm-backports");
    backports.entry
}

#[test]
fn the_backports_entry_of_a_deb822_file_differs_in_its_suites_only() {
    let wanted = "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm-backports\nComponents: main\n\
                  Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";
    assert_eq!(entry(parse_sources(DEB822)).as_deref(), Some(wanted));
}

#[test]
fn the_backports_entry_of_a_one_line_file_keeps_its_options() {
    let wanted = "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm-backports\n\
                  Components: main contrib\nArchitectures: amd64 i386\nSigned-By: /usr/share/keyrings/a.gpg\n";
    assert_eq!(entry(parse_list(ONE_LINE)).as_deref(), Some(wanted));
}

#[test]
fn a_key_written_out_over_many_lines_is_copied_as_it_stands() {
    let text = "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n \
                -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n -----END PGP PUBLIC KEY BLOCK-----\n";
    let stanza = parse_sources(text).remove(0);
    assert_eq!(stanza.to_string(), text);
}

#[test]
fn a_machine_that_has_backports_gets_no_second_entry() {
    let mut entries = parse_sources(DEB822);
    entries.push(entries[0].with_suite("bookworm-backports"));
    assert_eq!(entry(entries), None);
}

#[test]
fn a_disabled_or_security_entry_is_no_main_entry() {
    let disabled = parse_sources(&DEB822.replacen("Types: deb\n", "Enabled: no\nTypes: deb\n", 1));
    let refused = Plan::of(&[], &machine(&[], OLD, disabled));
    assert!(matches!(refused, Err(PackageError::NoMainEntry { codename }) if codename == "bookworm"));
}

/// QEMU as installed, the version that the suites have, and what follows: names, change, backports.
type QemuCase<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<(&'a [&'static str], Option<&'a str>, bool)>);

#[test]
fn qemu_is_kept_installed_or_changed_by_its_versions() {
    let both = |version| BOTH.map(|name| (name, version));
    let table: [QemuCase<'_>; 7] = [
        (&both(NEW), NEW, None),
        (&both(NEW), OLD, None),
        (&both(OLD), OLD, Some((&BOTH, Some(OLD), true))),
        (&[], OLD, Some((&BOTH, None, true))),
        (&[], NEW, Some((&BOTH, None, false))),
        (&both(OLD), NEW, Some((&BOTH, Some(OLD), false))),
        // The emulator stays as it is; only its missing tools come, without a question.
        (&[("qemu-system-x86", NEW)], OLD, Some((&["qemu-utils"], None, true))),
    ];
    for (installed, candidate, wanted) in table {
        let found = step(&machine(installed, candidate, parse_sources(DEB822)));
        let found = found.as_ref().map(|q| (&q.names[..], q.changes.as_deref(), q.backports.is_some()));
        assert_eq!(found, wanted, "{installed:?}, candidate {candidate}");
    }
}

#[test]
fn an_installed_qemu_is_not_changed_without_consent() {
    let plan =
        Plan::of(&[], &machine(&[("qemu-system-x86", OLD)], OLD, parse_sources(DEB822))).expect("a plan");
    let mut asked = Vec::new();
    let refused = plan.apply(&mut |question| {
        asked.push(question.to_owned());
        false
    });
    assert!(matches!(refused, Err(PackageError::Declined { installed }) if installed == OLD));
    assert_eq!(asked.len(), 1);
    assert!(asked[0].contains(OLD) && asked[0].contains("bookworm-backports"), "{asked:?}");
}

#[test]
fn what_dpkg_does_not_call_installed_is_missing() {
    let dpkg = "cpio 2.13+dfsg-7.1 installed\nlz4 1.9.4-1 config-files\n";
    let installed = parse_installed(dpkg);
    let mut machine = machine(&BOTH.map(|name| (name, NEW)), NEW, Vec::new());
    machine.installed.extend(installed);
    let wanted = [package("cpio", "a"), package("lz4", "b"), package("openssl", "c")];
    let plan = Plan::of(&wanted, &machine).expect("a plan");
    assert_eq!(plan.missing.iter().map(|p| p.name).collect::<Vec<_>>(), ["lz4", "openssl"]);
    let words = plan.to_string();
    assert!(words.contains("lz4") && words.contains("openssl") && !words.contains("cpio"), "{words}");
}

#[test]
fn sample_answers_of_the_system_are_read() {
    let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
    assert_eq!(parse_candidate(policy), Some("1:7.2+dfsg-7".to_owned()));
    assert_eq!(parse_candidate("x:\n  Candidate: (none)\n"), None);
    assert_eq!(parse_codename("ID=debian\nVERSION_CODENAME=bookworm\n"), "bookworm");
    assert_eq!(major("1:10.0.2+ds-2+deb13u1~bpo12+1"), Some(10));
    assert_eq!(major("1:7.2+dfsg-7"), Some(7));
}

#[test]
fn a_program_from_elsewhere_does_as_well_as_its_package() {
    let wanted = [Package { name: "npm", why: "w", program: Some("npm") }, package("nodejs", "w")];
    let mut machine = machine(&[("qemu-system-x86", NEW), ("qemu-utils", NEW)], NEW, Vec::new());
    let missing = |machine: &Machine| {
        let plan = Plan::of(&wanted, machine).expect("a plan");
        plan.missing.iter().map(|package| package.name).collect::<Vec<_>>()
    };
    assert_eq!(missing(&machine), ["npm", "nodejs"]);
    machine.programs.insert("npm");
    assert_eq!(missing(&machine), ["nodejs"]);
}

#[test]
fn what_the_compiler_of_etcds_interface_only_recommends_is_installed_too() {
    // Installed with --no-install-recommends, the compiler comes without the files that the interface imports.
    for name in ["protobuf-compiler", "libprotobuf-dev"] {
        assert!(PACKAGES.iter().any(|package| package.name == name), "{name}");
    }
}
