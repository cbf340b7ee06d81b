//! Something that is done to all jobs of a filter: what would be done, and how far it is.

use askama::Template;
use fleet_job::bulk::{BulkItem, BulkOutcome, BulkReport};

use crate::{JobsFilter, Page, format, links, parts::StateTag};

/// What is done to the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkKind {
    /// Cancel those that have not ended.
    Cancel,
    /// Run those again that have.
    Run,
}

impl BulkKind {
    /// The kind that a URL names.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "cancel" => Some(Self::Cancel),
            "run" => Some(Self::Run),
            _ => None,
        }
    }

    /// The name in a URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Run => "run",
        }
    }
}

/// A job of the operation.
struct ItemRow {
    id: String,
    href: String,
    state: StateTag,
    tool: String,
    outcome: String,
    new_job: Option<(String, String)>,
}

impl ItemRow {
    fn new(item: &BulkItem) -> Self {
        let outcome = match item.outcome {
            BulkOutcome::Planned => String::new(),
            BulkOutcome::Done => "done".to_owned(),
            BulkOutcome::Failed => {
                format::one_line(item.detail.as_deref().unwrap_or("failed"), 200)
            }
        };
        Self {
            id: format::one_line(&item.job_id, 80),
            href: links::job(&item.job_id),
            state: StateTag::new(item.state),
            tool: format::one_line(item.tool.as_deref().unwrap_or_default(), 80),
            outcome,
            new_job: item.new_job_id.as_ref().map(|id| (links::job(id), format::one_line(id, 80))),
        }
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BulkProgress {
    /// The number of jobs for which it was done.
    pub done: u64,
    /// The number of jobs for which it failed.
    pub failed: u64,
}

/// The page of an operation on all jobs of a filter.
#[derive(Template)]
#[template(path = "bulk.html")]
pub struct BulkScreen {
    page: Page,
    title: &'static str,
    verb: &'static str,
    kind: &'static str,
    filters: Vec<(String, String)>,
    back: String,
    is_preview: bool,
    matched: String,
    has_any: bool,
    complete: bool,
    done: String,
    failed: String,
    failed_any: bool,
    rows: Vec<ItemRow>,
    shown: usize,
    /// Fields of the form that takes the next step.
    next: Vec<(&'static str, String)>,
}

impl BulkScreen {
    /// What the operation would do.
    pub fn preview(page: Page, kind: BulkKind, filter: &JobsFilter, report: &BulkReport) -> Self {
        let operation = report.operation.clone().map(|operation| ("operation", operation));
        Self {
            is_preview: true,
            next: operation.into_iter().collect(),
            ..Self::of(page, kind, filter, report, &BulkProgress::default())
        }
    }

    /// What the operation has done so far.
    pub fn progress(
        page: Page,
        kind: BulkKind,
        filter: &JobsFilter,
        report: &BulkReport,
        progress: &BulkProgress,
    ) -> Self {
        let mut next = Vec::new();
        if let Some(cursor) = &report.next_cursor {
            next.push(("cursor", cursor.clone()));
            next.extend(report.operation.clone().map(|operation| ("operation", operation)));
            next.push(("done", progress.done.to_string()));
            next.push(("failed", progress.failed.to_string()));
        }
        Self { next, ..Self::of(page, kind, filter, report, progress) }
    }

    fn of(
        page: Page,
        kind: BulkKind,
        filter: &JobsFilter,
        report: &BulkReport,
        progress: &BulkProgress,
    ) -> Self {
        let (title, verb) = match kind {
            BulkKind::Cancel => ("Cancel all jobs that match", "Cancel"),
            BulkKind::Run => ("Run all jobs that match again", "Run"),
        };
        let filters = filter.pairs().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            page,
            title,
            verb,
            kind: kind.name(),
            filters: filters.collect(),
            back: filter.url(),
            is_preview: false,
            matched: format::count(report.matched),
            has_any: report.matched > 0,
            complete: report.complete,
            done: format::count(progress.done),
            failed: format::count(progress.failed),
            failed_any: progress.failed > 0,
            rows: report.jobs.iter().map(ItemRow::new).collect(),
            shown: report.jobs.len(),
            next: Vec::new(),
        }
    }
}
