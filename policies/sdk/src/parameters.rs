//! What a site set for the policy, read so that nothing is guessed.
//!
//! Promises that a key that the policy does not read, and a value that it cannot read, are refused with a text that
//! names them: at load, by the trial question, before the policy decides anything.

use std::ops::RangeInclusive;

pub use crate::wit::types::Parameter;

/// The parameters, while they are read.
#[derive(Debug)]
pub struct Parameters<'a> {
    given: &'a [Parameter],
    known: Vec<&'static str>,
}

/// Reads parameters by `read`, and refuses those that it did not ask for.
///
/// # Errors
/// A text for the operator: what `read` says, or the key that is unknown and those that are known.
pub fn read<'a, T>(
    given: &'a [Parameter],
    read: impl FnOnce(&mut Parameters<'a>) -> Result<T, String>,
) -> Result<T, String> {
    let mut parameters = Parameters { given, known: Vec::new() };
    let value = read(&mut parameters)?;
    match given.iter().find(|p| !parameters.known.contains(&p.key.as_str())) {
        Some(unknown) => Err(unknown_key(&unknown.key, &parameters.known)),
        None => Ok(value),
    }
}

impl<'a> Parameters<'a> {
    /// The text of a parameter.
    pub fn text(&mut self, key: &'static str, default: &'a str) -> &'a str {
        self.find(key).unwrap_or(default)
    }

    /// A whole number.
    ///
    /// # Errors
    /// Where the value is no number within `range`.
    pub fn number(
        &mut self,
        key: &'static str,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> Result<u32, String> {
        let Some(value) = self.find(key) else { return Ok(default) };
        value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            let (from, to) = (range.start(), range.end());
            if *to == u32::MAX {
                format!("parameter {key}='{value}' is no number from {from} on")
            } else {
                format!("parameter {key}='{value}' is no number from {from} to {to}")
            }
        })
    }

    /// One of a few words, and what each stands for.
    ///
    /// # Errors
    /// Where the value is none of them.
    pub fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&'static str, T)],
    ) -> Result<T, String> {
        let Some(value) = self.find(key) else { return Ok(default) };
        words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("parameter {key}='{value}' is not {}", alternatives(&words))
        })
    }

    fn find(&mut self, key: &'static str) -> Option<&'a str> {
        self.known.push(key);
        self.given.iter().rfind(|p| p.key == key).map(|p| p.value.as_str())
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    if known.is_empty() {
        format!("parameter '{key}' is unknown: this policy has none")
    } else {
        format!("parameter '{key}' is unknown: use {}", alternatives(known))
    }
}

/// `a, b or c`.
fn alternatives(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [words @ .., last] => format!("{} or {last}", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Vec<Parameter> {
        pairs.iter().map(|(k, v)| Parameter { key: (*k).to_owned(), value: (*v).to_owned() }).collect()
    }

    /// Three parameters of three kinds.
    fn settings(pairs: &[(&str, &str)]) -> Result<(u32, String, bool), String> {
        read(&given(pairs), |p| {
            let weight = p.number("weight", 2, 1..=100)?;
            let label = p.text("label", "team").to_owned();
            let strict = p.choice("fallback", false, &[("any", false), ("none", true)])?;
            Ok((weight, label, strict))
        })
    }

    #[test]
    fn what_is_not_set_has_its_default() {
        assert_eq!(settings(&[]), Ok((2, "team".to_owned(), false)));
        let set = [("fallback", "none"), ("label", ""), ("weight", "100")];
        assert_eq!(settings(&set), Ok((100, String::new(), true)));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_what_could() {
        for (key, value, text) in [
            ("weight", "0", "parameter weight='0' is no number from 1 to 100"),
            ("weight", "2.5", "parameter weight='2.5' is no number from 1 to 100"),
            ("fallback", "rack", "parameter fallback='rack' is not any or none"),
            ("wieght", "1", "parameter 'wieght' is unknown: use weight, label or fallback"),
        ] {
            assert_eq!(settings(&[(key, value)]), Err(text.to_owned()));
        }
        let open = read(&given(&[("n", "-1")]), |p| p.number("n", 0, 0..=u32::MAX));
        assert_eq!(open, Err("parameter n='-1' is no number from 0 on".to_owned()));
        let none = read(&given(&[("n", "1")]), |_| Ok(()));
        assert_eq!(none, Err("parameter 'n' is unknown: this policy has none".to_owned()));
    }
}
