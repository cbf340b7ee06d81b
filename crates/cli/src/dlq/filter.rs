//! Selects dead letters. Pure.

use fleet_job::time::Timestamp;

use super::letter::Letter;
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
            reason: self.reason.clone(),
            job: job.map(str::to_owned),
        }
    }
}

/// Conditions on dead letters. All conditions that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) since: Option<Timestamp>,
    pub(super) reason: Option<String>,
    pub(super) job: Option<String>,
}

impl Filter {
    /// Returns whether `letter` matches. A letter without a time counts as infinitely old.
    pub(super) fn matches(&self, letter: &Letter) -> bool {
        self.since.is_none_or(|since| letter.time.is_some_and(|time| time >= since))
            && self.reason.as_ref().is_none_or(|reason| *reason == letter.kind)
            && self.job.as_ref().is_none_or(|job| *job == letter.job_id)
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::{super::letter::tests::letter, *};

    #[test]
    fn all_conditions_must_hold() {
        let letter = letter(5, "j", ErrorKind::Tool, 0);
        let check = |since: Option<i64>, reason: Option<&str>, job: Option<&str>| {
            Filter {
                since: since.and_then(Timestamp::from_millis),
                reason: reason.map(Into::into),
                job: job.map(Into::into),
            }
            .matches(&letter)
        };
        assert!(check(None, None, None));
        assert!(check(Some(5000), Some("tool"), Some("j")));
        assert!(!check(Some(5001), None, None));
        assert!(!check(None, Some("too"), None));
        assert!(!check(Some(5000), Some("tool"), Some("k")));
    }
}
