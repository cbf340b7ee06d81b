//! The parameters of the operations on dead letters.

use std::fmt::Display;

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use fleet_dead_letters::Filter;
use fleet_job::time::Timestamp;

use super::{MAX_TEXT, Parameters};
use crate::{ReplayRequest, rest::problem::Problem};

/// How many letters a list names by default, and at most.
pub(super) const LISTED_LETTERS: (usize, usize) = (20, 500);
/// How many letters a request replays by default, and at most.
pub(super) const REPLAYED_LETTERS: (usize, usize) = (100, 500);
/// How often a letter's job may have been replayed by default, and at most.
pub(super) const MAX_REPLAYS: (u32, u32) = (3, 1_000);

impl Parameters {
    /// Returns which dead letters are wanted.
    pub(in crate::rest) fn letters(&self) -> Result<Filter, Problem> {
        let place =
            |text| parse_place(text).ok_or_else(|| Problem::parameter("letter", NOT_A_PLACE));
        Ok(Filter {
            since: self.time("since")?,
            until: self.time("until")?,
            kind: self.text("kind", 1)?,
            about: self.text("about", 0)?,
            job: self.text_up_to("job", 1, MAX_TEXT)?,
            letter: self.get("letter").map(place).transpose()?,
        })
    }

    /// Returns how many letters to name.
    pub(in crate::rest) fn listed_letters(&self) -> Result<usize, Problem> {
        let (default, most) = LISTED_LETTERS;
        self.number("limit", default, 0, most)
    }

    /// Returns what to replay.
    pub(in crate::rest) fn replay(&self) -> Result<ReplayRequest, Problem> {
        let ((default, most), (replays, most_replays)) = (REPLAYED_LETTERS, MAX_REPLAYS);
        Ok(ReplayRequest {
            filter: self.letters()?,
            max: self.number("max", default, 1, most)?,
            max_replays: self.number("maxReplays", replays, 0, most_replays)?,
            every_letter: self.parse("everyLetter")?.unwrap_or(false),
            dry_run: self.is_dry_run()?,
        })
    }

    /// Returns the time before which letters are deleted.
    pub(in crate::rest) fn purged(&self) -> Result<Timestamp, Problem> {
        self.time("before")?.ok_or_else(|| {
            let why =
                "says which letters to delete, and is missing; a time in the future deletes all";
            Problem::parameter("before", why)
        })
    }

    /// Returns a number within bounds.
    fn number<T>(&self, name: &str, default: T, least: T, most: T) -> Result<T, Problem>
    where
        T: std::str::FromStr + PartialOrd + Display,
        T::Err: Display,
    {
        let number = self.parse(name)?.unwrap_or(default);
        if number < least || number > most {
            let why = format!("is {number}; it must be {least} to {most}");
            return Err(Problem::parameter(name, why));
        }
        Ok(number)
    }
}

const NOT_A_PLACE: &str = "must be the letter's `<partition>-<offset>`, such as `0-17`";

/// The position of a dead letter in a path.
#[derive(Debug)]
pub(in crate::rest) struct LetterId(pub(in crate::rest) (i32, i64));

impl<S: Send + Sync> FromRequestParts<S> for LetterId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = id.map_err(|error| Problem::parameter("id", error.body_text()))?;
        let place = parse_place(&id).ok_or_else(|| Problem::parameter("id", NOT_A_PLACE))?;
        Ok(Self(place))
    }
}

/// Reads `<partition>-<offset>`.
fn parse_place(text: &str) -> Option<(i32, i64)> {
    let (partition, offset) = text.split_once('-')?;
    let is_number = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !is_number(partition, 9) || !is_number(offset, 18) {
        return None;
    }
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::params::{PURGE, REPLAY};

    #[test]
    fn letters_are_named_by_their_place() {
        assert_eq!(parse_place("0-17"), Some((0, 17)));
        for bad in ["", "0", "-17", "0-", "0-x", "+1-2", "0-1-2", "9999999999-1"] {
            assert_eq!(parse_place(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_replay_has_bounds() {
        let read = |query| Parameters::read(Some(query), REPLAY).and_then(|it| it.replay());
        let request = read("kind=tool&about=&job=j&letter=1-2&everyLetter=true&maxReplays=0");
        let request = request.unwrap();
        assert_eq!((request.max, request.max_replays, request.every_letter), (100, 0, true));
        assert_eq!(request.filter.letter, Some((1, 2)));
        assert_eq!(request.filter.about.as_deref(), Some(""));
        for (bad, names) in [
            ("max=0", "must be 1 to 500"),
            ("max=501", "must be 1 to 500"),
            ("letter=x", "`letter`"),
            ("dryRun=maybe", "`dryRun`"),
        ] {
            let error = format!("{:?}", read(bad).unwrap_err());
            assert!(error.contains(names), "{error}");
        }
    }

    #[test]
    fn a_purge_says_what_it_deletes() {
        let read = |query| Parameters::read(Some(query), PURGE).and_then(|it| it.purged());
        assert_eq!(read("before=5").unwrap().as_millis(), 5);
        for bad in ["", "before=soon", "dryRun=true"] {
            let error = format!("{:?}", read(bad).unwrap_err());
            assert!(error.contains("`before`"), "{error}");
        }
    }
}
