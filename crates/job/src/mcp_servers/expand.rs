//! Expansion of `${VAR}`, `${VAR:-default}` and `${env:VAR}` in a configuration.
//!
//! Who may expand which variable is policy, and policy is the caller's: it passes a lookup that
//! answers with a value, with "unset" or with a refusal. What can't be expanded is an error, never
//! an empty string. The result is not expanded again, so a value that looks like a variable stays
//! as it is.

use std::collections::BTreeMap;

use super::{RemoteServer, ServerEntry, StdioServer, Transport};

/// What a lookup says about a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// It has this value.
    Value(String),
    /// It may be used and is not set.
    Unset,
    /// It may not be used, for this reason.
    Refused(String),
}

/// Why a text can't be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// The variable is not set, and the text has no default for it.
    #[error("variable `{name}` is not set (write ${{{name}:-default}} to give it a default)")]
    Unset {
        /// The variable.
        name: String,
    },
    /// The variable may not be expanded.
    #[error("variable `{name}` may not be expanded: {reason}")]
    Refused {
        /// The variable.
        name: String,
        /// Whose rule that is and how to allow it.
        reason: String,
    },
    /// `${input:…}` asks a person, and there is none.
    #[error("`${{input:{name}}}` asks a person for a value, and there is nobody to ask")]
    Input {
        /// What would be asked for.
        name: String,
    },
    /// `${…}` holds something that is neither a variable nor a known form.
    #[error("`${{{text}}}` is no variable")]
    Malformed {
        /// What is between the braces.
        text: String,
    },
    /// `${` without `}`.
    #[error("`${{` is not closed")]
    Unclosed,
}

/// An expansion error with the place where it happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`")]
pub struct FieldExpandError {
    /// The field, such as `args[1]` or `env.TOKEN`.
    pub path: String,
    /// What is wrong with it.
    #[source]
    pub error: ExpandError,
}

/// Expands one text. `$${` stands for a literal `${`.
///
/// # Errors
///
/// Where a variable is unset or refused, or the syntax is wrong.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Variable) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        let body = &from[2..];
        if let Some(escaped) = before.strip_suffix('$') {
            out.push_str(escaped);
            out.push_str("${");
            rest = body;
            continue;
        }
        let end = body.find('}').ok_or(ExpandError::Unclosed)?;
        out.push_str(before);
        out.push_str(&variable(&body[..end], lookup)?);
        rest = &body[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn variable(body: &str, lookup: &dyn Fn(&str) -> Variable) -> Result<String, ExpandError> {
    if let Some(name) = body.strip_prefix("input:") {
        return Err(ExpandError::Input { name: name.to_owned() });
    }
    let (name, default) = match body.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (body, None),
    };
    let name = name.strip_prefix("env:").unwrap_or(name);
    if !is_variable_name(name) {
        return Err(ExpandError::Malformed { text: body.to_owned() });
    }
    match (lookup(name), default) {
        (Variable::Value(value), _) => Ok(value),
        (Variable::Unset, Some(default)) => Ok(default.to_owned()),
        (Variable::Unset, None) => Err(ExpandError::Unset { name: name.to_owned() }),
        (Variable::Refused(reason), _) => {
            Err(ExpandError::Refused { name: name.to_owned(), reason })
        }
    }
}

/// Whether `name` can be the name of an environment variable: a letter or `_`, then letters, digits
/// and `_`.
pub fn is_variable_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first == '_' || first.is_ascii_alphabetic())
        && chars.all(|c| c == '_' || c.is_ascii_alphanumeric())
}

impl StdioServer {
    /// The same with every variable in it expanded.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that can't be expanded.
    pub fn expand(&self, lookup: &dyn Fn(&str) -> Variable) -> Result<Self, FieldExpandError> {
        let optional = |path: &str, text: &Option<String>| {
            text.as_ref().map(|text| expand_field(path, text, lookup)).transpose()
        };
        Ok(Self {
            command: expand_field("command", &self.command, lookup)?,
            args: (self.args.iter().enumerate())
                .map(|(index, arg)| expand_field(&format!("args[{index}]"), arg, lookup))
                .collect::<Result<_, _>>()?,
            env: expand_values("env", &self.env, lookup)?,
            env_file: optional("envFile", &self.env_file)?,
            cwd: optional("cwd", &self.cwd)?,
        })
    }
}

impl RemoteServer {
    /// The URL with every variable in it expanded.
    ///
    /// # Errors
    ///
    /// Returns an error if it can't be expanded.
    pub fn expand_url(
        &self,
        lookup: &dyn Fn(&str) -> Variable,
    ) -> Result<String, FieldExpandError> {
        expand_field("url", &self.url, lookup)
    }

    /// The same with every variable in it expanded.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that can't be expanded.
    pub fn expand(&self, lookup: &dyn Fn(&str) -> Variable) -> Result<Self, FieldExpandError> {
        Ok(Self {
            url: self.expand_url(lookup)?,
            headers: expand_values("headers", &self.headers, lookup)?,
        })
    }
}

impl ServerEntry {
    /// The entry with every variable in it expanded.
    ///
    /// # Errors
    ///
    /// At the first field that can't be expanded.
    pub fn expand(&self, lookup: &dyn Fn(&str) -> Variable) -> Result<Self, FieldExpandError> {
        let transport = match &self.transport {
            Transport::Stdio(server) => Transport::Stdio(server.expand(lookup)?),
            Transport::Url(server) => Transport::Url(server.expand(lookup)?),
            Transport::Http(server) => Transport::Http(server.expand(lookup)?),
            Transport::Sse(server) => Transport::Sse(server.expand(lookup)?),
        };
        Ok(Self { transport, unknown: self.unknown.clone() })
    }
}

fn expand_field(
    path: &str,
    text: &str,
    lookup: &dyn Fn(&str) -> Variable,
) -> Result<String, FieldExpandError> {
    expand(text, lookup).map_err(|error| FieldExpandError { path: path.to_owned(), error })
}

fn expand_values(
    path: &str,
    map: &BTreeMap<String, String>,
    lookup: &dyn Fn(&str) -> Variable,
) -> Result<BTreeMap<String, String>, FieldExpandError> {
    map.iter()
        .map(|(key, value)| {
            Ok((key.clone(), expand_field(&format!("{path}.{key}"), value, lookup)?))
        })
        .collect()
}
