//! A job: what it was asked to do, what came of it, and what can be done about it.

use askama::Template;
use fleet_job::{
    event::{JobEvent, JobState},
    time::Timestamp,
    view::{JobRecord, JobView, tool_result},
};
use serde_json::Value;

use super::jobs::{age, describe_progress, describe_work};
use crate::{
    Page,
    content::{Block, Blocks, MediaSource},
    format, links,
    parts::{CodeLink, JsonBlock, StateTag, TimeTag},
    views::{JobPage, ProblemView},
};

/// The most events of a history that a page shows.
const MAX_EVENTS: usize = 40;
/// The longest message of an event, in characters.
const EVENT_TEXT: usize = 200;
/// The longest message of an error, in bytes.
const ERROR_TEXT: usize = 8 * 1024;
/// The most bytes of the envelope, which has the arguments once more.
const ENVELOPE: usize = 8 * 1024;
/// The most bytes of arguments that can be edited.
const MAX_EDITED: usize = 64 * 1024;

/// A line of facts about a job.
struct Fact {
    name: &'static str,
    value: String,
    href: Option<String>,
}

/// A moment among the facts.
struct Moment {
    name: &'static str,
    time: TimeTag,
}

/// A transition of a job.
struct Step {
    state: StateTag,
    time: TimeTag,
    /// The time since the step before.
    after: Option<String>,
    attempt: u32,
    note: String,
    code: Option<CodeLink>,
    worker: Option<String>,
}

/// An error as a page shows it.
struct ShownError {
    kind: String,
    message: String,
    code: Option<CodeLink>,
    data: Option<JsonBlock>,
}

/// How far a job is.
struct ProgressBar {
    value: String,
    max: Option<String>,
    text: String,
}

/// What waits for a decision.
struct Approval {
    rule: String,
    requested_by: String,
    expires: TimeTag,
}

/// What can be done about a job.
#[derive(Default)]
struct Actions {
    cancel: Option<String>,
    run: Option<String>,
    edit: Option<String>,
    decide: Option<String>,
}

/// The page of a job.
#[derive(Template)]
#[template(path = "job.html")]
pub struct JobScreen {
    page: Page,
    id: String,
    self_url: String,
    what: String,
    state: StateTag,
    ran: String,
    attempts: u32,
    waiting: Option<String>,
    cancel_requested: Option<TimeTag>,
    progress: Option<ProgressBar>,
    approval: Option<Approval>,
    error: Option<ShownError>,
    result: Option<Blocks>,
    omitted: Option<String>,
    result_url: Option<String>,
    arguments: Result<JsonBlock, ProblemView>,
    envelope: Option<JsonBlock>,
    steps: Vec<Step>,
    history_note: Option<String>,
    moments: Vec<Moment>,
    facts: Vec<Fact>,
    metadata: Option<JsonBlock>,
    actions: Actions,
    command: String,
}

impl JobScreen {
    /// The page of a job.
    pub fn new(page: Page, view: &JobPage) -> Self {
        let (job, event) = (&view.job, &view.job.event);
        let result = tool_result(event);
        let (steps, history_note) = read_history(view);
        let id = event.job_id.clone();
        let lost = event.result_omitted.as_ref().filter(|_| result.is_none());

        Self {
            self_url: links::job(&id),
            what: describe_work(job),
            state: StateTag::new(event.state),
            ran: describe_progress(job),
            attempts: event.attempts,
            waiting: event
                .waiting
                .as_ref()
                .map(|waiting| format::one_line(&waiting.to_string(), 400)),
            cancel_requested: job.cancel_requested_at.map(TimeTag::new),
            progress: progress_of(event),
            approval: approval_of(event),
            error: error_of(event),
            result: result.map(|result| Blocks::of_result(result, MediaSource::Job(&id))),
            omitted: lost.map(|lost| {
                let (size, limit) = (format::bytes(lost.bytes), format::bytes(lost.limit_bytes));
                format!("The result has {size}, more than the {limit} that are kept.")
            }),
            result_url: result.map(|_| format!("{}/result.json", links::job(&id))),
            arguments: view.record.as_ref().map(arguments_of).map_err(Clone::clone),
            envelope: view
                .record
                .as_ref()
                .ok()
                .map(|record| JsonBlock::up_to(ENVELOPE, "Envelope", &record.envelope)),
            steps,
            history_note,
            moments: moments_of(event),
            facts: facts_of(view),
            metadata: (!event.metadata.is_empty())
                .then(|| JsonBlock::new("Metadata", &Value::Object(event.metadata.clone()))),
            actions: actions_for(&page, job, view.record.as_ref().ok()),
            command: format!("mcp-fleet jobs show {}", shell_word(&id)),
            page,
            id,
        }
    }
}

/// The arguments of a call; the whole payload of other jobs.
fn arguments_of(record: &JobRecord) -> JsonBlock {
    let payload = record.envelope.get("payload").unwrap_or(&Value::Null);
    JsonBlock::new("Arguments", payload.get("arguments").unwrap_or(payload))
}

fn progress_of(event: &JobEvent) -> Option<ProgressBar> {
    let progress = event.progress.as_ref().filter(|_| event.state == JobState::Running)?;
    Some(ProgressBar {
        value: progress.progress.to_string(),
        max: progress.total.filter(|total| *total > 0.0).map(|total| total.to_string()),
        text: format::one_line(progress.message.as_deref().unwrap_or("Running"), EVENT_TEXT),
    })
}

fn approval_of(event: &JobEvent) -> Option<Approval> {
    let approval = event.awaits_approval()?;
    Some(Approval {
        rule: format::one_line(&approval.rule, 200),
        requested_by: format::one_line(approval.requested_by.as_deref().unwrap_or("somebody"), 200),
        expires: TimeTag::new(approval.expires_at),
    })
}

fn error_of(event: &JobEvent) -> Option<ShownError> {
    let error = event.error.as_ref()?;
    // What a tool says about its failure is shown as its result.
    let data = error.data.as_ref().filter(|_| tool_result(event).is_none());
    let kind = serde_json::to_value(error.kind).ok()?;
    Some(ShownError {
        kind: kind.as_str().unwrap_or_default().to_owned(),
        message: format::cut(&error.message, ERROR_TEXT).to_owned(),
        code: error.error_code.as_deref().and_then(CodeLink::new),
        data: data.map(|data| JsonBlock::new("Details of the error", data)),
    })
}

fn read_history(view: &JobPage) -> (Vec<Step>, Option<String>) {
    let history = match &view.history {
        Ok(history) => history,
        Err(problem) => return (Vec::new(), Some(problem.detail.clone())),
    };

    let skipped = history.events.len().saturating_sub(MAX_EVENTS);
    let shown = &history.events[skipped..];
    let mut before: Option<Timestamp> = None;
    let mut steps = Vec::new();
    for job in shown {
        steps.push(Step::new(job, before));
        before = Some(job.event.time);
    }

    let note = match (skipped, history.complete) {
        (0, true) => None,
        (0, false) => Some("Earlier events could not be read in time.".to_owned()),
        (skipped, _) => Some(format!("{skipped} earlier events are not shown.")),
    };
    (steps, note)
}

impl Step {
    fn new(job: &JobView, before: Option<Timestamp>) -> Self {
        let event = &job.event;
        let error = event.error.as_ref();
        let message = error.map(|error| error.message.as_str());
        let waiting = event.waiting.as_ref().map(ToString::to_string);
        let progress = event.progress.as_ref().and_then(|progress| progress.message.as_deref());
        let note = message.or(waiting.as_deref()).or(progress).unwrap_or_default();
        Self {
            state: StateTag::new(event.state),
            time: TimeTag::new(event.time),
            after: before.map(|before| age(event.time, before)),
            attempt: event.attempts,
            note: format::one_line(note, EVENT_TEXT),
            code: error.and_then(|error| CodeLink::new(error.error_code.as_deref()?)),
            worker: event.worker.as_ref().map(|worker| format::one_line(worker, 80)),
        }
    }
}

fn moments_of(event: &JobEvent) -> Vec<Moment> {
    let timings = event.timings.as_ref();
    let moments = [
        ("Submitted", event.submitted_at),
        ("Started", timings.and_then(|timings| timings.started_at)),
        ("Ended", timings.map(|timings| timings.finished_at)),
        ("Next attempt", event.next_attempt_at),
        ("Last change", Some(event.time)),
    ];
    let moment =
        |(name, time): (_, Option<Timestamp>)| Some(Moment { name, time: TimeTag::new(time?) });
    moments.into_iter().filter_map(moment).collect()
}

fn facts_of(view: &JobPage) -> Vec<Fact> {
    let event = &view.job.event;
    let record = view.record.as_ref().ok();
    let waited = event.timings.as_ref().and_then(|timings| timings.waited_ms);
    let tool = event.tool.as_deref();
    let facts = [
        ("Type", event.job_type.clone(), None),
        ("Tool", tool.map(str::to_owned), tool.map(links::tool)),
        ("Waited", waited.map(format::duration), None),
        ("Worker", event.worker.clone(), None),
        ("Key", record.and_then(|record| record.key.clone()), None),
        ("Tenant", event.tenant.clone(), None),
        ("Idempotency key", event.idempotency_key.clone(), None),
        ("Record", event.source.as_ref().map(ToString::to_string), None),
    ];
    let fact = |(name, value, href): (_, Option<String>, _)| {
        Some(Fact { name, value: format::one_line(&value?, 300), href })
    };
    facts.into_iter().filter_map(fact).collect()
}

fn actions_for(page: &Page, job: &JobView, record: Option<&JobRecord>) -> Actions {
    let (rights, url) = (page.rights(), links::job(&job.event.job_id));
    let is_open = !job.is_terminal();
    let can_run = rights.submit && job.event.state.is_terminal() && record.is_some();
    Actions {
        cancel: (rights.cancel && is_open).then(|| format!("{url}/cancel")),
        run: can_run.then(|| format!("{url}/runs")),
        edit: (can_run && job.event.tool.is_some()).then(|| format!("{url}/edit")),
        decide: (rights.approve && job.event.awaits_approval().is_some())
            .then(|| format!("{url}/decision")),
    }
}

/// A text as one word of a shell.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) && !text.starts_with('-') {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The form to run a job with other arguments.
#[derive(Template)]
#[template(path = "edit.html")]
pub struct EditScreen {
    page: Page,
    id: String,
    what: String,
    href: String,
    action: String,
    arguments: String,
    schema: String,
    problem: Option<ProblemView>,
    is_too_large: bool,
}

impl EditScreen {
    /// The form with these arguments: those of the job, or those that were refused for `problem`.
    /// The schema of the arguments is null if it is not known.
    pub fn new(
        page: Page,
        job: &JobView,
        arguments: String,
        schema: &Value,
        problem: Option<ProblemView>,
    ) -> Self {
        let id = job.event.job_id.clone();
        Self {
            what: describe_work(job),
            href: links::job(&id),
            action: format!("{}/runs", links::job(&id)),
            is_too_large: arguments.len() > MAX_EDITED,
            schema: schema_attribute(schema),
            arguments,
            problem,
            page,
            id,
        }
    }
}

/// The most bytes of a schema in a page.
const MAX_SCHEMA: usize = 48 * 1024;

/// A schema as the attribute from which the script makes a form; nothing if it is too large.
pub(crate) fn schema_attribute(schema: &Value) -> String {
    let text = if schema.is_object() { schema.to_string() } else { String::new() };
    if text.len() > MAX_SCHEMA { String::new() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_words_of_a_shell() {
        assert_eq!(shell_word("mcp-jobs/0/17"), "mcp-jobs/0/17");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("a'; rm -rf /"), r"'a'\''; rm -rf /'");
        assert_eq!(shell_word("--help"), "'--help'");
        assert_eq!(shell_word(""), "''");
    }
}
