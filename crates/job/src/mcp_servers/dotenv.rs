//! `.env` files: `NAME=value` lines with comments, `export` and quotes.
//!
//! Errors name the line but never quote it: the file may contain secrets, or may be a file that the
//! author of the configuration must not be able to read through our error messages.

use std::collections::BTreeMap;

use super::expand::is_variable_name;

/// Why a `.env` file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct DotenvError {
    /// The number of the line, counted from 1.
    pub line: usize,
    /// What is wrong with the line.
    pub problem: DotenvProblem,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DotenvProblem {
    /// There is no `=`.
    #[error("expected NAME=value")]
    NoAssignment,
    /// The text before `=` is not a variable name.
    #[error("the name before `=` is not a variable name")]
    BadName,
    /// A quote is not closed.
    #[error("a quote is not closed (values with several lines are not supported)")]
    OpenQuote,
    /// There is text after the closing quote.
    #[error("text after the closing quote")]
    AfterQuote,
    /// A value contains a zero byte, which the environment of a process cannot.
    #[error("a zero byte in the value")]
    ZeroByte,
}

/// Parses the text of a file. If a name is set several times, the last one counts.
///
/// Single-quoted values are literal. Double-quoted values may contain `\n`, `\r`, `\t`, `\"`, `\\`
/// and `\$`. Unquoted values end at ` #`. Variables in values are not expanded.
///
/// # Errors
///
/// Returns an error for the first invalid line.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, DotenvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let at = |problem| DotenvError { line: index + 1, problem };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }

        let assignment = line
            .strip_prefix("export")
            .filter(|rest| rest.starts_with([' ', '\t']))
            .map_or(line, str::trim_start);

        let (name, value) = assignment.split_once('=').ok_or(at(DotenvProblem::NoAssignment))?;
        let name = name.trim_end();
        if !is_variable_name(name) {
            return Err(at(DotenvProblem::BadName));
        }

        let value = parse_value(value.trim()).map_err(at)?;
        if value.contains('\0') {
            return Err(at(DotenvProblem::ZeroByte));
        }

        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

fn parse_value(raw: &str) -> Result<String, DotenvProblem> {
    if let Some(body) = raw.strip_prefix('\'') {
        let (value, after) = body.split_once('\'').ok_or(DotenvProblem::OpenQuote)?;
        return check_only_comment(after).map(|()| value.to_owned());
    }

    if let Some(body) = raw.strip_prefix('"') {
        let (value, after) = parse_double_quoted(body)?;
        return check_only_comment(after).map(|()| value);
    }

    // A `#` starts a comment only at the start or after white space: `a#b` is a value.
    let mut previous_blank = true;
    for (position, c) in raw.char_indices() {
        if c == '#' && previous_blank {
            return Ok(raw[..position].trim_end().to_owned());
        }
        previous_blank = c.is_whitespace();
    }
    Ok(raw.to_owned())
}

fn parse_double_quoted(body: &str) -> Result<(String, &str), DotenvProblem> {
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((position, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &body[position + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, escaped @ ('"' | '\\' | '$'))) => value.push(escaped),
                Some((_, other)) => value.extend(['\\', other]),
                None => return Err(DotenvProblem::OpenQuote),
            },
            other => value.push(other),
        }
    }
    Err(DotenvProblem::OpenQuote)
}

/// Checks that nothing but a comment follows a closing quote.
fn check_only_comment(after: &str) -> Result<(), DotenvProblem> {
    let after = after.trim_start();
    if after.is_empty() || after.starts_with('#') { Ok(()) } else { Err(DotenvProblem::AfterQuote) }
}
