//! Tables of what certificate files may be and what is said of them.

use std::path::Path;
use std::time::SystemTime;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType, date_time_ymd};

use super::certificates::Authority;
use super::{files, host};
use crate::exit::chain;
use crate::peers::identity::{EXPIRES_SOON, Identity, Look, read};

/// What is said of files that were good before this was done to them, and the key of the configuration that is named.
fn fault(spoil: impl FnOnce(&Authority, &Path)) -> (&'static str, String) {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let written = files(authority.issue(folder.path(), "host1"));
    read(&host("host1"), &written).unwrap();
    spoil(&authority, folder.path());
    let error = read(&host("host1"), &written).unwrap_err();
    (error.key(), chain(&error))
}

/// What is said of a certificate in which this is another.
fn fault_in(edit: impl FnOnce(&mut CertificateParams)) -> (&'static str, String) {
    fault(|authority, folder| {
        authority.issue_with(folder, "host1", edit);
    })
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

#[test]
fn each_fault_of_a_file_is_told_with_its_key_and_what_to_do() {
    let pem = "put a file in PEM form there";
    let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let table = [
        (
            fault(|_, folder| std::fs::remove_file(folder.join("ca.pem")).unwrap()),
            "peers.ca",
            ["ca.pem", "see that the file is there", "No such file"],
        ),
        (fault(|_, folder| write(folder, "ca.pem", "")), "peers.ca", ["ca.pem", "a certificate", pem]),
        (fault(|_, folder| write(folder, "ca.pem", cut)), "peers.ca", ["ca.pem", "a certificate", pem]),
        (
            fault(|_, folder| std::fs::remove_file(folder.join("host1.pem")).unwrap()),
            "peers.cert",
            ["host1.pem", "see that the file is there", "No such file"],
        ),
        (
            fault(|_, folder| write(folder, "host1.pem", "x")),
            "peers.cert",
            ["host1.pem", "a certificate", pem],
        ),
        (
            fault(|_, folder| write(folder, "host1.pem", cut)),
            "peers.cert",
            ["no peer would accept", "host1.pem", "issue another"],
        ),
        (
            fault(|_, folder| write(folder, "host1.key", "x")),
            "peers.key",
            ["host1.key", "a private key", pem],
        ),
        (
            fault(|authority, folder| {
                let other = tempfile::tempdir().unwrap();
                let [_, _, key] = authority.issue(other.path(), "host1");
                std::fs::copy(key, folder.join("host1.key")).unwrap();
            }),
            "peers.key",
            ["host1.key", "is not the key of", "put the one that belongs to it there"],
        ),
        (
            fault(|_, folder| {
                let other = tempfile::tempdir().unwrap();
                let [authority, ..] = Authority::new().issue(other.path(), "host1");
                std::fs::copy(authority, folder.join("ca.pem")).unwrap();
            }),
            "peers.cert",
            ["host1.pem", "which was not signed by an authority of peers.ca", "the same one"],
        ),
        (
            fault_in(|params| params.subject_alt_names = vec![SanType::DnsName("host2".try_into().unwrap())]),
            "peers.cert",
            ["host1.pem", "does not name host1: issue one with subjectAltName=DNS:host1", "host2"],
        ),
        (
            // The common name is no name of a host.
            fault_in(|params| params.subject_alt_names.clear()),
            "peers.cert",
            ["host1.pem", "does not name host1", "subjectAltName=DNS:host1"],
        ),
        (
            fault_in(|params| params.not_after = date_time_ymd(2020, 1, 1)),
            "peers.cert",
            ["host1.pem", "has expired: renew it", "the clocks"],
        ),
        (
            fault_in(|params| params.not_before = date_time_ymd(4000, 1, 1)),
            "peers.cert",
            ["host1.pem", "is not valid yet", "the clocks"],
        ),
        (
            fault_in(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "peers.cert",
            ["host1.pem", "is not for both ends", "extendedKeyUsage=serverAuth,clientAuth"],
        ),
        (
            fault_in(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "peers.cert",
            ["host1.pem", "is not for both ends", "extendedKeyUsage=serverAuth,clientAuth"],
        ),
    ];
    for ((key, text), expected, words) in table {
        assert_eq!(key, expected, "{text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

/// Of several authorities, as while one is replaced by another.
#[test]
fn a_certificate_of_any_authority_in_the_file_is_good() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [old, ..] = Authority::new().issue(other.path(), "host1");
    let written = Authority::new().issue(folder.path(), "host1");
    let both = [old, written[0].clone()].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&written[0], both).unwrap();
    assert!(read(&host("host1"), &files(written)).is_ok());
}

#[test]
fn bad_files_leave_the_good_ones_in_use_and_the_next_good_ones_replace_them() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let identity = Identity::new(host("host1"), files(authority.issue(folder.path(), "host1")));
    assert!(identity.client().is_none() && identity.server().is_none());
    let look = |renewed| Look { renewed, expires_soon: false };
    assert_eq!(identity.look().unwrap(), look(true));
    assert_eq!(identity.look().unwrap(), look(false));
    let before = identity.client().unwrap();
    // The certificate was replaced, its key not yet.
    let key = std::fs::read(folder.path().join("host1.key")).unwrap();
    authority.issue(folder.path(), "host1");
    let new_key = std::fs::read(folder.path().join("host1.key")).unwrap();
    std::fs::write(folder.path().join("host1.key"), key).unwrap();
    assert_eq!(identity.look().unwrap_err().key(), "peers.key");
    assert!(std::sync::Arc::ptr_eq(&before, &identity.client().unwrap()));
    std::fs::write(folder.path().join("host1.key"), new_key).unwrap();
    assert_eq!(identity.look().unwrap(), look(true));
    assert!(!std::sync::Arc::ptr_eq(&before, &identity.client().unwrap()));
}

#[test]
fn a_certificate_is_told_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    for (left, soon) in [(EXPIRES_SOON / 2, true), (EXPIRES_SOON * 2, false)] {
        let ends = SystemTime::now() + left;
        let written = Authority::new().issue_with(folder.path(), "host1", |params| {
            params.not_after = ends.into();
        });
        let identity = Identity::new(host("host1"), files(written));
        assert_eq!(identity.look().unwrap().expires_soon, soon, "{left:?}");
    }
}
