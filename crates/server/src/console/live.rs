//! Hints that a page is to be fetched again, made from the streams of events of the REST interface.
//!
//! A page wants to know that something has changed, and not more often than a person can look. So
//! an event of the console says nothing but that, at most once per [`PAUSE`]: `fleet` after anything,
//! and `step` if a job has entered another state.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::{Path, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use fleet_console::{JobsFilter, links};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, sleep_until};

use super::{
    Console,
    visit::{Failure, Visit},
};

/// The shortest time between two hints.
const PAUSE: Duration = Duration::from_secs(1);
/// Keeps the connection open.
const COMMENT: &str = ":\n\n";
/// Tells a page not to connect again.
const END: &str = "event: end\ndata: 1\n\n";

/// `GET /console/live`: hints about jobs of a filter.
pub(super) async fn follow_jobs(
    State(console): State<Console>,
    visit: Visit,
) -> Result<Response, Failure> {
    let query = JobsFilter::parse(visit.query()).stream_query();
    let events = console.inner.api.open_stream(&visit.asker, "/events", &query).await?;
    Ok(respond(hints(events, "")))
}

/// `GET /console/jobs/{id}/live`: hints about a job, until it has ended.
pub(super) async fn follow_job(
    State(console): State<Console>,
    visit: Visit,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let path = format!("/jobs/{}/events", links::segment(&id));
    let events = console.inner.api.open_stream(&visit.asker, &path, &[]).await?;
    Ok(respond(hints(events, END)))
}

fn respond(hints: impl Stream<Item = String> + Send + 'static) -> Response {
    let body = Body::from_stream(hints.map(Ok::<_, Infallible>));
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

/// What has happened since the last hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Nothing,
    Silence,
    Event,
}

/// A stream of hints.
struct Hints {
    events: Option<BodyDataStream>,
    /// What is said when there are no more events.
    last: &'static str,
    last_state: String,
    has_news: bool,
    has_step: bool,
    next: Instant,
}

/// Makes hints of events, and says `last` after them.
fn hints(events: BodyDataStream, last: &'static str) -> impl Stream<Item = String> + Send {
    let hints = Hints {
        events: Some(events),
        last,
        last_state: String::new(),
        has_news: false,
        has_step: false,
        next: Instant::now(),
    };
    stream::unfold(hints, |mut hints| async move {
        let text = hints.next_hint().await?;
        Some((text, hints))
    })
}

impl Hints {
    async fn next_hint(&mut self) -> Option<String> {
        loop {
            let Some(events) = &mut self.events else {
                return None;
            };
            let chunk = tokio::select! {
                // A hint that is due goes first, however many events there are.
                biased;
                () = sleep_until(self.next), if self.has_news => return Some(self.take_hint()),
                chunk = events.next() => chunk,
            };
            let Some(Ok(chunk)) = chunk else {
                self.events = None;
                return Some(format!("{}{}", self.take_hint(), self.last));
            };
            if self.read(&chunk) == News::Silence {
                return Some(COMMENT.to_owned());
            }
        }
    }

    /// Looks at events, each of which is completely in one chunk.
    fn read(&mut self, chunk: &Bytes) -> News {
        let text = String::from_utf8_lossy(chunk);
        let mut news = News::Nothing;
        for line in text.lines() {
            if let Some(state) = line.strip_prefix("event:") {
                (self.has_news, news) = (true, News::Event);
                if self.last_state != state {
                    self.last_state = state.to_owned();
                    self.has_step = true;
                }
            } else if line.starts_with(':') && news == News::Nothing {
                news = News::Silence;
            }
        }
        news
    }

    fn take_hint(&mut self) -> String {
        let mut text = String::new();
        if self.has_news {
            text.push_str("event: fleet\ndata: 1\n\n");
        }
        if self.has_step {
            text.push_str("event: step\ndata: 1\n\n");
        }
        (self.has_news, self.has_step) = (false, false);
        self.next = Instant::now() + PAUSE;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&'static str]) -> BodyDataStream {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, Infallible>(*chunk)).collect();
        Body::from_stream(stream::iter(chunks)).into_data_stream()
    }

    #[tokio::test(start_paused = true)]
    async fn many_events_are_few_hints_and_the_last_one_says_so() {
        let event = "event: running\nid: 0-1\ndata: {}\n\n";
        let found: Vec<_> = hints(events(&[":\n\n", event, event, event]), END).collect().await;
        assert_eq!(found[0], COMMENT);
        let all = found.concat();
        assert_eq!(all.matches("event: step").count(), 1, "{all}");
        assert!((1..=2).contains(&all.matches("event: fleet").count()), "{all}");
        assert!(all.ends_with("event: end\ndata: 1\n\n"), "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn hints_say_nothing_about_jobs() {
        let event = "event: failed\ndata: {\"jobID\":\"secret\"}\n\n";
        let all = hints(events(&[event]), "").collect::<Vec<_>>().await.concat();
        assert!(!all.contains("secret") && !all.contains("failed"), "{all}");
    }
}
