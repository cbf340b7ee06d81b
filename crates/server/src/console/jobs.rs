//! The overview, and the list of jobs.

use axum::{
    extract::State,
    response::{IntoResponse as _, Redirect, Response},
};
use fleet_access::Action;
use fleet_console::{
    JobsFilter, Section, links,
    screens::{JobsScreen, Overview, OverviewScreen},
    views::{ProblemView, ServerList},
};
use fleet_job::view::{JobCounts, JobList};
use fleet_ops::clock;

use super::{
    Console,
    visit::{Failure, Screen, Visit, show},
};

/// The states of jobs that have not ended.
const OPEN: &str = "running,retrying,awaiting_approval,queued";
/// How many jobs of a kind the overview shows.
const FEW: &str = "8";
/// How many jobs a page of the list has.
const PAGE: &str = "50";

/// `GET /console`.
pub(super) async fn show_overview(State(console): State<Console>, visit: Visit) -> Screen {
    let api = &console.inner.api;
    let few = |state: &str| {
        [("state", state), ("limit", FEW)].map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let (open, failed) = (few(OPEN), few("failed,expired"));
    let (counts, open, failed, servers) = tokio::join!(
        api.get::<JobCounts>(&visit.asker, "/job-counts", &[]),
        api.get::<JobList>(&visit.asker, "/jobs", &open),
        api.get::<JobList>(&visit.asker, "/jobs", &failed),
        hosted_servers(&console, &visit),
    );

    // The numbers say why there are no jobs.
    let overview = Overview {
        counts,
        open: open.unwrap_or_default(),
        failed: failed.unwrap_or_default(),
        servers: servers.map(|list| list.servers).unwrap_or_default(),
    };
    let page = visit.page("Overview", Section::Overview);
    let page = page.live_from(links::with_query("/live", []));
    show(OverviewScreen::new(page, &overview))
}

async fn hosted_servers(console: &Console, visit: &Visit) -> Result<ServerList, ProblemView> {
    if !visit.asker.may_ever(Action::ListTools) {
        return Ok(ServerList { servers: Vec::new() });
    }
    console.inner.api.get(&visit.asker, "/servers", &[]).await
}

/// `GET /console/jobs`.
pub(super) async fn list_jobs(
    State(console): State<Console>,
    visit: Visit,
) -> Result<Response, Failure> {
    let filter = JobsFilter::parse(visit.query());
    // A form sends the fields that are empty, too.
    if visit.query().split('&').any(|pair| pair.ends_with('=')) {
        return Ok(Redirect::to(&filter.url()).into_response());
    }

    let mut query = filter.rest_query(clock::now());
    query.push(("limit".to_owned(), PAGE.to_owned()));
    query.extend(filter.cursor().map(|cursor| ("cursor".to_owned(), cursor.to_owned())));
    let api = &console.inner.api;
    let (list, counts) = tokio::join!(
        api.get::<JobList>(&visit.asker, "/jobs", &query),
        api.get::<JobCounts>(&visit.asker, "/job-counts", &[]),
    );
    let list = list.map_err(|problem| Failure::from(problem).leading_to(links::jobs([])))?;

    let events = filter.stream_query();
    let events = events.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut page = visit.page("Jobs", Section::Jobs);
    // Older pages stay as they are while one reads them.
    if filter.cursor().is_none() {
        page = page.live_from(links::with_query("/live", events));
    }
    let screen = JobsScreen::new(page, filter, &list, counts.as_ref().ok());
    show(screen).map(axum::response::IntoResponse::into_response)
}
