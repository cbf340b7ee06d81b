//! librdkafka properties that are passed through from the environment.

use std::collections::BTreeMap;

use super::{ConfigError, Env};

/// The prefix of variables that are passed through to librdkafka.
pub const KAFKA_PREFIX: &str = "KAFKA_PROPERTY_";

impl Env {
    /// Returns the librdkafka properties that the environment sets.
    ///
    /// `KAFKA_PROPERTY_SECURITY_PROTOCOL=ssl` becomes `security.protocol=ssl`: the rest of the name
    /// in lower case, with a dot for each `_`. librdkafka's property names consist of letters,
    /// digits and dots. The only text properties with an underscore are `log_level` and
    /// `enabled_events`; for those, write `__` for `_` (`KAFKA_PROPERTY_LOG__LEVEL`). This function
    /// does not check whether a property exists or may be set.
    ///
    /// # Errors
    ///
    /// Returns an error if a name is empty or malformed, or if two variables set the same property.
    pub fn kafka_properties(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut properties = BTreeMap::new();
        for (variable, value) in self.iter() {
            let Some(rest) = variable.strip_prefix(KAFKA_PREFIX) else { continue };
            let property = property_name(rest).ok_or_else(|| {
                ConfigError::invalid(
                    variable,
                    value,
                    "the part after KAFKA_PROPERTY_ is not a property name; expected for example SECURITY_PROTOCOL",
                )
            })?;

            if properties.insert(property.clone(), value.to_owned()).is_some() {
                let problem = format!("another variable also sets {property}; remove one of them");
                return Err(ConfigError::invalid(variable, value, problem));
            }
        }
        Ok(properties)
    }
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
}
