//! Exports: all jobs that match a filter, with their results, one after the other.

use std::collections::VecDeque;

use fleet_job::{filter::JobFilter, view::JobView};
use fleet_ledger::{Cursor, Known, Query, query::MAX_LIMIT};

use super::{Caller, Jobs, JobsError};

/// The jobs of an export, the most recently submitted first.
#[derive(Debug)]
pub struct Export {
    jobs: Jobs,
    caller: Caller,
    query: Query,
    /// Jobs of the current page, without their results.
    listed: VecDeque<Known>,
    /// Where the next page begins.
    next: Next,
}

#[derive(Debug)]
enum Next {
    First,
    After(Cursor),
    End,
}

impl Jobs {
    /// Begins an export of the jobs that `caller` may see and that match a filter. Jobs that are
    /// submitted later are not in it.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger can't be queried yet.
    pub fn export(&self, filter: JobFilter, caller: &Caller) -> Result<Export, JobsError> {
        self.check_log_is_read()?;
        let query =
            Query { filter, visibility: caller.visibility(), limit: MAX_LIMIT, after: None };
        let (jobs, caller) = (self.clone(), caller.clone());
        Ok(Export { jobs, caller, query, listed: VecDeque::new(), next: Next::First })
    }
}

impl Export {
    /// Returns the next job with its result; `None` after the last one. Of the results, only this
    /// one is in memory.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger can't be queried.
    pub async fn next(&mut self) -> Result<Option<JobView>, JobsError> {
        loop {
            let Some(listed) = self.listed.pop_front() else {
                if !self.read_page().await? {
                    return Ok(None);
                }
                continue;
            };

            // It may have been forgotten, or have changed its state.
            let known = self.jobs.inner.store.get(&listed.event.job_id).await?;
            let still = known.filter(|known| {
                self.query.filter.matches(&known.event) && self.caller.may_see(&known.event)
            });
            if let Some(known) = still {
                return Ok(Some(self.jobs.view(known)));
            }
        }
    }

    /// Reads the next page. Returns whether there was one.
    async fn read_page(&mut self) -> Result<bool, JobsError> {
        self.query.after = match &self.next {
            Next::First => None,
            Next::After(cursor) => Some(cursor.clone()),
            Next::End => return Ok(false),
        };

        let page = self.jobs.inner.store.list(&self.query).await?;
        self.next = page.next.map_or(Next::End, Next::After);
        self.listed = page.jobs.into();
        Ok(true)
    }
}
