//! Expansion of `${VAR}`, `${VAR:-default}`, `${env:VAR}` and `${secret:name}` in a configuration.
//!
//! The caller decides which variables and secrets may be expanded: it passes a lookup that returns
//! a value, "unset" or a refusal. What cannot be expanded is an error and never becomes an empty
//! string. The result is not expanded again, so a value that looks like a variable stays as it is.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use super::{RemoteServer, ServerEntry, StdioServer, Transport};

/// The longest name of a secret, as of a key of a Kubernetes Secret.
const MAX_SECRET_NAME: usize = 253;

/// What a text refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// An environment variable: `${VAR}` or `${env:VAR}`.
    Variable(&'a str),
    /// A secret: `${secret:name}`. The name is one by [`is_secret_name`].
    Secret(&'a str),
}

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
    /// The secret does not exist.
    #[error("there is no secret `{name}`")]
    NoSecret {
        /// The name of the secret.
        name: String,
    },
    /// The secret may not be used.
    #[error("secret `{name}` may not be used: {reason}")]
    SecretRefused {
        /// The name of the secret.
        name: String,
        /// The rule that refuses it, and how to allow it.
        reason: String,
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
pub fn expand(
    text: &str,
    lookup: &dyn Fn(Reference<'_>) -> Variable,
) -> Result<String, ExpandError> {
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

fn expand_variable(
    body: &str,
    lookup: &dyn Fn(Reference<'_>) -> Variable,
) -> Result<String, ExpandError> {
    if let Some(name) = body.strip_prefix("input:") {
        return Err(ExpandError::Input { name: name.to_owned() });
    }
    if let Some(name) = body.strip_prefix("secret:") {
        return expand_secret(name, body, lookup);
    }
    let (name, default) = match body.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (body, None),
    };

    let name = name.strip_prefix("env:").unwrap_or(name);
    if !is_variable_name(name) {
        return Err(ExpandError::Malformed { text: body.to_owned() });
    }

    match (lookup(Reference::Variable(name)), default) {
        (Variable::Value(value), _) => Ok(value),
        (Variable::Unset, Some(default)) => Ok(default.to_owned()),
        (Variable::Unset, None) => Err(ExpandError::Unset { name: name.to_owned() }),
        (Variable::Refused(reason), _) => {
            Err(ExpandError::Refused { name: name.to_owned(), reason })
        }
    }
}

/// Expands a secret, which has no default: a value in the configuration would be no secret.
fn expand_secret(
    name: &str,
    body: &str,
    lookup: &dyn Fn(Reference<'_>) -> Variable,
) -> Result<String, ExpandError> {
    if !is_secret_name(name) {
        return Err(ExpandError::Malformed { text: body.to_owned() });
    }

    let name = name.to_owned();
    match lookup(Reference::Secret(&name)) {
        Variable::Value(value) => Ok(value),
        Variable::Unset => Err(ExpandError::NoSecret { name }),
        Variable::Refused(reason) => Err(ExpandError::SecretRefused { name, reason }),
    }
}

/// Returns the secrets that texts refer to, as far as the texts can be expanded.
pub fn secrets_in<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let names = RefCell::new(BTreeSet::new());
    let note = |reference: Reference<'_>| {
        if let Reference::Secret(name) = reference {
            names.borrow_mut().insert(name.to_owned());
        }
        Variable::Value(String::new())
    };
    for text in texts {
        // Whoever expands the text reports what is wrong with it.
        _ = expand(text, &note);
    }
    names.into_inner()
}

/// Returns whether `name` can be the name of a secret: letters, digits, `-`, `_` and `.`, the first
/// a letter or digit, at most 253 of them. Such a name is never a path to another directory.
pub fn is_secret_name(name: &str) -> bool {
    name.len() <= MAX_SECRET_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Returns whether `name` can be the name of an environment variable: a letter or `_`, followed by
/// letters, digits and `_`.
pub fn is_variable_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first == '_' || first.is_ascii_alphabetic())
        && chars.all(|c| c == '_' || c.is_ascii_alphanumeric())
}

impl StdioServer {
    /// Returns the secrets that the settings refer to.
    pub fn secrets(&self) -> BTreeSet<String> {
        let optional = self.env_file.iter().chain(&self.cwd);
        let texts = [&self.command].into_iter().chain(&self.args).chain(self.env.values());
        secrets_in(texts.chain(optional).map(String::as_str))
    }

    /// Expands all variables in the settings of the server.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that cannot be expanded.
    pub fn expand(
        &self,
        lookup: &dyn Fn(Reference<'_>) -> Variable,
    ) -> Result<Self, FieldExpandError> {
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
        lookup: &dyn Fn(Reference<'_>) -> Variable,
    ) -> Result<String, FieldExpandError> {
        expand_field("url", &self.url, lookup)
    }

    /// Expands all variables in the URL and the headers.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that cannot be expanded.
    pub fn expand(
        &self,
        lookup: &dyn Fn(Reference<'_>) -> Variable,
    ) -> Result<Self, FieldExpandError> {
        Ok(Self { url: self.expand_url(lookup)?, headers: self.expand_headers(lookup)? })
    }

    /// Expands all variables in the headers.
    ///
    /// # Errors
    ///
    /// Returns an error for the first header that cannot be expanded.
    pub fn expand_headers(
        &self,
        lookup: &dyn Fn(Reference<'_>) -> Variable,
    ) -> Result<BTreeMap<String, String>, FieldExpandError> {
        expand_values("headers", &self.headers, lookup)
    }
}

impl ServerEntry {
    /// Expands all variables in the entry.
    ///
    /// # Errors
    ///
    /// Returns an error for the first field that cannot be expanded.
    pub fn expand(
        &self,
        lookup: &dyn Fn(Reference<'_>) -> Variable,
    ) -> Result<Self, FieldExpandError> {
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
    lookup: &dyn Fn(Reference<'_>) -> Variable,
) -> Result<String, FieldExpandError> {
    expand(text, lookup).map_err(|error| FieldExpandError { path: path.to_owned(), error })
}

fn expand_values(
    path: &str,
    map: &BTreeMap<String, String>,
    lookup: &dyn Fn(Reference<'_>) -> Variable,
) -> Result<BTreeMap<String, String>, FieldExpandError> {
    map.iter()
        .map(|(key, value)| {
            Ok((key.clone(), expand_field(&format!("{path}.{key}"), value, lookup)?))
        })
        .collect()
}
