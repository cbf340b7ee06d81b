//! Command-line conditions on dead letters.

use fleet_dead_letters::Filter;
use fleet_job::time::Timestamp;

use crate::moment::Moment;

/// Command-line conditions on dead letters.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct FilterArgs {
    /// Only jobs that died at or after this time: RFC 3339, or an age (30m, 2h, 7d)
    #[arg(
        help_heading = "Filters",
        long,
        value_name = "TIME|DURATION",
        value_parser = Moment::parse,
    )]
    since: Option<Moment>,

    /// Only this kind of error, as in `dlq list`
    #[arg(help_heading = "Filters", long, value_name = "KIND")]
    reason: Option<String>,
}

impl FilterArgs {
    /// Returns the filter, with ages relative to `now`.
    pub(super) fn at(&self, now: Timestamp, job: Option<&str>) -> Filter {
        Filter {
            since: self.since.map(|since| since.resolve(now)),
            kind: self.reason.clone(),
            job: job.map(str::to_owned),
            ..Filter::default()
        }
    }
}
