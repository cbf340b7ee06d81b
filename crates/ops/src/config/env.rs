//! The environment as a value, with typed readers.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::{parse_bytes, parse_duration, redact};

/// A setting that can't be used as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A variable that must be set is not.
    #[error("{name} is not set: {expected}")]
    Missing {
        /// The variable.
        name: String,
        /// What it should hold.
        expected: String,
    },
    /// A variable's value is not what it should be.
    #[error("{name}={value}: {problem}")]
    Invalid {
        /// The variable.
        name: String,
        /// Its value, redacted where the name looks secret.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl ConfigError {
    /// An error about the value of `name`; the value is redacted where the name looks secret.
    pub fn invalid(name: &str, value: &str, problem: impl Display) -> Self {
        Self::Invalid {
            name: name.to_owned(),
            value: redact(name, value).into_owned(),
            problem: problem.to_string(),
        }
    }

    /// The variable that the error is about.
    pub fn variable(&self) -> &str {
        match self {
            Self::Missing { name, .. } | Self::Invalid { name, .. } => name,
        }
    }
}

/// A snapshot of environment variables. A variable that is set to nothing counts as not set: that
/// is what `NAME=${NAME:-}` in a compose file means.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The process's environment. Variables that are not UTF-8 are left out; none of ours can be.
    pub fn process() -> Self {
        Self::of(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// These variables and no others.
    pub fn of<K: Into<String>, V: Into<String>>(vars: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// The variable's value, trimmed, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// All variables that are set and not empty, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.keys().filter_map(|name| Some((name.as_str(), self.get(name)?)))
    }

    /// The variable's value.
    ///
    /// # Errors
    ///
    /// If it is not set; `expected` says what it should hold.
    pub fn required(&self, name: &str, expected: &str) -> Result<&str, ConfigError> {
        let missing =
            || ConfigError::Missing { name: name.to_owned(), expected: expected.to_owned() };
        self.get(name).ok_or_else(missing)
    }

    /// The variable read by `parse`, whose error says what is wrong.
    ///
    /// # Errors
    ///
    /// If it is set and `parse` refuses it.
    pub fn parse_with<T, E: Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name)
            .map(|value| parse(value).map_err(|problem| ConfigError::invalid(name, value, problem)))
            .transpose()
    }

    /// The variable as a number, an address or anything else that can be read from text.
    ///
    /// # Errors
    ///
    /// If it is set and can't be read.
    pub fn parse<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        self.parse_with(name, str::parse)
    }

    /// The variable as a duration: see [`parse_duration`].
    ///
    /// # Errors
    ///
    /// If it is set and not a duration.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, ConfigError> {
        self.parse_with(name, parse_duration)
    }

    /// The variable as a number of bytes: see [`parse_bytes`].
    ///
    /// # Errors
    ///
    /// If it is set and not a size.
    pub fn bytes(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        self.parse_with(name, parse_bytes)
    }

    /// The variable as a switch: `true`/`1`/`yes`/`on` or `false`/`0`/`no`/`off`.
    ///
    /// # Errors
    ///
    /// If it is set and neither.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.parse_with(name, |value| match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("expected true or false"),
        })
    }

    /// The variable as a comma-separated list; entries are trimmed and empty ones dropped.
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
        assert_eq!(env.parse::<u16>("PORT"), Ok(Some(8080)));
        assert_eq!(env.parse::<u16>("EMPTY"), Ok(None));
        assert_eq!(env.parse::<u16>("UNSET"), Ok(None));
        assert_eq!(env.duration("WAIT"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(env.bytes("SIZE"), Ok(Some(4 << 20)));
        assert_eq!(env.bool("ON"), Ok(Some(true)));
        assert_eq!(env.list("LIST"), ["a", "b", "c"]);
        assert_eq!(env.required("PORT", "a port"), Ok("8080"));
        assert_eq!(env.iter().count(), 5);
    }

    #[test]
    fn errors_name_the_variable_and_keep_secrets() {
        let check = |error: ConfigError, name: &str, text: &str| {
            assert_eq!(error.variable(), name);
            assert_eq!(error.to_string(), text);
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
