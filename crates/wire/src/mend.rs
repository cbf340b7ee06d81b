//! Repairing almost valid JSON.
//!
//! Some programs write JSON that strict parsers reject: Python's `json.dumps` writes `NaN`, a text
//! that was cut inside an emoji ends with half a surrogate pair, and a server that prints Latin-1
//! sends bytes that are not UTF-8. The rest of such a message is valid, and a call is waiting for
//! it.

use std::str::Chars;

/// Non-finite numbers as common JSON writers spell them. JSON itself has only `null` for them.
const NOT_FINITE: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// The replacement character as an escape sequence.
const REPLACEMENT: &str = "\\ufffd";

/// Replaces non-finite numbers by `null`, and whatever is not Unicode by replacement characters.
pub(crate) fn mend(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut mended = String::with_capacity(text.len());
    let mut rest: &str = &text;

    while let Some(c) = rest.chars().next() {
        if c == '"' {
            let mut chars = rest[1..].chars();
            mended.push('"');
            copy_string(&mut chars, &mut mended);
            rest = chars.as_str();
            continue;
        }

        if let Some(found) = NOT_FINITE.into_iter().find(|name| rest.starts_with(name)) {
            mended.push_str("null");
            rest = &rest[found.len()..];
            continue;
        }

        mended.push(c);
        rest = &rest[c.len_utf8()..];
    }
    mended
}

/// Copies a string from after its opening quote up to its closing quote.
fn copy_string(chars: &mut Chars<'_>, mended: &mut String) {
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                mended.push('"');
                return;
            }
            '\\' => copy_escape(chars, mended),
            '\0'..='\u{1f}' => mended.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => mended.push(c),
        }
    }
}

/// Copies an escape sequence from after its backslash. Unpaired surrogates are replaced.
fn copy_escape(chars: &mut Chars<'_>, mended: &mut String) {
    let Some(kind) = chars.next() else { return };
    if kind != 'u' {
        mended.push('\\');
        mended.push(kind);
        return;
    }

    let mut unit = take_unit(chars);
    loop {
        match unit {
            Some(high @ 0xd800..=0xdbff) => {
                let mut ahead = chars.clone();
                let paired = (ahead.next(), ahead.next()) == (Some('\\'), Some('u'));
                let next = paired.then(|| take_unit(&mut ahead)).flatten();
                let Some(next) = next else {
                    mended.push_str(REPLACEMENT);
                    return;
                };
                *chars = ahead;
                if (0xdc00..=0xdfff).contains(&next) {
                    mended.push_str(&format!("\\u{high:04x}\\u{next:04x}"));
                    return;
                }
                mended.push_str(REPLACEMENT);
                unit = Some(next);
            }
            Some(0xdc00..=0xdfff) => {
                mended.push_str(REPLACEMENT);
                return;
            }
            Some(unit) => {
                mended.push_str(&format!("\\u{unit:04x}"));
                return;
            }
            // Not four hexadecimal digits, which the parser will report.
            None => {
                mended.push_str("\\u");
                return;
            }
        }
    }
}

/// Takes the four digits after `\u`, or nothing if they are not there.
fn take_unit(chars: &mut Chars<'_>) -> Option<u32> {
    let mut ahead = chars.clone();
    let mut unit = 0;
    for _ in 0..4 {
        unit = unit * 16 + ahead.next()?.to_digit(16)?;
    }
    *chars = ahead;
    Some(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_broken_parts_are_replaced() {
        let check = |text: &[u8], expected: &str| {
            assert_eq!(mend(text), expected, "{}", String::from_utf8_lossy(text));
        };
        check(br#"{"a":NaN,"b":[-Infinity,Infinity]}"#, r#"{"a":null,"b":[null,null]}"#);
        check(br#"{"NaN":"Infinity \" NaN"}"#, r#"{"NaN":"Infinity \" NaN"}"#);
        check(br#""\ud83d""#, r#""\ufffd""#);
        check(br#""\ud83dx""#, r#""\ufffdx""#);
        check(br#""\ud83d\ude00 \ude00""#, r#""\ud83d\ude00 \ufffd""#);
        check(br#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#);
        check(br#""\ud83d\u0041\n""#, r#""\ufffd\u0041\n""#);
        check(b"\"caf\xe9\"", "\"caf\u{fffd}\"");
        check(b"\"a\tb\"", r#""a\u0009b""#);
        check(br#""\u12"#, r#""\u12"#);
        check(br#""cut \"#, r#""cut "#);
    }

    proptest! {
        #[test]
        fn valid_json_is_not_changed(text in any::<String>(), number in any::<i64>()) {
            let value = serde_json::json!({"text": text, "list": [number, null, true], text.clone(): {}});
            let written = value.to_string();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&mend(written.as_bytes())).unwrap(), value);
        }

        #[test]
        fn any_bytes_can_be_repaired(bytes in any::<Vec<u8>>()) {
            drop(mend(&bytes));
        }
    }
}
