//! Owns what happens to text from a guest before a person reads it.

/// `text` on one line of at most `bytes_max` bytes: control characters could forge log lines or steer a terminal.
pub(crate) fn one_line(text: &str, bytes_max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(bytes_max));
    for c in text.trim().chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > bytes_max {
            line.truncate(line.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8())));
            line.push('…');
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn text_of_a_guest_stays_on_one_short_line() {
        for (text, bytes_max, line) in [
            ("plain", 80, "plain"),
            (" two\nlines\u{1b}[31m ", 80, "two lines [31m"),
            ("0123456789", 10, "0123456789"),
            ("0123456789a", 10, "0123456…"),
            ("ééééé", 9, "ééé…"),
            ("abc", 2, "…"),
        ] {
            assert_eq!(one_line(text, bytes_max), line, "{text:?}");
        }
    }
}
