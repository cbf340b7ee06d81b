//! The `[access]` and `[[rule]]` tables of the policy file.

use serde::Deserialize;

use super::RuleEffect;

/// The `[access]` table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessTable {
    /// What principals may do without a rule.
    #[serde(default)]
    pub default: DefaultAccess,
}

/// What principals may do without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DefaultAccess {
    /// What changes nothing.
    #[default]
    ReadOnly,
    /// Nothing but the handshake, lists of what rules allow, and their own jobs.
    Deny,
}

/// A `[[rule]]`. A field that is missing covers everything, except that an `allow` without
/// `tenants` covers jobs of the principal's own tenant only.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleTable {
    /// The rule's name, which decisions and audit records carry. Unique.
    pub name: String,
    /// What the rule does.
    pub effect: RuleEffect,
    /// Whom it covers: `anyone`, or some of `role:…`, `tenant:…`, `subject:…`, `issuer:…`, `key:…`,
    /// `kind:…` and `id:…`.
    pub principals: Vec<String>,
    /// What it covers, as patterns for the names of actions.
    pub actions: Vec<String>,
    /// The hosted servers, as patterns. Our own tools belong to the server `""`.
    pub servers: Option<Vec<String>>,
    /// The tools, as patterns for their own names.
    pub tools: Option<Vec<String>>,
    /// The prompts, as patterns.
    pub prompts: Option<Vec<String>>,
    /// The resources, as patterns for their URIs.
    pub resources: Option<Vec<String>>,
    /// The tenants of the jobs, as patterns. A job without a tenant belongs to the tenant `""`.
    pub tenants: Option<Vec<String>>,
    /// Scopes that the principal must have, all of them.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// A condition in CEL over `principal`, `resource`, `annotations` and `args`.
    pub when: Option<String>,
}
