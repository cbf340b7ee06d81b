//! The one language of wildcards in settings and policy files: names of tools, topics and
//! environment variables, elements of command lines, names in a path. `docs/wildcards.md` explains
//! it to users.
//!
//! `*` matches any run of characters, `?` matches exactly one, and `\` makes the next character
//! literal. A pattern always matches the whole string. Command-line arguments are matched more
//! narrowly than names, because they may be paths or package specs; see [`Glob::matches_argument`].

/// Returns a pattern that matches `text` and nothing else.
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
    /// `**`, which differs from `*` only in arguments.
    DeepRun,
}

impl Glob {
    /// Compiles a pattern. Every text is a valid pattern.
    pub fn new(pattern: &str) -> Self {
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut chars = pattern.chars();

        while let Some(c) = chars.next() {
            let follows_run = matches!(tokens.last(), Some(Token::Run | Token::DeepRun));
            let token = match c {
                '*' if follows_run => {
                    tokens.pop();
                    Token::DeepRun
                }
                '*' => Token::Run,
                '?' => Token::One,
                '\\' => Token::Char(chars.next().unwrap_or('\\')),
                c => Token::Char(c),
            };
            tokens.push(token);
        }
        Self { tokens }
    }

    /// Returns whether the pattern has no wildcards.
    pub fn is_literal(&self) -> bool {
        self.tokens.iter().all(|token| matches!(token, Token::Char(_)))
    }

    /// Returns whether the pattern starts with a wildcard.
    pub fn starts_wild(&self) -> bool {
        matches!(self.tokens.first(), Some(Token::One | Token::Run | Token::DeepRun))
    }

    /// Returns whether the whole of `text` matches. Linear in practice: only the last `*` is ever
    /// retried.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut token) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;

        while at < text.len() {
            match self.tokens.get(token) {
                Some(Token::Run | Token::DeepRun) => {
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

        self.tokens[token..].iter().all(|token| token.is_run())
    }

    /// Returns whether the whole of an argument matches. Without a wildcard this is equality. A
    /// wildcard never matches `@` or `:`, which a package spec uses to name another source
    /// (`x@file:/tmp/evil`), and only `**` matches `/`. An argument with `..` as a path component
    /// never matches.
    pub fn matches_argument(&self, text: &str) -> bool {
        if self.is_literal() {
            return self.matches(text);
        }

        if climbs(text) {
            return false;
        }

        // The positions in the pattern that the text so far can have reached.
        let mut reached = vec![false; self.tokens.len() + 1];
        reached[0] = true;
        self.skip_runs(&mut reached);

        for c in text.chars() {
            let mut next = vec![false; reached.len()];
            let active = self.tokens.iter().enumerate().filter(|(position, _)| reached[*position]);
            for (position, token) in active {
                match token {
                    Token::Char(own) => next[position + 1] |= *own == c,
                    Token::One => next[position + 1] |= !matches!(c, '@' | ':' | '/'),
                    Token::Run => next[position] |= !matches!(c, '@' | ':' | '/'),
                    Token::DeepRun => next[position] |= !matches!(c, '@' | ':'),
                }
            }
            self.skip_runs(&mut next);
            reached = next;
        }

        reached[self.tokens.len()]
    }
    /// Marks the position after each reached run as reached too, since a run may be empty.
    fn skip_runs(&self, reached: &mut [bool]) {
        for (position, token) in self.tokens.iter().enumerate() {
            if reached[position] && token.is_run() {
                reached[position + 1] = true;
            }
        }
    }
}

impl Token {
    fn is_run(self) -> bool {
        matches!(self, Self::Run | Self::DeepRun)
    }
}

/// Returns whether any path component in the argument is `..`. A path can also follow `=`, `:` or
/// `,`, as in `--root=..`.
fn climbs(argument: &str) -> bool {
    argument.split(['/', '\\', '=', ':', ',']).any(|part| part == "..")
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

    #[test]
    fn wildcards_in_arguments_do_not_cross_separators() {
        let check = |pattern: &str, text: &str, expected| {
            assert_eq!(Glob::new(pattern).matches_argument(text), expected, "{pattern} on {text}");
        };
        check("/srv/mcp/*", "/srv/mcp/a.py", true);
        check("/srv/mcp/*", "/srv/mcp/../../tmp/evil.py", false);
        check("/srv/mcp/*", "/srv/mcp/..", false);
        check("/srv/mcp/*", "/srv/mcp/sub/a.py", false);
        check("/srv/mcp?a", "/srv/mcp/a", false);
        check("/srv/*/x/*.py", "/srv/a/x/b.py", true);
        check("/srv/**", "/srv/mcp/sub/a.py", true);
        check("/srv/**", "/srv/mcp/../../tmp/evil.py", false);
        check("/srv/**.py", "/srv/a/b.py", true);
        check("/srv/**/x*", "/srv/a/b/xy", true);
        check("/srv/**/x*", "/srv/a/b/xy/z", false);
        check("--root=*", "--root=..", false);
        check("--root=**", "--root=a/..", false);
        check("*", "a..b", true);
        check("@scope/server-*", "@scope/server-x", true);
        check("@scope/server-*", "@scope/server-x@file:", false);
        check("@scope/server-**", "@scope/server-x@file:/tmp/evil", false);
        check("server-?evil", "server-@evil", false);
        check("@scope/*@1.*", "@scope/x@1.2", true);
        // Without a wildcard, only the exact text matches.
        check("/srv/../x@y:z", "/srv/../x@y:z", true);
        check(r"/a/\*", "/a/*", true);
        check(r"/a/\*", "/a/b", false);
    }

    proptest! {
        #[test]
        fn an_argument_matches_no_more_than_a_name(pattern in "[ab*?/.@]{0,7}", text in "[ab/.@]{0,7}") {
            let glob = Glob::new(&pattern);
            prop_assert!(!glob.matches_argument(&text) || glob.matches(&text));
            prop_assert!(Glob::new(&escape(&text)).matches_argument(&text));
        }

        #[test]
        fn a_literal_matches_only_itself(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(Glob::new(&a).matches(&b), a == b);
        }

        #[test]
        fn a_star_matches_everything_in_between(a in "[a-c]{0,4}", middle in ".{0,6}", b in "[a-c]{0,4}") {
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
