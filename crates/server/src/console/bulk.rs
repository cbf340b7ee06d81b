//! Operations on all jobs of a filter: a preview, and then steps until all is done.

use axum::{
    extract::State,
    http::{Method, StatusCode},
};
use fleet_console::{
    JobsFilter, Section,
    screens::{BulkKind, BulkProgress, BulkScreen},
};
use fleet_job::bulk::BulkReport;
use fleet_ops::clock;

use super::{
    Console,
    visit::{Change, Failure, Form, Screen, Visit, show},
};

/// How many jobs a step is about.
const STEP: &str = "100";

/// `GET /console/job-operations`: what would be done.
pub(super) async fn preview(State(console): State<Console>, visit: Visit) -> Screen {
    let filter = JobsFilter::parse(visit.query());
    let kind = kind_of(&visit.parameter("action").unwrap_or_default())?;
    let mut query = filter.rest_query(clock::now());
    query.push(("dryRun".to_owned(), "true".to_owned()));

    let report = send(&console, &visit, kind, &filter, &query).await?;
    let page = visit.page("All jobs that match", Section::Jobs);
    show(BulkScreen::preview(page, kind, &filter, &report))
}

/// `POST /console/job-operations`: one step.
pub(super) async fn take_step(
    State(console): State<Console>,
    Change { visit, form }: Change,
) -> Screen {
    // The filter is in the form as it is in a URL, and so is the place in the list.
    let filter = JobsFilter::parse(&form.as_query());
    let kind = kind_of(form.get("action"))?;
    let mut query = filter.rest_query(clock::now());
    query.push(("limit".to_owned(), STEP.to_owned()));
    for name in ["cursor", "operation"] {
        let value = form.get(name);
        if !value.is_empty() && (name != "operation" || kind == BulkKind::Run) {
            query.push((name.to_owned(), value.to_owned()));
        }
    }

    let report = send(&console, &visit, kind, &filter, &query).await?;
    let progress = BulkProgress {
        done: number(&form, "done") + report.done,
        failed: number(&form, "failed") + report.failed,
    };
    let page = visit.page("All jobs that match", Section::Jobs);
    show(BulkScreen::progress(page, kind, &filter, &report, &progress))
}

async fn send(
    console: &Console,
    visit: &Visit,
    kind: BulkKind,
    filter: &JobsFilter,
    query: &[(String, String)],
) -> Result<BulkReport, Failure> {
    let path = match kind {
        BulkKind::Cancel => "/job-cancellations",
        BulkKind::Run => "/job-runs",
    };
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let path = format!("{path}?{query}");
    let answer = console.inner.api.send(&visit.asker, Method::POST, &path, None).await;
    let answer = answer.map_err(|problem| Failure::from(problem).leading_to(filter.url()))?;
    serde_json::from_value(answer.body).map_err(|_| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "The answer could not be read", "")
    })
}

fn kind_of(name: &str) -> Result<BulkKind, Failure> {
    BulkKind::parse(name).ok_or_else(|| {
        let detail = "An operation is to cancel jobs or to run them again.";
        Failure::new(StatusCode::BAD_REQUEST, "There is no such operation", detail)
    })
}

fn number(form: &Form, name: &str) -> u64 {
    form.get(name).parse().unwrap_or(0)
}
