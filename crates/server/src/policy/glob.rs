//! Globs over single strings: one argv element, one environment key, one path.
//!
//! `*` stands for any run of characters, `?` for exactly one, `\` takes the next character literally. A pattern
//! always matches the whole string.

/// The pattern that matches `text` and nothing else.
pub fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// A compiled glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Run,
}

impl Glob {
    /// Compiles a pattern. Every text is a pattern.
    pub fn new(pattern: &str) -> Self {
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if tokens.last() == Some(&Token::Run) => continue,
                '*' => Token::Run,
                '?' => Token::One,
                '\\' => Token::Char(chars.next().unwrap_or('\\')),
                c => Token::Char(c),
            });
        }
        Self { tokens }
    }

    /// Whether the pattern is a plain text without wildcards.
    pub fn is_literal(&self) -> bool {
        self.tokens.iter().all(|token| matches!(token, Token::Char(_)))
    }

    /// Whether the first thing in the pattern is a wildcard.
    pub fn starts_wild(&self) -> bool {
        matches!(self.tokens.first(), Some(Token::One | Token::Run))
    }

    /// Whether the whole of `text` matches. Linear in practice: only the last `*` is ever tried again.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut token) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.tokens.get(token) {
                Some(Token::Run) => {
                    retry = Some((at, token));
                    token += 1;
                }
                Some(Token::One) => (at, token) = (at + 1, token + 1),
                Some(Token::Char(c)) if *c == text[at] => (at, token) = (at + 1, token + 1),
                _ => match retry {
                    Some((from, run)) => {
                        retry = Some((from + 1, run));
                        (at, token) = (from + 1, run + 1);
                    }
                    None => return false,
                },
            }
        }
        self.tokens[token..].iter().all(|token| *token == Token::Run)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &str, text: &str, expected: bool) {
        assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} on {text}");
    }

    #[test]
    fn globs_match_whole_strings() {
        check("abc", "abc", true);
        check("abc", "abcd", false);
        check("a*", "a", true);
        check("a*c", "abbbc", true);
        check("a*c*e", "abcde", true);
        check("a*c*e", "abde", false);
        check("?", "é", true);
        check("?", "", false);
        check("*", "any/thing\n", true);
        check("**", "", true);
        check(r"\*", "*", true);
        check(r"\*", "x", false);
        check(r"a\", r"a\", true);
        check("", "", true);
        check("", "x", false);
    }

    proptest! {
        #[test]
        fn a_literal_matches_only_itself(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(Glob::new(&a).matches(&b), a == b);
        }

        #[test]
        fn a_star_matches_what_stands_between(a in "[a-c]{0,4}", middle in ".{0,6}", b in "[a-c]{0,4}") {
            let pattern = format!("{a}*{b}");
            let text = format!("{a}{middle}{b}");
            prop_assert!(Glob::new(&pattern).matches(&text));
        }

        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab*?]{0,7}", text in "[ab]{0,7}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.first(), text.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => slow(&pattern[1..], text) || (!text.is_empty() && slow(pattern, &text[1..])),
                    (Some(b'?'), Some(_)) => slow(&pattern[1..], &text[1..]),
                    (Some(p), Some(t)) => p == t && slow(&pattern[1..], &text[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(Glob::new(&pattern).matches(&text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
