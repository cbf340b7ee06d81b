//! Values of the server's own environment that went into a configuration. Texts that others may
//! read, such as the end of a child's standard error, show the name of the variable in their place.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, sync::Arc};

/// A shorter value is left alone: it says nothing, and would turn up in the middle of words.
const SHORTEST: usize = 4;

/// The values to hide. Clones share them. Has no `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secrets {
    /// Name and value, the longest value first, since it may contain a shorter one.
    variables: Arc<[(String, String)]>,
}

impl Secrets {
    /// The values of these variables.
    pub fn new(variables: BTreeMap<String, String>) -> Self {
        let mut variables: Vec<_> =
            variables.into_iter().filter(|(_, value)| value.len() >= SHORTEST).collect();
        variables.sort_by_key(|(_, value)| Reverse(value.len()));
        Self { variables: variables.into() }
    }

    /// The text with every value replaced by `${NAME}`.
    pub fn hide<'a>(&self, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let mut text = text.into();
        for (name, value) in &*self.variables {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), &format!("${{{name}}}")).into();
            }
        }
        text
    }

    /// How many bytes at the beginning of a text that was cut off there may be the rest of a value.
    pub fn longest(&self) -> usize {
        self.variables.first().map_or(0, |(_, value)| value.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_give_way_to_names() {
        let variables = [("KEY", "hunter2"), ("LONG", "hunter2-more"), ("N", "1")];
        let secrets =
            Secrets::new(variables.map(|(name, value)| (name.into(), value.into())).into());
        assert_eq!(secrets.hide("a hunter2-more, hunter2 1"), "a ${LONG}, ${KEY} 1");
        assert!(matches!(secrets.hide("nothing"), Cow::Borrowed("nothing")));
    }
}
