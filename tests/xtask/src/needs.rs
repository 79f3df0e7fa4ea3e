//! Owns what tests need of a machine beyond a compiler: the words behind "needs" in the reasons for which tests are left
//! out, and whether a machine has what they stand for.
//!
//! Promises: a word that means nothing is an error, so that a slip of the pen skips a test on no machine. Must not do:
//! install anything.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::languages;
use crate::policies as guests;

/// Words that stand for others.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "a lab",
        &["root", "ip", "nft", "tc", "libvirtd", "virsh", "etcd", "etcdctl", "qemu-system-x86_64", "perl"],
    ),
    // The suite of the hypervisor makes its own: see agent/hypervisor/tests/conformance/hosts.sh.
    (
        "a host",
        &[
            "root",
            "libvirtd",
            "virsh",
            "qemu-system-x86_64",
            "unshare",
            "setpriv",
            "nsenter",
            "ip",
            "pgrep",
            "openssl",
            "mkfs.erofs",
        ],
    ),
    ("a cluster", &["a lab"]),
    ("a browser", &["Xtigervnc", "xsetroot", "xterm", "chromedriver", "chromium", "setpriv"]),
    ("a guest", &["root", "ip", "qemu-system-x86_64", "setpriv", "mkfs.erofs", "lz4", "cpio", "modinfo"]),
];

/// Words that are the name of a program.
const PROGRAMS: [&str; 6] = ["etcd", "ip", "promtool", "qemu-system-x86_64", "setpriv", "systemd-analyze"];

/// Folders in which programs are that an operator's own path may lack.
const ADMINISTRATION: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Whoever may write to it chooses the next process's id.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// What of `needs`, words with commas between, this machine lacks. Nothing: the test can run.
pub(crate) fn lacking(root: &Path, needs: &str) -> Result<Vec<String>> {
    let mut lacks = Vec::new();
    for word in needs.split(", ") {
        let group = GROUPS.iter().find(|(name, _)| *name == word);
        if let Some((_, words)) = group {
            for word in *words {
                lacks.extend(match GROUPS.iter().find(|(name, _)| name == word) {
                    Some((_, words)) => words.iter().filter_map(|word| lack(root, word)).collect(),
                    None => lack(root, word).into_iter().collect::<Vec<_>>(),
                });
            }
        } else if is_word(word) {
            lacks.extend(lack(root, word));
        } else {
            bail!("a test needs '{word}', which tests/xtask/src/needs.rs does not know");
        }
    }
    Ok(lacks)
}

fn is_word(word: &str) -> bool {
    PROGRAMS.contains(&word)
        || ["root", "the wasm target", "a choice of process ids"].contains(&word)
        || language(word).is_some()
}

fn language(word: &str) -> Option<&str> {
    let language = word.strip_prefix("the policy in ")?;
    ["python", "javascript", "c"].contains(&language).then_some(language)
}

/// What is lacking for one word, if it is.
fn lack(root: &Path, word: &str) -> Option<String> {
    if let Some(language) = language(word) {
        let built = languages::folder(root).join(format!("{language}.wasm")).exists();
        return (!built).then(|| format!("{word}: cargo xtask policies --language {language}"));
    }
    match word {
        "root" => (!nix::unistd::geteuid().is_root()).then(|| word.to_owned()),
        "the wasm target" => guests::toolchain(false).err().map(|missing| format!("{word}: {missing:#}")),
        "a choice of process ids" => {
            let opened = std::fs::OpenOptions::new().write(true).open(LAST_PID);
            opened.err().map(|error| format!("{word}: {LAST_PID}: {error}"))
        }
        program => (!is_installed(program)).then(|| format!("the program {program}")),
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ADMINISTRATION.map(PathBuf::from));
    folders.map(|folder| folder.join(program)).any(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_means_nothing_is_an_error_and_every_group_is_made_of_words() {
        let root = crate::root();
        let error = lacking(&root, "root, etdc").unwrap_err().to_string();
        assert!(error.contains("'etdc'"), "{error}");
        assert!(lacking(&root, "").is_err() && lacking(&root, "the policy in cobol").is_err());
        for (group, _) in GROUPS {
            lacking(&root, group).unwrap();
        }
    }

    #[test]
    fn what_is_lacking_is_named_and_what_is_there_is_not() {
        let root = tempfile::tempdir().unwrap();
        let lacks = lacking(root.path(), "the policy in python").unwrap();
        assert_eq!(lacks, ["the policy in python: cargo xtask policies --language python"]);
        assert!(is_installed("sh") && !is_installed("no-such-program"));
        assert_eq!(lack(root.path(), "no-such-program").as_deref(), Some("the program no-such-program"));
        let root_lacks = lacking(root.path(), "root").unwrap();
        assert_eq!(root_lacks.is_empty(), nix::unistd::geteuid().is_root());
    }
}
