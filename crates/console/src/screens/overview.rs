//! The overview: what is going on, and what needs somebody.

use askama::Template;
use fleet_job::{
    event::JobState,
    view::{JobCounts, JobList},
};

use super::jobs::JobRow;
use crate::{
    Page, format, links,
    parts::{StateTag, TimeTag},
    views::{ProblemView, ServerView},
};

/// A number with what it counts.
struct Tile {
    label: &'static str,
    number: String,
    href: String,
    class: &'static str,
}

/// A hosted server in a few words.
struct ServerLine {
    name: String,
    href: String,
    state: StateTag,
    tools: usize,
}

/// What the overview shows.
#[derive(Debug, Clone)]
pub struct Overview {
    /// The numbers of jobs.
    pub counts: Result<JobCounts, ProblemView>,
    /// The newest jobs that have not ended.
    pub open: JobList,
    /// The newest jobs that failed.
    pub failed: JobList,
    /// The hosted servers.
    pub servers: Vec<ServerView>,
}

/// The overview.
#[derive(Template)]
#[template(path = "overview.html")]
pub struct OverviewScreen {
    page: Page,
    tiles: Vec<Tile>,
    total: u64,
    complete_since: Option<TimeTag>,
    problem: Option<ProblemView>,
    open: Vec<JobRow>,
    failed: Vec<JobRow>,
    servers: Vec<ServerLine>,
}

impl OverviewScreen {
    /// The overview of these.
    pub fn new(page: Page, overview: &Overview) -> Self {
        let counts = overview.counts.as_ref().ok();
        let line = |server: &ServerView| ServerLine {
            name: server.name.clone(),
            href: links::server(&server.name),
            state: StateTag::of_server(&server.state),
            tools: server.tools.len(),
        };
        Self {
            page,
            tiles: counts.map(tiles).unwrap_or_default(),
            total: counts.map_or(0, |counts| counts.total),
            complete_since: counts.and_then(|counts| counts.complete_since).map(TimeTag::new),
            problem: overview.counts.as_ref().err().cloned(),
            open: JobRow::rows(&overview.open.jobs),
            failed: JobRow::rows(&overview.failed.jobs),
            servers: overview.servers.iter().map(line).collect(),
        }
    }
}

fn tiles(counts: &JobCounts) -> Vec<Tile> {
    let tile = |label, state: JobState, class| {
        let number = counts.states.get(state.as_str()).copied().unwrap_or(0);
        Tile {
            label,
            number: format::count(number),
            href: links::jobs([("state", state.as_str())]),
            class: if number == 0 { "is-zero" } else { class },
        }
    };
    vec![
        tile("Running", JobState::Running, "is-busy"),
        tile("Queued", JobState::Queued, "is-idle"),
        tile("Retrying", JobState::Retrying, "is-warning"),
        tile("Awaiting approval", JobState::AwaitingApproval, "is-warning"),
        tile("Failed", JobState::Failed, "is-bad"),
        tile("Succeeded", JobState::Succeeded, "is-good"),
    ]
}
