//! Asking for many jobs: filters, pages, and where a page goes on.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fleet_job::{envelope::MAX_ID_BYTES, event::JobState, time::Timestamp};

use crate::store::Known;

/// The most jobs on one page.
pub const MAX_LIMIT: usize = 500;

/// Which jobs are wanted. All conditions must hold; an absent one always does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    /// In one of these states; in any where there is none.
    pub states: Vec<JobState>,
    /// Of this type.
    pub job_type: Option<String>,
    /// That call this tool.
    pub tool: Option<String>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Submitted at this time or later.
    pub since: Option<Timestamp>,
    /// Submitted before this time.
    pub until: Option<Timestamp>,
    /// Who asks. Jobs that have an owner are for that owner alone.
    pub asker: Option<String>,
    /// The most jobs to list, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// Where the page before ended.
    pub after: Option<Cursor>,
}

impl Query {
    /// Whether the state is wanted.
    pub fn wants_state(&self, state: JobState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    /// Whether whoever asks may see a job of this owner.
    pub fn may_see(&self, owner: Option<&str>) -> bool {
        owner.is_none_or(|owner| self.asker.as_deref() == Some(owner))
    }

    /// The most jobs to list, within its bounds.
    pub(crate) fn bounded_limit(&self) -> usize {
        self.limit.clamp(1, MAX_LIMIT)
    }
}

/// A place in the list of jobs, the newest first. Opaque to callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// When the last job of the page was submitted.
    pub submitted_at: Timestamp,
    /// Its id.
    pub job_id: String,
}

impl Cursor {
    /// Reads what [`Display`](std::fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (time, job_id) = bytes.split_first_chunk::<8>()?;
        let submitted_at = Timestamp::from_millis(i64::from_be_bytes(*time))?;
        let job_id = String::from_utf8(job_id.to_vec()).ok()?;
        (1..=MAX_ID_BYTES).contains(&job_id.len()).then_some(Self { submitted_at, job_id })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes =
            [&self.submitted_at.as_millis().to_be_bytes()[..], self.job_id.as_bytes()].concat();
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Some jobs, the newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The jobs. There can be fewer than were asked for, even none, and more to come: a store
    /// bounds how many it looks at.
    pub jobs: Vec<Known>,
    /// Where the next page begins; absent after the last one.
    pub next: Option<Cursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nonsense_is_not() {
        let cursor =
            Cursor { submitted_at: Timestamp::from_millis_clamped(-5), job_id: "jöb".to_owned() };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        for bad in ["", "x", "AAAA", "!!", "AAAAAAAAAAA", "_____________w"] {
            assert_eq!(Cursor::parse(bad), None, "{bad}");
        }
    }
}
