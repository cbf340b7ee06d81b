//! Progress bars on standard error for awaited jobs. They are hidden if standard error is not a
//! terminal.

use std::{collections::HashMap, time::Duration};

use fleet_job::view::JobView;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::{Mutex, MutexGuard};

use super::render;
use crate::dlq::text::shorten;

/// The maximum number of jobs with their own bar at one time.
const MAX_BARS: usize = 8;
/// The length of a bar in steps, since a job's own numbers can be fractions.
const STEPS: u64 = 1_000;
const ID: usize = 40;
const MESSAGE: usize = 60;
const TICK: Duration = Duration::from_millis(200);

/// One bar per job, and one for the total if there are several jobs.
#[derive(Debug)]
pub(super) struct Bars {
    all: MultiProgress,
    total: Option<ProgressBar>,
    own: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub(super) fn new(jobs: usize) -> Self {
        let all = MultiProgress::new();
        let total = (jobs > 1).then(|| add_total(&all, jobs));
        Self { all, total, own: Mutex::default() }
    }

    fn own(&self) -> MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.own.lock()
    }

    /// Shows the progress of a job that has not ended.
    pub(super) fn show(&self, job: &JobView) {
        let (mut own, job_id) = (self.own(), &job.event.job_id);
        if !own.contains_key(job_id) {
            if own.len() >= MAX_BARS {
                return;
            }
            own.insert(job_id.clone(), add_bar(&self.all, job_id));
        }

        let Some(bar) = own.get(job_id) else { return };

        let progress = job.event.progress.as_ref();
        let fraction = progress.and_then(render::completed_fraction).unwrap_or_default();

        // A fraction of 1,000 steps is between 0 and 1,000.
        bar.set_position((fraction * STEPS as f64) as u64);

        let mut message = job.event.state.as_str().to_owned();
        if let Some(progress) = progress {
            message = format!("{message}, {}", render::describe_progress(progress));
        }

        bar.set_message(shorten(&message, MESSAGE));
    }

    /// Removes the bar of a job that has ended or is no longer awaited.
    pub(super) fn end(&self, job_id: &str) {
        if let Some(bar) = self.own().remove(job_id) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        if let Some(total) = &self.total {
            total.inc(1);
        }
    }

    /// Hides the bars while `write` prints something.
    pub(super) fn aside(&self, write: impl FnOnce()) {
        self.all.suspend(write);
    }

    /// Removes all bars.
    pub(super) fn clear(&self) {
        let own = std::mem::take(&mut *self.own());
        for bar in own.values().chain(&self.total) {
            bar.finish_and_clear();
        }
    }
}

fn add_total(all: &MultiProgress, jobs: usize) -> ProgressBar {
    add(all, jobs as u64, "  waiting [{bar:30}] {pos}/{len} {elapsed}")
}

fn add_bar(all: &MultiProgress, job_id: &str) -> ProgressBar {
    let bar = add(all, STEPS, "{spinner} {prefix} [{bar:30}] {elapsed} {msg}");
    bar.with_prefix(shorten(job_id, ID))
}

/// Adds a bar. It draws nothing before it has joined the others, since what a bar draws on its own
/// would stay on the screen.
fn add(all: &MultiProgress, length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    let bar = match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };

    let bar = all.add(bar);
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use fleet_job::event::JobState;

    use super::{super::render::tests::job, *};

    /// Set in the environment of the process that draws.
    const DRAWS: &str = "MCP_FLEET_TEST_DRAWS_BARS";

    /// Bars are visible only on a terminal, so the test runs itself again in one.
    #[test]
    fn a_bar_draws_nothing_before_it_joins_the_others() {
        if env::var_os(DRAWS).is_some() {
            for _ in 0..20 {
                let bars = Bars::new(2);
                bars.show(&job("job-1", JobState::Running, 0));
                bars.end("job-1");
                bars.clear();
            }
            return;
        }

        let this = "jobs::bars::tests::a_bar_draws_nothing_before_it_joins_the_others";
        let exe = env::current_exe().expect("this program");
        let line = format!("stty cols 120; exec '{}' --exact {this} --nocapture", exe.display());
        let run =
            Command::new("script").args(["-qec", &line, "/dev/null"]).env(DRAWS, "1").output();
        let output = match run {
            Err(_) if env::var_os("FLEET_REQUIRE_TOOLS").is_none() => return,
            run => run.expect("script of util-linux"),
        };
        let drawn = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && drawn.contains("waiting ["), "{drawn}");
        let dead: Vec<_> = drawn.split(['\r', '\n']).filter(|line| line.contains('░')).collect();
        assert!(dead.iter().all(|line| line.contains('[')), "{dead:#?}");
    }
}
