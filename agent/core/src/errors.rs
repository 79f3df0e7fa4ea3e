//! Owns the one printer of error chains, for logs, command line, HTTP and records alike.

use std::error::Error;

/// An error and its causes on one line. What a text says already, because some libraries repeat their cause in their own
/// words, is not said a second time.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<Box<Said>>,
    }

    fn said(texts: &[&'static str]) -> Option<Box<Said>> {
        let (text, causes) = texts.split_first()?;
        Some(Box::new(Said { text, source: said(causes) }))
    }

    #[test]
    fn causes_are_printed_in_order_and_what_was_said_is_not_repeated() {
        let table: [(&[&str], &str); 4] = [
            (&["cannot start"], "cannot start"),
            (&["cannot start", "no file"], "cannot start: no file"),
            (&["cannot start: no file", "no file", "code 2"], "cannot start: no file: code 2"),
            (&["no file (code 2) was opened", "no file"], "no file (code 2) was opened"),
        ];
        for (texts, line) in table {
            assert_eq!(chain(&said(texts).unwrap()), line);
        }
    }
}
