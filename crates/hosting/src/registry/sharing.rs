//! Decides what may be written to the shared registry: references to secrets, but no secrets.
//!
//! A secret does not look different from a harmless value. So the values of environment variables,
//! headers and URL parameters must be references (`${VAR}`), which every replica expands from its
//! own environment, or have names that the operator has listed as plain. Command lines are written
//! unchanged, since other users of a machine can see them anyway.

use std::collections::BTreeSet;

use fleet_job::mcp_servers::{
    RemoteServer, ServerEntry, Transport,
    expand::{is_secret_name, is_variable_name},
};

/// Schemes that precede a credential in a header.
const SCHEMES: [&str; 4] = ["Bearer ", "Basic ", "Token ", "ApiKey "];

/// Why a configuration can't be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotShareable {
    /// A value that may be a secret.
    #[error(
        "`{place}` has a literal value, which would be written to the shared registry; use a reference such as \
         `${{{variable}}}` (and list the variable in --expand-env), or list the name in --share-plain \
         (MCP_SHARE_PLAIN) if the value is not secret"
    )]
    Literal {
        /// The location of the value in the configuration.
        place: String,
        /// The name of a variable that could hold the value.
        variable: String,
    },
    /// Credentials in a URL.
    #[error(
        "`url` contains credentials, which would be written to the shared registry; use `headers` with a reference"
    )]
    User,
}

/// The names of variables, headers and URL parameters whose values are not secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plain(BTreeSet<String>);

impl Plain {
    /// Creates a set of names, without regard to case.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_ascii_lowercase).collect())
    }

    /// Checks that a configuration contains nothing that may be a secret.
    ///
    /// # Errors
    ///
    /// Returns the first value that may be a secret.
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
        // URL parsers treat backslashes as slashes.
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

/// Returns whether a value is exactly `${VAR}`, `${env:VAR}` or `${secret:name}`. A default would be a literal value,
/// unless it is empty.
fn is_reference(value: &str) -> bool {
    let Some(body) = value.strip_prefix("${").and_then(|value| value.strip_suffix('}')) else {
        return false;
    };
    if let Some(name) = body.strip_prefix("secret:") {
        return is_secret_name(name);
    }
    let name = body.strip_prefix("env:").unwrap_or(body);
    is_variable_name(name.strip_suffix(":-").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Checks that a configuration is refused because of the value at `expected`, or not at all.
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
        for reference in ["${API_KEY}", "${env:KEY}", "${KEY:-}", "${secret:api-key}", ""] {
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
            "${secret:}",
            "${secret:key:-hunter2}",
            "${secret:a}x",
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
    fn headers_and_urls_are_checked() {
        let header =
            |value: &str| json!({"url": "https://h/mcp", "headers": {"Authorization": value}});
        check(&[], header("Bearer ${TOKEN}"), None);
        check(&[], header("${TOKEN}"), None);
        check(&[], header("Bearer ${secret:token}"), None);
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
