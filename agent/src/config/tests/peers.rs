//! Tables of the rules about what agents send each other, and over what.

use std::path::Path;

use super::{FULL, MINIMAL, faults};
use crate::config::{Config, is_loopback};

/// The shipped file without its section about peers, and with this listener for readers.
fn without_peers(api: &str) -> String {
    let (before, rest) = FULL.split_once("\n[peers]\n").unwrap();
    let (_, after) = rest.split_once("\n[gateway]\n").unwrap();
    format!("{before}\n[gateway]\n{after}").replace("listen = \"0.0.0.0:7480\"", api)
}

fn parsed(text: &str) -> Config {
    Config::parse(Path::new("agent.toml"), text).unwrap()
}

#[test]
fn without_certificates_nothing_leaves_the_machine() {
    let advice = "give peers.listen, peers.ca, peers.cert and peers.key; or, where all agents are on this machine, \
                  api.listen on 127.0.0.1";
    for (api, why) in [
        ("listen = \"0.0.0.0:7480\"", "and api.listen, 0.0.0.0:7480, neither encrypts them"),
        ("listen = \"192.0.2.1:7480\"", "and api.listen, 192.0.2.1:7480, neither encrypts them"),
        ("listen = \"[::]:7480\"", "and api.listen, [::]:7480, neither encrypts them"),
        ("", "with store.kind = \"etcd\" agents send each other checkpoints"),
    ] {
        let found = faults(&without_peers(api));
        let [fault] = &found[..] else { panic!("{api}: {found:?}") };
        for part in ["agent.toml: peers.listen: is missing: ", why, advice] {
            assert!(fault.contains(part), "{part}: {fault}");
        }
    }
    for address in ["127.0.0.1:7480", "127.9.9.9:7480", "[::1]:7480", "[::ffff:127.0.0.1]:7480"] {
        let config = parsed(&without_peers(&format!("listen = \"{address}\"")));
        assert!(config.peers.is_none());
        assert_eq!(config.plain_peers(), config.api_listen, "{address}");
        assert_eq!(config.peer_address(), address);
    }
    for (address, holds) in
        [("127.0.0.1:1", true), ("[::1]:1", true), ("10.0.0.1:1", false), ("[fe80::1]:1", false)]
    {
        assert_eq!(is_loopback(address.parse().unwrap()), holds, "{address}");
    }
}

/// It has no peers, but perhaps somebody who reads its metrics.
#[test]
fn one_host_needs_no_certificates_and_serves_no_peers() {
    let config = parsed(MINIMAL);
    assert!(config.peers.is_none() && config.plain_peers().is_none() && config.peer_address().is_empty());
    let config = parsed(&format!("{MINIMAL}\n[api]\nlisten = \"0.0.0.0:7480\"\n"));
    assert!(config.plain_peers().is_none() && config.peer_address().is_empty());
}

#[test]
fn with_certificates_peers_are_served_there_alone() {
    let config = parsed(FULL);
    assert_eq!(config.peers.as_ref().unwrap().listen.to_string(), "0.0.0.0:7482");
    assert_eq!(config.peer_address(), "host1:7482");
    assert!(config.plain_peers().is_none());
    let local = FULL.replace("0.0.0.0:7480", "127.0.0.1:7480");
    assert!(parsed(&local).plain_peers().is_none(), "readers of this machine are no peers");
    let unsaid = FULL.replace("advertise = \"host1:7482\"\n", "");
    assert_eq!(parsed(&unsaid).peer_address(), "host1:7482");
    let one = unsaid.replace("0.0.0.0:7482", "192.0.2.1:7482");
    assert_eq!(parsed(&one).peer_address(), "192.0.2.1:7482");
    let without_readers = FULL.replace("listen = \"0.0.0.0:7480\"", "");
    assert!(parsed(&without_readers).api_listen.is_none());
}

#[test]
fn the_section_is_given_whole() {
    let table = [
        ("listen = \"0.0.0.0:7482\"\n", "peers.listen: is missing: give the address for other hosts' agents"),
        ("ca = \"/etc", "peers.ca: is missing: give the file of the authority"),
        ("cert = \"/etc", "peers.cert: is missing: give the file of this host's certificate"),
        ("key = \"/etc", "peers.key: is missing: give the file of that certificate's key"),
    ];
    let (before, section) = FULL.split_once("\n[peers]\n").unwrap();
    for (line, words) in table {
        let without = section.replacen(line, &format!("#{line}"), 1);
        assert_ne!(section, without);
        let found = faults(&format!("{before}\n[peers]\n{without}"));
        let [fault] = &found[..] else { panic!("{line}: {found:?}") };
        assert!(fault.starts_with(&format!("agent.toml: {words}")), "{fault}");
    }
    let found = faults(&format!("{}\n[peers]\n", without_peers("")));
    assert_eq!(found.len(), 4, "an empty one is none: {found:?}");
    for (text, fault) in [
        (
            FULL.replace("\nca = \"/etc", "\nca = \"etc"),
            "peers.ca: 'etc/understudy/pki/ca.pem' must be an absolute path",
        ),
        (FULL.replace("0.0.0.0:7482", "host1:7482"), "peers.listen: 'host1:7482' is not an address and port"),
        (
            FULL.replace("name = \"host1\"", "name = \"1\""),
            "host.name: '1' is a number, which no certificate names",
        ),
        (format!("peers = 1\n{}", without_peers("")), "peers: is not a table but integer"),
    ] {
        let found = faults(&text);
        assert!(found.len() == 1 && found[0].contains(fault), "{fault}: {found:?}");
    }
}
