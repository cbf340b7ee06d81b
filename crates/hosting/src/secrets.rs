//! Secrets: values of the server's own environment, and of `${secret:name}`, that went into a
//! configuration. Texts that others may read, such as the end of a child's standard error, show the
//! name instead. A secret may change while its server runs: its new value is added, and the last
//! ones before stay hidden, since texts may still have them.
//!
//! Such texts often quote JSON, on a single line and up to a limit. A value is therefore also found
//! if it is escaped, by whatever JSON writer, if its white space was replaced by blanks, and if it
//! was cut off and only its beginning is left, followed by the sign of the cut. So whoever cuts a
//! text before its secrets are hidden must leave that sign.
//!
//! The other side writes most of these texts, so the time must grow with the text alone.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, sync::Arc};

use fleet_wire::{quote, shorten};
use parking_lot::RwLock;

use self::escapes::{has_escapes, with_usual_escapes, without_cut_escape};

mod escapes;

/// Shorter values are not hidden: they reveal little, and would be found within words.
const SHORTEST: usize = 4;
/// The longest message, in bytes. Our own have at most some hundreds.
const MAX_MESSAGE: usize = 8 * 1024;
/// What [`quote`] and [`fleet_wire::shorten`] write where they cut.
const CUT: char = '…';

/// How many values of one name are hidden. Those before are forgotten.
const KEPT_VALUES: usize = 4;

/// The values to hide. Clones share them, also those that are added later. There is no `Debug`,
/// which could reveal them.
#[derive(Clone, Default)]
pub struct Secrets(Arc<RwLock<Arc<Forms>>>);

impl PartialEq for Secrets {
    fn eq(&self, other: &Self) -> bool {
        *self.forms() == *other.forms()
    }
}

impl Eq for Secrets {}

/// Returns how texts name a secret, without `${` and `}`.
pub(crate) fn secret_reference(name: &str) -> String {
    format!("secret:{name}")
}

impl Secrets {
    /// Hides the values of these variables.
    pub fn new(variables: BTreeMap<String, String>) -> Self {
        let mut forms = Forms::default();
        for (variable, value) in variables {
            forms.add(&variable, &value);
        }
        Self(Arc::new(RwLock::new(Arc::new(forms))))
    }

    /// Hides another value of a variable, in all clones. A value that is known becomes the last one
    /// to be forgotten.
    pub fn add(&self, variable: &str, value: &str) {
        let mut shared = self.0.write();
        let mut forms = Forms::clone(&shared);
        forms.add(variable, value);
        *shared = Arc::new(forms);
    }

    fn forms(&self) -> Arc<Forms> {
        self.0.read().clone()
    }

    /// Replaces every value in a text with `${NAME}`, including a value that was cut off.
    pub fn hide<'a>(&self, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        self.forms().hide(text.into())
    }

    /// Replaces every value in the message of an error. The message may quote what the server sent,
    /// and the server may even have written it, so it is shortened if it is very long.
    pub fn hide_in_message(&self, message: &str) -> String {
        self.hide(shorten(message, MAX_MESSAGE)).into_owned()
    }

    /// Returns the length of the longest value in any form, of which a text that was cut may begin
    /// with a part.
    pub fn longest(&self) -> usize {
        self.forms().longest
    }
}

/// The values to hide, in all their forms.
#[derive(Clone, PartialEq, Eq, Default)]
struct Forms {
    /// The longest first, since it may contain a shorter one.
    all: Vec<Arc<Form>>,
    longest: usize,
    /// The variable of each value, by the value's number. The one that was added last is the last.
    values: Vec<(usize, String)>,
    /// The number of the next value.
    next: usize,
}

impl Forms {
    /// Adds a value, or makes a known one the last of its variable.
    fn add(&mut self, variable: &str, value: &str) {
        if value.len() < SHORTEST {
            return;
        }

        let known = self.all.iter().find(|form| form.variable == variable && form.text == value);
        if let Some(number) = known.map(|form| form.value) {
            self.values.retain(|(other, _)| *other != number);
            self.values.push((number, variable.to_owned()));
            return;
        }

        let number = self.next;
        self.next += 1;
        self.values.push((number, variable.to_owned()));
        let forms = forms_of(value).into_iter();
        self.all.extend(forms.map(|form| Arc::new(Form::new(variable, form, number))));
        self.all.sort_by_key(|form| Reverse(form.text.len()));
        self.longest = self.longest.max(longest_form(value));
        self.forget_oldest(variable);
    }

    /// Forgets the oldest value of a variable if there are too many.
    fn forget_oldest(&mut self, variable: &str) {
        let mut own = self.values.iter().filter(|(_, other)| other == variable);
        if own.clone().count() <= KEPT_VALUES {
            return;
        }
        if let Some(&(oldest, _)) = own.next() {
            self.values.retain(|(number, _)| *number != oldest);
            self.all.retain(|form| form.value != oldest);
        }
    }

    fn hide<'a>(&self, text: Cow<'a, str>) -> Cow<'a, str> {
        if has_escapes(&text) {
            let usual = with_usual_escapes(&text);
            let hidden = self.hide_forms(Cow::Borrowed(&*usual));
            if *hidden != *usual {
                return Cow::Owned(hidden.into_owned());
            }
        }
        self.hide_forms(text)
    }

    fn hide_forms<'a>(&self, mut text: Cow<'a, str>) -> Cow<'a, str> {
        for form in &self.all {
            let Form { variable, text: form, .. } = &**form;
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), &format!("${{{variable}}}")).into();
            }
        }
        if text.contains(CUT) { self.hide_cut(&text).into() } else { text }
    }

    /// Replaces every beginning of a value that a cut follows with `${NAME}`.
    fn hide_cut(&self, text: &str) -> String {
        let mut parts = text.split(CUT);
        let end = parts.next_back().unwrap_or_default();
        let mut hidden = String::with_capacity(text.len());
        for part in parts {
            match self.value_at_end(part) {
                Some((variable, length)) => {
                    hidden.push_str(&part[..part.len() - length]);
                    hidden.push_str(&format!("${{{variable}}}"));
                }
                None => hidden.push_str(part),
            }
            hidden.push(CUT);
        }
        hidden.push_str(end);
        hidden
    }

    /// Returns the variable whose value's beginning is the end of a text, and the length of that
    /// beginning in bytes. The cut may be within an escape sequence or a character.
    fn value_at_end(&self, text: &str) -> Option<(&str, usize)> {
        let before_escape = without_cut_escape(text);
        let lost = text.len() - before_escape.len();
        let found = self.all.iter().filter_map(|form| {
            let whole = form.overlap_with_end_of(text);
            let cut = match lost {
                0 => 0,
                _ => form.overlap_with_end_of(before_escape),
            };
            let length = match whole.max(cut) {
                ..SHORTEST => return None,
                length if cut > whole => length + lost,
                length => length,
            };
            Some((form.variable.as_str(), length))
        });
        found.max_by_key(|(_, length)| *length)
    }
}

/// A form of a variable's value.
#[derive(PartialEq, Eq)]
struct Form {
    variable: String,
    text: String,
    /// The number of the value that it is a form of.
    value: usize,
    /// For each beginning of the text, the length of the longest shorter beginning that is its end.
    borders: Vec<usize>,
}

impl Form {
    fn new(variable: &str, text: String, value: usize) -> Self {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for at in 1..bytes.len() {
            borders[at] = continue_match(bytes, &borders, borders[at - 1], bytes[at]);
        }
        Self { variable: variable.to_owned(), text, value, borders }
    }

    /// Returns the length of the longest beginning of this form, but not all of it, that is the end
    /// of a text. Compares no byte of the text twice.
    fn overlap_with_end_of(&self, text: &str) -> usize {
        let form = self.text.as_bytes();
        let end = &text.as_bytes()[text.len().saturating_sub(form.len() - 1)..];
        end.iter().fold(0, |matched, byte| continue_match(form, &self.borders, matched, *byte))
    }
}

/// Returns how many bytes of a form match behind the next byte of a text, if `matched` bytes did
/// before it.
fn continue_match(form: &[u8], borders: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && form[matched] != byte {
        matched = borders[matched - 1];
    }
    if form[matched] == byte { matched + 1 } else { 0 }
}

/// Returns the forms in which a value appears in texts with the usual escapes: as it is, in a JSON
/// string, in a JSON string within another one, and each of these as [`quote`] shows it.
fn forms_of(value: &str) -> Vec<String> {
    let once = escape(value);
    let plain = [escape(&once), once, value.to_owned()];
    let quoted = plain.each_ref().map(|form| quote(form, usize::MAX));

    let mut forms: Vec<_> = plain.into_iter().chain(quoted).collect();
    // A value may itself contain what looks like an escape sequence.
    let usual: Vec<_> = forms.iter().map(|form| with_usual_escapes(form)).collect();
    forms.extend(usual);
    forms.retain(|form| form.len() >= SHORTEST);
    forms.sort();
    forms.dedup();
    forms
}

/// Escapes a text for a JSON string, without the quotes around it.
fn escape(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Returns a length in bytes that no form of a value exceeds, even if a JSON string within another
/// one has an escape sequence such as `\\u0026` for everything but letters and digits.
fn longest_form(value: &str) -> usize {
    let longest = |c: char| if c.is_ascii_alphanumeric() { 1 } else { 7 * c.len_utf16() };
    value.chars().map(longest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_with_names() {
        let variables = [("KEY", "hunter2"), ("LONG", "hunter2-more"), ("N", "1")];
        let secrets =
            Secrets::new(variables.map(|(name, value)| (name.into(), value.into())).into());
        assert_eq!(secrets.hide("a hunter2-more, hunter2 1"), "a ${LONG}, ${KEY} 1");
        assert!(matches!(secrets.hide("nothing"), Cow::Borrowed("nothing")));
    }

    #[test]
    fn the_last_values_of_a_secret_are_hidden_in_all_clones() {
        let secrets = Secrets::new([("OTHER".to_owned(), "unchanged".to_owned())].into());
        let clone = secrets.clone();
        for number in 0..10 {
            secrets.add("secret:key", &format!("hunter-{number}"));
        }
        let expected = "hunter-5 ${secret:key} ${secret:key} ${OTHER}";
        assert_eq!(clone.hide("hunter-5 hunter-6 hunter-9 unchanged"), expected);
        assert!(clone == secrets && clone.longest() > 0);

        // One that is added again is not forgotten before the others.
        secrets.add("secret:key", "hunter-6");
        secrets.add("secret:key", "hunter-10");
        let hidden = secrets.hide("hunter-6 hunter-7 hunter-10");
        assert_eq!(hidden, "${secret:key} hunter-7 ${secret:key}");
    }

    #[test]
    fn values_are_found_in_quoted_json() {
        let value = "pass \"word\"\\ one\n two";
        let secrets = Secrets::new([("KEY".to_owned(), value.to_owned())].into());
        let json = serde_json::json!({"text": value}).to_string();
        let nested = serde_json::json!({"text": json}).to_string();
        for text in [value, &json, &nested, &quote(value, 200), &quote(&json, 200)] {
            let hidden = secrets.hide(text);
            assert!(hidden.contains("${KEY}") && !hidden.contains("word"), "{text}: {hidden}");
        }
    }

    #[test]
    fn a_value_that_was_cut_is_hidden() {
        let value = "correct horse battery staple";
        let secrets = Secrets::new([("KEY".to_owned(), value.to_owned())].into());
        let text = format!("it says {value}, {value}");
        for max in 12..text.len() - 4 {
            let hidden = secrets.hide(quote(&text, max)).into_owned();
            assert!(!hidden.contains("corr"), "{max}: {hidden}");
        }
        let blanks = " ".repeat(70);
        let hidden = secrets.hide(quote(&format!("it says{blanks}{value}"), 22)).into_owned();
        assert_eq!(hidden, "it says ${KEY}…");
        assert_eq!(secrets.hide("corr… horse… cor…"), "${KEY}… horse… cor…");
    }
    /// A server may write a text of nothing but cuts, or one that almost is a value.
    #[test]
    fn the_time_does_not_grow_with_the_length_of_a_value() {
        let value = format!("{}b", "a\"".repeat(10_000));
        let secrets = Secrets::new([("KEY".to_owned(), value)].into());
        let cuts = "…".repeat(1 << 20);
        assert_eq!(secrets.hide(&cuts), cuts);
        let parts = format!("{}…", "a\"a".repeat(10)).repeat(1 << 15);
        assert_eq!(secrets.hide(&parts), parts);
    }

    #[test]
    fn a_message_is_shortened_before_its_secrets_are_hidden() {
        let secrets = Secrets::new([("KEY".to_owned(), "hunter2-battery".to_owned())].into());
        for before in MAX_MESSAGE - 15..MAX_MESSAGE - 3 {
            let message = format!("{}hunter2-battery", "x".repeat(before)).repeat(2);
            let hidden = secrets.hide_in_message(&message);
            assert!(hidden.ends_with("${KEY}…") && hidden.len() < MAX_MESSAGE + 10, "{before}");
        }
    }

    #[test]
    fn values_are_found_however_json_was_written() {
        let value = "p/ä&<=>'+\"🔑\\u\n1";
        let secrets = Secrets::new([("KEY".to_owned(), value.to_owned())].into());
        let forms = [
            // PHP
            r#"p\/\u00e4&<=>'+\"\ud83d\udd11\\u\n1"#,
            // Go
            r#"p/ä\u0026\u003c=\u003e'+\"🔑\\u\n1"#,
            // Gson
            r#"p/ä\u0026\u003c\u003d\u003e\u0027+\"🔑\\u\n1"#,
            // Python
            r#"p/\u00e4&<=>'+\"\ud83d\udd11\\u\n1"#,
            // .NET
            r#"p/\u00E4\u0026\u003C=\u003E\u0027\u002B\u0022\uD83D\uDD11\\u\n1"#,
            // Everything escaped
            r#"\u0070\u002f\u00e4\u0026\u003c\u003d\u003e\u0027\u002b\u0022\ud83d\udd11\u005cu\u000a1"#,
        ];
        for form in forms {
            let json = format!("{{\"text\":\"{form}\"}}");
            let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(parsed["text"], value, "{form}");

            let nested = serde_json::json!({ "text": json }).to_string();
            for text in [&json, &nested] {
                let hidden = secrets.hide(text.as_str());
                assert!(hidden.contains("${KEY}") && !hidden.contains("\\ud83d"), "{hidden}");
                // The text around it counts as little as possible.
                assert!(hidden.starts_with("{") && hidden.ends_with("}"), "{hidden}");
            }
        }
        let plain = r"C:\/dir \u0041 \u00";
        assert_eq!(secrets.hide(plain), plain);
    }

    #[test]
    fn an_escaped_value_that_was_cut_is_hidden() {
        let value = "hunter/ä2-battery-staple";
        let secrets = Secrets::new([("KEY".to_owned(), value.to_owned())].into());
        let json = r#"{"text":"hunter\/\u00e42-battery-staple"}"#;
        for max in 13..json.len() - 3 {
            let hidden = secrets.hide(quote(json, max)).into_owned();
            assert!(!hidden.contains("hunt"), "{max}: {hidden}");
        }
        // A character that was cut.
        assert_eq!(secrets.hide("it is hunter/\u{fffd}…"), "it is ${KEY}…");
    }

    /// Of a text whose beginning was dropped, that much may be the rest of a value.
    #[test]
    fn the_longest_form_has_every_character_escaped() {
        let secrets = Secrets::new([("KEY".to_owned(), "ab/é🔑".to_owned())].into());
        assert_eq!(secrets.longest(), r"ab\\u002f\\u00e9\\ud83d\\udd11".len());
    }
}
