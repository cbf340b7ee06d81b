//! The list of jobs.

use askama::Template;
use fleet_job::{
    event::JobState,
    time::Timestamp,
    view::{JobCounts, JobList, JobView},
};

use crate::{
    JobsFilter, Page, format,
    jobs_filter::SPANS,
    links,
    parts::{CodeLink, StateTag, TimeTag},
};

/// The longest text in a row, in characters.
const ROW_TEXT: usize = 160;
/// The longest name in a row, in characters.
const ROW_NAME: usize = 80;

/// A job in a list.
pub(crate) struct JobRow {
    pub(crate) href: String,
    pub(crate) id: String,
    pub(crate) state: StateTag,
    pub(crate) what: String,
    pub(crate) submitted: Option<TimeTag>,
    pub(crate) attempts: u32,
    /// How long it ran, or how far it is.
    pub(crate) ran: String,
    /// What there is to say about its state.
    pub(crate) note: String,
    pub(crate) code: Option<CodeLink>,
}

impl JobRow {
    pub(crate) fn new(job: &JobView) -> Self {
        let event = &job.event;
        Self {
            href: links::job(&event.job_id),
            id: format::one_line(&event.job_id, ROW_NAME),
            state: StateTag::new(event.state),
            what: describe_work(job),
            submitted: event.submitted_at.map(TimeTag::new),
            attempts: event.attempts,
            ran: describe_progress(job),
            note: format::one_line(&describe_state(job), ROW_TEXT),
            code: event
                .error
                .as_ref()
                .and_then(|error| CodeLink::new(error.error_code.as_deref()?)),
        }
    }

    pub(crate) fn rows(jobs: &[JobView]) -> Vec<Self> {
        jobs.iter().map(Self::new).collect()
    }
}

/// What a job does, in a few words.
pub(crate) fn describe_work(job: &JobView) -> String {
    let event = &job.event;
    match (&event.tool, event.calls) {
        (Some(tool), _) => format::one_line(tool, ROW_NAME),
        (None, Some(calls)) => format!("{} calls", format::count(calls.into())),
        (None, None) => event.job_type.clone().unwrap_or_else(|| "unreadable".to_owned()),
    }
}

/// How long a job ran, or how far it is.
pub(crate) fn describe_progress(job: &JobView) -> String {
    let event = &job.event;
    if let Some(progress) = &event.progress {
        return match progress.total {
            Some(total) if total > 0.0 => format!("{:.0} %", 100.0 * progress.progress / total),
            _ => format!("at {}", progress.progress),
        };
    }
    let ran = event.timings.as_ref().and_then(|timings| timings.ran_ms);
    ran.map(format::duration).unwrap_or_default()
}

/// Why a job is in its state, if there is anything to say.
fn describe_state(job: &JobView) -> String {
    let event = &job.event;
    if let Some(waiting) = &event.waiting {
        return waiting.to_string();
    }
    if job.cancel_requested_at.is_some() {
        return "its cancellation was requested".to_owned();
    }
    if let Some(error) = &event.error {
        return error.message.clone();
    }
    let message = event.progress.as_ref().and_then(|progress| progress.message.clone());
    message.unwrap_or_default()
}

/// A state in the filter.
struct StateChip {
    label: &'static str,
    href: String,
    count: Option<String>,
    is_current: bool,
}

/// An option of a selection.
struct SpanOption {
    name: &'static str,
    label: &'static str,
    is_current: bool,
}

/// The list of jobs.
#[derive(Template)]
#[template(path = "jobs.html")]
pub struct JobsScreen {
    page: Page,
    filter: JobsFilter,
    chips: Vec<StateChip>,
    spans: Vec<SpanOption>,
    rows: Vec<JobRow>,
    next: Option<String>,
    first: Option<String>,
    self_url: String,
    complete_since: Option<TimeTag>,
    cancel_all: Option<String>,
    run_all: Option<String>,
    has_more_filters: bool,
}

impl JobsScreen {
    /// The list of these jobs, which a filter has found.
    pub fn new(page: Page, filter: JobsFilter, list: &JobList, counts: Option<&JobCounts>) -> Self {
        let rights = page.rights();
        let bulk = |action: &str| {
            let action = [("action", action)];
            links::with_query("/job-operations", filter.pairs().chain(action))
        };
        let spans = SPANS.map(|(name, label, _)| SpanOption {
            name,
            label,
            is_current: filter.is("within", name),
        });
        let more = ["tenant", "errorCode", "metadata", "since", "until", "type"];

        Self {
            chips: chips(&filter, counts),
            spans: spans.into(),
            rows: JobRow::rows(&list.jobs),
            next: list.next_cursor.as_deref().map(|cursor| filter.next_page(cursor)),
            first: filter.cursor().map(|_| links::jobs(filter.pairs())),
            self_url: filter.url(),
            complete_since: counts.and_then(|counts| counts.complete_since).map(TimeTag::new),
            cancel_all: (rights.cancel && !list.jobs.is_empty()).then(|| bulk("cancel")),
            run_all: (rights.submit && !list.jobs.is_empty()).then(|| bulk("run")),
            has_more_filters: more.iter().any(|name| !filter.get(name).is_empty()),
            page,
            filter,
        }
    }
}

fn chips(filter: &JobsFilter, counts: Option<&JobCounts>) -> Vec<StateChip> {
    let count_of = |state: Option<JobState>| {
        let counts = counts?;
        let number = match state {
            Some(state) => counts.states.get(state.as_str()).copied()?,
            None => counts.total,
        };
        Some(format::count(number))
    };
    let chip = |label, state: Option<JobState>| {
        let name = state.map_or("", JobState::as_str);
        StateChip {
            label,
            href: filter.url_with("state", name),
            count: count_of(state),
            is_current: filter.is("state", name),
        }
    };
    vec![
        chip("All", None),
        chip("Running", Some(JobState::Running)),
        chip("Queued", Some(JobState::Queued)),
        chip("Retrying", Some(JobState::Retrying)),
        chip("Failed", Some(JobState::Failed)),
        chip("Succeeded", Some(JobState::Succeeded)),
        chip("Cancelled", Some(JobState::Cancelled)),
        chip("Expired", Some(JobState::Expired)),
        chip("Awaiting approval", Some(JobState::AwaitingApproval)),
    ]
}

/// How long ago something was, at some moment.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let ms = u64::try_from(now.since(then).as_millis()).unwrap_or(u64::MAX);
    format::duration(ms)
}
