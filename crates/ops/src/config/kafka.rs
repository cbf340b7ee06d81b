//! librdkafka properties that are passed through from the environment.

use std::{collections::BTreeMap, path::Path};

use super::{ConfigError, Env, read_secret_text};

/// The prefix of variables that are passed through to librdkafka.
pub const KAFKA_PREFIX: &str = "KAFKA_PROPERTY_";

/// The ending of variables that name a file with the value.
const FILE_SUFFIX: &str = ".file";

/// The properties whose value may be in a file: those that hold a secret, and the user name, which
/// Secrets have beside the password. None of them is a property of librdkafka once `.file` is added
/// to its name, so properties such as `sasl.oauthbearer.assertion.private.key.file` keep their
/// meaning.
const FROM_FILES: [&str; 14] = [
    "sasl.username",
    "sasl.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.client.credentials.client.id",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.certificate.pem",
    "ssl.ca.pem",
    "ssl.keystore.password",
];

impl Env {
    /// Returns the librdkafka properties that the environment sets.
    ///
    /// `KAFKA_PROPERTY_SECURITY_PROTOCOL=ssl` becomes `security.protocol=ssl`: the rest of the name
    /// in lower case, with a dot for each `_`. librdkafka's property names consist of letters,
    /// digits and dots. The only text properties with an underscore are `log_level` and
    /// `enabled_events`; for those, write `__` for `_` (`KAFKA_PROPERTY_LOG__LEVEL`). This function
    /// does not check whether a property exists or may be set.
    ///
    /// Secrets may be in files: `KAFKA_PROPERTY_SASL_PASSWORD_FILE` names the file with
    /// `sasl.password`. It is read now, unless the property itself is set.
    ///
    /// # Errors
    ///
    /// Returns an error if a name is empty or malformed, if two variables set the same property, or
    /// if a file can't be read.
    pub fn kafka_properties(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut properties = BTreeMap::new();
        let mut files = BTreeMap::new();
        for (variable, value) in self.iter() {
            let Some(rest) = variable.strip_prefix(KAFKA_PREFIX) else { continue };
            let property = property_name(rest).ok_or_else(|| {
                ConfigError::invalid(
                    variable,
                    value,
                    "the part after KAFKA_PROPERTY_ is not a property name; expected for example SECURITY_PROTOCOL",
                )
            })?;

            let (set_by, property) = match property_in_file(&property) {
                Some(secret) => (&mut files, secret.to_owned()),
                None => (&mut properties, property),
            };
            if set_by.contains_key(&property) {
                let problem = format!("another variable also sets {property}; remove one of them");
                return Err(ConfigError::invalid(variable, value, problem));
            }
            set_by.insert(property, (variable, value));
        }

        let mut values: BTreeMap<_, _> =
            properties.into_iter().map(|(name, (_, value))| (name, value.to_owned())).collect();
        for (property, (variable, path)) in files {
            if values.contains_key(&property) {
                continue;
            }
            let secret = read_secret_text(Path::new(path))
                .map_err(|error| ConfigError::File { name: variable.to_owned(), error })?;
            values.insert(property, secret);
        }
        Ok(values)
    }
}

/// Returns the property whose value is in the file that this one names.
fn property_in_file(property: &str) -> Option<&str> {
    property.strip_suffix(FILE_SUFFIX).filter(|secret| FROM_FILES.contains(secret))
}

fn property_name(rest: &str) -> Option<String> {
    let words: Vec<String> =
        rest.split("__").map(|part| part.to_ascii_lowercase().replace('_', ".")).collect();
    let name = words.join("_");
    let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && !name.contains("..")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
    well_formed.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        let check = |variable: &str, property: Option<&str>| {
            let found = Env::of([(variable, "x"), ("KAFKA_TOPIC", "t")]).kafka_properties();
            match property {
                Some(property) => assert_eq!(found.unwrap().keys().collect::<Vec<_>>(), [property]),
                None => assert_eq!(found.unwrap_err().variable(), variable),
            }
        };
        check("KAFKA_PROPERTY_SECURITY_PROTOCOL", Some("security.protocol"));
        check("KAFKA_PROPERTY_SSL_KEY_LOCATION", Some("ssl.key.location"));
        check(
            "KAFKA_PROPERTY_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL",
            Some("sasl.oauthbearer.token.endpoint.url"),
        );
        check("KAFKA_PROPERTY_LOG__LEVEL", Some("log_level"));
        check("KAFKA_PROPERTY_", None);
        check("KAFKA_PROPERTY__X", None);
        check("KAFKA_PROPERTY_X_", None);
        check("KAFKA_PROPERTY_A B", None);
    }

    #[test]
    fn empty_values_are_skipped_and_duplicates_rejected() {
        let env = Env::of([("KAFKA_PROPERTY_SASL_PASSWORD", "")]);
        assert!(env.kafka_properties().unwrap().is_empty());
        let twins = Env::of([("KAFKA_PROPERTY_CLIENT_ID", "a"), ("KAFKA_PROPERTY_client_id", "b")]);
        assert!(twins.kafka_properties().unwrap_err().to_string().contains("client.id"));
    }

    #[test]
    fn a_secret_may_be_in_a_file_and_its_variable_goes_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "two words\n").unwrap();
        let file = file.to_str().unwrap();
        let check = |variables: &[(&str, &str)], expected: &[(&str, &str)]| {
            let found = Env::of(variables.iter().copied()).kafka_properties().unwrap();
            let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(found, expected);
        };

        let named = ("KAFKA_PROPERTY_SASL_PASSWORD_FILE", file);
        check(&[named], &[("sasl.password", "two words")]);
        check(&[named, ("KAFKA_PROPERTY_SASL_PASSWORD", "")], &[("sasl.password", "two words")]);
        check(&[named, ("KAFKA_PROPERTY_SASL_PASSWORD", "x")], &[("sasl.password", "x")]);
        check(&[("KAFKA_PROPERTY_SASL_PASSWORD_FILE", "")], &[]);

        // librdkafka's own properties about files.
        let own = "sasl.oauthbearer.assertion.private.key.file";
        check(
            &[("KAFKA_PROPERTY_SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE", file)],
            &[(own, file)],
        );
        check(&[("KAFKA_PROPERTY_CLIENT_ID_FILE", file)], &[("client.id.file", file)]);

        let missing = Env::of([("KAFKA_PROPERTY_SSL_KEY_PASSWORD_FILE", "/nowhere/secret")]);
        let error = missing.kafka_properties().unwrap_err();
        assert_eq!(error.variable(), "KAFKA_PROPERTY_SSL_KEY_PASSWORD_FILE");
        assert!(crate::errors::chain(&error).contains("/nowhere/secret"), "{error}");
    }

    #[test]
    fn every_property_in_a_file_is_found_by_its_variable() {
        for property in FROM_FILES {
            let variable = format!("{property}.file");
            assert_eq!(property_in_file(&variable), Some(property));
            assert_eq!(property_in_file(property), None);
        }
    }
}
