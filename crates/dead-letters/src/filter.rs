//! Selects dead letters.

use fleet_job::time::Timestamp;

use crate::letter::Letter;

/// Conditions on dead letters. All conditions that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only jobs that died at this time or later.
    pub since: Option<Timestamp>,
    /// Only jobs that died before this time.
    pub until: Option<Timestamp>,
    /// Only this kind of error.
    pub kind: Option<String>,
    /// Only letters of this group: of this tool, or with this beginning of the message
    /// ([`Letter::about`]).
    pub about: Option<String>,
    /// Only letters of this job.
    pub job: Option<String>,
    /// Only the letter at this partition and offset.
    pub letter: Option<(i32, i64)>,
}

impl Filter {
    /// Returns whether `letter` matches. A letter without a time counts as infinitely old.
    pub fn matches(&self, letter: &Letter) -> bool {
        self.since.is_none_or(|since| letter.time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| letter.time.is_none_or(|time| time < until))
            && self.kind.as_ref().is_none_or(|kind| *kind == letter.kind)
            && self.about.as_ref().is_none_or(|about| *about == letter.about())
            && self.job.as_ref().is_none_or(|job| *job == letter.job_id)
            && self.letter.is_none_or(|place| place == letter.partition_offset())
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::*;
    use crate::testing::letter;

    #[test]
    fn all_conditions_must_hold() {
        let letter = letter(5, "j", ErrorKind::Tool, 0);
        let check = |since: Option<i64>, kind: Option<&str>, job: Option<&str>| {
            Filter {
                since: since.and_then(Timestamp::from_millis),
                kind: kind.map(Into::into),
                job: job.map(Into::into),
                ..Filter::default()
            }
            .matches(&letter)
        };
        assert!(check(None, None, None));
        assert!(check(Some(5000), Some("tool"), Some("j")));
        assert!(!check(Some(5001), None, None));
        assert!(!check(None, Some("too"), None));
        assert!(!check(Some(5000), Some("tool"), Some("k")));
    }

    #[test]
    fn a_group_a_time_and_a_place_are_conditions() {
        let letter = letter(5, "j", ErrorKind::Tool, 0);
        let until = |ms| Filter { until: Timestamp::from_millis(ms), ..Filter::default() };
        assert!(until(5001).matches(&letter) && !until(5000).matches(&letter));
        let about = |about: &str| Filter { about: Some(about.into()), ..Filter::default() };
        assert!(about("s__t").matches(&letter) && !about("s__").matches(&letter));
        let at = |place| Filter { letter: Some(place), ..Filter::default() };
        assert!(at((0, 5)).matches(&letter) && !at((1, 5)).matches(&letter));
    }
}
