//! Which rules may apply, found without looking at all of them.
//!
//! Most rules name roles, tenants, subjects or keys in full, and many name tools or servers. They
//! are found by these names; all others are looked at every time. The index only narrows: a rule
//! that it finds is still applied as a whole.

use std::collections::HashMap;

use super::{rule::Rule, selector::Selector};
use crate::{
    action::Action,
    pattern::Pattern,
    principal::{Principal, Via},
    resource::Resource,
};

/// The rules of each action.
#[derive(Debug, Default)]
pub(super) struct Index(Vec<ActionIndex>);

/// The rules of one action, by whom they cover.
#[derive(Debug, Default, Clone)]
struct ActionIndex {
    by_role: HashMap<Box<str>, Bucket>,
    by_tenant: HashMap<Box<str>, Bucket>,
    by_subject: HashMap<Box<str>, Bucket>,
    by_key: HashMap<Box<str>, Bucket>,
    others: Bucket,
}

/// Rules by what they cover.
#[derive(Debug, Default, Clone)]
struct Bucket {
    by_tool: HashMap<Box<str>, Vec<usize>>,
    by_server: HashMap<Box<str>, Vec<usize>>,
    others: Vec<usize>,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut actions = vec![ActionIndex::default(); Action::ALL.len()];
        for (number, rule) in rules.iter().enumerate() {
            for action in rule.actions.iter() {
                actions[action as usize].insert(number, rule);
            }
        }
        Self(actions)
    }

    /// The rules that may apply, in no order; some of them may come twice.
    pub(super) fn candidates<'a>(
        &'a self,
        principal: &'a Principal,
        action: Action,
        resource: &'a Resource<'a>,
    ) -> impl Iterator<Item = usize> + 'a {
        let index = self.0.get(action as usize).into_iter();
        index
            .flat_map(|index| index.buckets(principal))
            .flat_map(|bucket| bucket.candidates(resource))
    }
}

impl ActionIndex {
    fn insert(&mut self, number: usize, rule: &Rule) {
        let is_named = |selector: &Selector| match selector {
            Selector::Role(pattern)
            | Selector::Tenant(pattern)
            | Selector::Subject(pattern)
            | Selector::Key(pattern) => pattern.literal().is_some(),
            _ => false,
        };
        if !rule.principals.iter().all(is_named) {
            self.others.insert(number, rule);
            return;
        }

        for selector in &rule.principals {
            let (map, pattern) = match selector {
                Selector::Role(pattern) => (&mut self.by_role, pattern),
                Selector::Tenant(pattern) => (&mut self.by_tenant, pattern),
                Selector::Subject(pattern) => (&mut self.by_subject, pattern),
                Selector::Key(pattern) => (&mut self.by_key, pattern),
                _ => continue,
            };
            if let Some(name) = pattern.literal() {
                map.entry(name.into()).or_default().insert(number, rule);
            }
        }
    }

    fn buckets<'a>(&'a self, principal: &'a Principal) -> impl Iterator<Item = &'a Bucket> + 'a {
        let key = match &principal.via {
            Via::Key { id } => Some(id.as_str()),
            _ => None,
        };
        let roles = principal.roles.iter().filter_map(|role| self.by_role.get(role.as_str()));

        roles
            .chain(principal.tenant.as_deref().and_then(|tenant| self.by_tenant.get(tenant)))
            .chain(self.by_subject.get(principal.subject.as_str()))
            .chain(key.and_then(|key| self.by_key.get(key)))
            .chain([&self.others])
    }
}

impl Bucket {
    fn insert(&mut self, number: usize, rule: &Rule) {
        if let Some(tools) = literals(rule.tools.as_deref()) {
            insert_each(&mut self.by_tool, tools, number);
        } else if let Some(servers) = literals(rule.servers.as_deref()) {
            insert_each(&mut self.by_server, servers, number);
        } else {
            self.others.push(number);
        }
    }

    fn candidates<'a>(&'a self, resource: &'a Resource<'a>) -> impl Iterator<Item = usize> + 'a {
        let by_tool = resource.tool.and_then(|tool| self.by_tool.get(tool));
        let by_server = self.by_server.get(resource.server.unwrap_or_default());
        let named = by_tool.into_iter().chain(by_server).flatten();
        named.chain(&self.others).copied()
    }
}

/// The texts of patterns, if there are patterns and all of them are plain texts.
fn literals(patterns: Option<&[Pattern]>) -> Option<Vec<&str>> {
    patterns?.iter().map(Pattern::literal).collect()
}

fn insert_each(map: &mut HashMap<Box<str>, Vec<usize>>, names: Vec<&str>, number: usize) {
    for name in names {
        map.entry(name.into()).or_default().push(number);
    }
}
