//! Bars on standard error for jobs that somebody waits for. They hide themselves where there is no terminal.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mcp_server::jobs::JobView;

use super::render;
use crate::dlq::text::shortened;

/// The most jobs that have a bar of their own at one time.
const MAX_BARS: usize = 8;
/// A bar's length in steps; a job's own numbers can be fractions.
const STEPS: u64 = 1_000;
const ID: usize = 40;
const MESSAGE: usize = 60;
const TICK: Duration = Duration::from_millis(200);

/// One bar for each of some jobs, and one over all where there are several.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    total: Option<ProgressBar>,
    own: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub(super) fn new(jobs: usize) -> Self {
        let all = MultiProgress::new();
        let total = (jobs > 1).then(|| all.add(total(jobs)));
        Self { all, total, own: Mutex::default() }
    }

    fn own(&self) -> MutexGuard<'_, HashMap<String, ProgressBar>> {
        // Nothing under the lock panics.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows how a job is that has not ended.
    pub(super) fn show(&self, job: &JobView) {
        let (mut own, job_id) = (self.own(), &job.event.job_id);
        if !own.contains_key(job_id) {
            if own.len() >= MAX_BARS {
                return;
            }
            own.insert(job_id.clone(), self.all.add(bar(job_id)));
        }
        let Some(bar) = own.get(job_id) else { return };
        let progress = job.event.progress.as_ref();
        let fraction = progress.and_then(render::fraction).unwrap_or_default();
        // A fraction of 1,000 steps is between 0 and 1,000.
        bar.set_position((fraction * STEPS as f64) as u64);
        let mut message = job.event.state.as_str().to_owned();
        if let Some(progress) = progress {
            message = format!("{message}, {}", render::progress(progress));
        }
        bar.set_message(shortened(&message, MESSAGE));
    }

    /// A job has ended, or nobody waits for it any more.
    pub(super) fn end(&self, job_id: &str) {
        if let Some(bar) = self.own().remove(job_id) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        if let Some(total) = &self.total {
            total.inc(1);
        }
    }

    /// Writes something without the bars in between.
    pub(super) fn aside(&self, write: impl FnOnce()) {
        self.all.suspend(write);
    }

    /// Takes all bars away.
    pub(super) fn clear(&self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
    }
}

fn total(jobs: usize) -> ProgressBar {
    styled(ProgressBar::new(jobs as u64), "  waiting [{bar:30}] {pos}/{len} {elapsed}")
}

fn bar(job_id: &str) -> ProgressBar {
    let bar = ProgressBar::new(STEPS).with_prefix(shortened(job_id, ID));
    styled(bar, "{spinner} {prefix} [{bar:30}] {elapsed} {msg}")
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    bar.enable_steady_tick(TICK);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
