//! Selects jobs. Pure.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::engine::ArgValueCompleter;
use fleet_job::{envelope::JobType, event::JobState, filter::JobFilter, time::Timestamp};

use crate::{moment::Moment, suggestions};

/// All states, in the order in which jobs go through them.
pub(super) const STATES: [JobState; 8] = JobState::ALL;

/// Command-line conditions on jobs; all that are given must hold.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct FilterArgs {
    /// Only jobs in these states, comma-separated
    #[arg(
        help_heading = "Filters",
        long,
        value_name = "STATE",
        value_delimiter = ',',
        value_parser = state_parser(),
    )]
    state: Vec<JobState>,

    /// Only jobs of this type
    #[arg(
        help_heading = "Filters",
        long = "type",
        value_name = "TYPE",
        value_parser = PossibleValuesParser::new(JobType::ALL.map(JobType::as_str)),
    )]
    job_type: Option<String>,

    /// Only calls of this tool, by the name under which the server offers it
    #[arg(help_heading = "Filters", long, value_name = "NAME", add = ArgValueCompleter::new(suggestions::tools))]
    tool: Option<String>,

    /// Only jobs of this tenant
    #[arg(help_heading = "Filters", long, value_name = "NAME")]
    tenant: Option<String>,

    /// Only jobs submitted at or after this time: RFC 3339, or an age (30m, 2h, 7d)
    #[arg(
        help_heading = "Filters",
        long,
        value_name = "TIME|DURATION",
        value_parser = Moment::parse,
    )]
    since: Option<Moment>,

    /// Only jobs submitted before this time
    #[arg(
        help_heading = "Filters",
        long,
        value_name = "TIME|DURATION",
        value_parser = Moment::parse,
    )]
    until: Option<Moment>,
}

/// Parses a state. Shells complete the possible values.
fn state_parser() -> impl TypedValueParser<Value = JobState> {
    PossibleValuesParser::new(STATES.map(JobState::as_str)).try_map(|name| {
        STATES
            .into_iter()
            .find(|state| state.as_str() == name)
            .ok_or_else(|| format!("`{name}` is not a state"))
    })
}

impl FilterArgs {
    /// Returns the filter, with ages relative to `now`.
    pub(super) fn at(self, now: Timestamp) -> JobFilter {
        JobFilter {
            states: self.state,
            job_type: self.job_type,
            tool: self.tool,
            tenant: self.tenant,
            since: self.since.map(|since| since.resolve(now)),
            until: self.until.map(|until| until.resolve(now)),
            ..JobFilter::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::{super::render::tests::job, *};

    fn parse(args: &[&str]) -> Result<JobFilter, String> {
        let command = FilterArgs::augment_args(Command::new("x").no_binary_name(true));
        let matches = command.try_get_matches_from(args).map_err(|error| error.to_string())?;
        let args = FilterArgs::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        Ok(args.at(Timestamp::from_millis(7_200_000).unwrap()))
    }

    #[test]
    fn flags_become_query_parameters() {
        let args = [
            "--state",
            "queued,running",
            "--type",
            "tool-call",
            "--tool",
            "a__b",
            "--tenant",
            "t t",
        ];
        let filter =
            parse(&[&args[..], &["--since", "1h", "--until", "1970-01-01T02:00:00Z"]].concat());
        let expected = [
            ("state", "queued,running"),
            ("type", "tool-call"),
            ("tool", "a__b"),
            ("tenant", "t t"),
            ("since", "1970-01-01T01:00:00.000Z"),
            ("until", "1970-01-01T02:00:00.000Z"),
        ];

        let filter = filter.unwrap();
        assert_eq!(filter.parameters(), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(filter.lasting_parameters().len(), 3);
        assert!(parse(&[]).unwrap().parameters().is_empty());
        assert!(parse(&["--state", "done"]).unwrap_err().contains("succeeded"));
        assert!(parse(&["--type", "x"]).unwrap_err().contains("tool-batch"));
        assert!(parse(&["--since", "yesterday"]).unwrap_err().contains("7d"));
    }

    #[test]
    fn all_conditions_must_hold() {
        // Submitted at 5 s, running, a `tool-call` of `t`.
        let job = job("j", JobState::Running, 5_000);
        let check = |args: &[&str], expected| {
            assert_eq!(parse(args).unwrap().matches(&job.event), expected, "{args:?}");
        };
        check(&[], true);
        check(&["--state", "running", "--tool", "t", "--type", "tool-call"], true);
        check(&["--state", "queued"], false);
        check(&["--tool", "u"], false);
        check(&["--tenant", "x"], false);
        check(&["--since", "1970-01-01T00:00:05Z", "--until", "1970-01-01T00:00:06Z"], true);
        check(&["--since", "1970-01-01T00:00:06Z"], false);
        check(&["--until", "1970-01-01T00:00:05Z"], false);
    }
}
