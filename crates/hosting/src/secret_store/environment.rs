//! Secrets in the server's own environment.

use futures::future::BoxFuture;

use super::{SecretSource, SecretValue, SourceError};

/// The beginning of the variables' names.
const PREFIX: &str = "MCP_SECRET_";

/// The variables `MCP_SECRET_<NAME>`. A process's environment does not change, so these are never
/// rotated.
#[derive(Debug, Clone, Copy)]
pub struct EnvironmentSecrets;

impl SecretSource for EnvironmentSecrets {
    fn place(&self, name: &str) -> String {
        format!("the variable {}", variable_of(name))
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<SecretValue>, SourceError>> {
        // An empty variable counts as unset.
        let value = std::env::var(variable_of(name)).ok().filter(|value| !value.is_empty());
        Box::pin(async move { value.map(|value| SecretValue::new(&value)).transpose() })
    }
}

/// Returns the variable of a secret: `db-password` is in `MCP_SECRET_DB_PASSWORD`.
fn variable_of(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    format!("{PREFIX}{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

#[cfg(test)]
mod tests {
    use fleet_job::mcp_servers::expand::{is_secret_name, is_variable_name};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_in_upper_case_with_underscores() {
        assert_eq!(variable_of("db-password.v2"), "MCP_SECRET_DB_PASSWORD_V2");
    }

    proptest! {
        #[test]
        fn every_name_has_a_variable(name in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}") {
            prop_assert!(is_secret_name(&name));
            prop_assert!(is_variable_name(&variable_of(&name)));
        }
    }
}
