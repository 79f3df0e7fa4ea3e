//! Tables of the configuration's rules.

use std::path::Path;

use super::{Config, ConfigError, StoreConfig};

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
        "api.listen",
        "environments",
    ] {
        assert!(
            found.iter().any(|fault| fault.starts_with(&format!("agent.toml: {key}:"))),
            "{key}: {found:#?}"
        );
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
    let without_files =
        FULL.lines().filter(|line| !["ca =", "cert =", "key ="].iter().any(|key| line.starts_with(key)));
    let plain = without_files.collect::<Vec<_>>().join("\n");
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

/// A commented line `# key = value` in the shipped file shows the default: setting it must change nothing.
#[test]
fn the_commented_defaults_are_the_defaults() {
    let mut uncommented = String::new();
    let mut defaults = 0;
    for line in FULL.lines() {
        match line.strip_prefix("#") {
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
