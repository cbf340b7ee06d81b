//! Expansion of `${VAR}`, `${VAR:-default}` and `${env:VAR}` in a configuration.
//!
//! The caller decides which variables may be expanded: it passes a lookup that returns a value,
//! "unset" or a refusal. A variable that cannot be expanded is an error and never becomes an empty
//! string. The result is not expanded again, so a value that looks like a variable stays as it is.

use std::collections::BTreeMap;

use super::{RemoteServer, ServerEntry, StdioServer, Transport};

/// The answer of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// The variable has this value.
    Value(String),
    /// The variable may be used but is not set.
    Unset,
    /// The variable may not be used, for this reason.
    Refused(String),
}

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// The variable is not set, and the text has no default for it.
    #[error("variable `{name}` is not set (write ${{{name}:-default}} to give it a default)")]
    Unset {
        /// The name of the variable.
        name: String,
    },
    /// The variable may not be expanded.
    #[error("variable `{name}` may not be expanded: {reason}")]
    Refused {
        /// The name of the variable.
        name: String,
        /// The rule that refuses it, and how to allow it.
        reason: String,
    },
    /// `${input:…}` asks the user for a value, which is not possible here.
    #[error(
        "`${{input:{name}}}` asks the user for a value, which is not possible here; use a variable instead"
    )]
    Input {
        /// The name of the input.
        name: String,
    },
    /// `${…}` contains neither a variable nor another known form.
    #[error("`${{{text}}}` is not a valid variable reference")]
    Malformed {
        /// The text between the braces.
        text: String,
    },
    /// `${` is not followed by `}`.
    #[error("`${{` is not closed")]
    Unclosed,
}

/// An expansion error in a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`")]
pub struct FieldExpandError {
    /// The path of the field, such as `args[1]` or `env.TOKEN`.
    pub path: String,
    /// Why the field cannot be expanded.
    #[source]
    pub error: ExpandError,
}

/// Expands a text. `$${` stands for a literal `${`.
///
/// # Errors
///
/// Returns an error if a variable is unset or refused, or if the syntax is wrong.
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
        out.push_str(&expand_variable(&body[..end], lookup)?);
        rest = &body[end + 1..];
    }

    out.push_str(rest);
    Ok(out)
}

fn expand_variable(body: &str, lookup: &dyn Fn(&str) -> Variable) -> Result<String, ExpandError> {
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

/// Returns whether `name` can be the name of an environment variable: a letter or `_`, followed by
/// letters, digits and `_`.
pub fn is_variable_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first == '_' || first.is_ascii_alphabetic())
        && chars.all(|c| c == '_' || c.is_ascii_alphanumeric())
}

impl StdioServer {
    /// Expands all variables in the settings of the server.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that cannot be expanded.
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
    /// Expands all variables in the URL.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL cannot be expanded.
    pub fn expand_url(
        &self,
        lookup: &dyn Fn(&str) -> Variable,
    ) -> Result<String, FieldExpandError> {
        expand_field("url", &self.url, lookup)
    }

    /// Expands all variables in the URL and the headers.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that cannot be expanded.
    pub fn expand(&self, lookup: &dyn Fn(&str) -> Variable) -> Result<Self, FieldExpandError> {
        Ok(Self {
            url: self.expand_url(lookup)?,
            headers: expand_values("headers", &self.headers, lookup)?,
        })
    }
}

impl ServerEntry {
    /// Expands all variables in the entry.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that cannot be expanded.
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
