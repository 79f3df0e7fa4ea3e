//! Tables of the configuration's rules.

use std::path::Path;

use super::{Config, ConfigError, StoreConfig};

mod peers;

const FULL: &str = include_str!("../../../config/agent.toml");
const MINIMAL: &str = include_str!("../../../config/agent.minimal.toml");

fn faults(text: &str) -> Vec<String> {
    match Config::parse(Path::new("agent.toml"), text) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Faults { faults }) => faults,
        Err(error) => vec![error.to_string()],
    }
}

#[test]
fn the_shipped_files_are_valid() {
    assert_eq!(faults(FULL), Vec::<String>::new());
    assert_eq!(faults(MINIMAL), Vec::<String>::new());
    let minimal = Config::parse(Path::new("m"), MINIMAL).unwrap();
    assert!(matches!(minimal.store, StoreConfig::Embedded { .. }));
    assert_eq!(minimal.libvirt_uri, "qemu:///system");
}

#[test]
fn a_mistyped_key_fails_by_name() {
    let text = MINIMAL.replace("addresses =", "adresses =");
    let found = faults(&text);
    assert!(
        found.iter().any(|fault| fault.contains("agent.toml") && fault.contains("adresses")),
        "{found:?}"
    );
}

#[test]
fn all_faults_are_reported_at_once_with_file_and_key() {
    let text = r#"
[host]
name = "Host_1"
state_dir = "relative"
[libvirt]
uri = "nonsense"
accelerator = "xen"
[store]
kind = "etcd"
cert = "/a"
[pool]
memory_mib = 1
[network]
addresses = "10.0.0.9-10.0.0.1"
prefix_length = 40
[policies]
deadline_ms = 1
records_mib = 1000000
[log]
format = "xml"
"#;
    let found = faults(text);
    for key in [
        "host.name",
        "host.state_dir",
        "libvirt.uri",
        "libvirt.accelerator",
        "store.endpoints",
        "store.cert",
        "pool.memory_mib",
        "network.addresses",
        "network.prefix_length",
        "policies.deadline_ms",
        "policies.records_mib",
        "log.format",
        "peers.listen",
        "environments",
    ] {
        assert!(
            found.iter().any(|fault| fault.starts_with(&format!("agent.toml: {key}:"))),
            "{key}: {found:#?}"
        );
    }
}

/// The key that is mistyped, the one of a wrong type, the one that is missing and the value that cannot be: whoever mends
/// a file is told of all of them before the next start, not of one at each.
#[test]
fn unknown_keys_wrong_types_and_missing_keys_are_reported_together_with_what_else_is_wrong() {
    let text = r#"
nonsense = 1
[hots]
name = "host1"
[host]
nmae = "host1"
vcpus_per_processor = "4"
reserved_memory_mib = -1
labels = { zone = 1 }
[libvirt]
migration_tls = "yes"
uri = "nonsense"
[store]
kind = "etc"
[cluster]
profile = "hasty"
checkpoint_interval_ms = 1.5
[pool]
idle = 65
vcpus = 5000000000
[network]
adresses = "10.0.0.2-10.0.0.9"
prefix_length = 40
[environments]
desktop = ["/role.erofs"]
[api]
listen = 7480
[log]
format = "xml"
"#;
    let mut found = faults(text);
    found.sort();
    let sections = "[host], [libvirt], [store], [cluster], [pool], [network], [environments], [environment_labels], [policies], [api], \
        [peers], [gateway], [guard], [log]";
    let host =
        "name, labels, reserved_memory_mib, ready_images_mib, vcpus_per_processor, state_dir, runtime_dir";
    let libvirt = "use qemu:///system, or qemu+unix:///system?socket=PATH where its socket is elsewhere";
    let addresses = "a range of IPv4 addresses such as 10.77.1.16-10.77.1.31";
    assert_eq!(
        found,
        [
            "agent.toml: api.listen: is not text but integer (line 27)".to_owned(),
            "agent.toml: cluster.checkpoint_interval_ms: is not a whole number but float: use 1000 to 600000 (line 17)".to_owned(),
            "agent.toml: cluster.profile: 'hasty' is not one of safe, fast (line 16)".to_owned(),
            "agent.toml: environments.desktop: is not text but array (line 25)".to_owned(),
            "agent.toml: host.labels.zone: is not text but integer (line 9)".to_owned(),
            "agent.toml: host.name: is missing: give this host's name, such as \"host1\"".to_owned(),
            format!("agent.toml: host.nmae: is unknown: use {host} (line 6)"),
            "agent.toml: host.reserved_memory_mib: -1 is out of range: use 0 to 16777216 (line 8)".to_owned(),
            "agent.toml: host.vcpus_per_processor: is not a whole number but string: use 1 to 64 (line 7)".to_owned(),
            format!("agent.toml: hots: is unknown: use {sections} (line 3)"),
            "agent.toml: libvirt.migration_tls: is not true or false but string (line 11)".to_owned(),
            format!("agent.toml: libvirt.uri: 'nonsense' is not this host's QEMU: {libvirt}"),
            "agent.toml: log.format: 'xml' is not one of auto, plain, journald (line 29)".to_owned(),
            format!("agent.toml: network.addresses: is missing: give {addresses}"),
            "agent.toml: network.adresses: is unknown: use addresses, prefix_length (line 22)".to_owned(),
            "agent.toml: network.prefix_length: 40 is out of range: use 8 to 30 (line 23)".to_owned(),
            format!("agent.toml: nonsense: is unknown: use {sections} (line 2)"),
            "agent.toml: pool.idle: 65 is out of range: use 0 to 64 (line 19)".to_owned(),
            "agent.toml: pool.vcpus: 5000000000 is out of range: use 1 to 256 (line 20)".to_owned(),
            "agent.toml: store.kind: 'etc' is not one of etcd, embedded (line 14)".to_owned(),
        ]
    );
}

#[test]
fn what_rests_on_a_faulty_key_is_not_reported_as_well() {
    let text = r#"
[host]
name = "host1"
[store]
kind = "etcd"
endpoints = "https://host1:2379"
ca = 1
cert = 2
key = "/key"
[network]
addresses = "10.0.0.2-10.0.0.9"
[environments]
desktop = "/role.erofs"
[api]
listen = ":7480"
"#;
    let mut found = faults(text);
    found.sort();
    let keys: Vec<&str> = found.iter().map(|fault| fault.split(": ").nth(1).unwrap()).collect();
    assert_eq!(keys, ["api.listen", "store.ca", "store.cert", "store.endpoints"], "{found:#?}");
    let found =
        faults(&text.replace("\"https://host1:2379\"", "[\"http://host1:2379\", 2]").replace("ca = 1", ""));
    assert!(
        found
            .iter()
            .any(|fault| fault.contains("endpoints: has something else in it: use an array of texts")),
        "{found:#?}"
    );
    // What an empty file lacks is told whole, too.
    let found = faults("");
    for key in [
        "host.name: is missing",
        "store.kind: is missing",
        "network.addresses: is missing",
        "environments: is empty",
    ] {
        assert!(found.iter().any(|fault| fault.contains(key)), "{key}: {found:#?}");
    }
}

#[test]
fn a_text_that_is_no_toml_is_reported_with_every_line() {
    let found = faults("[host]\nname = \n[store]\nkind = 'etcd'\nkind = 'embedded'\n[pool\nidle = 1\n");
    for line in [2, 5, 6] {
        let start = format!("agent.toml: line {line} is no TOML: ");
        assert!(found.iter().any(|fault| fault.starts_with(&start)), "{start}: {found:#?}");
    }
}

#[test]
fn labels_are_of_environments_that_there_are() {
    let labels = "[environment_labels]\ndesktop = { backups = \"2\" }\n";
    let text = format!("{MINIMAL}\n{labels}");
    let config = Config::parse(Path::new("m"), &text).unwrap();
    assert_eq!(config.environment_labels["desktop"]["backups"], "2");
    let found = faults(&text.replace("\ndesktop = {", "\ndeskto = {"));
    let [fault] = &found[..] else { panic!("{found:?}") };
    for part in ["agent.toml: environment_labels.deskto:", "[environments] names desktop"] {
        assert!(fault.contains(part), "{fault}");
    }
    for (wrong, key) in
        [("2", "environment_labels.desktop.backups"), ("[]", "environment_labels.desktop.backups")]
    {
        let found = faults(&text.replace("\"2\"", wrong));
        assert!(found.len() == 1 && found[0].contains(&format!("{key}: is not text")), "{found:?}");
    }
    let found = faults(&text.replace("{ backups = \"2\" }", "\"2\""));
    assert!(found.len() == 1 && found[0].contains("environment_labels.desktop: is not a table"), "{found:?}");
}

#[test]
fn addresses_that_can_never_work_are_refused_and_the_others_are_not() {
    let libvirt = [
        ("qemu:///system", true),
        ("qemu+unix:///system?socket=/run/libvirt/libvirt-sock", true),
        ("test:///default", true),
        ("qemu:///session", false),
        ("qemu:///sistem", false),
        ("qemu+ssh://host2/system", false),
        ("xen:///system", false),
        ("/run/libvirt/libvirt-sock", false),
    ];
    for (uri, holds) in libvirt {
        let found = faults(&format!("{MINIMAL}\n[libvirt]\nuri = \"{uri}\"\n"));
        assert_eq!(found.is_empty(), holds, "{uri}: {found:?}");
    }
    for (uri, holds) in [("tcp://192.0.2.1", true), ("tcp://", false), ("192.0.2.1", false)] {
        let found = faults(&format!("{MINIMAL}\n[libvirt]\nmigration_data_uri = \"{uri}\"\n"));
        assert_eq!(found.is_empty(), holds, "{uri}: {found:?}");
    }
    let (before, rest) = FULL.split_once("\n[store]\n").unwrap();
    let (store, after) = rest.split_once("\n[cluster]\n").unwrap();
    let without_files =
        store.lines().filter(|line| !["ca =", "cert =", "key ="].iter().any(|key| line.starts_with(key)));
    let store = without_files.collect::<Vec<_>>().join("\n");
    let plain = format!("{before}\n[store]\n{store}\n[cluster]\n{after}");
    let etcd = [
        (FULL.to_owned(), ""),
        (
            FULL.replace("https://host2", "http://host2"),
            "'http://host2:2379' must start with https:// with store.ca",
        ),
        (FULL.replace("https://host3:2379", "https://"), "'https://' must start with"),
        (plain.replace("https://host", "http://host"), ""),
        (plain, "'https://host1:2379' must start with http:// without store.ca"),
        (
            FULL.replace("#root = \"/understudy/\"", "root = \"understudy\""),
            "store.root: 'understudy' must begin",
        ),
    ];
    for (text, words) in etcd {
        let found = faults(&text);
        assert_eq!(found.is_empty(), words.is_empty(), "{found:?}");
        assert!(found.iter().all(|fault| words.is_empty() || fault.contains("store.")), "{found:?}");
        assert!(words.is_empty() || found.iter().any(|fault| fault.contains(words)), "{words}: {found:?}");
    }
}

/// What `section` may have, as the refusal of a key that it has not says it.
fn keys_of(section: &str) -> Vec<String> {
    let text = if section.is_empty() { "bogus = 1".to_owned() } else { format!("[{section}]\nbogus = 1\n") };
    let found = faults(&text);
    let reported = found.iter().find_map(|fault| fault.split_once("bogus: is unknown: use "));
    let (keys, _) = reported.unwrap().1.split_once(" (line").unwrap();
    keys.split(", ").map(|key| key.trim_matches(['[', ']']).to_owned()).collect()
}

/// Whether the shipped file has a line for a key, commented or not, under its section.
fn is_documented(section: &str, key: &str) -> bool {
    let mut lines = FULL.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
    let (set, shown) = (format!("{key} = "), format!("#{key} = "));
    lines
        .by_ref()
        .take_while(|line| !line.starts_with('['))
        .any(|line| line.starts_with(&set) || line.starts_with(&shown))
}

#[test]
fn every_key_stands_in_the_shipped_file() {
    let mut seen = 0;
    // The names in these are the operator's.
    let named = ["environments", "environment_labels"];
    for section in keys_of("").iter().filter(|section| !named.contains(&section.as_str())) {
        for key in keys_of(section) {
            assert!(is_documented(section, &key), "{section}.{key} is not in config/agent.toml");
            seen += 1;
        }
    }
    assert!(named.iter().all(|section| FULL.contains(&format!("\n[{section}]\n"))));
    assert!(seen >= 35, "only {seen} keys were compared");
    assert!(!is_documented("api", "endpoints") && !is_documented("store", "bogus"));
}

/// A commented line `#key = value` in the shipped file shows the default: setting it must change nothing.
#[test]
fn the_commented_defaults_are_the_defaults() {
    let mut uncommented = String::new();
    let mut defaults = 0;
    for line in FULL.lines() {
        match line.strip_prefix("#") {
            // Of the other kind of store: no default of this file's.
            Some(rest) if rest.starts_with("path = ") => {
                let [plain, set] =
                    [MINIMAL.to_owned(), MINIMAL.replace("path = \"/var/lib/understudy/store.redb\"", rest)];
                assert!(set.contains(rest));
                let [plain, set] = [plain, set].map(|text| Config::parse(Path::new("x"), &text).unwrap());
                assert_eq!(plain.store, set.store);
                let without = MINIMAL.replace("path = ", "#path = ");
                assert_eq!(plain.store, Config::parse(Path::new("x"), &without).unwrap().store);
                defaults += 1;
            }
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) && rest.contains(" = ") => {
                uncommented.push_str(rest);
                defaults += 1;
            }
            _ => uncommented.push_str(line),
        }
        uncommented.push('\n');
    }
    assert!(defaults >= 15, "only {defaults} commented defaults found");
    let plain = Config::parse(Path::new("x"), FULL).unwrap();
    let set = Config::parse(Path::new("x"), &uncommented).unwrap();
    assert_eq!(format!("{plain:?}"), format!("{set:?}"));
}

/// They moved to `policies.toml`, beside the components that they are about.
#[test]
fn who_decides_is_no_key_of_the_agents_own_file() {
    for key in ["choice = { placement = \"spread\" }", "parameters = { count = { display = \"1\" } }"] {
        let found = faults(&format!("{MINIMAL}\n[policies]\n{key}\n"));
        assert!(found.iter().any(|fault| fault.contains(key.split(' ').next().unwrap())), "{found:?}");
    }
}

#[test]
fn the_shipped_settings_of_policies_are_valid_and_name_every_key() {
    use understudy_policy::{Limits, Mode, Settings};
    let text = include_str!("../../../config/policies.toml");
    let settings = Settings::parse(Path::new("policies.toml"), text, &Limits::default()).unwrap();
    assert_eq!(settings.choice.len(), 2);
    let spread = settings.of("spread");
    assert_eq!(spread.mode, Mode::Decide);
    assert_eq!(spread.limits, Limits::default(), "the file shows the defaults");
    for key in ["choice", "mode", "deadline_ms", "memory_mib", "parameters"] {
        assert!(text.contains(key), "{key} is not documented");
    }
}
