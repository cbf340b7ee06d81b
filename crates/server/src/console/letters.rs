//! Dead letters: shown, replayed and deleted.

use axum::{
    extract::{Path, State},
    http::{Method, StatusCode},
};
use fleet_console::{
    Section, links,
    screens::{LetterScreen, LettersFilter, LettersScreen, PurgeScreen, ReplayScreen},
    views::{LetterList, LetterView, PurgeView, ReplayView},
};
use serde::de::DeserializeOwned;

use super::{
    Console,
    visit::{Change, Failure, Screen, Visit, show},
};

/// How many letters the list shows.
const LISTED: &str = "30";

/// The URL of the list.
fn list_url() -> String {
    links::with_query("/dead-letters", [])
}

fn filter_of(value_of: impl Fn(&str) -> String) -> LettersFilter {
    LettersFilter {
        kind: value_of("kind"),
        about: value_of("about"),
        job: value_of("job"),
        letter: value_of("letter"),
    }
}

fn filter_of_url(visit: &Visit) -> LettersFilter {
    filter_of(|name| visit.parameter(name).unwrap_or_default())
}

/// The parameters of the REST interface.
fn rest_query(filter: &LettersFilter) -> Vec<(String, String)> {
    let pairs = filter.pairs().into_iter();
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `GET /console/dead-letters`.
pub(super) async fn list_letters(State(console): State<Console>, visit: Visit) -> Screen {
    let filter = LettersFilter { letter: String::new(), ..filter_of_url(&visit) };
    let mut query = rest_query(&filter);
    query.push(("limit".to_owned(), LISTED.to_owned()));
    let list = console.inner.api.get::<LetterList>(&visit.asker, "/dead-letters", &query).await?;
    show(LettersScreen::new(visit.page("Dead letters", Section::DeadLetters), filter, &list))
}

/// `GET /console/dead-letters/{id}`.
pub(super) async fn show_letter(
    State(console): State<Console>,
    visit: Visit,
    Path(place): Path<String>,
) -> Screen {
    let path = format!("/dead-letters/{}", links::segment(&place));
    let letter = console.inner.api.get::<LetterView>(&visit.asker, &path, &[]).await;
    let letter = letter.map_err(|problem| Failure::from(problem).leading_to(list_url()))?;
    let title = format!("Dead letter of {}", letter.job_id);
    show(LetterScreen::new(visit.page(title, Section::DeadLetters), letter))
}

/// `GET /console/dead-letters/replay`: what a replay would do.
pub(super) async fn preview_replay(State(console): State<Console>, visit: Visit) -> Screen {
    let filter = filter_of_url(&visit);
    let report: ReplayView =
        change(&console, &visit, Method::POST, "/dead-letters/replays", &rest_query(&filter), true)
            .await?;
    let page = visit.page("Replay dead letters", Section::DeadLetters);
    show(ReplayScreen::preview(page, &filter, &report))
}

/// `POST /console/dead-letters/replay`.
pub(super) async fn replay(
    State(console): State<Console>,
    Change { visit, form }: Change,
) -> Screen {
    let filter = filter_of(|name| form.get(name).to_owned());
    let query = rest_query(&filter);
    let report: ReplayView =
        change(&console, &visit, Method::POST, "/dead-letters/replays", &query, false).await?;
    let page = visit.page("Replay dead letters", Section::DeadLetters);
    show(ReplayScreen::report(page, &filter, &report))
}

/// `GET /console/dead-letters/purge`: what a deletion would delete.
pub(super) async fn preview_purge(State(console): State<Console>, visit: Visit) -> Screen {
    let before = visit.parameter("before").unwrap_or_default().trim().to_owned();
    let report = match before.is_empty() {
        true => None,
        false => Some(purge_before(&console, &visit, &before, true).await?),
    };
    let page = visit.page("Delete dead letters", Section::DeadLetters);
    show(PurgeScreen::preview(page, before, report.as_ref()))
}

/// `POST /console/dead-letters/purge`.
pub(super) async fn purge(
    State(console): State<Console>,
    Change { visit, form }: Change,
) -> Screen {
    let before = form.get("before").trim().to_owned();
    let report = purge_before(&console, &visit, &before, false).await?;
    let page = visit.page("Delete dead letters", Section::DeadLetters);
    show(PurgeScreen::report(page, before, &report))
}

async fn purge_before(
    console: &Console,
    visit: &Visit,
    before: &str,
    is_dry: bool,
) -> Result<PurgeView, Failure> {
    let query = [("before".to_owned(), before.to_owned())];
    change(console, visit, Method::DELETE, "/dead-letters", &query, is_dry).await
}

/// Sends a request that changes letters, or only says what it would change.
async fn change<T: DeserializeOwned>(
    console: &Console,
    visit: &Visit,
    method: Method,
    path: &str,
    query: &[(String, String)],
    is_dry: bool,
) -> Result<T, Failure> {
    let mut query = query.to_vec();
    query.push(("dryRun".to_owned(), is_dry.to_string()));
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let path = format!("{path}?{query}");

    let answer = console.inner.api.send(&visit.asker, method, &path, None).await;
    let answer = answer.map_err(|problem| Failure::from(problem).leading_to(list_url()))?;
    serde_json::from_value(answer.body).map_err(|_| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "The answer could not be read", "")
    })
}
