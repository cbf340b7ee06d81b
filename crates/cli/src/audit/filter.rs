//! Selects audit records. Pure.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use fleet_access::{AuditOutcome, AuditRecord};
use fleet_job::{glob::Glob, time::Timestamp};

use crate::moment::Moment;

/// Command-line conditions on audit records; all that are given must hold.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct FilterArgs {
    /// Only records at or after this time: RFC 3339, or an age (30m, 2h, 7d)
    #[arg(
        help_heading = "Filters",
        long,
        value_name = "TIME|DURATION",
        value_parser = Moment::parse,
    )]
    since: Option<Moment>,

    /// Only what this principal did: its name, subject, id or key, as a pattern
    #[arg(help_heading = "Filters", long, value_name = "PATTERN")]
    principal: Option<String>,

    /// Only these actions, as a pattern: tools.call, 'jobs.*'
    #[arg(help_heading = "Filters", long, value_name = "PATTERN")]
    action: Option<String>,

    /// Only what ended so, comma-separated
    #[arg(
        help_heading = "Filters",
        long,
        value_name = "OUTCOME",
        value_delimiter = ',',
        value_parser = outcome_parser(),
    )]
    outcome: Vec<AuditOutcome>,

    /// Only this hosted server, as a pattern
    #[arg(help_heading = "Filters", long, value_name = "PATTERN")]
    server: Option<String>,

    /// Only this tool, by its own name, as a pattern
    #[arg(help_heading = "Filters", long, value_name = "PATTERN")]
    tool: Option<String>,

    /// Only this tenant, of the principal or of the job
    #[arg(help_heading = "Filters", long, value_name = "NAME")]
    tenant: Option<String>,

    /// Only what belongs to this job
    #[arg(help_heading = "Filters", long, value_name = "ID")]
    job: Option<String>,
}

/// Parses an outcome. Shells complete the possible values.
fn outcome_parser() -> impl TypedValueParser<Value = AuditOutcome> {
    PossibleValuesParser::new(AuditOutcome::ALL.map(AuditOutcome::as_str)).try_map(|name| {
        AuditOutcome::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
            .ok_or_else(|| format!("`{name}` is not an outcome"))
    })
}

impl FilterArgs {
    /// Returns whether records of the past are asked for.
    pub(super) fn reaches_back(&self) -> bool {
        self.since.is_some()
    }

    /// Returns the filter, with ages relative to `now`.
    pub(super) fn at(self, now: Timestamp) -> Filter {
        let glob = |pattern: Option<String>| pattern.as_deref().map(Glob::new);
        Filter {
            since: self.since.map(|since| since.resolve(now)),
            principal: glob(self.principal),
            action: glob(self.action),
            outcomes: self.outcome,
            server: glob(self.server),
            tool: glob(self.tool),
            tenant: self.tenant,
            job: self.job,
        }
    }
}

/// Conditions on audit records.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    since: Option<Timestamp>,
    principal: Option<Glob>,
    action: Option<Glob>,
    outcomes: Vec<AuditOutcome>,
    server: Option<Glob>,
    tool: Option<Glob>,
    tenant: Option<String>,
    job: Option<String>,
}

impl Filter {
    /// Returns whether a record matches.
    pub(super) fn matches(&self, record: &AuditRecord) -> bool {
        let fits = |glob: &Option<Glob>, texts: &[Option<&str>]| {
            glob.as_ref().is_none_or(|glob| texts.iter().flatten().any(|text| glob.matches(text)))
        };

        let principal = record.principal.as_ref();
        let names = principal.map_or([None; 4], |principal| {
            [
                Some(principal.id.as_str()),
                Some(principal.subject.as_str()),
                principal.name.as_deref(),
                principal.key.as_deref(),
            ]
        });
        let resource = &record.resource;
        let tenants = [
            principal.and_then(|principal| principal.tenant.as_deref()),
            resource.tenant.as_deref(),
        ];

        self.since.is_none_or(|since| record.time >= since)
            && (self.outcomes.is_empty() || self.outcomes.contains(&record.outcome))
            && fits(&self.principal, &names)
            && fits(&self.action, &[Some(&record.action)])
            && fits(&self.server, &[resource.server.as_deref()])
            && fits(&self.tool, &[resource.tool.as_deref()])
            && self.tenant.as_deref().is_none_or(|tenant| tenants.contains(&Some(tenant)))
            && self.job.as_deref().is_none_or(|job| record.job_id.as_deref() == Some(job))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        filter: FilterArgs,
    }

    #[test]
    fn all_conditions_must_hold() {
        let record: AuditRecord = serde_json::from_value(json!({
            "time": "2026-11-28T10:00:00.000Z",
            "principal": {
                "id": "0123456789abcdef0123456789abcdef", "issuer": "keys", "subject": "ci",
                "name": "CI of main", "kind": "service", "tenant": "a", "via": "key", "key": "ci-1",
            },
            "action": "tools.call",
            "resource": {"server": "db", "tool": "query"},
            "rule": "no", "verdict": "deny", "outcome": "refused", "jobId": "j",
        }))
        .unwrap();
        let now = "2026-11-28T12:00:00Z".parse().unwrap();
        let matches = |args: &[&str]| {
            let command = Command::parse_from(["audit"].iter().chain(args));
            command.filter.at(now).matches(&record)
        };

        for fitting in [
            &[][..],
            &["--since", "3h"],
            &["--principal", "ci"],
            &["--principal", "CI of*"],
            &["--principal", "ci-?"],
            &["--principal", "0123*"],
            &["--action", "tools.*", "--outcome", "failed,refused"],
            &["--server", "d*", "--tool", "query", "--tenant", "a", "--job", "j"],
        ] {
            assert!(matches(fitting), "{fitting:?}");
        }
        for other in [
            &["--since", "1h"][..],
            &["--principal", "c"],
            &["--action", "jobs.*"],
            &["--outcome", "succeeded"],
            &["--server", "db", "--tool", "drop"],
            &["--tenant", "b"],
            &["--job", "k"],
        ] {
            assert!(!matches(other), "{other:?}");
        }
    }
}
