//! The files of a new policy, for `understudy policy new`.
//!
//! Promises that what is written builds anywhere: the SDK and the interface come with it, laid out as in this
//! repository, because a site has the daemon's binary and nothing else. Whoever includes this module needs nothing
//! but `std`.

/// Paths below the new folder and what is written there, before the name is put in.
const OWN: [(&str, &str); 5] = [
    (".cargo/config.toml", include_str!(".cargo/config.toml")),
    (".gitignore", include_str!(".gitignore")),
    ("Cargo.toml", include_str!("Cargo.toml")),
    ("README.md", include_str!("README.md")),
    ("src/lib.rs", include_str!("src/lib.rs")),
];

/// Paths below the new folder's `understudy/`, which are the paths in this repository.
const COPIED: [(&str, &str); 16] = [
    ("policies/sdk/Cargo.toml", include_str!("../sdk/Cargo.toml")),
    ("policies/sdk/src/backup_count.rs", include_str!("../sdk/src/backup_count.rs")),
    ("policies/sdk/src/best.rs", include_str!("../sdk/src/best.rs")),
    ("policies/sdk/src/heap.rs", include_str!("../sdk/src/heap.rs")),
    ("policies/sdk/src/lib.rs", include_str!("../sdk/src/lib.rs")),
    ("policies/sdk/src/log.rs", include_str!("../sdk/src/log.rs")),
    ("policies/sdk/src/parameters.rs", include_str!("../sdk/src/parameters.rs")),
    ("policies/sdk/src/placement.rs", include_str!("../sdk/src/placement.rs")),
    ("policies/sdk/src/placement/host.rs", include_str!("../sdk/src/placement/host.rs")),
    ("policies/sdk/src/placement/tests.rs", include_str!("../sdk/src/placement/tests.rs")),
    ("policies/sdk/src/testing.rs", include_str!("../sdk/src/testing.rs")),
    ("policies/sdk/src/wit.rs", include_str!("../sdk/src/wit.rs")),
    ("wit/backup-count.wit", include_str!("../../wit/backup-count.wit")),
    ("wit/placement.wit", include_str!("../../wit/placement.wit")),
    ("wit/types.wit", include_str!("../../wit/types.wit")),
    ("wit/worlds.wit", include_str!("../../wit/worlds.wit")),
];

/// What the template is called.
const PLACEHOLDER: &str = "my-policy";

/// A name is the stem of the component's file and a part of a package's name.
const NAME_LENGTH_MAX: usize = 40;

/// Whether a policy may have this name: small letters, digits and single hyphens, a letter first.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let letters = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    letters
        && name.len() <= NAME_LENGTH_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && !name.contains("--")
}

/// The files of a new policy: paths below its folder, and their texts. None where it may not have this name.
#[must_use]
pub fn files(name: &str) -> Option<Vec<(String, String)>> {
    if !is_name(name) {
        return None;
    }
    // The package's name as cargo writes it in a file's name.
    let in_file = name.replace('-', "_");
    let named = |text: &str| text.replace("my_policy", &in_file).replace(PLACEHOLDER, name);
    let own = OWN.iter().map(|(path, text)| ((*path).to_owned(), named(text)));
    let copied = COPIED.iter().map(|(path, text)| (format!("understudy/{path}"), (*text).to_owned()));
    Some(own.chain(copied).collect())
}
