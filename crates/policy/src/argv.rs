//! Patterns over a whole command line.
//!
//! A pattern is a list of elements. Each is a [`Glob`] that matches exactly one element of the
//! argv; a final `**` matches any number of further elements. A pattern that consists of a command
//! alone allows that command without arguments, so allowing `node` does not allow `node -e …`. For
//! the same reason, an element that *starts* with a wildcard does not match an option (anything
//! that starts with `-`): `node *` allows a script, not `--eval=…`. Wildcards also stay where they
//! are: `*` and `?` never match `/`, `@` or `:` (`**` matches `/`), and an argument that contains
//! `..` as a path component matches no wildcard pattern.

use std::fmt;

use fleet_job::glob::Glob;

/// A pattern over a whole command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgvPattern {
    source: Vec<String>,
    elements: Vec<Glob>,
    open_ended: bool,
}

/// Why a command pattern is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The pattern is empty.
    #[error("a command pattern must name a command")]
    Empty,
    /// `**` appears somewhere other than at the end.
    #[error("`**` is allowed only as the last element of a command pattern, after the command")]
    MisplacedRest,
    /// A quote is not closed.
    #[error("unclosed quote in a command pattern")]
    OpenQuote,
}

impl ArgvPattern {
    /// Creates a pattern from its elements.
    ///
    /// # Errors
    ///
    /// Returns an error if the pattern names no command or has `**` in the wrong place.
    pub fn new(source: Vec<String>) -> Result<Self, PatternError> {
        let open_ended = source.len() > 1 && source.last().is_some_and(|last| last == "**");
        let fixed = &source[..source.len() - usize::from(open_ended)];
        if fixed.iter().any(|element| element == "**") {
            return Err(PatternError::MisplacedRest);
        }

        if fixed.first().is_none_or(String::is_empty) {
            return Err(PatternError::Empty);
        }

        let elements = fixed.iter().map(|element| Glob::new(element)).collect();
        Ok(Self { elements, open_ended, source })
    }

    /// Creates a pattern from a line, split into elements as a shell would split it: blanks
    /// separate words, quotes and `\` protect them.
    ///
    /// # Errors
    ///
    /// Returns an error in the same cases as [`ArgvPattern::new`], and if a quote is not closed.
    pub fn parse(line: &str) -> Result<Self, PatternError> {
        Self::new(split_words(line)?)
    }

    /// Returns whether the pattern allows this command line. `argv[0]` is the command as the
    /// message spelled it, not a resolved path.
    pub fn matches(&self, argv: &[String]) -> bool {
        let fits = if self.open_ended {
            argv.len() >= self.elements.len()
        } else {
            argv.len() == self.elements.len()
        };

        fits && self.elements.iter().zip(argv).all(|(glob, element)| {
            glob.matches_argument(element) && !(glob.starts_wild() && element.starts_with('-'))
        })
    }
}

impl fmt::Display for ArgvPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join_words(&self.source))
    }
}

/// Splits a line into words as a shell does, without expanding anything.
pub fn split_words(line: &str) -> Result<Vec<String>, PatternError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();

    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(PatternError::OpenQuote)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(PatternError::OpenQuote)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or(PatternError::OpenQuote)? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().unwrap_or('\\')),
            c => word.get_or_insert_default().push(c),
        }
    }

    words.extend(word);
    Ok(words)
}

/// Splits a list of patterns at each `;` outside quotes.
pub fn split_list(list: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quote, mut escaped) = (0, None, false);

    for (position, c) in list.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ';') => {
                parts.push(&list[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }

    parts.push(&list[start..]);
    parts
}

/// Joins words so that [`split_words`] returns them unchanged. Command lines are shown to people in
/// this form.
pub fn join_words(words: &[String]) -> String {
    let plain = |word: &String| {
        !word.is_empty()
            && !word.contains(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '\\'))
    };
    let quoted = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));

    let words: Vec<_> =
        words.iter().map(|word| if plain(word) { word.clone() } else { quoted(word) }).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &str, argv: &[&str], expected: bool) {
        let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
        assert_eq!(
            ArgvPattern::parse(pattern).unwrap().matches(&argv),
            expected,
            "{pattern} on {argv:?}"
        );
    }

    #[test]
    fn a_pattern_covers_the_whole_argv() {
        check("node", &["node"], true);
        check("node", &["node", "-e", "evil"], false);
        check("node server.js", &["node", "server.js"], true);
        check("node server.js", &["node", "server.js", "more"], false);
        check("npx -y @scope/server /**", &["npx", "-y", "@scope/server", "/data/x"], true);
        check("npx -y @scope/server *", &["npx", "-y", "@scope/server", "/data"], false);
        check("npx -y @scope/server *", &["npx", "-y", "@scope/server"], false);
        check("npx -y @scope/server *", &["npx", "-y", "@scope/evil", "/data"], false);
        check("uv run **", &["uv", "run"], true);
        check("uv run **", &["uv", "run", "-x", "y"], true);
        check("uv run **", &["uv", "pip"], false);
        check("'/opt/my tools/x' a", &["/opt/my tools/x", "a"], true);
        check(r#""a\"b" ''"#, &["a\"b", ""], true);
    }

    #[test]
    fn a_leading_wildcard_matches_no_option() {
        check("node *", &["node", "server.js"], true);
        check("node *", &["node", "--eval=evil"], false);
        check("node ?*", &["node", "-p"], false);
        check("node --port=*", &["node", "--port=1"], true);
        check("node -*", &["node", "-p"], true);
    }

    #[test]
    fn a_wildcard_does_not_leave_its_directory() {
        check("python3 /srv/mcp/*", &["python3", "/srv/mcp/a.py"], true);
        check("python3 /srv/mcp/*", &["python3", "/srv/mcp/../../tmp/evil.py"], false);
        check("python3 /srv/mcp/**", &["python3", "/srv/mcp/../../tmp/evil.py"], false);
        check("npx -y @scope/server-*", &["npx", "-y", "@scope/server-x@file:/tmp/evil"], false);
        check("/opt/*/run", &["/opt/../run"], false);
        check("python3 ../a.py", &["python3", "../a.py"], true);
    }

    #[test]
    fn lists_are_split_outside_of_quotes() {
        assert_eq!(split_list("a b; c"), ["a b", " c"]);
        assert_eq!(split_list("sh -c 'a; b';c"), ["sh -c 'a; b'", "c"]);
        assert_eq!(split_list(r#"x "a\";b" \; 'y\';z"#), [r#"x "a\";b" \; 'y\'"#, "z"]);
        assert_eq!(split_list(""), [""]);
    }

    #[test]
    fn bad_patterns_are_refused() {
        let error = |line: &str| ArgvPattern::parse(line).unwrap_err();
        assert_eq!(error(""), PatternError::Empty);
        assert_eq!(error("''"), PatternError::Empty);
        assert_eq!(error("**"), PatternError::MisplacedRest);
        assert_eq!(error("a ** b"), PatternError::MisplacedRest);
        assert_eq!(error("a 'b"), PatternError::OpenQuote);
    }

    proptest! {
        #[test]
        fn words_survive_joining_and_splitting(words in prop::collection::vec(".{0,6}", 0..5)) {
            prop_assert_eq!(split_words(&join_words(&words)), Ok(words));
        }

        #[test]
        fn a_pattern_without_wildcards_allows_exactly_itself(
            words in prop::collection::vec("[a-c -]{1,3}", 1..4),
            other in prop::collection::vec("[a-c -]{1,3}", 0..5),
        ) {
            let pattern = ArgvPattern::new(words.clone()).unwrap();
            prop_assert!(pattern.matches(&words));
            prop_assert_eq!(pattern.matches(&other), words == other);
        }

        #[test]
        fn no_more_elements_than_the_pattern_has(words in prop::collection::vec("[a-c*]{1,3}", 1..4), extra in ".{0,4}") {
            prop_assume!(!words.iter().any(|word| word == "**"));
            let pattern = ArgvPattern::new(words.clone()).unwrap();
            let mut longer = words;
            longer.push(extra);
            prop_assert!(!pattern.matches(&longer));
        }
    }
}
