//! The environment as a value, with typed readers.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use fleet_codes as codes;

use super::{SecretFileError, parse_bytes, parse_duration, redact};

/// A setting whose value cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required variable is not set.
    #[error("{name} is not set: {expected} [{code}]", code = codes::SETTING)]
    Missing {
        /// The name of the variable.
        name: String,
        /// What the variable should hold.
        expected: String,
    },
    /// The value of a variable is invalid.
    #[error("{name}={value}: {problem} [{code}]", code = codes::SETTING)]
    Invalid {
        /// The name of the variable.
        name: String,
        /// The value, redacted if the name looks secret.
        value: String,
        /// What is wrong with the value and what was expected.
        problem: String,
    },
    /// A variable names a file without a usable secret.
    #[error("the file of {name} cannot be used [{code}]", code = codes::SETTING)]
    File {
        /// The name of the variable.
        name: String,
        /// What is wrong with the file.
        #[source]
        error: SecretFileError,
    },
}

impl ConfigError {
    /// Creates an error about the value of `name`. The value is redacted if the name looks secret.
    pub fn invalid(name: &str, value: &str, problem: impl Display) -> Self {
        Self::Invalid {
            name: name.to_owned(),
            value: redact(name, value).into_owned(),
            problem: problem.to_string(),
        }
    }

    /// Returns the variable that the error is about.
    pub fn variable(&self) -> &str {
        match self {
            Self::Missing { name, .. } | Self::Invalid { name, .. } | Self::File { name, .. } => {
                name
            }
        }
    }
}

/// A snapshot of environment variables. An empty variable counts as unset, since `NAME=${NAME:-}`
/// in a compose file produces one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// Takes a snapshot of the process's environment. Variables that are not valid UTF-8 are
    /// skipped; no setting of ours can be one of them.
    pub fn process() -> Self {
        Self::of(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// Creates an environment that consists of these variables only.
    pub fn of<K: Into<String>, V: Into<String>>(vars: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// Returns the variable's value, trimmed, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Returns all variables that are set and not empty, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().filter_map(|name| Some((name.as_str(), self.get(name)?)))
    }

    /// Returns the value of a required variable.
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is not set; `expected` says what it should hold.
    pub fn required(&self, name: &str, expected: &str) -> Result<&str, ConfigError> {
        let missing =
            || ConfigError::Missing { name: name.to_owned(), expected: expected.to_owned() };
        self.get(name).ok_or_else(missing)
    }

    /// Reads a variable with `parse`, whose error says what is wrong.
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is set and `parse` rejects its value.
    pub fn parse_with<T, E: Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name)
            .map(|value| parse(value).map_err(|problem| ConfigError::invalid(name, value, problem)))
            .transpose()
    }

    /// Reads a variable as a number, an address, or any other type that parses from text.
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is set and does not parse.
    pub fn parse<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        self.parse_with(name, str::parse)
    }

    /// Reads a variable as a duration; see [`parse_duration`].
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is set and is not a duration.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, ConfigError> {
        self.parse_with(name, parse_duration)
    }

    /// Reads a variable as a number of bytes; see [`parse_bytes`].
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is set and is not a size.
    pub fn bytes(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        self.parse_with(name, parse_bytes)
    }

    /// Reads a variable as a boolean: `true`/`1`/`yes`/`on` or `false`/`0`/`no`/`off`.
    ///
    /// # Errors
    ///
    /// Returns an error if the variable is set to anything else.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.parse_with(name, |value| match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("expected true or false"),
        })
    }

    /// Reads a variable as a comma-separated list. Entries are trimmed and empty ones dropped.
    pub fn list(&self, name: &str) -> Vec<String> {
        let entries = self.get(name).unwrap_or_default().split(',');
        entries.map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, redact(name, value)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_types() {
        let env = Env::of([
            ("PORT", " 8080 "),
            ("EMPTY", ""),
            ("WAIT", "250ms"),
            ("SIZE", "4MiB"),
            ("ON", "Yes"),
            ("LIST", "a, b,,c"),
        ]);
        assert_eq!(env.parse::<u16>("PORT").unwrap(), Some(8080));
        assert_eq!(env.parse::<u16>("EMPTY").unwrap(), None);
        assert_eq!(env.parse::<u16>("UNSET").unwrap(), None);
        assert_eq!(env.duration("WAIT").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(env.bytes("SIZE").unwrap(), Some(4 << 20));
        assert_eq!(env.bool("ON").unwrap(), Some(true));
        assert_eq!(env.list("LIST"), ["a", "b", "c"]);
        assert_eq!(env.required("PORT", "a port").unwrap(), "8080");
        assert_eq!(env.iter().count(), 5);
    }

    #[test]
    fn errors_name_the_variable_and_keep_secrets() {
        let check = |error: ConfigError, name: &str, text: &str| {
            assert_eq!(error.variable(), name);
            assert_eq!(error.to_string(), format!("{text} [FLEET-SETTING]"));
        };
        let env = Env::of([("PORT", "eighty"), ("API_TOKEN", "hunter2"), ("ON", "maybe")]);

        check(
            env.parse::<u16>("PORT").unwrap_err(),
            "PORT",
            "PORT=eighty: invalid digit found in string",
        );

        check(
            env.required("KAFKA_BROKERS", "host:port[,…]").unwrap_err(),
            "KAFKA_BROKERS",
            "KAFKA_BROKERS is not set: host:port[,…]",
        );

        check(env.bool("ON").unwrap_err(), "ON", "ON=maybe: expected true or false");

        let secret = env.parse::<u16>("API_TOKEN").unwrap_err();
        assert!(!secret.to_string().contains("hunter2"), "{secret}");
        assert!(!format!("{env:?}").contains("hunter2"));
    }
}
