//! Wildcards of `fleet_job::glob` with short cuts, since a decision compares many of them.

use fleet_job::glob::Glob;

/// A pattern for a whole text. Most patterns are plain texts, or differ from the text within its
/// first characters, and are decided without the glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Everything.
    Any,
    /// This text.
    Literal(Box<str>),
    /// What begins so and matches the glob.
    Wild {
        /// The characters before the first wildcard.
        prefix: Box<str>,
        /// The whole pattern.
        glob: Glob,
    },
}

impl Pattern {
    /// Compiles a pattern. Every text is a valid pattern.
    pub(crate) fn new(pattern: &str) -> Self {
        if pattern == "*" {
            return Self::Any;
        }

        match pattern.find(['*', '?', '\\']) {
            None => Self::Literal(pattern.into()),
            Some(end) => Self::Wild { prefix: pattern[..end].into(), glob: Glob::new(pattern) },
        }
    }

    /// Compiles several patterns.
    pub(crate) fn list(patterns: &[String]) -> Vec<Self> {
        patterns.iter().map(|pattern| Self::new(pattern)).collect()
    }

    /// Returns whether the whole of a text matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(own) => **own == *text,
            Self::Wild { prefix, glob } => text.starts_with(&**prefix) && glob.matches(text),
        }
    }

    /// The text, if the pattern matches only one.
    pub(crate) fn literal(&self) -> Option<&str> {
        match self {
            Self::Literal(text) => Some(text),
            Self::Any | Self::Wild { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_without_wildcards_are_literal() {
        assert_eq!(Pattern::new("a.b").literal(), Some("a.b"));
        for wild in ["*", "a*", "?", r"a\*"] {
            assert_eq!(Pattern::new(wild).literal(), None, "{wild}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_its_glob_matches(pattern in r"[ab*?\\]{0,6}", text in "[ab*]{0,6}") {
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), Glob::new(&pattern).matches(&text));
        }
    }
}
