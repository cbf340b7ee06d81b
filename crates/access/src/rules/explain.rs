//! Explaining a decision to a person.

use std::sync::Arc;

use super::{Decision, RuleEffect, Rules, facts::Facts};
use crate::{
    action::Action,
    principal::Principal,
    resource::{Context, Resource},
};

/// A decision with everything that had a part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What was decided.
    pub decision: Decision,
    /// The rules that cover the principal and the action, in the order of the file.
    pub rules: Vec<RuleMatch>,
}

/// A rule, and whether it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMatch {
    /// The rule's name.
    pub name: Arc<str>,
    /// What it does.
    pub effect: RuleEffect,
    /// Whether it applies.
    pub applies: Applies,
}

/// Whether a rule applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applies {
    /// It does.
    Yes,
    /// It does not, because of this field.
    No(&'static str),
    /// Its condition could not be evaluated, for this reason. An `allow` does not apply then, and
    /// `approve` and `deny` deny.
    ConditionFailed(String),
}

impl Rules {
    /// Decides as [`Rules::decide`] does, and says which rules had a part in it. Looks at every
    /// rule, so it is for people.
    pub fn explain(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Explanation {
        let facts = Facts::new(principal, resource, context, self.trusts_annotations(resource));
        let matches = self.rules.iter().filter_map(|rule| {
            let applies = rule.applies(action, &facts);
            let is_relevant = !matches!(applies, Applies::No("actions" | "principals"));
            is_relevant.then(|| RuleMatch {
                name: Arc::clone(&rule.name),
                effect: rule.effect,
                applies,
            })
        });

        Explanation {
            rules: matches.collect(),
            decision: self.decide(principal, action, resource, context),
        }
    }
}
