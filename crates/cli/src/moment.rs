//! Points in time on the command line. Pure.

use std::time::Duration;

use fleet_job::time::Timestamp;
use fleet_ops::config::parse_duration;

/// A point in time as a user writes it: `2026-11-21T08:00:00Z`, or `2h` for two hours ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    /// Parses a command-line value.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ago) = parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        text.parse()
            .map(Self::At)
            .map_err(|error| format!("{error}, or a duration such as 30m, 2h or 7d"))
    }

    /// Converts to a timestamp, relative to `now`.
    pub(crate) fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => {
                let ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                Timestamp::from_millis_clamped(now.as_millis().saturating_sub(ms))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = Timestamp::from_millis(7_200_000).unwrap();
        let at = |text: &str| Moment::parse(text).map(|moment| moment.resolve(now).as_millis());
        assert_eq!(at("2h"), Ok(0));
        assert_eq!(at("1500ms"), Ok(7_198_500));
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(at("yesterday").unwrap_err().contains("7d"));
    }
}
