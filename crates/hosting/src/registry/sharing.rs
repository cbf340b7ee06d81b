//! What may be written where others can read it: references to secrets, and no secret.
//!
//! Nobody can tell a secret from a harmless value by looking at it. So the values of environment
//! variables and headers, and of parameters in URLs, must be references (`${VAR}`), which every
//! replica expands from its own environment, or have a name that the operator has listed as plain.
//! Command lines are written as they are: other users of a machine see those anyway.

use std::collections::BTreeSet;

use fleet_job::mcp_servers::{RemoteServer, ServerEntry, Transport, expand::is_variable_name};

/// What stands before a credential in a header and is none.
const SCHEMES: [&str; 4] = ["Bearer ", "Basic ", "Token ", "ApiKey "];

/// A configuration that can't be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotShareable {
    /// A value that may be a secret.
    #[error(
        "`{place}` has a literal value, which would be written to the shared registry; write a reference such as \
         `${{{variable}}}` (and list the variable in --expand-env), or list the name in --share-plain \
         (MCP_SHARE_PLAIN) if it is no secret"
    )]
    Literal {
        /// Where the value stands.
        place: String,
        /// A variable that it could be kept in.
        variable: String,
    },
    /// Credentials in a URL.
    #[error(
        "`url` names a user, which would be written to the shared registry; use `headers` with a reference"
    )]
    User,
}

/// Names of variables, headers and URL parameters whose values are no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plain(BTreeSet<String>);

impl Plain {
    /// These names; case does not count.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_ascii_lowercase).collect())
    }

    /// Whether a configuration holds nothing that may be a secret.
    ///
    /// # Errors
    ///
    /// At the first thing that may be one.
    pub fn check(&self, entry: &ServerEntry) -> Result<(), NotShareable> {
        match &entry.transport {
            Transport::Stdio(server) => {
                server.env.iter().try_for_each(|(name, value)| self.check_value("env", name, value))
            }
            Transport::Url(server) | Transport::Http(server) | Transport::Sse(server) => {
                self.check_remote(server)
            }
        }
    }

    fn check_remote(&self, server: &RemoteServer) -> Result<(), NotShareable> {
        for (name, value) in &server.headers {
            let credential =
                SCHEMES.iter().find_map(|scheme| value.strip_prefix(scheme)).unwrap_or(value);
            self.check_value("headers", name, credential)?;
        }
        let url = server.url.split('#').next().unwrap_or_default();
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let after_scheme = address.split_once("//").map_or(address, |(_, rest)| rest);
        // A URL is read with backslashes as slashes.
        if after_scheme.split(['/', '\\']).next().is_some_and(|authority| authority.contains('@')) {
            return Err(NotShareable::User);
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or(("", parameter));
            self.check_value("url", name, value)?;
        }
        Ok(())
    }

    fn check_value(&self, field: &str, name: &str, value: &str) -> Result<(), NotShareable> {
        if value.is_empty() || is_reference(value) || self.0.contains(&name.to_ascii_lowercase()) {
            return Ok(());
        }
        let variable = name.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let variable = if is_variable_name(&variable) { variable } else { "SECRET".to_owned() };
        let place = if name.is_empty() { field.to_owned() } else { format!("{field}.{name}") };
        Err(NotShareable::Literal { place, variable })
    }
}

/// Whether a value is `${VAR}` or `${env:VAR}` and nothing else. A default is a literal; an empty
/// one says nothing.
fn is_reference(value: &str) -> bool {
    let Some(body) = value.strip_prefix("${").and_then(|value| value.strip_suffix('}')) else {
        return false;
    };
    let name = body.strip_prefix("env:").unwrap_or(body);
    is_variable_name(name.strip_suffix(":-").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Checks a configuration: the place of what may be a secret.
    fn check(plain: &[&str], config: Value, expected: Option<&str>) {
        let entry = ServerEntry::from_value(&config, "config").unwrap();
        let found = Plain::new(plain.iter().copied()).check(&entry);
        match (&found, expected) {
            (Ok(()), None) => {}
            (Err(NotShareable::User), Some("user")) => {}
            (Err(NotShareable::Literal { place, .. }), Some(expected)) => {
                assert_eq!(place, expected, "{config}")
            }
            _ => panic!("{config}: {found:?}"),
        }
    }

    #[test]
    fn references_are_shared_and_literals_are_not() {
        let env = |value: &str| json!({"command": "x", "env": {"API_KEY": value}});
        for reference in ["${API_KEY}", "${env:KEY}", "${KEY:-}", ""] {
            check(&[], env(reference), None);
        }
        for literal in [
            "hunter2",
            "$API_KEY",
            "$${API_KEY}",
            "${KEY:-hunter2}",
            "x${KEY}",
            "${KEY}x",
            "${a}${b}",
            "${input:key}",
            "${}",
            "${",
            "${a b}",
        ] {
            check(&[], env(literal), Some("env.API_KEY"));
        }
        check(&["api_key", "OTHER"], env("hunter2"), None);
        check(
            &[],
            json!({"command": "x", "args": ["--level=3"], "envFile": "/etc/x.env", "cwd": "/"}),
            None,
        );
    }

    #[test]
    fn headers_and_urls_hold_no_secrets() {
        let header =
            |value: &str| json!({"url": "https://h/mcp", "headers": {"Authorization": value}});
        check(&[], header("Bearer ${TOKEN}"), None);
        check(&[], header("${TOKEN}"), None);
        check(&[], header("Bearer abc"), Some("headers.Authorization"));
        check(&["authorization"], header("Bearer abc"), None);
        let url = |url: &str| json!({"type": "sse", "url": url});
        check(&[], url("https://h:8080/mcp#x?y=1"), None);
        check(&[], url("https://h/mcp?key=${KEY}&a="), None);
        check(&[], url("https://h/mcp?key=1"), Some("url.key"));
        check(&[], url("https://h/mcp?a=${A}&key=1"), Some("url.key"));
        check(&[], url("https://h/mcp?abc"), Some("url"));
        check(&["key"], url("https://h/mcp?key=1"), None);
        check(&[], url("https://u:p@h/mcp"), Some("user"));
        check(&[], url("https:u:p@h/mcp"), Some("user"));
        check(&[], url("https://h/mcp/@scope"), None);
    }

    #[test]
    fn the_error_names_the_key_and_not_the_value() {
        let config = json!({"command": "x", "env": {"api-key": "hunter2"}});
        let entry = ServerEntry::from_value(&config, "config").unwrap();
        let error = Plain::default().check(&entry).unwrap_err().to_string();
        assert!(error.contains("`env.api-key`") && error.contains("`${API_KEY}`"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
