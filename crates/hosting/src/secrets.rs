//! Secrets: values of the server's own environment that went into a configuration. Texts that
//! others may read, such as the end of a child's standard error, show the variable's name instead.
//!
//! Such texts often quote JSON, on a single line and up to a limit. A value is therefore also found
//! if it is escaped, if its white space was replaced by blanks, and if it was cut off and only its
//! beginning is left, followed by the sign of the cut.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, sync::Arc};

use fleet_wire::quote;

/// Shorter values are not hidden: they reveal little, and would be found within words.
const SHORTEST: usize = 4;
/// What [`quote`] writes where it cuts.
const CUT: char = '…';

/// The values to hide. Clones share them. There is no `Debug`, which could reveal them.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secrets {
    /// The name of a variable and a form of its value, the longest form first, since it may contain
    /// a shorter one.
    forms: Arc<[(String, String)]>,
}

impl Secrets {
    /// Hides the values of these variables.
    pub fn new(variables: BTreeMap<String, String>) -> Self {
        let with_name = |(name, value): (String, String)| {
            let is_long = value.len() >= SHORTEST;
            let forms = if is_long { forms_of(&value) } else { Vec::new() };
            forms.into_iter().map(move |form| (name.clone(), form))
        };
        let mut forms: Vec<_> = variables.into_iter().flat_map(with_name).collect();
        forms.sort_by_key(|(_, form)| Reverse(form.len()));
        Self { forms: forms.into() }
    }

    /// Replaces every value in a text with `${NAME}`, including a value that was cut off.
    pub fn hide<'a>(&self, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let mut text = text.into();
        for (name, form) in &*self.forms {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), &format!("${{{name}}}")).into();
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
                Some((name, length)) => {
                    hidden.push_str(&part[..part.len() - length]);
                    hidden.push_str(&format!("${{{name}}}"));
                }
                None => hidden.push_str(part),
            }
            hidden.push(CUT);
        }
        hidden.push_str(end);
        hidden
    }

    /// Returns the variable whose value's beginning is the end of a text, and the length of that
    /// beginning in bytes.
    fn value_at_end(&self, text: &str) -> Option<(&str, usize)> {
        let found = self.forms.iter().filter_map(|(name, form)| {
            let lengths = (SHORTEST..form.len()).rev();
            let is_end = |length: &usize| form.get(..*length).is_some_and(|it| text.ends_with(it));
            lengths.clone().find(is_end).map(|length| (name.as_str(), length))
        });
        found.max_by_key(|(_, length)| *length)
    }

    /// Returns the length of the longest value, of which a text that was cut may begin with a part.
    pub fn longest(&self) -> usize {
        self.forms.first().map_or(0, |(_, form)| form.len())
    }
}

/// Returns the forms in which a value appears in texts: as it is, in a JSON string, in a JSON
/// string within another one, and each of these as [`quote`] shows it.
fn forms_of(value: &str) -> Vec<String> {
    let once = escape(value);
    let plain = [escape(&once), once, value.to_owned()];
    let quoted = plain.each_ref().map(|form| quote(form, usize::MAX));

    let mut forms: Vec<_> = plain.into_iter().chain(quoted).collect();
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
}
