//! apt's entries in both of their formats, read as one: `deb822` (`.sources`) and one line (`.list`).

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// An entry of apt: its fields in their order. A value may go on over several lines, as it stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stanza {
    fields: Vec<(String, String)>,
}

impl Stanza {
    /// The value of a field, whose name is not case-sensitive.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn has(&self, field: &str, word: &str) -> bool {
        self.get(field).is_some_and(|value| value.split_whitespace().any(|w| w == word))
    }

    /// Whether binary packages of this suite and component come from this entry.
    pub fn offers(&self, suite: &str, component: &str) -> bool {
        let enabled = self.get("Enabled").is_none_or(|v| !matches!(v, "no" | "false" | "0"));
        enabled && self.has("Types", "deb") && self.has("Suites", suite) && self.has("Components", component)
    }

    /// The same entry with another suite. Nothing else is changed.
    #[must_use]
    pub fn with_suite(&self, suite: &str) -> Stanza {
        let mut copy = self.clone();
        for (key, value) in &mut copy.fields {
            if key.eq_ignore_ascii_case("Suites") {
                suite.clone_into(value);
            }
        }
        copy
    }
}

impl fmt::Display for Stanza {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.fields {
            // A value that begins on the next line follows its colon without a space.
            let space = if value.starts_with('\n') { "" } else { " " };
            writeln!(f, "{key}:{space}{value}")?;
        }
        Ok(())
    }
}

/// All entries below `/etc/apt`, `sources.list` first.
///
/// # Errors
/// The file that could not be read, and why.
pub fn read_all(apt: &Path) -> Result<Vec<Stanza>, (String, io::Error)> {
    let mut files: Vec<PathBuf> = match fs::read_dir(apt.join("sources.list.d")) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err((apt.join("sources.list.d").display().to_string(), error)),
    };
    files.sort();
    files.insert(0, apt.join("sources.list"));
    let mut all = Vec::new();
    for file in files {
        let parse = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => parse_list,
            Some("sources") => parse_sources,
            _ => continue,
        };
        match fs::read_to_string(&file) {
            Ok(text) => all.extend(parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err((file.display().to_string(), error)),
        }
    }
    Ok(all)
}

/// Reads the `deb822` format. Comments are dropped, also between the lines of one value.
pub fn parse_sources(text: &str) -> Vec<Stanza> {
    let mut all = vec![Stanza::default()];
    for line in text.lines() {
        let stanza = all.last_mut().expect("never empty");
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            all.push(Stanza::default());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.fields.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all.retain(|stanza| !stanza.fields.is_empty());
    all
}

/// Names of the one-line format's options in the other format; every other name is the same.
const OPTIONS: [(&str, &str); 3] = [("arch", "Architectures"), ("lang", "Languages"), ("target", "Targets")];

/// Reads the one-line format: `deb [key=value ...] URI SUITE COMPONENT...`.
pub fn parse_list(text: &str) -> Vec<Stanza> {
    text.lines().filter_map(|line| parse_line(line.split('#').next().unwrap_or_default())).collect()
}

fn parse_line(line: &str) -> Option<Stanza> {
    let (kind, rest) = line.trim().split_once(char::is_whitespace)?;
    if kind != "deb" && kind != "deb-src" {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    let mut fields = vec![
        ("Types".to_owned(), kind.to_owned()),
        ("URIs".to_owned(), uri.to_owned()),
        ("Suites".to_owned(), suite.to_owned()),
        ("Components".to_owned(), components.join(" ")),
    ];
    for option in options.split_whitespace() {
        let (key, value) = option.split_once('=')?;
        let name = OPTIONS.iter().find(|(short, _)| *short == key).map_or(key, |(_, long)| long);
        // Lists are parted by commas there and by spaces here.
        fields.push((capitalized(name), value.replace(',', " ")));
    }
    Some(Stanza { fields })
}

/// `signed-by` is written `Signed-By` by convention; apt does not mind.
fn capitalized(name: &str) -> String {
    let part = |part: &str| {
        let mut chars = part.chars();
        chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}
