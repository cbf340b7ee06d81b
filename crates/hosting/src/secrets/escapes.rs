//! Escape sequences of JSON strings, as different writers use them.
//!
//! A writer may escape any character: PHP escapes `/`, Go `&`, Gson `=` and Python every character
//! outside of ASCII. So that a value is found in all of these texts, their escape sequences are
//! replaced by what `serde_json` would have written. A JSON string within another one has the
//! backslashes of both, and the number of backslashes does not matter here.

/// Returns whether [`with_usual_escapes`] may change a text.
pub(super) fn has_escapes(text: &str) -> bool {
    text.contains('\\')
}

/// Replaces escape sequences that `serde_json` would not have written by those, or the characters,
/// that it would.
pub(super) fn with_usual_escapes(text: &str) -> String {
    let mut usual = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        let (before, escape) = rest.split_at(start);
        usual.push_str(before);

        let letters = escape.trim_start_matches('\\');
        let backslashes = &escape[..escape.len() - letters.len()];
        let found = match letters.as_bytes() {
            [b'/', ..] => Some(('/', 1)),
            [b'\'', ..] => Some(('\'', 1)),
            [b'u', ..] => take_character(letters, backslashes),
            _ => None,
        };
        match found {
            Some((c, length)) => {
                push_character(c, backslashes, &mut usual);
                rest = &letters[length..];
            }
            None => {
                usual.push_str(backslashes);
                rest = letters;
            }
        }
    }
    usual.push_str(rest);
    usual
}

/// Returns the character that `uXXXX` stands for, or two of these with backslashes between them, and
/// its length.
fn take_character(letters: &str, backslashes: &str) -> Option<(char, usize)> {
    let first = take_unit(letters)?;
    if let Some(c) = char::from_u32(first) {
        return Some((c, UNIT));
    }

    let second = letters[UNIT..].strip_prefix(backslashes).and_then(take_unit);
    let pair = second.and_then(|second| {
        let units = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
        char::decode_utf16(units).next()?.ok()
    });
    Some(match pair {
        Some(c) => (c, UNIT + backslashes.len() + UNIT),
        None => (char::REPLACEMENT_CHARACTER, UNIT),
    })
}

/// The length of `uXXXX`.
const UNIT: usize = 5;

/// Reads `uXXXX`.
fn take_unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('u')?.get(..UNIT - 1)?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// Adds a character as `serde_json` writes it in a string, or, if there are more backslashes, in a
/// string within another one.
fn push_character(c: char, backslashes: &str, usual: &mut String) {
    let short = match c {
        '"' => {
            // The backslash is escaped itself, so each level doubles their number.
            usual.push_str(&backslashes[1..]);
            Some('"')
        }
        '\\' => {
            usual.push_str(backslashes);
            usual.push_str(backslashes);
            return;
        }
        '\n' => Some('n'),
        '\r' => Some('r'),
        '\t' => Some('t'),
        '\u{8}' => Some('b'),
        '\u{c}' => Some('f'),
        _ => None,
    };
    match short {
        Some(short) => {
            usual.push_str(backslashes);
            usual.push(short);
        }
        None if c < ' ' => {
            usual.push_str(backslashes);
            usual.push_str(&format!("u{:04x}", u32::from(c)));
        }
        None => usual.push(c),
    }
}

/// Removes the part of an escape sequence, or of a character, at which a text was cut.
pub(super) fn without_cut_escape(text: &str) -> &str {
    let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    let digits = text.len() - text.trim_end_matches(|c: char| c.is_ascii_hexdigit()).len();
    // At most three digits are left of a sequence that was cut. A value may end with more of them.
    let before_digits = (0..=digits.min(3)).map(|count| &text[..text.len() - count]);
    let before_unit = before_digits.filter_map(|start| start.strip_suffix('u'));
    before_unit
        .chain([text])
        .find(|start| start.ends_with('\\'))
        .map_or(text, |start| start.trim_end_matches('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_become_those_of_serde_json() {
        let check = |text: &str, expected: &str| {
            assert_eq!(with_usual_escapes(text), expected, "{text}");
            assert_eq!(with_usual_escapes(expected), expected, "{expected}");
        };
        check(r#"\/ \' \u0026 \u003D"#, r#"/ ' & ="#);
        check(r#"\\/ \\u0026"#, r#"/ &"#);
        check(r#"\u00e9 \ud83d\udd11 \\ud83d\\udd11"#, "é 🔑 🔑");
        check(r#"\ud83d \udd11x \ud83d\u0041"#, "\u{fffd} \u{fffd}x \u{fffd}A");
        check(r#"\u0022 \\u0022"#, r#"\" \\\""#);
        check(r#"\u005c \\u005c"#, r#"\\ \\\\"#);
        check(r#"\u000a \\u000A \u001F"#, r#"\n \\n \u001f"#);
        check(r#"\n \" \\ \u12 \u12é \x \"#, r#"\n \" \\ \u12 \u12é \x \"#);
    }

    #[test]
    fn what_is_left_of_a_cut_escape_is_removed() {
        let check = |text: &str, expected: &str| {
            assert_eq!(without_cut_escape(text), expected, "{text}");
        };
        for cut in [r"\", r"\u", r"\u0", r"\u00", r"\u00e", r"\\", r"\\u00", "\u{fffd}"] {
            check(&format!("word{cut}"), "word");
            check(&format!("word12{cut}"), "word12");
        }
        check("word", "word");
        check("beef", "beef");
        check(r"word\u00e9", r"word\u00e9");
        check("", "");
    }
}
