//! How jobs have ended, as `submit --wait` and `jobs wait` report it.

use std::{collections::HashMap, time::Duration};

use fleet_job::event::{JobEvent, JobState, RESULT_OMITTED};
use serde_json::{Value, json};

use crate::{
    dlq::text::{format_age, shorten},
    events::describe_note,
    output,
    result_output::{NotStructured, ResultArgs, ResultPrinter},
    result_view::ResultFormat,
    submit::{FAILED, NO_RESULT, TIMED_OUT},
};

/// The longest line about a job; errors of tools can be long.
const MAX_LINE: usize = 4_096;

/// Prints the ends of jobs, and their results if the user wants them.
#[derive(Debug, Clone)]
pub(crate) struct EndPrinter {
    as_json: bool,
    results: ResultPrinter,
    /// Whether there is one job, so that nobody must be told whose result it is.
    is_alone: bool,
}

impl EndPrinter {
    /// Creates a printer for this number of jobs. The result of a single job is printed unless the
    /// user says otherwise; those of many are not.
    pub(crate) fn new(as_json: bool, results: &ResultArgs, jobs: usize) -> Self {
        let is_alone = jobs == 1;
        let usual = match is_alone && !as_json {
            true => ResultFormat::Text,
            false => ResultFormat::None,
        };
        Self { as_json, results: results.printer(usual), is_alone }
    }

    /// Prints the end of a job. Its line goes to standard error if standard output is for results.
    pub(crate) fn print(&self, end: &JobEvent) {
        if self.as_json {
            output::json(end);
        } else {
            let line = describe_end(end);
            self.say(&painted(&line, end.state, self.results.takes_stdout()));
        }

        let Some(result) = end.result.as_ref().filter(|_| end.state == JobState::Succeeded) else {
            return;
        };
        if self.results.is_text() && !self.is_alone {
            output::line(&format!("--- {}", end.job_id));
        }
        if self.results.print(&end.job_id, result) == Err(NotStructured) {
            output::problem(&format!("the result of {} has no structured part", end.job_id));
        }
    }

    /// Prints a message.
    pub(crate) fn say(&self, text: &str) {
        match self.as_json || self.results.takes_stdout() {
            true => output::note(text),
            false => output::line(text),
        }
    }

    /// Returns whether everything is printed as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.as_json
    }
}

/// Formats the end of a job on one line: what it was, how it ended, and how long its last attempt
/// took.
fn describe_end(end: &JobEvent) -> String {
    let what = match (&end.tool, end.calls, &end.job_type) {
        (Some(tool), ..) => tool.clone(),
        (None, Some(calls), _) => format!("{calls} calls"),
        (None, None, job_type) => job_type.clone().unwrap_or_else(|| "-".to_owned()),
    };
    let took = end.timings.as_ref().and_then(|timings| timings.ran_ms);
    let took = took.map(|ms| format!("  took {}", format_age(Duration::from_millis(ms))));
    let (time, state, job) = (end.time, end.state.as_str(), &end.job_id);
    let line = format!(
        "{time}  {state:9}  {job}  {what}{}  attempt {}{}",
        took.unwrap_or_default(),
        end.attempts,
        describe_note(end)
    );
    shorten(&line, MAX_LINE)
}

/// Gives the state in a line the colour of its end, if the line goes to a terminal.
fn painted(line: &str, state: JobState, to_stderr: bool) -> String {
    let word = console::style(state.as_str());
    let word = match state {
        JobState::Succeeded => word.green(),
        JobState::Failed => word.red(),
        JobState::Cancelled | JobState::Expired => word.yellow(),
        JobState::AwaitingApproval | JobState::Queued | JobState::Running | JobState::Retrying => {
            word
        }
    };
    let word = if to_stderr { word.for_stderr() } else { word };
    // The time before the state has no such word.
    line.replacen(state.as_str(), &word.to_string(), 1)
}

/// How the awaited jobs have ended.
#[derive(Debug, Default)]
pub(crate) struct WaitResult {
    pub(crate) submitted: usize,
    /// Those of the submitted jobs that were submitted before; `None` if nobody knows.
    pub(crate) existing: Option<usize>,
    states: HashMap<&'static str, usize>,
    /// Jobs that succeeded with a result that was too large to keep.
    omitted: usize,
}

impl WaitResult {
    /// Starts to wait for this number of jobs.
    pub(crate) fn of(submitted: usize) -> Self {
        Self { submitted, ..Self::default() }
    }

    pub(crate) fn add_end(&mut self, end: &JobEvent) {
        *self.states.entry(end.state.as_str()).or_default() += 1;
        self.omitted += usize::from(end.has_lost_its_result());
    }

    fn count(&self, state: JobState) -> usize {
        self.states.get(state.as_str()).copied().unwrap_or_default()
    }

    /// Returns the number of jobs that have not ended.
    fn open(&self) -> usize {
        self.submitted.saturating_sub(self.states.values().sum::<usize>())
    }

    fn summary(&self) -> Value {
        let mut summary = json!({
            "submitted": self.submitted,
            "succeeded": self.count(JobState::Succeeded),
            "failed": self.count(JobState::Failed),
            "expired": self.count(JobState::Expired),
            "cancelled": self.count(JobState::Cancelled),
            "waiting": self.open(),
            "resultOmitted": self.omitted,
        });
        if let Some(existing) = self.existing {
            summary["existing"] = existing.into();
        }
        summary
    }

    /// Prints the summary after the timeout or the last end.
    pub(crate) fn print(&self, timeout: Duration, printer: &EndPrinter) {
        if printer.is_json() {
            output::json(&self.summary());
        } else {
            let succeeded = self.count(JobState::Succeeded);
            printer.say(&format!("{succeeded} of {} jobs succeeded", self.submitted));
        }

        if self.omitted > 0 {
            let omitted = self.omitted;
            output::problem(&format!(
                "the results of {omitted} jobs were too large to keep ({RESULT_OMITTED})"
            ));
        }

        if self.open() > 0 {
            let (open, seconds) = (self.open(), timeout.as_secs());
            output::problem(&format!(
                "{open} jobs have not ended within {seconds} s; they continue to run"
            ));
        }
    }

    /// Returns the exit code of the command.
    pub(crate) fn exit_code(&self) -> u8 {
        match () {
            () if self.open() > 0 => TIMED_OUT,
            () if self.count(JobState::Succeeded) < self.submitted => FAILED,
            () if self.omitted > 0 => NO_RESULT,
            () => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{
        event::{ResultOmitted, Timings},
        time::Timestamp,
    };

    use super::*;

    #[test]
    fn exit_codes() {
        let check = |submitted, states: &[JobState], omitted: bool, expected| {
            let mut waited = WaitResult::of(submitted);
            for state in states {
                let mut end = JobEvent::new("j", *state, Timestamp::default());
                if omitted && *state == JobState::Succeeded {
                    end.omit_result(ResultOmitted { bytes: 9, limit_bytes: 5 });
                }
                waited.add_end(&end);
            }
            assert_eq!(waited.exit_code(), expected, "{waited:?}");
        };
        let (good, bad) = (JobState::Succeeded, JobState::Failed);
        check(2, &[good, good], false, 0);
        check(2, &[good, bad], false, 1);
        check(2, &[good, JobState::Cancelled], false, 1);
        check(2, &[good, good], true, 4);
        check(2, &[good, bad], true, 1);
        check(2, &[bad], false, 3);
    }

    #[test]
    fn only_the_state_of_a_line_is_painted_and_only_on_a_terminal() {
        let line = "2026  failed     j  failed_tool";
        console::set_colors_enabled(true);
        console::set_colors_enabled_stderr(false);
        let red = painted(line, JobState::Failed, false);
        assert_eq!(red, "2026  \u{1b}[31mfailed\u{1b}[0m     j  failed_tool");
        assert_eq!(painted(line, JobState::Failed, true), line);
        assert_eq!(painted(line, JobState::Queued, false), line);
        console::set_colors_enabled(false);
    }

    #[test]
    fn existing_jobs_are_counted_where_they_are_known() {
        let mut waited = WaitResult::of(2);
        assert_eq!(waited.summary().get("existing"), None);
        waited.existing = Some(1);
        assert_eq!(waited.summary()["existing"], 1);
    }

    #[test]
    fn the_line_of_an_end_names_tool_and_duration() {
        let at = |ms| Timestamp::from_millis(ms).unwrap();
        let mut end = JobEvent::new("j", JobState::Succeeded, at(0));
        end.tool = Some("files__file_list".to_owned());
        end.timings = Some(Timings::new(Some(at(0)), Some(at(10)), at(260)));
        end.attempts = 1;
        let line = describe_end(&end);
        assert!(line.ends_with("succeeded  j  files__file_list  took 250ms  attempt 1"), "{line}");

        (end.tool, end.calls, end.timings) = (None, Some(3), None);
        assert!(describe_end(&end).ends_with("j  3 calls  attempt 1"));
        (end.calls, end.job_type) = (None, Some("server-init".to_owned()));
        assert!(describe_end(&end).ends_with("j  server-init  attempt 1"));
    }
}
