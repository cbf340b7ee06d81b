//! How many jobs of a tool or a tenant may run at once in a worker, and how tenants share its slots.
//! Pure.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    num::NonZeroU32,
};

use fleet_engine::{Limit, Tenant};
use fleet_job::{envelope::Envelope, glob::Glob};

use crate::call_plan::Plan;

/// The limits of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct JobLimits {
    /// In the order of the setting. For each tool, the first that matches applies.
    pub(crate) tools: Vec<ToolLimit>,
    /// The limit of each tenant.
    pub(crate) tenant: Option<NonZeroU32>,
    /// How tenants share the slots.
    pub(crate) weights: TenantWeights,
}

/// A limit that all tools matching its pattern share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolLimit {
    /// The full names of the tools: a name, or a pattern.
    pub pattern: String,
    glob: Glob,
    /// How many jobs may run at once.
    pub max: NonZeroU32,
}

impl std::str::FromStr for ToolLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, max) =
            text.split_once('=').ok_or("expected TOOL=NUMBER, such as files__*=4")?;
        let pattern = pattern.trim();
        if pattern.is_empty() {
            return Err("expected a tool before `=`, such as files__*=4".to_owned());
        }

        let max = max.trim();
        let max = max.parse().map_err(|_| format!("`{max}` is not a positive integer"))?;
        Ok(Self { pattern: pattern.to_owned(), glob: Glob::new(pattern), max })
    }
}

/// How many jobs each tenant may start in its turn. Tenants that are not listed weigh 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantWeights(HashMap<String, u32>);

/// The largest weight. A tenant waits while each other one starts as many jobs as it weighs.
const MAX_WEIGHT: u32 = 1_000;

impl std::str::FromStr for TenantWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = HashMap::new();

        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (tenant, weight) = parse_weight(entry)?;
            if weights.insert(tenant.to_owned(), weight).is_some() {
                return Err(format!("tenant `{tenant}` is listed twice"));
            }
        }
        Ok(Self(weights))
    }
}

fn parse_weight(entry: &str) -> Result<(&str, u32), String> {
    let (tenant, weight) = entry
        .rsplit_once('=')
        .map(|(tenant, weight)| (tenant.trim(), weight.trim()))
        .filter(|(tenant, _)| !tenant.is_empty())
        .ok_or_else(|| format!("`{entry}`: expected TENANT=WEIGHT, such as gold=4"))?;

    match weight.parse() {
        Ok(number @ 1..=MAX_WEIGHT) => Ok((tenant, number)),
        _ => Err(format!("`{weight}` is not an integer from 1 to {MAX_WEIGHT}")),
    }
}

impl ToolLimit {
    fn matches_tool(&self, tool: &str) -> bool {
        self.glob.matches(tool)
    }
}

impl JobLimits {
    /// The limits of a job. For a job with several calls, the narrowest limit of its tools applies.
    pub(crate) fn limits_of(&self, envelope: &Envelope) -> fleet_engine::Limits {
        [self.tool_limit_of(envelope), self.tenant_limit_of(envelope.tenant.as_deref())]
    }

    fn tool_limit_of(&self, envelope: &Envelope) -> Option<Limit> {
        if self.tools.is_empty() {
            return None;
        }
        let plan = Plan::new(&envelope.work);
        let fitting = plan
            .calls
            .iter()
            .filter_map(|call| self.tools.iter().find(|limit| limit.matches_tool(&call.tool)));
        let narrowest = fitting.min_by_key(|limit| limit.max)?;
        Some(Limit { group: limit_group("tool", &narrowest.pattern), max: narrowest.max.get() })
    }

    /// The tenant of a job, with its weight.
    pub(crate) fn tenant_of(&self, envelope: &Envelope) -> Tenant {
        let Some(name) = envelope.tenant.as_deref() else { return Tenant::UNNAMED };
        let weight = self.weights.0.get(name).copied().unwrap_or(Tenant::UNNAMED.weight);
        Tenant { number: limit_group("tenant", name), weight }
    }

    fn tenant_limit_of(&self, tenant: Option<&str>) -> Option<Limit> {
        let (tenant, max) = (tenant?, self.tenant?);
        Some(Limit { group: limit_group("tenant", tenant), max: max.get() })
    }
}

/// The engine's number for a limit or a tenant. Two names with one number share a limit or a turn,
/// which does no harm.
fn limit_group(sort: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (sort, name).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use fleet_job::envelope::{ToolBatch, ToolCall, Work};
    use serde_json::Map;

    use super::*;

    fn limits(tools: &str, tenant: u32) -> JobLimits {
        JobLimits {
            tools: tools.split(',').map(|text| text.parse().unwrap()).collect(),
            tenant: NonZeroU32::new(tenant),
            weights: TenantWeights::default(),
        }
    }

    fn call(tool: &str) -> ToolCall {
        ToolCall {
            server: None,
            tool: tool.to_owned(),
            arguments: Map::new(),
            task: None,
            extra: Map::new(),
        }
    }

    #[test]
    fn patterns_that_make_no_sense_are_refused() {
        for bad in ["files", "=3", "a=0", "a=-1", "a=x"] {
            assert!(bad.parse::<ToolLimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tools_are_named_in_the_language_of_all_patterns() {
        let check = |limit: &str, tool: &str, expected: bool| {
            assert_eq!(
                limit.parse::<ToolLimit>().unwrap().matches_tool(tool),
                expected,
                "{limit} {tool}"
            );
        };
        check("files__*=2", "files__read", true);
        check("files__*=2", "files", false);
        check("*__search=2", "docs__search", true);
        check("*__search=2", "docs__search_all", false);
        check("q?=2", "q1", true);
        check("**=2", "anything", true);
    }

    #[test]
    fn weights_that_make_no_sense_are_refused() {
        for (bad, why) in [
            ("gold", "`gold`: expected TENANT=WEIGHT, such as gold=4"),
            ("gold=4, =4", "`=4`: expected TENANT=WEIGHT, such as gold=4"),
            ("gold=0", "`0` is not an integer from 1 to 1000"),
            ("gold=1001", "`1001` is not an integer from 1 to 1000"),
            ("gold=much", "`much` is not an integer from 1 to 1000"),
            ("gold=4,free=1,gold=2", "tenant `gold` is listed twice"),
        ] {
            assert_eq!(bad.parse::<TenantWeights>(), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn each_tenant_has_its_weight_and_those_without_a_name_are_one() {
        let weights = "gold = 4, a=b=2,".parse().unwrap();
        let limits = JobLimits { weights, ..JobLimits::default() };
        let of = |tenant: Option<&str>| {
            let work = Work::ToolCall(call("t"));
            let tenant = tenant.map(str::to_owned);
            limits.tenant_of(&Envelope { tenant, ..Envelope::new("j", work) })
        };

        assert_eq!(of(None), Tenant::UNNAMED);
        assert_eq!((of(Some("gold")).weight, of(Some("a=b")).weight), (4, 2));
        assert_eq!(of(Some("free")).weight, 1);
        assert_ne!(of(Some("free")).number, of(Some("gold")).number);
    }

    #[test]
    fn a_pattern_is_one_limit_and_each_tenant_has_its_own() {
        let limits = limits("slow=1,files__*=3", 2);
        let of = |work, tenant: Option<&str>| {
            let envelope =
                Envelope { tenant: tenant.map(str::to_owned), ..Envelope::new("j", work) };
            limits.limits_of(&envelope)
        };

        let [read, _] = of(Work::ToolCall(call("files__read")), None);
        let [list, _] = of(Work::ToolCall(call("files__list")), None);
        assert_eq!(read, list);
        assert_eq!(read.map(|limit| limit.max), Some(3));
        assert_eq!(of(Work::ToolCall(call("other")), None), [None, None]);

        let [_, acme] = of(Work::ToolCall(call("other")), Some("acme"));
        let [_, corp] = of(Work::ToolCall(call("other")), Some("corp"));
        assert!(acme.is_some() && acme != corp);

        let calls = vec![call("files__read"), call("slow")];
        let batch = ToolBatch { calls, parallel: None, extra: Map::new() };
        let [narrowest, _] = of(Work::ToolBatch(batch), None);
        assert_eq!(narrowest.map(|limit| limit.max), Some(1));
    }
}
