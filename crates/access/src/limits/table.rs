//! The `[[limit]]` tables of the policy file.

use std::{
    collections::HashSet,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use fleet_codes as codes;
use serde::Deserialize;

use super::{LimitKey, LimitedCall, gcra::Rate};
use crate::{
    action::ActionSet,
    pattern::Pattern,
    rules::{Selector, SelectorError},
};

/// A `[[limit]]` of the policy file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitTable {
    /// The limit's name, which refusals carry. Unique.
    pub name: String,
    /// What is counted separately.
    pub per: LimitedBy,
    /// Whom it covers, as in a `[[rule]]`; everybody if there are none.
    pub principals: Option<Vec<String>>,
    /// What it covers; calls of tools if there is nothing.
    pub actions: Option<Vec<String>>,
    /// The hosted servers, as patterns. Our own tools belong to the server `""`.
    pub servers: Option<Vec<String>>,
    /// The tools, as patterns for their own names.
    pub tools: Option<Vec<String>>,
    /// How many calls may be made, such as `600/min`.
    pub rate: Option<String>,
    /// How many of them may come at once; all of `rate` if there is none.
    pub burst: Option<NonZeroU64>,
    /// How many calls may run at once.
    pub concurrency: Option<NonZeroU32>,
    /// How many bytes of requests may come, such as `50MB/min`.
    pub bytes: Option<String>,
}

/// What a limit counts separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LimitedBy {
    /// Each principal.
    Principal,
    /// Each tenant. Principals without one are not covered.
    Tenant,
    /// Each tool of each server, whoever calls it.
    Tool,
    /// Each tool of each server, for each principal.
    PrincipalTool,
}

/// Why a `[[limit]]` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitTableError {
    /// The name is empty.
    #[error("a [[limit]] has an empty `name`; give it one [{code}]", code = codes::POLICY_FILE)]
    Name,
    /// Two limits have one name.
    #[error("two [[limit]] have the name {name:?}; rename one [{code}]", code = codes::POLICY_FILE)]
    SameName {
        /// The name.
        name: String,
    },
    /// It limits nothing.
    #[error(
        "the [[limit]] {name:?} has none of `rate`, `concurrency` and `bytes`; add one, or remove \
         the limit [{code}]",
        code = codes::POLICY_FILE
    )]
    NoLimit {
        /// The limit.
        name: String,
    },
    /// A burst without a rate.
    #[error("the [[limit]] {name:?} has `burst` but no `rate`; add one [{code}]", code = codes::POLICY_FILE)]
    BurstWithoutRate {
        /// The limit.
        name: String,
    },
    /// A list is empty, so the limit would cover nothing.
    #[error(
        "`{field}` of the [[limit]] {name:?} is empty, so the limit would never apply; list \
         something, or remove the field [{code}]",
        code = codes::POLICY_FILE
    )]
    Empty {
        /// The limit.
        name: String,
        /// The field.
        field: &'static str,
    },
    /// A rate can't be read.
    #[error(
        "`{field}` of the [[limit]] {name:?}: {value:?} is not a rate; write a number above 0, `/` \
         and one of s, min, h and day, such as {example} [{code}]",
        code = codes::POLICY_FILE
    )]
    Rate {
        /// The limit.
        name: String,
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
        /// What would be a rate.
        example: &'static str,
    },
    /// A selector can't be read.
    #[error("`principals` of the [[limit]] {name:?}: {error} [{code}]", code = codes::POLICY_FILE)]
    Principal {
        /// The limit.
        name: String,
        /// What is wrong with the selector.
        error: SelectorError,
    },
    /// A pattern matches no action.
    #[error(
        "`actions` of the [[limit]] {name:?}: no action is called {pattern:?} [{code}]",
        code = codes::POLICY_FILE
    )]
    Action {
        /// The limit.
        name: String,
        /// The pattern.
        pattern: String,
    },
}

/// A limit, ready to be applied.
#[derive(Debug)]
pub(super) struct LimitRule {
    pub(super) name: Arc<str>,
    per: LimitedBy,
    principals: Vec<Selector>,
    actions: ActionSet,
    servers: Option<Vec<Pattern>>,
    tools: Option<Vec<Pattern>>,
    pub(super) calls: Option<Rate>,
    pub(super) bytes: Option<Rate>,
    pub(super) concurrency: Option<NonZeroU32>,
}

/// Compiles limits, whose names must differ.
pub(super) fn compile_all(tables: Vec<LimitTable>) -> Result<Vec<LimitRule>, LimitTableError> {
    let mut names = HashSet::new();
    let rules = tables.into_iter().map(|table| match names.insert(table.name.clone()) {
        true => LimitRule::compile(table),
        false => Err(LimitTableError::SameName { name: table.name }),
    });
    rules.collect()
}

impl LimitRule {
    fn compile(table: LimitTable) -> Result<Self, LimitTableError> {
        let name = table.name.clone();
        if name.is_empty() {
            return Err(LimitTableError::Name);
        }
        check_lists(&table)?;
        if table.rate.is_none() && table.concurrency.is_none() && table.bytes.is_none() {
            return Err(LimitTableError::NoLimit { name });
        }
        if table.burst.is_some() && table.rate.is_none() {
            return Err(LimitTableError::BurstWithoutRate { name });
        }

        let rate = |field, value: Option<String>, burst, unit, example| {
            let parsed = value.as_deref().map(|text| parse_rate(text, burst, unit));
            match (parsed, value) {
                (Some(None), Some(value)) => {
                    Err(LimitTableError::Rate { name: name.clone(), field, value, example })
                }
                (parsed, _) => Ok(parsed.flatten()),
            }
        };
        let calls = rate("rate", table.rate, table.burst, Unit::Calls, "600/min")?;
        let bytes = rate("bytes", table.bytes, None, Unit::Bytes, "50MB/min")?;

        let selectors = table.principals.unwrap_or_else(|| vec!["anyone".to_owned()]);
        let principals = selectors.iter().map(|text| Selector::parse(text));
        let principals = principals
            .collect::<Result<_, _>>()
            .map_err(|error| LimitTableError::Principal { name: name.clone(), error })?;

        let actions = table.actions.unwrap_or_else(|| vec!["tools.call".to_owned()]);
        let actions = actions.into_iter().try_fold(ActionSet::default(), |set, pattern| {
            let matching = ActionSet::matching(&pattern);
            match matching.is_empty() {
                true => Err(LimitTableError::Action { name: name.clone(), pattern }),
                false => Ok(set.union(matching)),
            }
        })?;

        let patterns = |list: Option<Vec<String>>| list.as_deref().map(Pattern::list);
        Ok(Self {
            per: table.per,
            principals,
            actions,
            servers: patterns(table.servers),
            tools: patterns(table.tools),
            calls,
            bytes,
            concurrency: table.concurrency,
            name: name.into(),
        })
    }

    /// Returns whether the limit covers a call.
    pub(super) fn covers(&self, call: &LimitedCall<'_>) -> bool {
        let covers = |patterns: &Option<Vec<Pattern>>, text: Option<&str>| match patterns {
            None => true,
            Some(patterns) => {
                text.is_some_and(|text| patterns.iter().any(|pattern| pattern.matches(text)))
            }
        };

        self.actions.contains(call.action)
            && covers(&self.tools, call.tool)
            && covers(&self.servers, Some(call.server.unwrap_or_default()))
            && self.principals.iter().any(|selector| selector.covers(call.principal))
    }

    /// What the limit counts a call under; `None` if the call has no such thing.
    pub(super) fn key(&self, call: &LimitedCall<'_>) -> Option<LimitKey> {
        let id = call.principal.id();
        let server = call.server.unwrap_or_default().as_bytes();
        Some(match self.per {
            LimitedBy::Principal => LimitKey::new(&[b"principal", id.as_bytes()]),
            LimitedBy::Tenant => {
                LimitKey::new(&[b"tenant", call.principal.tenant.as_ref()?.as_bytes()])
            }
            LimitedBy::Tool => LimitKey::new(&[b"tool", server, call.tool?.as_bytes()]),
            LimitedBy::PrincipalTool => {
                LimitKey::new(&[b"both", id.as_bytes(), server, call.tool?.as_bytes()])
            }
        })
    }
}

fn check_lists(table: &LimitTable) -> Result<(), LimitTableError> {
    let lists = [
        ("principals", &table.principals),
        ("actions", &table.actions),
        ("servers", &table.servers),
        ("tools", &table.tools),
    ];
    let empty = lists.into_iter().find(|(_, list)| list.as_ref().is_some_and(Vec::is_empty));
    match empty {
        Some((field, _)) => Err(LimitTableError::Empty { name: table.name.clone(), field }),
        None => Ok(()),
    }
}

/// What a rate counts.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Calls,
    Bytes,
}

/// Reads a rate such as `600/min` or `50MB/min`.
fn parse_rate(text: &str, burst: Option<NonZeroU64>, unit: Unit) -> Option<Rate> {
    let (count, per) = text.split_once('/')?;
    let per = match per.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "day" => 86_400,
        _ => return None,
    };

    let count = count.trim();
    let digits = count.find(|c: char| !c.is_ascii_digit()).unwrap_or(count.len());
    let (number, suffix) = count.split_at(digits);
    let factor = match (unit, suffix.trim()) {
        (_, "") => 1,
        (Unit::Bytes, "kB") => 1000,
        (Unit::Bytes, "MB") => 1_000_000,
        (Unit::Bytes, "GB") => 1_000_000_000,
        (Unit::Bytes, "KiB") => 1 << 10,
        (Unit::Bytes, "MiB") => 1 << 20,
        (Unit::Bytes, "GiB") => 1 << 30,
        _ => return None,
    };
    let count = NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
    Rate::new(count, Duration::from_secs(per), burst.unwrap_or(count))
}
