//! Owns the reading of a file's tables: which keys they have, and of which type.
//!
//! Promises: a key that does not exist, is missing, is of another type or out of its range is told with its name, line and
//! what would be right, and the reading goes on. Must not do: judge what a text says.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::Faults;

/// One table, and the keys that were asked for: those are all that it may have.
pub(super) struct Section<'a, 'f, 'p> {
    text: &'a str,
    /// Its name and a dot; nothing for the file itself.
    path: String,
    /// None where the file has no such table.
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
    faults: &'f mut Faults<'p>,
}

/// Reads a file; none when it is no TOML.
pub(super) fn file<T>(
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
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'a, '_, 'p>) -> T,
    ) -> T {
        let table = self.typed(key, "a table", |value| value.as_table());
        let path = format!("{}{key}.", self.path);
        let mut section = Section { text: self.text, path, table, known: Vec::new(), faults: self.faults };
        let found = read(&mut section);
        section.tell_unknown(str::to_owned);
        found
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.typed(key, "text", |value| value.as_str().map(str::to_owned))
    }

    /// A text that names a file or folder.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// Tells that a key is missing, if it is; `right` says what it is to be.
    pub(super) fn needed(&mut self, key: &'static str, right: &str) -> &mut Self {
        if self.table.is_none_or(|table| !table.contains_key(key)) {
            self.faults.add(&format!("{}{key}", self.path), format_args!("is missing: give {right}"));
        }
        self
    }

    /// One of these words, each with what it stands for.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let words = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            self.fault_of(key, format_args!("'{text}' is not one of {words}"));
        }
        found
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool)
    }

    /// A whole number of this range.
    pub(super) fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
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
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.typed(key, "an array of texts", |value| {
            value.as_array()?.iter().map(|one| one.get_ref().as_str().map(str::to_owned)).collect()
        })
    }

    /// Texts by names that the operator chooses.
    pub(super) fn named_texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        self.named(key, |section, key, value| section.named_value(key, "text", value, DeValue::as_str))
            .into_iter()
            .map(|(name, text)| (name, text.to_owned()))
            .collect()
    }

    /// Tables of texts, both by names that the operator chooses.
    pub(super) fn named_tables(&mut self, key: &'static str) -> BTreeMap<String, BTreeMap<String, String>> {
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
