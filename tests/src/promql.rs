//! A partial parser of PromQL that finds the metrics and labels of a query. Prometheus itself
//! validates queries.

use std::collections::BTreeSet;

/// The metrics and labels that a query uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// All selectors, in order.
    pub selectors: Vec<Selector>,
    /// The labels of `by`, `without`, `on`, `ignoring`, `group_left` and `group_right`.
    pub grouping: BTreeSet<String>,
}

/// A metric and its matchers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The metric's name.
    pub metric: String,
    /// Label, operator, value.
    pub matchers: Vec<(String, String, String)>,
}

/// Keywords that are followed by a list of labels.
const LABELS_FOLLOW: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// The aggregations, which are the only functions whose names can be followed by something other
/// than a parenthesis.
const WORDS: [&str; 21] = [
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "atan2",
    "inf",
    "nan",
    "sum",
    "min",
    "max",
    "avg",
    "group",
    "stddev",
    "stdvar",
    "count",
    "count_values",
    "bottomk",
    "topk",
    "quantile",
    "limitk",
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Finds the metrics and labels that `query` uses.
pub fn uses(query: &str) -> Result<Uses, String> {
    let tokens = tokens(query)?;
    let mut rest = tokens.iter().peekable();
    let mut uses = Uses::default();
    while let Some(token) = rest.next() {
        let next_is = |sign: char, rest: &mut std::iter::Peekable<std::slice::Iter<'_, Token>>| {
            rest.next_if(|token| **token == Token::Sign(sign)).is_some()
        };
        match token {
            Token::Word(word) if LABELS_FOLLOW.contains(&&*word.to_ascii_lowercase()) => {
                if !next_is('(', &mut rest) {
                    continue;
                }
                for token in rest.by_ref() {
                    match token {
                        Token::Word(label) => drop(uses.grouping.insert(label.clone())),
                        Token::Sign(',') => {}
                        Token::Sign(')') => break,
                        other => return Err(format!("{other:?} in a list of labels of {query:?}")),
                    }
                }
            }
            Token::Word(word) if WORDS.contains(&&*word.to_ascii_lowercase()) => {}
            Token::Word(_) if rest.peek() == Some(&&Token::Sign('(')) => {}
            Token::Word(word) => {
                let mut selector = Selector { metric: word.clone(), matchers: Vec::new() };
                if next_is('{', &mut rest) {
                    matchers(&mut rest, &mut selector)
                        .ok_or_else(|| format!("matchers of {word} in {query:?}"))?;
                }
                uses.selectors.push(selector);
            }
            Token::Sign('{') => return Err(format!("a selector without a metric in {query:?}")),
            Token::Sign(_) | Token::Text(_) => {}
        }
    }

    Ok(uses)
}

/// Reads to the closing brace.
fn matchers<'t>(rest: &mut impl Iterator<Item = &'t Token>, selector: &mut Selector) -> Option<()> {
    loop {
        let label = match rest.next()? {
            Token::Sign('}') => return Some(()),
            Token::Sign(',') => continue,
            Token::Word(label) => label.clone(),
            _ => return None,
        };
        let mut operator = String::new();
        let value = loop {
            match rest.next()? {
                Token::Sign(sign @ ('=' | '!' | '~')) => operator.push(*sign),
                Token::Text(value) => break value.clone(),
                _ => return None,
            }
        };
        selector.matchers.push((label, operator, value));
    }
}

fn tokens(query: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = query.chars().peekable();
    while let Some(first) = rest.next() {
        let mut take = |more: fn(char) -> bool| {
            let mut taken = String::from(first);
            while let Some(next) = rest.next_if(|next| more(*next)) {
                taken.push(next);
            }
            taken
        };
        match first {
            ' ' | '\n' | '\t' | '\r' => {}
            '#' => drop(take(|next| next != '\n')),
            // A range or a subquery contains only durations.
            '[' => {
                take(|next| next != ']');
                rest.next().ok_or_else(|| format!("a range of {query:?} has no end"))?;
            }
            // Numbers and durations.
            '0'..='9' => drop(take(|next| next.is_ascii_alphanumeric() || next == '.')),
            '"' | '\'' | '`' => {
                let mut text = String::new();
                loop {
                    match rest.next() {
                        Some(next) if next == first => break,
                        Some('\\') if first != '`' => text.extend(rest.next()),
                        Some(next) => text.push(next),
                        None => return Err(format!("a string of {query:?} has no end")),
                    }
                }
                tokens.push(Token::Text(text));
            }
            first if first.is_ascii_alphabetic() || first == '_' || first == ':' => {
                tokens.push(Token::Word(take(|next| {
                    next.is_ascii_alphanumeric() || next == '_' || next == ':'
                })));
            }
            sign => tokens.push(Token::Sign(sign)),
        }
    }

    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected` lists metrics with their matchers, then the labels of groupings.
    fn check(query: &str, expected: &str) {
        let uses = uses(query).expect("a query");
        let selectors = uses.selectors.iter().map(|selector| {
            let matchers: String =
                selector.matchers.iter().map(|(l, o, v)| format!("{l}{o}{v};")).collect();
            format!("{}[{matchers}]", selector.metric)
        });
        let grouping: Vec<_> = uses.grouping.iter().cloned().collect();
        let found = format!("{} {}", selectors.collect::<String>(), grouping.join(","));
        assert_eq!(found.trim(), expected, "{query}");
    }

    #[test]
    fn only_metrics_and_labels_are_found() {
        check("up", "up[]");
        check("up{job=\"a\"} == 1", "up[job=a;]");
        check("a:b:sum > 100 and deriv(a:b:sum[15m:1m]) > -1.5e3", "a:b:sum[]a:b:sum[]");
        check(
            "sum by (x, y) (rate(m_total{a=~'b|c', d!=\"\", }[5m] offset 1h))",
            "m_total[a=~b|c;d!=;] x,y",
        );
        check("sum(m) without (z)", "m[] z");
        check("a unless on () absent(b) or ignoring(q) group_left c", "a[]b[]c[] q");
        check("a / on (i) group_right (v) b # { by (no)", "a[]b[] i,v");
        check("histogram_quantile(0.95, sum by (le) (h_bucket)) < +Inf", "h_bucket[] le");
        check("label_replace(m{k=\"\\\"{\"}, \"x\", `$1\\`, \"y\", \"(.*)\")", "m[k=\"{;]");
        check("topk(3, bottom) or vector(0) or time() - 5m", "bottom[]");
        check("m[5m] @ 100", "m[]");
        check("count(m > bool 0)", "m[]");
    }

    #[test]
    fn invalid_queries_are_refused() {
        for wrong in ["m{a=\"b}", "m{a=}", "m[5m", "{a=\"b\"}", "sum by (\"a\") (m)"] {
            uses(wrong).expect_err(wrong);
        }
    }
}
