//! Views of jobs for callers, made from the ledger's events.

use fleet_job::{
    control::Control,
    event::{JobEvent, RESULT_OMITTED},
    size::json_bytes,
    view::JobView,
};
use fleet_ledger::{Cursor, Known};

/// The most bytes of JSON that the jobs of a page take, without the last one.
const MAX_PAGE_BYTES: u64 = 512 * 1024;

/// Makes the view of a job that a caller is shown.
pub(crate) fn view_of(known: Known, cancel: Option<&Control>) -> JobView {
    let cancel = cancel.filter(|_| !known.event.is_over());
    // Only the owner sees the job, so the view need not name the owner.
    let mut event = JobEvent { owner: None, ..known.event };
    event.hide_signatures();
    if event.has_lost_its_result() {
        // Older workers wrote no code for this.
        event.code = Some(RESULT_OMITTED.to_owned());
    }
    JobView { event, cancel_requested_at: cancel.map(|control| control.time) }
}

/// Limits the jobs of a page to [`MAX_PAGE_BYTES`]. Returns them and the cursor of the next page.
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
    fn a_page_ends_when_it_is_large_enough() {
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
        assert_eq!(next, Some(cursor(jobs.len() - 1)), "the next page starts after the last job");
    }
}
