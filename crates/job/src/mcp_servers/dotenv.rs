//! `.env` files: `NAME=value` lines, with comments, `export` and quotes.
//!
//! Errors name the line and never quote it: the file may hold secrets, or be a file that somebody
//! has no business reading through our error messages.

use std::collections::BTreeMap;

use super::expand::is_variable_name;

/// Why a `.env` file can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct DotenvError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: DotenvProblem,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DotenvProblem {
    /// There is no `=`.
    #[error("expected NAME=value")]
    NoAssignment,
    /// What stands before `=` can't be a variable's name.
    #[error("the name before `=` is not a variable name")]
    BadName,
    /// A quote is opened and not closed.
    #[error("a quote is not closed (values of several lines are not supported)")]
    OpenQuote,
    /// Something follows the closing quote.
    #[error("text after the closing quote")]
    AfterQuote,
    /// A value holds a zero byte, which no environment can.
    #[error("a zero byte in the value")]
    ZeroByte,
}

/// Parses a file's text. The last line of a name wins.
///
/// Single-quoted values are literal; double-quoted ones know `\n`, `\r`, `\t`, `\"`, `\\` and `\$`;
/// unquoted ones end at ` #`. Variables in values are not expanded.
///
/// # Errors
///
/// At the first line that is not understood.
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
        return only_comment(after).map(|()| value.to_owned());
    }
    if let Some(body) = raw.strip_prefix('"') {
        let (value, after) = double_quoted(body)?;
        return only_comment(after).map(|()| value);
    }
    // A `#` starts a comment only at the start or after a blank: `a#b` is a value.
    let mut previous_blank = true;
    for (position, c) in raw.char_indices() {
        if c == '#' && previous_blank {
            return Ok(raw[..position].trim_end().to_owned());
        }
        previous_blank = c.is_whitespace();
    }
    Ok(raw.to_owned())
}

fn double_quoted(body: &str) -> Result<(String, &str), DotenvProblem> {
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

fn only_comment(after: &str) -> Result<(), DotenvProblem> {
    let after = after.trim_start();
    if after.is_empty() || after.starts_with('#') { Ok(()) } else { Err(DotenvProblem::AfterQuote) }
}
