//! The one list of Debian packages that demo, tests and benchmarks need, and how they get onto a machine.
//!
//! Packages are installed by name, from whatever sources the machine has. QEMU must be [`QEMU_MAJOR`] or
//! later: where the machine's own suites have an older one, it comes from the `-backports` suite of the
//! machine's own main entry, copied with nothing but the suite changed. No package host is named here. An
//! installed QEMU is changed only with consent; a missing one is simply installed.

mod apt;
pub mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use apt::Root;
use sources::Stanza;

/// What is needed for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// What for.
    pub why: &'static str,
    /// A program that does as well where it is on the PATH, wherever it came from.
    pub program: Option<&'static str>,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why, program: None }
}

/// Everything but QEMU, which has a rule of its own.
pub const PACKAGES: &[Package] = &[
    package("build-essential", "linker and C compiler of the build"),
    package("pkg-config", "finds libvirt for the build"),
    package("libvirt-dev", "headers of libvirt for the build"),
    package("protobuf-compiler", "etcd's interface for the build"),
    // The compiler only recommends it, and the interface imports from it.
    package("libprotobuf-dev", "etcd's interface for the build"),
    // Node's own packages bring it too, and Debian's would collide with them.
    Package { name: "npm", why: "fetches the terminal page's one package", program: Some("npm") },
    package("libvirt-daemon", "libvirtd of each lab host"),
    package("libvirt-daemon-driver-qemu", "libvirtd of each lab host"),
    package("libvirt-daemon-system", "libvirt's folders and configuration"),
    package("libvirt-clients", "virsh, for tests and benchmarks"),
    package("etcd-server", "etcd member of each lab host"),
    package("etcd-client", "etcdctl, for tests"),
    package("iproute2", "the lab's network: ip and tc"),
    package("nftables", "the lab's one-way network faults"),
    package("openssl", "the lab's certificates"),
    package("busybox-static", "guest image: everything in the initramfs"),
    package("cpio", "guest image: packs the initramfs"),
    package("lz4", "guest image: compresses the initramfs"),
    package("erofs-utils", "guest image: the role disk"),
    package("kmod", "guest image: which modules the initramfs needs"),
    package("tigervnc-standalone-server", "X screens of the page's tests"),
    package("x11-xserver-utils", "colours of the page's tests"),
    package("xterm", "text on the page's tests"),
    package("chromium", "browser tests and screenshots"),
    package("chromium-driver", "browser tests and screenshots"),
    package("prometheus", "promtool, which tests the alert rules"),
    package("python3-pip", "the example policy in Python"),
];

/// QEMU, installed from backports where the machine's own suites are too old.
pub const QEMU: &[Package] = &[
    package("qemu-system-x86", "the instances"),
    package("qemu-utils", "disk images of tests and benchmarks"),
];

/// The first major version whose migrated memory can be believed under TCG, and whose guest runs on after a
/// background snapshot was broken off.
pub const QEMU_MAJOR: u32 = 10;

/// Where the derived entry is written.
pub const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/understudy-backports.sources";

/// Why packages could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A tool could not be started.
    #[error("start {command}: packages are installed by name on Debian and its kin only")]
    Start {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool failed.
    #[error("{command} ended with {status}; run it by hand to see more")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: String,
    },
    /// A file of apt could not be read or written.
    #[error("access {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// apt has no entry from which a backports entry could be made.
    #[error(
        "QEMU {QEMU_MAJOR} is needed, the machine's suites have none, and no apt entry has the suite {codename} \
         with the component main from which a {codename}-backports entry could be made: install QEMU {QEMU_MAJOR} \
         or later by hand"
    )]
    NoMainEntry {
        /// The release's code name.
        codename: String,
    },
    /// The user did not agree.
    #[error("QEMU {installed} stays installed, as you said; {QEMU_MAJOR} or later is needed to go on")]
    Declined {
        /// The installed version.
        installed: String,
    },
    /// Neither root nor sudo.
    #[error("installing packages needs root: run `sudo apt-get install {names}`")]
    NotRoot {
        /// The missing packages.
        names: String,
    },
}

/// What happens to QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuStep {
    /// Which of its packages are missing or too old.
    pub names: Vec<&'static str>,
    /// The version that would be changed, if one is installed: only with consent.
    pub changes: Option<String>,
    /// Where it comes from, unless the machine's suites have it by themselves.
    pub backports: Option<Backports>,
}

/// The suite that QEMU comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backports {
    /// `bookworm-backports`, for example.
    pub suite: String,
    /// The entry to write, unless the machine has one.
    pub entry: Option<String>,
}

/// What is missing on this machine and how it would be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Packages to install by name.
    pub missing: Vec<Package>,
    /// QEMU's own step; none when it is installed and new enough.
    pub qemu: Option<QemuStep>,
}

/// What the machine says about itself: everything that [`Plan::of`] decides on.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Installed packages with their versions.
    pub installed: BTreeMap<String, String>,
    /// The versions of QEMU's packages that apt would install by itself.
    pub candidates: BTreeMap<String, String>,
    /// `bookworm`, for example.
    pub codename: String,
    /// All entries of apt.
    pub entries: Vec<Stanza>,
    /// Programs on the PATH, of those that packages name.
    pub programs: BTreeSet<&'static str>,
}

impl Plan {
    /// Looks at the machine and decides.
    ///
    /// # Errors
    /// When the machine is not Debian's kin, or has no entry to derive backports from and needs it.
    pub fn read(wanted: &[Package]) -> Result<Plan, PackageError> {
        Plan::of(wanted, &Machine::look()?)
    }

    /// Decides what to install.
    ///
    /// # Errors
    /// [`PackageError::NoMainEntry`] when QEMU must come from backports and no entry can be derived.
    pub fn of(wanted: &[Package], machine: &Machine) -> Result<Plan, PackageError> {
        let missing = wanted.iter().copied().filter(|package| !machine.has(package)).collect();
        Ok(Plan { missing, qemu: qemu_step(machine)? })
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.qemu.is_none()
    }

    /// Installs. `consent` is asked before an installed QEMU is changed, and only then.
    ///
    /// # Errors
    /// When consent is refused or apt fails.
    pub fn apply(&self, consent: &mut dyn FnMut(&str) -> bool) -> Result<(), PackageError> {
        if self.is_empty() {
            return Ok(());
        }
        let backports = self.qemu.as_ref().and_then(|qemu| qemu.backports.as_ref());
        if let Some(version) = self.qemu.as_ref().and_then(|qemu| qemu.changes.as_ref()) {
            let from = backports.map_or(String::new(), |backports| format!(" from {}", backports.suite));
            let question = format!("QEMU {version} is installed. Change it to {QEMU_MAJOR} or later{from}?");
            if !consent(&question) {
                return Err(PackageError::Declined { installed: version.clone() });
            }
        }
        let root = Root::find(self)?;
        if let Some(entry) = backports.and_then(|backports| backports.entry.as_ref()) {
            root.write(BACKPORTS_FILE, entry)?;
        }
        root.run(&["apt-get", "update"])?;
        let install = ["apt-get", "install", "-y", "--no-install-recommends"];
        // QEMU first: the others could pull an older one in.
        if let Some(qemu) = &self.qemu {
            let suite = backports.map(|backports| ["-t", backports.suite.as_str()]);
            root.run(&[&install[..], suite.as_ref().map_or(&[], |s| &s[..]), &qemu.names].concat())?;
        }
        if !self.missing.is_empty() {
            let names: Vec<&str> = self.missing.iter().map(|p| p.name).collect();
            root.run(&[&install[..], &names].concat())?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "all system packages are installed");
        }
        write!(f, "system packages to install:")?;
        for package in &self.missing {
            write!(f, "\n  {:<28} {}", package.name, package.why)?;
        }
        let Some(qemu) = &self.qemu else { return Ok(()) };
        for package in QEMU.iter().filter(|p| qemu.names.contains(&p.name)) {
            write!(f, "\n  {:<28} {}; {QEMU_MAJOR} or later", package.name, package.why)?;
        }
        if let Some(version) = &qemu.changes {
            write!(f, "\n  QEMU {version} is installed and changed only with your consent")?;
        }
        if let Some(Backports { suite, entry }) = &qemu.backports {
            let written = entry.as_ref().map_or(String::new(), |_| format!(", written to {BACKPORTS_FILE}"));
            write!(f, "\n  QEMU comes from {suite}{written}")?;
        }
        Ok(())
    }
}

fn qemu_step(machine: &Machine) -> Result<Option<QemuStep>, PackageError> {
    let enough = |version: Option<&String>| version.and_then(|v| major(v)) >= Some(QEMU_MAJOR);
    let lacking = |name: &&str| !enough(machine.installed.get(*name));
    let names: Vec<_> = QEMU.iter().map(|p| p.name).filter(lacking).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let changes = names.iter().find_map(|name| machine.installed.get(*name)).cloned();
    let plain = names.iter().all(|name| enough(machine.candidates.get(*name)));
    let backports = if plain { None } else { Some(backports(machine)?) };
    Ok(Some(QemuStep { names, changes, backports }))
}

fn backports(machine: &Machine) -> Result<Backports, PackageError> {
    let codename = &machine.codename;
    let suite = format!("{codename}-backports");
    if machine.entries.iter().any(|entry| entry.offers(&suite, "main")) {
        return Ok(Backports { suite, entry: None });
    }
    let main = machine.entries.iter().find(|entry| entry.offers(codename, "main"));
    let main = main.ok_or_else(|| PackageError::NoMainEntry { codename: codename.clone() })?;
    let entry = Some(main.with_suite(&suite).to_string());
    Ok(Backports { suite, entry })
}

/// The upstream major version: 10 of `1:10.0.2+ds-2+deb13u1~bpo12+1`.
fn major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let digits: String = upstream.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

impl Machine {
    /// Asks dpkg, apt and the release file.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub fn look() -> Result<Machine, PackageError> {
        let dpkg = apt::capture(&["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"])?;
        let mut candidates = BTreeMap::new();
        for package in QEMU {
            let policy = apt::capture(&["apt-cache", "policy", package.name])?;
            candidates.extend(parse_candidate(&policy).map(|version| (package.name.to_owned(), version)));
        }
        let release = "/etc/os-release";
        let release = fs::read_to_string(release)
            .map_err(|source| PackageError::File { path: release.to_owned(), source })?;
        let entries = sources::read_all(Path::new("/etc/apt"))
            .map_err(|(path, source)| PackageError::File { path, source })?;
        Ok(Machine {
            installed: parse_installed(&dpkg),
            candidates,
            codename: parse_codename(&release),
            entries,
            programs: PACKAGES.iter().filter_map(|package| package.program).filter(|p| on_path(p)).collect(),
        })
    }

    fn has(&self, package: &Package) -> bool {
        self.installed.contains_key(package.name)
            || package.program.is_some_and(|program| self.programs.contains(program))
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn parse_installed(dpkg: &str) -> BTreeMap<String, String> {
    let installed = dpkg.lines().filter_map(|line| line.strip_suffix(" installed"));
    installed.filter_map(|line| line.split_once(' ')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn parse_codename(release: &str) -> String {
    let line = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

/// Asks on the terminal; without one the answer is no.
pub fn ask_on_terminal(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        println!("{question} [no terminal to ask on: no; --yes agrees]");
        return false;
    }
    print!("{question} [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests;
