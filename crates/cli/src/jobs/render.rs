//! Formats jobs for people. Pure.

use std::time::Duration;

use fleet_job::{
    event::{Progress, RESULT_OMITTED},
    outcome::JobError,
    time::Timestamp,
    view::JobView,
};
use serde_json::Value;

use crate::{
    dlq::text::{format_age, format_time, new_table, shorten},
    events,
    result_view::{for_terminal, to_text},
};

/// The maximum width of an id in a table. A longer one would push everything else off the screen.
const ID: usize = 48;
const TOOL: usize = 40;
const PROGRESS: usize = 32;
/// The maximum length of a text in `show`.
const TEXT: usize = 4_096;

const COLUMNS: [&str; 8] = ["JOB", "STATE", "TYPE", "TOOL", "ATTEMPTS", "PROGRESS", "AGE", "TOOK"];
/// The columns to drop, in this order, if the table is too wide.
const EXPENDABLE: [&str; 5] = ["TYPE", "ATTEMPTS", "TOOK", "TOOL", "AGE"];

/// Formats jobs as a table.
pub(super) fn jobs_table<'a>(
    jobs: impl IntoIterator<Item = &'a JobView>,
    now: Timestamp,
) -> String {
    let rows: Vec<_> = jobs.into_iter().map(|job| job_row(job, now)).collect();
    table_without(&rows, &[])
}

/// Like [`jobs_table`], but drops columns to fit `width` as far as possible.
pub(super) fn jobs_within<'a>(
    jobs: impl IntoIterator<Item = &'a JobView>,
    now: Timestamp,
    width: usize,
) -> String {
    let rows: Vec<_> = jobs.into_iter().map(|job| job_row(job, now)).collect();
    let tables = (0..=EXPENDABLE.len()).map(|count| table_without(&rows, &EXPENDABLE[..count]));

    let mut narrowest = String::new();
    for table in tables {
        narrowest = table;
        if narrowest.lines().all(|line| line.chars().count() <= width) {
            break;
        }
    }
    narrowest
}

/// Formats the table without the hidden columns.
fn table_without(rows: &[[String; COLUMNS.len()]], hidden: &[&str]) -> String {
    let shown = |cells: &[String]| -> Vec<String> {
        let cells = COLUMNS.iter().zip(cells).filter(|(column, _)| !hidden.contains(column));
        cells.map(|(_, cell)| cell.clone()).collect()
    };

    let mut table = new_table([""]);
    table.set_header(shown(&COLUMNS.map(str::to_owned)));
    for row in rows {
        table.add_row(shown(row));
    }
    table.trim_fmt()
}

fn job_row(job: &JobView, now: Timestamp) -> [String; COLUMNS.len()] {
    let event = &job.event;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let tool = event.tool.clone().or_else(|| event.calls.map(|calls| format!("{calls} calls")));
    let took = event.timings.as_ref().and_then(|timings| timings.ran_ms).map(Duration::from_millis);
    [
        shorten(&event.job_id, ID),
        describe_state(job),
        or_none(event.job_type.clone()),
        shorten(&or_none(tool), TOOL),
        event.attempts.to_string(),
        or_none(
            event.progress.as_ref().map(|progress| shorten(&describe_progress(progress), PROGRESS)),
        ),
        format_age(now.since(event.submitted_at.unwrap_or(event.time))),
        or_none(took.map(format_age)),
    ]
}

/// Formats the state, and marks it if it is about to change or hides something.
fn describe_state(job: &JobView) -> String {
    let state = job.event.state.as_str();
    if job.event.has_lost_its_result() {
        return format!("{state} ({RESULT_OMITTED})");
    }
    match (job.cancel_requested_at, &job.event.waiting) {
        (Some(_), _) => format!("{state} (cancelling)"),
        (None, Some(waiting)) if waiting.pause.is_some() => format!("{state} (paused)"),
        (None, Some(_)) => format!("{state} (waiting)"),
        (None, None) => state.to_owned(),
    }
}

/// Formats the progress of a job, such as `3 of 10 (copying)`.
pub(crate) fn describe_progress(progress: &Progress) -> String {
    let mut text = match progress.total {
        Some(total) => format!("{} of {total}", progress.progress),
        None => progress.progress.to_string(),
    };
    if let Some(message) = &progress.message {
        text.push_str(&format!(" ({message})"));
    }
    text
}

/// Returns the completed fraction of a job, from 0 to 1, if the job reports it.
pub(super) fn completed_fraction(progress: &Progress) -> Option<f64> {
    let total = progress.total.filter(|total| *total > 0.0)?;
    Some((progress.progress / total).clamp(0.0, 1.0))
}

/// Formats the last event of a job on one line.
pub(super) fn event_line(job: &JobView) -> String {
    let mut line = events::describe(&job.event);
    if let Some(progress) = &job.event.progress {
        line.push_str(&format!("  {}", describe_progress(progress)));
    }
    shorten(&line, TEXT)
}

/// Formats everything about a job except its result and its arguments.
pub(super) fn job_details(job: &JobView) -> String {
    let event = &job.event;
    let mut table = new_table(["JOB", &event.job_id]);
    for (name, value) in detail_rows(job) {
        if let Some(value) = value {
            table.add_row([name, &shorten(&value, TEXT)]);
        }
    }

    let mut text = table.trim_fmt();
    let details = event.error.as_ref().and_then(|error| error.data.as_ref());
    if let Some(details) = details {
        // The details of an error that a tool reports are its result.
        let details = to_text(details, &mut |media| format!("[{}]", media.describe()));
        text.push_str(&format!("\n\nDetails of the error:\n{}", for_terminal(&details)));
    }

    text
}

/// Formats what a job was asked to do: the arguments of its calls, or whatever its payload has.
pub(super) fn job_arguments(envelope: &Value) -> String {
    let payload = envelope.get("payload").unwrap_or(&Value::Null);
    let arguments = match (payload.get("arguments"), payload.get("calls")) {
        (Some(arguments), _) => arguments,
        (None, Some(calls)) => calls,
        (None, None) => payload,
    };
    for_terminal(&format!("{arguments:#}"))
}

fn detail_rows(job: &JobView) -> Vec<(&'static str, Option<String>)> {
    let event = &job.event;
    let some_time = |at: Option<Timestamp>| at.map(|at| format_time(Some(at)));
    let took = |ms: Option<u64>| ms.map(|ms| format_age(Duration::from_millis(ms)));
    let timings = event.timings.as_ref();
    let omitted = event.result_omitted.as_ref().map(|omitted| {
        format!(
            "{} bytes, omitted because the limit is {} [{}]",
            omitted.bytes,
            omitted.limit_bytes,
            fleet_codes::RESULT_OMITTED
        )
    });

    // Events of older versions have no code.
    let code = event
        .code
        .clone()
        .or_else(|| event.has_lost_its_result().then(|| RESULT_OMITTED.to_owned()));

    let metadata = (!event.metadata.is_empty()).then(|| Value::from(event.metadata.clone()));

    vec![
        ("state", Some(event.state.as_str().to_owned())),
        ("code", code),
        ("since", some_time(Some(event.time))),
        (
            "waits",
            event.waiting.as_ref().map(|waiting| format!("{waiting} since {}", waiting.since)),
        ),
        ("cancel requested", some_time(job.cancel_requested_at)),
        ("type", event.job_type.clone()),
        ("tool", event.tool.clone()),
        ("calls", event.calls.map(|calls| calls.to_string())),
        ("tenant", event.tenant.clone()),
        ("attempts", Some(event.attempts.to_string())),
        ("next attempt", some_time(event.next_attempt_at)),
        ("progress", event.progress.as_ref().map(describe_progress)),
        ("worker", event.worker.clone()),
        ("record", event.source.as_ref().map(ToString::to_string)),
        ("submitted", some_time(event.submitted_at)),
        ("started", some_time(timings.and_then(|timings| timings.started_at))),
        ("finished", some_time(timings.map(|timings| timings.finished_at))),
        ("waited", took(timings.and_then(|timings| timings.waited_ms))),
        ("took", took(timings.and_then(|timings| timings.ran_ms))),
        ("error", event.error.as_ref().map(describe_error)),
        ("result", omitted),
        ("idempotency key", event.idempotency_key.clone()),
        ("metadata", metadata.map(|metadata| metadata.to_string())),
    ]
}

/// Formats the kind and the message of an error. The message may already start with the kind.
fn describe_error(error: &JobError) -> String {
    let (kind, message) = (error.kind.as_str(), &error.message);
    let text =
        if message.starts_with(kind) { message.clone() } else { format!("{kind}: {message}") };
    match &error.error_code {
        Some(code) => format!("{text} [{code}]"),
        None => text,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use fleet_job::{
        event::{JobEvent, JobState, Timings},
        outcome::ErrorKind,
    };

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms).unwrap()
    }

    /// A call of `t`, submitted at `ms`.
    pub(in crate::jobs) fn job(id: &str, state: JobState, ms: i64) -> JobView {
        let mut event = JobEvent::new(id, state, at(ms + 100));
        event.job_type = Some("tool-call".to_owned());
        event.tool = Some("t".to_owned());
        event.submitted_at = Some(at(ms));
        event.attempts = 1;
        JobView { event, cancel_requested_at: None }
    }

    #[test]
    fn a_row_shows_the_known_fields() {
        let mut job = job("j", JobState::Running, 5_000);
        let check =
            |job: &JobView, expected: [&str; 8]| assert_eq!(job_row(job, at(65_000)), expected);
        check(&job, ["j", "running", "tool-call", "t", "1", "-", "1m", "-"]);

        job.cancel_requested_at = Some(at(6_000));
        job.event.progress = Some(Progress {
            progress: 3.0,
            total: Some(10.0),
            message: Some("copying".to_owned()),
        });

        check(
            &job,
            ["j", "running (cancelling)", "tool-call", "t", "1", "3 of 10 (copying)", "1m", "-"],
        );

        job = self::job("a\nb", JobState::Succeeded, 5_000);
        (job.event.tool, job.event.calls) = (None, Some(7));
        job.event.timings = Some(Timings::new(Some(at(5_000)), Some(at(6_000)), at(8_000)));
        check(&job, ["a b", "succeeded", "tool-call", "7 calls", "1", "-", "1m", "2s"]);

        assert!(jobs_table([&job], at(65_000)).contains("a b"));
    }

    #[test]
    fn an_omitted_result_is_shown() {
        let mut job = job("j", JobState::Succeeded, 5_000);
        job.event.result_omitted =
            Some(fleet_job::event::ResultOmitted { bytes: 9, limit_bytes: 5 });
        assert_eq!(job_row(&job, at(65_000))[1], "succeeded (result-omitted)");
        assert!(detail_rows(&job).contains(&("code", Some("result-omitted".to_owned()))));
    }

    #[test]
    fn the_kind_of_an_error_appears_once() {
        let describe = |kind, message| describe_error(&JobError::new(kind, message));
        assert_eq!(
            describe(ErrorKind::Cancelled, "cancelled: not needed"),
            "cancelled: not needed [FLEET-CANCELLED]"
        );
        assert_eq!(describe(ErrorKind::Tool, "it broke"), "tool: it broke [FLEET-TOOL]");
    }

    #[test]
    fn a_narrow_table_has_fewer_columns() {
        let jobs = [job("a-rather-long-id", JobState::Running, 5_000)];
        let header =
            |width| jobs_within(&jobs, at(65_000), width).lines().next().unwrap().trim().to_owned();
        assert!(header(200).ends_with("AGE  TOOK") && header(200).contains("TYPE"));
        assert!(!header(70).contains("TYPE") && header(70).contains("ATTEMPTS"), "{}", header(70));
        assert!(header(10).starts_with("JOB") && header(10).ends_with("PROGRESS"));
    }

    #[test]
    fn everything_is_shown() {
        let mut failed = job("j", JobState::Failed, 5_000);
        failed.event.error = serde_json::from_value(serde_json::json!({
            "kind": "tool", "message": "it broke\u{1b}[2J", "data": {"why": "so"},
        }))
        .ok();
        failed.event.result_omitted =
            Some(fleet_job::event::ResultOmitted { bytes: 9, limit_bytes: 5 });
        let text = job_details(&failed);
        for part in
            ["failed", "tool: it broke [2J", "\"why\": \"so\"", "9 bytes, omitted", "attempts"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("tenant"), "{text}");
        assert!(event_line(&failed).contains("it broke"));
    }

    #[test]
    fn arguments_are_those_of_the_calls() {
        let check = |payload: Value, expected: Value| {
            let envelope = serde_json::json!({ "payload": payload });
            assert_eq!(job_arguments(&envelope), format!("{expected:#}"));
        };
        let one = || serde_json::json!({"path": "."});
        check(serde_json::json!({"tool": "t", "arguments": one()}), one());
        check(serde_json::json!({"calls": [one()]}), serde_json::json!([one()]));
        check(serde_json::json!({"mcpServers": {}}), serde_json::json!({"mcpServers": {}}));
    }

    #[test]
    fn fractions() {
        let check = |progress: f64, total: Option<f64>, expected: Option<f64>| {
            assert_eq!(completed_fraction(&Progress { progress, total, message: None }), expected);
        };
        check(3.0, None, None);
        check(3.0, Some(0.0), None);
        check(3.0, Some(4.0), Some(0.75));
        check(5.0, Some(4.0), Some(1.0));
    }
}
