//! Owns how a policy and its component are called: by a name for people and by a digest for machines.

use std::fmt;
use std::str::FromStr;

/// Longest name of a policy: it goes into logs, metrics and the configuration.
const NAME_BYTES_MAX: usize = 63;
/// BLAKE3 in hex.
const DIGEST_CHARS: usize = 64;

/// Whether `name` can be a policy's: it is shown, configured and made into a file's name.
pub(crate) fn is_name(name: &str) -> bool {
    let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_good)
}

/// BLAKE3 of a component, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// The digest of a component.
    #[must_use]
    pub fn of(component: &[u8]) -> Self {
        Self(blake3::hash(component).to_hex().to_string())
    }

    /// The 64 hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 digits 0-9 and a-f")]
pub struct NoDigest;

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == DIGEST_CHARS && text.bytes().all(is_hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NoDigest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_hex_and_nothing_that_could_leave_the_folder() {
        let digest = Digest::of(b"component");
        assert_eq!(digest.as_str().parse(), Ok(digest.clone()));
        let upper = digest.as_str().to_uppercase();
        let long = format!("{digest}0");
        for bad in ["", "../../etc/passwd", &digest.as_str()[1..], &upper, &long] {
            assert_eq!(bad.parse::<Digest>(), Err(NoDigest), "{bad}");
        }
    }

    #[test]
    fn a_name_is_short_and_plain() {
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for (name, good) in [
            ("spread", true),
            ("a-b_9", true),
            (&long[1..], true),
            ("", false),
            (&long, false),
            ("Spread", false),
            ("a.b", false),
            ("a/b", false),
            ("é", false),
        ] {
            assert_eq!(is_name(name), good, "{name}");
        }
    }
}
