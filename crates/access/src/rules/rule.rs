//! One compiled rule.

use std::{collections::HashSet, sync::Arc};

use super::{
    RuleEffect, RuleError, RuleTable, condition::Condition, explain::Applies, facts::Facts,
    selector::Selector,
};
use crate::{
    action::{Action, ActionSet},
    pattern::Pattern,
    principal::Principal,
    resource::Arguments,
};

const MAX_NAME_CHARS: usize = 100;
/// What stands between server and tool in the name that a tool is offered under.
const SEPARATOR: &str = "__";

/// The actions whose resource has a field; a rule with the field covers no others.
const ACTIONS_WITH: [(&str, &[&str]); 5] = [
    ("tools", &["tools.call", "jobs.submit", "servers.pins"]),
    ("prompts", &["prompts.get", "completions"]),
    ("resources", &["resources.read", "resources.subscribe", "completions"]),
    ("tenants", &["jobs.*", "dead-letters.*", "act-as"]),
    (
        "servers",
        &[
            "tools.call",
            "jobs.submit",
            "prompts.get",
            "resources.read",
            "resources.subscribe",
            "completions",
            "extensions.call",
            "servers.administer",
            "servers.pins",
        ],
    ),
];

/// A rule, ready to be applied.
#[derive(Debug)]
pub(super) struct Rule {
    /// Where it stands in the file.
    pub(super) number: usize,
    pub(super) name: Arc<str>,
    pub(super) effect: RuleEffect,
    pub(super) principals: Vec<Selector>,
    pub(super) actions: ActionSet,
    pub(super) servers: Option<Vec<Pattern>>,
    pub(super) tools: Option<Vec<Pattern>>,
    prompts: Option<Vec<Pattern>>,
    resources: Option<Vec<Pattern>>,
    tenants: Option<Vec<Pattern>>,
    pub(super) scopes: Vec<String>,
    condition: Option<Condition>,
}

/// Compiles rules, whose names must differ.
pub(super) fn compile_all(tables: Vec<RuleTable>) -> Result<Vec<Rule>, RuleError> {
    let mut names = HashSet::new();
    let mut rules = Vec::with_capacity(tables.len());

    for table in tables {
        if !names.insert(table.name.clone()) {
            return Err(RuleError::SameName { name: table.name });
        }
        rules.push(Rule::compile(rules.len(), table)?);
    }
    Ok(rules)
}

impl Rule {
    fn compile(number: usize, table: RuleTable) -> Result<Self, RuleError> {
        let name = &table.name;
        let is_name = (1..=MAX_NAME_CHARS).contains(&name.chars().count())
            && !name.contains(char::is_control)
            && !name.starts_with("default:");
        if !is_name {
            return Err(RuleError::Name { name: table.name });
        }

        check_lists(&table)?;
        let actions = read_actions(&table)?;
        check_fields(&table, actions)?;

        let selectors = table.principals.iter().map(|text| Selector::parse(text));
        let principals = selectors
            .collect::<Result<_, _>>()
            .map_err(|error| RuleError::Principal { name: name.clone(), error })?;

        let condition = table.when.as_deref().map(Condition::compile).transpose();
        let condition =
            condition.map_err(|error| RuleError::Condition { name: name.clone(), error })?;

        let patterns = |list: Option<Vec<String>>| list.as_deref().map(Pattern::list);
        Ok(Self {
            number,
            effect: table.effect,
            principals,
            actions,
            servers: patterns(table.servers),
            tools: patterns(table.tools),
            prompts: patterns(table.prompts),
            resources: patterns(table.resources),
            tenants: patterns(table.tenants),
            scopes: table.scopes,
            condition,
            name: table.name.into(),
        })
    }

    /// Returns whether the rule is about this principal and this action, whatever scopes the
    /// principal has.
    pub(super) fn covers(&self, principal: &Principal, action: Action) -> bool {
        self.actions.contains(action)
            && self.principals.iter().any(|selector| selector.covers(principal))
    }

    /// Returns whether the rule may be about a tool of this server, with this name if it is certain.
    pub(super) fn may_concern(&self, server: Option<&str>, tool: Option<&str>) -> bool {
        let matches = |patterns: &Option<Vec<Pattern>>, text: &str| {
            patterns.as_ref().is_none_or(|list| list.iter().any(|pattern| pattern.matches(text)))
        };
        matches(&self.servers, server.unwrap_or_default())
            && tool.is_none_or(|tool| matches(&self.tools, tool))
            && self.prompts.is_none()
            && self.resources.is_none()
            && self.tenants.is_none()
    }

    /// Returns whether a rule that may concern a tool applies to it whatever its arguments and hints
    /// are.
    pub(super) fn is_certain(&self, tool: Option<&str>) -> bool {
        (self.tools.is_none() || tool.is_some())
            && self.scopes.is_empty()
            && self.condition.is_none()
    }

    /// Returns whether the rule applies to whatever it covers, with every resource.
    pub(super) fn is_unconditional(&self) -> bool {
        let lists = [&self.servers, &self.tools, &self.prompts, &self.resources, &self.tenants];
        lists.iter().all(|list| list.is_none())
            && self.scopes.is_empty()
            && self.condition.is_none()
    }

    /// The strongest effect that the rule can have: a condition that fails denies.
    pub(super) fn strongest_effect(&self) -> RuleEffect {
        match self.effect {
            RuleEffect::Approve if self.condition.is_some() => RuleEffect::Deny,
            effect => effect,
        }
    }

    /// Returns the effect that the rule has; `None` if it does not apply.
    pub(super) fn effect_on(&self, action: Action, facts: &Facts<'_>) -> Option<RuleEffect> {
        match (self.applies(action, facts), self.effect) {
            (Applies::Yes, effect) => Some(effect),
            (Applies::ConditionFailed(_), RuleEffect::Approve | RuleEffect::Deny) => {
                Some(RuleEffect::Deny)
            }
            _ => None,
        }
    }

    /// Returns whether the rule applies, and why not if it doesn't.
    pub(super) fn applies(&self, action: Action, facts: &Facts<'_>) -> Applies {
        if let Some(other) = self.find_mismatch(action, facts) {
            return Applies::No(other);
        }
        if !self.scopes.iter().all(|scope| facts.principal.has_scope(scope)) {
            return Applies::No("scopes");
        }
        self.check_condition(facts)
    }

    /// All scopes of the rule, if nothing but some of them is missing for it to allow the action.
    pub(super) fn lacking_scopes(&self, action: Action, facts: &Facts<'_>) -> Option<&[String]> {
        let would_allow = self.effect != RuleEffect::Deny
            && self.find_mismatch(action, facts).is_none()
            && self.applies(action, facts) == Applies::No("scopes")
            && self.check_condition(facts) == Applies::Yes;
        would_allow.then_some(&*self.scopes)
    }

    /// The first field that does not cover the action; `None` if all do.
    fn find_mismatch(&self, action: Action, facts: &Facts<'_>) -> Option<&'static str> {
        let resource = facts.resource;
        let covers = |patterns: &Option<Vec<Pattern>>, text: Option<&str>| match patterns {
            None => true,
            Some(patterns) => {
                text.is_some_and(|text| patterns.iter().any(|pattern| pattern.matches(text)))
            }
        };

        if !self.actions.contains(action) {
            return Some("actions");
        }
        if !self.principals.iter().any(|selector| selector.covers(facts.principal)) {
            return Some("principals");
        }
        if !covers(&self.tools, resource.tool) {
            return Some("tools");
        }
        if !covers(&self.servers, Some(resource.server.unwrap_or_default())) {
            return Some("servers");
        }
        if !covers(&self.prompts, resource.prompt) {
            return Some("prompts");
        }
        if !covers(&self.resources, resource.uri) {
            return Some("resources");
        }
        (!self.covers_tenant(action, facts)).then_some("tenants")
    }

    /// Returns whether the rule covers the tenant that the action is about. Without `tenants`, an
    /// `allow` stays within the principal's own.
    fn covers_tenant(&self, action: Action, facts: &Facts<'_>) -> bool {
        let tenant = facts.tenant_of(action);
        match (&self.tenants, tenant) {
            (Some(_), None) => false,
            (Some(patterns), Some(tenant)) => {
                patterns.iter().any(|pattern| pattern.matches(tenant))
            }
            (None, Some(tenant)) if self.effect == RuleEffect::Allow => {
                tenant == facts.principal.tenant.as_deref().unwrap_or_default()
            }
            (None, _) => true,
        }
    }

    fn check_condition(&self, facts: &Facts<'_>) -> Applies {
        let Some(condition) = &self.condition else {
            return Applies::Yes;
        };
        if condition.uses_arguments() && matches!(facts.arguments, Arguments::NotYetKnown) {
            return match self.effect {
                RuleEffect::Allow | RuleEffect::Approve => Applies::Yes,
                RuleEffect::Deny => Applies::No("when"),
            };
        }

        match condition.evaluate(facts) {
            Ok(true) => Applies::Yes,
            Ok(false) => Applies::No("when"),
            Err(error) => Applies::ConditionFailed(error),
        }
    }
}

/// Refuses lists with which a rule would never apply.
fn check_lists(table: &RuleTable) -> Result<(), RuleError> {
    let is_empty = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
    let empty = [
        ("principals", table.principals.is_empty(), "rule"),
        ("actions", table.actions.is_empty(), "rule"),
        ("servers", is_empty(&table.servers), "field"),
        ("tools", is_empty(&table.tools), "field"),
        ("prompts", is_empty(&table.prompts), "field"),
        ("resources", is_empty(&table.resources), "field"),
        ("tenants", is_empty(&table.tenants), "field"),
    ];

    if let Some((field, _, what)) = empty.into_iter().find(|(_, is_empty, _)| *is_empty) {
        return Err(RuleError::Empty { name: table.name.clone(), field, what });
    }

    match table.tools.iter().flatten().find(|tool| tool.contains(SEPARATOR)) {
        Some(tool) => Err(RuleError::OfferedName { name: table.name.clone(), tool: tool.clone() }),
        None => Ok(()),
    }
}

fn read_actions(table: &RuleTable) -> Result<ActionSet, RuleError> {
    table.actions.iter().try_fold(ActionSet::default(), |actions, pattern| {
        let matching = ActionSet::matching(pattern);
        if matching.is_empty() {
            let known: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
            return Err(RuleError::Action {
                name: table.name.clone(),
                pattern: pattern.clone(),
                known: known.join(", "),
            });
        }
        Ok(actions.union(matching))
    })
}

/// Refuses a field that none of the rule's actions has.
fn check_fields(table: &RuleTable, actions: ActionSet) -> Result<(), RuleError> {
    for (field, patterns) in ACTIONS_WITH {
        let list = match field {
            "tools" => &table.tools,
            "prompts" => &table.prompts,
            "resources" => &table.resources,
            "tenants" => &table.tenants,
            _ => &table.servers,
        };
        let having = patterns
            .iter()
            .fold(ActionSet::default(), |set, pattern| set.union(ActionSet::matching(pattern)));
        if list.is_some() && !actions.iter().any(|action| having.contains(action)) {
            return Err(RuleError::FieldOfOtherActions { name: table.name.clone(), field });
        }
    }
    Ok(())
}
