//! Listing jobs: filters, pages, and cursors.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fleet_job::{envelope::MAX_ID_BYTES, filter::JobFilter, time::Timestamp};

use crate::store::Known;

/// The most jobs on one page.
pub const MAX_LIMIT: usize = 500;

/// The most jobs that a store examines for one page.
const MAX_EXAMINED: usize = 20_000;
/// The same if their events have to be decoded.
const MAX_DECODED: usize = 5_000;

/// Which jobs are wanted, which of them may be seen, and how many.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Which jobs.
    pub filter: JobFilter,
    /// Which of them may be seen.
    pub visibility: Visibility,
    /// The maximum number of jobs on the page, from 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// The cursor at which the previous page ended.
    pub after: Option<Cursor>,
}

/// Which jobs may be seen, by their owner and tenant. By default, those without an owner.
#[derive(Clone)]
pub struct Visibility(Arc<MaySee>);

/// Whether a job of this owner and this tenant may be seen.
type MaySee = dyn Fn(Option<&str>, Option<&str>) -> bool + Send + Sync;

impl Visibility {
    /// Jobs of which `may_see` says so, given their owner and tenant. It is asked for every job
    /// that a page examines.
    pub fn new(
        may_see: impl Fn(Option<&str>, Option<&str>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(may_see))
    }

    /// Returns whether a job of this owner and this tenant may be seen.
    pub fn covers(&self, owner: Option<&str>, tenant: Option<&str>) -> bool {
        (self.0)(owner, tenant)
    }
}

impl Default for Visibility {
    fn default() -> Self {
        Self::new(|owner, _| owner.is_none())
    }
}

impl fmt::Debug for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visibility").finish_non_exhaustive()
    }
}

impl Query {
    /// Returns the limit, clamped to its valid range.
    pub(crate) fn bounded_limit(&self) -> usize {
        self.limit.clamp(1, MAX_LIMIT)
    }

    /// Returns how many jobs a store may examine for the page.
    pub(crate) fn max_examined(&self) -> usize {
        if self.filter.metadata.is_empty() { MAX_EXAMINED } else { MAX_DECODED }
    }
}

/// Returns the least text that is greater than all texts with this prefix, by bytes; `None` if
/// there is none.
pub(crate) fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // Code points and their UTF-8 sort alike.
        if let Some(next) = (last..=char::MAX).nth(1) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// A position in the list of jobs, newest first. Opaque to callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The submission time of the page's last job.
    pub submitted_at: Timestamp,
    /// The id of the page's last job.
    pub job_id: String,
}

impl Cursor {
    /// Parses the output of [`Display`](std::fmt::Display).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (time, job_id) = bytes.split_first_chunk::<8>()?;
        let submitted_at = Timestamp::from_millis(i64::from_be_bytes(*time))?;
        let job_id = String::from_utf8(job_id.to_vec()).ok()?;
        (1..=MAX_ID_BYTES).contains(&job_id.len()).then_some(Self { submitted_at, job_id })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes =
            [&self.submitted_at.as_millis().to_be_bytes()[..], self.job_id.as_bytes()].concat();
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// One page of a list of jobs, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The jobs. There can be fewer than the limit, or none, although more pages follow: a store
    /// bounds how many jobs it examines.
    pub jobs: Vec<Known>,
    /// The cursor of the next page; `None` on the last page.
    pub next: Option<Cursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_text() {
        for (prefix, end) in [
            ("job-1", Some("job-2")),
            ("aé", Some("aê")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
            ("", None),
        ] {
            assert_eq!(end_of_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    #[test]
    fn cursors_round_trip_and_invalid_ones_are_rejected() {
        let cursor =
            Cursor { submitted_at: Timestamp::from_millis_clamped(-5), job_id: "jöb".to_owned() };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        for bad in ["", "x", "AAAA", "!!", "AAAAAAAAAAA", "_____________w"] {
            assert_eq!(Cursor::parse(bad), None, "{bad}");
        }
    }
}
