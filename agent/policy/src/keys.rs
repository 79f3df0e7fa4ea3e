//! Owns the reading of an operator's TOML, the agent's and that of policies: which keys its tables have, and of which type.
//!
//! Promises: a key that does not exist, is missing, is of another type or out of its range is told with its name, line and
//! what would be right, and the reading goes on; all faults of a file are there at once. Must not do: judge what a text
//! says. It lives here because the agent, which has the other file, is built upon this crate.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Collects faults, so that all are reported at once.
#[derive(Debug)]
pub struct Faults<'a> {
    /// The file, as the operator knows it.
    pub file: &'a Path,
    /// One line for each.
    pub list: Vec<String>,
}

impl<'a> Faults<'a> {
    /// None yet.
    #[must_use]
    pub fn of(file: &'a Path) -> Self {
        Self { file, list: Vec::new() }
    }

    /// A fault of the file as a whole.
    pub fn add_whole(&mut self, problem: impl Display) {
        self.list.push(format!("{}: {problem}", self.file.display()));
    }

    /// A fault of a key, with dots between the tables.
    pub fn add(&mut self, key: &str, problem: impl Display) {
        self.list.push(format!("{}: {key}: {problem}", self.file.display()));
    }

    /// Whether something is known to be wrong with a key or in it: what rests on its value is not worth a second word then.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        let start = format!("{}: {key}", self.file.display());
        let mut rests = self.list.iter().filter_map(|fault| fault.strip_prefix(&start));
        rests.any(|rest| rest.starts_with([':', '.']))
    }
}

/// One table, and the keys that were asked for: those are all that it may have.
#[derive(Debug)]
pub struct Section<'a, 'f, 'p> {
    text: &'a str,
    /// Its name and a dot; nothing for the file itself.
    path: String,
    /// None where the file has no such table.
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
    faults: &'f mut Faults<'p>,
}

/// Reads a file; none when it is no TOML.
pub fn file<T>(
    text: &str,
    faults: &mut Faults<'_>,
    read: impl FnOnce(&mut Section<'_, '_, '_>) -> T,
) -> Option<T> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(1, |span| line(text, &span));
        faults.add_whole(format_args!("line {line} is no TOML: {}", error.message().trim()));
    }
    if !errors.is_empty() {
        return None;
    }
    let table = Some(table.get_ref());
    let mut section = Section { text, path: String::new(), table, known: Vec::new(), faults };
    let found = read(&mut section);
    section.tell_unknown(|known| format!("[{known}]"));
    Some(found)
}

fn line(text: &str, span: &Range<usize>) -> usize {
    text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1)
}

impl<'a, 'p> Section<'a, '_, 'p> {
    /// A table of this one.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'a, '_, 'p>) -> T) -> T {
        let table = self.typed(key, "a table", |value| value.as_table());
        let path = format!("{}{key}.", self.path);
        let mut section = Section { text: self.text, path, table, known: Vec::new(), faults: self.faults };
        let found = read(&mut section);
        section.tell_unknown(str::to_owned);
        found
    }

    /// Whether the file has this table.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.typed(key, "text", |value| value.as_str().map(str::to_owned))
    }

    /// A text that names a file or folder.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// Tells that a key is missing, if it is; `right` says what it is to be.
    pub fn needed(&mut self, key: &'static str, right: &str) -> &mut Self {
        if self.table.is_none_or(|table| !table.contains_key(key)) {
            self.faults.add(&format!("{}{key}", self.path), format_args!("is missing: give {right}"));
        }
        self
    }

    /// One of these words, each with what it stands for.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let words = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            self.fault_of(key, format_args!("'{text}' is not one of {words}"));
        }
        found
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool)
    }

    /// A whole number of this range.
    pub fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let value = self.get(key)?.get_ref();
        let (low, high) = (range.start(), range.end());
        let DeValue::Integer(integer) = value else {
            let problem = format!("is not a whole number but {}: use {low} to {high}", value.type_str());
            self.fault_of(key, problem);
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| T::try_from(number).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            self.fault_of(key, format_args!("{integer} is out of range: use {low} to {high}"));
        }
        number
    }

    /// Several texts.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.typed(key, "an array of texts", |value| {
            value.as_array()?.iter().map(|one| one.get_ref().as_str().map(str::to_owned)).collect()
        })
    }

    /// Texts by names that the operator chooses.
    pub fn named_texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        self.named(key, |section, key, value| section.named_value(key, "text", value, DeValue::as_str))
            .into_iter()
            .map(|(name, text)| (name, text.to_owned()))
            .collect()
    }

    /// Tables of texts, both by names that the operator chooses.
    pub fn named_tables(&mut self, key: &'static str) -> BTreeMap<String, BTreeMap<String, String>> {
        self.named(key, |section, key, value| {
            let mut texts = BTreeMap::new();
            for (name, value) in section.named_value(key, "a table", value, |value| value.as_table())? {
                let key = format!("{key}.{}", name.get_ref());
                if let Some(text) = section.named_value(&key, "text", value, DeValue::as_str) {
                    texts.insert(name.get_ref().to_string(), text.to_owned());
                }
            }
            Some(texts)
        })
    }

    /// Tables with keys of their own, by names that the operator chooses.
    pub fn named_sections<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&str, &mut Section<'a, '_, 'p>) -> T,
    ) -> BTreeMap<String, T> {
        let table = self.typed(key, "a table", |value| value.as_table());
        let mut named = BTreeMap::new();
        for (name, value) in table.into_iter().flatten() {
            let name = name.get_ref().as_ref();
            let key = format!("{key}.{name}");
            let Some(table) = self.named_value(&key, "a table", value, |value| value.as_table()) else {
                continue;
            };
            let path = format!("{}{key}.", self.path);
            let mut section =
                Section { text: self.text, path, table: Some(table), known: Vec::new(), faults: self.faults };
            let found = read(name, &mut section);
            section.tell_unknown(str::to_owned);
            named.insert(name.to_owned(), found);
        }
        named
    }

    /// Tells what is wrong with this table's own name.
    pub fn misnamed(&mut self, problem: impl Display) {
        self.faults.add(self.path.trim_end_matches('.'), problem);
    }

    /// What `read` makes of each entry of a table, by its name.
    fn named<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Self, &str, &'a Spanned<DeValue<'a>>) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let table = self.typed(key, "a table", |value| value.as_table());
        let mut named = BTreeMap::new();
        for (name, value) in table.into_iter().flatten() {
            let found = read(self, &format!("{key}.{}", name.get_ref()), value);
            named.extend(found.map(|found| (name.get_ref().to_string(), found)));
        }
        named
    }

    fn named_value<T>(
        &mut self,
        key: &str,
        wanted: &str,
        value: &'a Spanned<DeValue<'a>>,
        read: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Option<T> {
        let found = read(value.get_ref());
        if found.is_none() {
            let problem = format!("is not {wanted} but {}", value.get_ref().type_str());
            self.fault(key, &value.span(), problem);
        }
        found
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table?.get(key)
    }

    fn typed<T>(
        &mut self,
        key: &'static str,
        right: &str,
        read: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let found = read(value.get_ref());
        if found.is_none() {
            let problem = match value.get_ref() {
                DeValue::Array(_) if right.contains("array") => {
                    format!("has something else in it: use {right}")
                }
                other => format!("is not {right} but {}", other.type_str()),
            };
            self.fault_of(key, problem);
        }
        found
    }

    /// A fault of a key that is there.
    fn fault_of(&mut self, key: &str, problem: impl Display) {
        let span = self.table.and_then(|table| table.get(key)).map_or(0..0, Spanned::span);
        self.fault(key, &span, problem);
    }

    fn fault(&mut self, key: &str, span: &Range<usize>, problem: impl Display) {
        let line = line(self.text, span);
        self.faults.add(&format!("{}{key}", self.path), format_args!("{problem} (line {line})"));
    }

    fn tell_unknown(mut self, shown: impl Fn(&str) -> String) {
        let right = self.known.iter().map(|known| shown(known)).collect::<Vec<_>>().join(", ");
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            if !self.known.contains(&key.get_ref().as_ref()) {
                self.fault(key.get_ref(), &key.span(), format!("is unknown: use {right}"));
            }
        }
    }
}
