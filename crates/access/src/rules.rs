//! Rules: what principals may do.
//!
//! [`Rules::decide`] is the one decision of the fleet. Its rules come from the `[[rule]]` tables of
//! the policy file:
//!
//! - `deny` wins over `approve`, and `approve` over `allow`; the order of the rules is no matter.
//! - An `allow` covers jobs of the principal's own tenant only, unless it names `tenants`. `deny`
//!   and `approve` without `tenants` cover all.
//! - A condition that can't be evaluated never opens anything: `allow` does not apply then, and
//!   `deny` and `approve` deny.
//! - Without a rule, a principal may do what changes nothing: take part in the protocol, list, read
//!   prompts and resources, call tools that say `readOnlyHint` (a hosted server's hints count only
//!   where it has `trust_annotations = true`), and see, answer and cancel its own jobs.
//!   `[access] default = "deny"` leaves only the handshake, lists (which show what rules allow) and
//!   a principal's own jobs.
//! - The keys of a fleet itself, which have a [`FleetRole`], may do what that role is for.
//! - The local principal and the anonymous one may do everything that no rule denies, except with
//!   jobs that were submitted with credentials, which a proxy may send.

mod builtin;
mod condition;
mod decision;
mod error;
mod explain;
mod facts;
mod index;
mod rule;
mod selector;
mod table;

pub use condition::ConditionError;
pub use decision::{Decision, RuleEffect, RuleName};
pub use error::RuleError;
pub use explain::{Applies, Explanation, RuleMatch};
pub(crate) use selector::Selector;
pub use selector::SelectorError;
pub(crate) use table::{AccessTable, RuleTable};

use crate::{
    action::Action,
    fleet_role::{FleetRole, JobRights},
    pattern::Pattern,
    principal::Principal,
    resource::{Context, Resource},
};
use builtin::{Builtin, Defaults};
use facts::Facts;
use index::Index;
use rule::Rule;

/// Begins the names of views, and of their rules, where decisions name what decided.
pub(crate) const OF_VIEWS: &str = "view:";

/// The rules of a policy file. Replaced as a whole when the file changes.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    index: Index,
    default: Defaults,
    /// The hosted servers whose annotations count.
    trusted_servers: Vec<Pattern>,
}

impl Rules {
    /// Compiles rules. `trusted_servers` are patterns for hosted servers whose annotations count.
    ///
    /// # Errors
    ///
    /// Returns an error that names the rule, the field and what to do.
    pub(crate) fn new(
        access: AccessTable,
        rules: Vec<RuleTable>,
        trusted_servers: &[String],
    ) -> Result<Self, RuleError> {
        if let Some(rule) = rules.iter().find(|rule| rule.name.starts_with(OF_VIEWS)) {
            return Err(RuleError::Name { name: rule.name.clone() });
        }
        Self::compile(access, rules, trusted_servers)
    }

    /// Compiles the rules of a view, whose names begin with [`OF_VIEWS`].
    pub(crate) fn of_view(
        rules: Vec<RuleTable>,
        trusted_servers: &[String],
    ) -> Result<Self, RuleError> {
        Self::compile(AccessTable::default(), rules, trusted_servers)
    }

    fn compile(
        access: AccessTable,
        rules: Vec<RuleTable>,
        trusted_servers: &[String],
    ) -> Result<Self, RuleError> {
        let rules = rule::compile_all(rules)?;
        Ok(Self {
            index: Index::new(&rules),
            rules,
            default: Defaults { access: access.default, jobs: JobRights::OfWorkers },
            trusted_servers: Pattern::list(trusted_servers),
        })
    }

    /// The same rules, where jobs run with these rights.
    #[must_use]
    pub fn with_job_rights(mut self, jobs: JobRights) -> Self {
        self.default.jobs = jobs;
        self
    }

    /// Decides whether a principal may do something.
    pub fn decide(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Decision {
        if action == Action::Unknown {
            return Decision::builtin(RuleEffect::Deny, Builtin::UnknownOperation);
        }

        self.decide_by_rules(principal, action, resource, context).unwrap_or_else(|| {
            let facts = Facts::new(principal, resource, context, self.trusts_annotations(resource));
            self.decide_without_rule(principal, action, resource, &facts)
        })
    }

    /// Decides by the rules of the file alone; `None` if none applies.
    pub(crate) fn decide_by_rules(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        if self.rules.is_empty() {
            return None;
        }
        let facts = Facts::new(principal, resource, context, self.trusts_annotations(resource));
        let candidates = self.index.candidates(principal, action, resource);
        let strongest = find_strongest(candidates.map(|rule| &self.rules[rule]), action, &facts);
        strongest.map(|(effect, rule)| Decision::by_rule(effect, rule))
    }

    /// Returns whether a rule denies an action to a principal, whatever it is about.
    pub(crate) fn always_denies(&self, principal: &Principal, action: Action) -> bool {
        self.rules.iter().any(|rule| {
            rule.effect == RuleEffect::Deny
                && rule.is_unconditional()
                && rule.covers(principal, action)
        })
    }

    /// Whether some resource exists with which a principal may do something, as far as can be told
    /// from the action alone. `false` is certain, `true` is not.
    pub fn may_ever(&self, principal: &Principal, action: Action) -> bool {
        let covering = || self.rules.iter().filter(|rule| rule.covers(principal, action));
        let is_denied = self.always_denies(principal, action);
        let is_allowed = covering().any(|rule| rule.effect != RuleEffect::Deny)
            || builtin::allow_ever(principal, action, self.default);
        is_allowed && !is_denied
    }

    /// Whether a principal could be allowed to call a tool, as far as can be told before the tool is
    /// known: from its server and its name, or from its server alone if its name is not certain.
    /// `false` is certain, `true` is not.
    pub fn could_call(
        &self,
        principal: &Principal,
        server: Option<&str>,
        tool: Option<&str>,
    ) -> bool {
        let action = Action::CallTool;
        let about = || {
            self.rules.iter().filter(move |rule| {
                rule.covers(principal, action) && rule.may_concern(server, tool)
            })
        };
        let is_denied =
            about().any(|rule| rule.effect == RuleEffect::Deny && rule.is_certain(tool));
        let whole = Resource { server, ..Resource::default() };
        let is_allowed = about().any(|rule| rule.effect != RuleEffect::Deny)
            || !principal.is_verified()
            || FleetRole::that_allows(principal, action, self.default.jobs).is_some()
            || (self.trusts_annotations(&whole)
                && builtin::allow_ever(principal, action, self.default));
        is_allowed && !is_denied
    }

    /// What holds if no rule applies.
    fn decide_without_rule(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        facts: &Facts<'_>,
    ) -> Decision {
        if let Some(builtin) = builtin::allow(principal, action, resource, self.default, facts) {
            return Decision::builtin(RuleEffect::Allow, builtin);
        }

        let candidates = self.index.candidates(principal, action, resource);
        let lacking = candidates.map(|rule| &self.rules[rule]).filter_map(|rule| {
            let scopes = rule.lacking_scopes(action, facts)?;
            Some((rule.number, scopes))
        });
        match lacking.min_by_key(|(number, _)| *number) {
            Some((_, scopes)) => Decision::lacking(scopes),
            None => Decision::builtin(RuleEffect::Deny, Builtin::NoRule),
        }
    }

    /// Returns whether the annotations of a resource count.
    pub fn trusts_annotations(&self, resource: &Resource<'_>) -> bool {
        match resource.server {
            None => true,
            Some(server) => self.trusted_servers.iter().any(|pattern| pattern.matches(server)),
        }
    }

    /// All scopes that rules require, sorted: those that a client may ask for.
    pub fn scopes(&self) -> Vec<String> {
        let mut scopes: Vec<_> =
            self.rules.iter().flat_map(|rule| rule.scopes.iter().cloned()).collect();
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Returns whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// The rule with the strongest effect, and that effect; of several, the first in the file. `None` if
/// none applies.
fn find_strongest<'r>(
    candidates: impl Iterator<Item = &'r Rule>,
    action: Action,
    facts: &Facts<'_>,
) -> Option<(RuleEffect, &'r Rule)> {
    let mut strongest: Option<(RuleEffect, &Rule)> = None;

    for rule in candidates {
        let would_win = |effect: RuleEffect| {
            strongest.is_none_or(|(before, first)| {
                effect > before || (effect == before && rule.number < first.number)
            })
        };
        // Most rules can't change the outcome any more, and their conditions need not be evaluated.
        if !would_win(rule.strongest_effect()) {
            continue;
        }
        if let Some(effect) = rule.effect_on(action, facts).filter(|effect| would_win(*effect)) {
            strongest = Some((effect, rule));
        }
    }
    strongest
}

#[cfg(test)]
mod tests;
