//! Decisions: what was decided, and by which rule.

use std::sync::Arc;

use fleet_codes::{self as codes, Code};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{builtin::Builtin, rule::Rule};
use crate::challenge::Challenge;

/// What a rule does with the actions that it covers, the weakest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RuleEffect {
    /// The action may be done.
    Allow,
    /// The action may be done when another principal has approved it.
    Approve,
    /// The action may not be done.
    Deny,
}

impl RuleEffect {
    /// The effect as it is written in rules and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }
}

/// A decision, and the rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What was decided.
    pub verdict: RuleEffect,
    /// The rule that decided.
    pub rule: RuleName,
    /// All scopes that the operation needs, if it was denied only because some of them are missing.
    pub scopes: Vec<String>,
}

/// The name of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleName {
    /// One of the policy file.
    File(Arc<str>),
    /// One that always holds.
    Builtin(&'static str),
}

impl RuleName {
    /// The name as it stands in records and answers. Built-in rules begin with `default:`, which
    /// rules of the file can't.
    pub fn as_str(&self) -> &str {
        match self {
            Self::File(name) => name,
            Self::Builtin(name) => name,
        }
    }
}

impl Decision {
    pub(super) fn by_rule(verdict: RuleEffect, rule: &Rule) -> Self {
        Self { verdict, rule: RuleName::File(Arc::clone(&rule.name)), scopes: Vec::new() }
    }

    pub(super) fn builtin(verdict: RuleEffect, rule: Builtin) -> Self {
        Self { verdict, rule: RuleName::Builtin(rule.as_str()), scopes: Vec::new() }
    }

    pub(super) fn lacking(scopes: &[String]) -> Self {
        let denied = Self::builtin(RuleEffect::Deny, Builtin::MissingScope);
        Self { scopes: scopes.to_vec(), ..denied }
    }

    /// Returns whether the action may be done now.
    pub fn is_allowed(&self) -> bool {
        self.verdict == RuleEffect::Allow
    }

    /// Returns whether a list may show what the action is about.
    pub fn is_visible(&self) -> bool {
        self.verdict != RuleEffect::Deny
    }

    /// The stable code of the refusal; `None` if the action is allowed.
    pub fn code(&self) -> Option<Code> {
        match self.verdict {
            RuleEffect::Allow => None,
            RuleEffect::Approve => Some(codes::APPROVAL_REQUIRED),
            RuleEffect::Deny if self.scopes.is_empty() => Some(codes::DENIED),
            RuleEffect::Deny => Some(codes::INSUFFICIENT_SCOPE),
        }
    }

    /// What `data.reason` of the answer says, which decides what becomes of a job; `None` if the
    /// action is allowed.
    pub fn reason(&self) -> Option<&'static str> {
        match self.verdict {
            RuleEffect::Allow => None,
            RuleEffect::Approve => Some("approval-required"),
            RuleEffect::Deny => Some("denied"),
        }
    }

    /// Says to the caller why the action was refused; `None` if it is allowed.
    pub fn message(&self, action: &str) -> Option<String> {
        let code = self.code()?;
        let rule = self.rule.as_str();
        let text = match self.verdict {
            RuleEffect::Allow => return None,
            RuleEffect::Approve => {
                format!("{action} needs the approval of another principal (rule {rule})")
            }
            RuleEffect::Deny if self.scopes.is_empty() => {
                format!("{action} is not allowed for this principal (rule {rule})")
            }
            RuleEffect::Deny => format!(
                "{action} needs an access token with all of these scopes: {}",
                self.scopes.join(", ")
            ),
        };
        Some(format!("{text} [{code}]"))
    }

    /// The value of `WWW-Authenticate` if a token with more scopes would help: it names all of
    /// them at once.
    pub fn challenge(&self, resource_metadata: Option<&str>) -> Option<Challenge> {
        let is_lacking = !self.scopes.is_empty();
        is_lacking.then(|| Challenge::of_scopes(self.scopes.clone(), resource_metadata))
    }
}
