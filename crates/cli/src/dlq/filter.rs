//! Which letters a command is about. Pure.

use std::time::Duration;

use fleet_job::time::Timestamp;
use fleet_ops::config::parse_duration;

use super::letter::Letter;

/// A point in time as people say it: `2026-11-21T08:00:00Z`, or `2h` for two hours ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    /// Reads what stands on the command line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ago) = parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        text.parse().map(Self::At).map_err(|error| format!("{error}, or a duration like 30m, 2h or 7d"))
    }

    /// The point in time, when it is `now`.
    pub(super) fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => {
                let ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                Timestamp::from_millis_clamped(now.as_millis().saturating_sub(ms))
            }
        }
    }
}

/// What letters must be to be meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct FilterArgs {
    /// Only what died since then: RFC 3339, or how long ago (30m, 2h, 7d).
    #[arg(long, value_name = "TIME|DURATION", value_parser = Moment::parse)]
    since: Option<Moment>,

    /// Only letters of this kind of error, as `dlq list` shows it.
    #[arg(long, value_name = "KIND")]
    reason: Option<String>,
}

impl FilterArgs {
    /// The filter, when it is `now`.
    pub(super) fn at(&self, now: Timestamp, job: Option<&str>) -> Filter {
        Filter {
            since: self.since.map(|since| since.resolve(now)),
            reason: self.reason.clone(),
            job: job.map(str::to_owned),
        }
    }
}

/// All that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) since: Option<Timestamp>,
    pub(super) reason: Option<String>,
    pub(super) job: Option<String>,
}

impl Filter {
    /// Whether `letter` is meant. A letter without any time is as old as can be.
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
    fn moments() {
        let now = Timestamp::from_millis(7_200_000).unwrap();
        let at = |text: &str| Moment::parse(text).map(|moment| moment.resolve(now).as_millis());
        assert_eq!(at("2h"), Ok(0));
        assert_eq!(at("1500ms"), Ok(7_198_500));
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(at("yesterday").unwrap_err().contains("7d"));
    }

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
