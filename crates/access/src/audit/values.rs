//! The `[audit]` table of the policy file: whose arguments have their values in the audit log.

use fleet_codes as codes;
use serde::Deserialize;

use super::Redaction;
use crate::{action::Action, pattern::Pattern, resource::Resource};

/// The `[audit]` table of the policy file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditTable {
    /// The calls whose arguments are recorded with their values.
    #[serde(default)]
    values: Vec<ValuesTable>,
    /// Members whose values are left out, as patterns for their names, beside those that usually
    /// hold secrets.
    #[serde(default)]
    redact: Vec<String>,
}

/// An `[[audit.values]]` table. Without lists, it covers all calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValuesTable {
    /// The hosted servers, as patterns. Our own tools belong to the server `""`.
    servers: Option<Vec<String>>,
    /// The tools, as patterns for their own names.
    tools: Option<Vec<String>>,
}

/// Why the `[audit]` table can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditTableError {
    /// A list is empty, so the table would cover nothing.
    #[error(
        "`{field}` of an [[audit.values]] is empty, so the table would never apply; list something, \
         or remove the field [{code}]",
        code = codes::POLICY_FILE
    )]
    Empty {
        /// The field.
        field: &'static str,
    },
}

/// The calls whose arguments are recorded with their values, and what is left out of them.
#[derive(Debug, Default)]
pub struct AuditedValues {
    covered: Vec<Covered>,
    redaction: Redaction,
}

#[derive(Debug)]
struct Covered {
    servers: Option<Vec<Pattern>>,
    tools: Option<Vec<Pattern>>,
}

impl AuditedValues {
    pub(crate) fn new(table: AuditTable) -> Result<Self, AuditTableError> {
        let covered = table.values.into_iter().map(Covered::new).collect::<Result<_, _>>()?;
        Ok(Self { covered, redaction: Redaction::new(&table.redact) })
    }

    /// What is left out of the arguments of a call of a tool, now or by a job; `None` if none of
    /// them are recorded. Jobs with calls of several tools have none.
    pub(crate) fn redaction(&self, action: Action, resource: &Resource<'_>) -> Option<&Redaction> {
        let is_call = matches!(action, Action::CallTool | Action::SubmitJob);
        let is_covered = is_call
            && resource.tool.is_some()
            && self.covered.iter().any(|covered| covered.matches(resource));
        is_covered.then_some(&self.redaction)
    }
}

impl Covered {
    fn new(table: ValuesTable) -> Result<Self, AuditTableError> {
        let patterns = |field, list: Option<Vec<String>>| match list {
            Some(list) if list.is_empty() => Err(AuditTableError::Empty { field }),
            list => Ok(list.as_deref().map(Pattern::list)),
        };
        Ok(Self {
            servers: patterns("servers", table.servers)?,
            tools: patterns("tools", table.tools)?,
        })
    }

    fn matches(&self, resource: &Resource<'_>) -> bool {
        let covers = |patterns: &Option<Vec<Pattern>>, text: Option<&str>| match patterns {
            None => true,
            Some(patterns) => {
                text.is_some_and(|text| patterns.iter().any(|pattern| pattern.matches(text)))
            }
        };
        covers(&self.servers, Some(resource.server.unwrap_or_default()))
            && covers(&self.tools, resource.tool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Annotations;

    fn read(text: &str) -> Result<AuditedValues, AuditTableError> {
        AuditedValues::new(toml::from_str(text).unwrap())
    }

    #[test]
    fn values_of_the_listed_calls_are_recorded() {
        let values = read("[[values]]\nservers = ['db']\ntools = ['query*']\n").unwrap();
        for (server, tool, is_covered) in [
            (Some("db"), "query", true),
            (Some("db"), "drop", false),
            (Some("other"), "query", false),
            (None, "query", false),
        ] {
            let resource = Resource::tool(server, tool, Annotations::default());
            let redaction = values.redaction(Action::CallTool, &resource);
            assert_eq!(redaction.is_some(), is_covered, "{server:?} {tool}");
        }

        let own = Resource::tool(None, "file_read", Annotations::default());
        let all = read("[[values]]\n").unwrap();
        assert!(read("").unwrap().redaction(Action::CallTool, &own).is_none());
        assert!(all.redaction(Action::SubmitJob, &own).is_some());
        // The configuration of a hosted server has secrets of its own.
        assert!(all.redaction(Action::AdministerServers, &own).is_none());
        assert!(all.redaction(Action::SubmitJob, &Resource::default()).is_none());
    }

    #[test]
    fn an_empty_list_is_refused() {
        for field in ["servers", "tools"] {
            let error = read(&format!("[[values]]\n{field} = []\n")).unwrap_err();
            assert_eq!(error, AuditTableError::Empty { field });
        }
    }
}
