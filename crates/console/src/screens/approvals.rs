//! Jobs that await approval.

use askama::Template;
use fleet_job::view::{JobList, JobView};

use super::jobs::describe_work;
use crate::{Page, format, links, parts::TimeTag};

/// A job that awaits approval.
struct ApprovalRow {
    id: String,
    href: String,
    action: String,
    what: String,
    rule: String,
    requested_by: String,
    expires: TimeTag,
}

impl ApprovalRow {
    fn new(job: &JobView) -> Option<Self> {
        let approval = job.event.awaits_approval()?;
        let id = &job.event.job_id;
        Some(Self {
            href: links::job(id),
            action: format!("{}/decision", links::job(id)),
            id: format::one_line(id, 80),
            what: describe_work(job),
            rule: format::one_line(&approval.rule, 80),
            requested_by: format::one_line(
                approval.requested_by.as_deref().unwrap_or("somebody"),
                80,
            ),
            expires: TimeTag::new(approval.expires_at),
        })
    }
}

/// The jobs that await approval.
#[derive(Template)]
#[template(path = "approvals.html")]
pub struct ApprovalsScreen {
    page: Page,
    rows: Vec<ApprovalRow>,
    can_decide: bool,
    has_more: bool,
}

impl ApprovalsScreen {
    /// The page of these jobs.
    pub fn new(page: Page, list: &JobList) -> Self {
        Self {
            can_decide: page.rights().approve,
            rows: list.jobs.iter().filter_map(ApprovalRow::new).collect(),
            has_more: list.next_cursor.is_some(),
            page,
        }
    }
}
