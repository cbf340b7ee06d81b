//! Views of jobs, made from what the ledger knows.

use fleet_job::{
    control::Control,
    event::{JobEvent, RESULT_OMITTED},
    size::json_bytes,
    view::JobView,
};
use fleet_ledger::{Cursor, Known};

/// What a caller is shown of a job.
pub(crate) fn view_of(known: Known, cancel: Option<&Control>) -> JobView {
    let cancel = cancel.filter(|_| !known.event.is_over());
    // Whose it is, its owner knows.
    let mut event = JobEvent { owner: None, ..known.event };
    if event.has_lost_its_result() {
        // Workers of before had no code for it.
        event.code = Some(RESULT_OMITTED.to_owned());
    }
    JobView { event, cancel_requested_at: cancel.map(|control| control.time) }
}

/// How many bytes the jobs of a page have at most, as JSON, beside its last one.
const MAX_PAGE_BYTES: u64 = 512 * 1024;

/// The jobs of a page, up to its bound in bytes, and where the next page begins.
pub(crate) fn bound_page(
    listed: impl Iterator<Item = (JobView, Cursor)>,
    after_all: Option<Cursor>,
) -> (Vec<JobView>, Option<Cursor>) {
    let (mut jobs, mut bytes, mut last) = (Vec::new(), 0, None);
    for (job, cursor) in listed {
        if bytes > MAX_PAGE_BYTES {
            return (jobs, last);
        }
        bytes += json_bytes(&job);
        jobs.push(job);
        last = Some(cursor);
    }
    (jobs, after_all)
}

#[cfg(test)]
mod tests {
    use fleet_job::{event::JobState, time::Timestamp};

    use super::*;

    #[test]
    fn a_page_ends_where_it_is_large_enough() {
        let cursor =
            |n: usize| Cursor { submitted_at: Timestamp::default(), job_id: n.to_string() };
        let page = |jobs: usize| {
            let listed = (0..jobs).map(|n| {
                let mut event =
                    JobEvent::new(n.to_string(), JobState::Queued, Timestamp::default());
                event.tool = Some("t".repeat(1000));
                (JobView { event, cancel_requested_at: None }, cursor(n))
            });
            bound_page(listed, Some(cursor(1_000_000)))
        };
        let (jobs, next) = page(100);
        assert_eq!((jobs.len(), next), (100, Some(cursor(1_000_000))));

        let (jobs, next) = page(5000);
        assert!((400..=525).contains(&jobs.len()), "{}", jobs.len());
        assert_eq!(next, Some(cursor(jobs.len() - 1)), "the next page goes on behind the last job");
    }
}
