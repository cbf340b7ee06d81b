//! Streams of job states (server-sent events): of one job until it has ended, or of all jobs that
//! the caller may see.
//!
//! The id of an event says how far the log has been read, in the log's own terms: a partition and
//! its offset, or the next offset of each partition. So a stream that broke goes on where it was,
//! at whichever replica.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use fleet_job::{event::JobEvent, view::JobView};
use fleet_ledger::{Known, Query, Update, store::Positions};
use futures::{Stream, stream::unfold};
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Api,
    handlers::ApiClient,
    params::{JobId, Parameters, header_text},
    problem::{Problem, ProblemKind},
};
use crate::{EventReader, JobWatch, Jobs, JobsError};

/// How many streams there may be. Each holds a connection for as long as its client is there, and a
/// process has only so many of those.
pub(super) const MAX_STREAMS: usize = 256;
/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// `GET /jobs/{id}/events`.
pub(super) async fn watch_job(
    State(api): State<Api>,
    client: ApiClient,
    JobId(id): JobId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let told = last_event_id(&headers, parse_position)?;
    let mut watch = client.jobs.watch(&id, &client.caller);
    let mut known = match client.jobs.find_known(&id, &client.caller).await {
        Err(JobsError::NotFound(_)) => {
            // It may wait in the jobs topic, where no worker has come to it.
            let job = watch.next().await?;
            let first = (told != watch.position()).then_some(job);
            return stream_job(&api, watch, first);
        }
        known => known?,
    };
    if told.is_some_and(|(partition, offset)| partition == known.partition && offset > known.offset)
    {
        // Another replica has heard of more than this one.
        client.jobs.catch_up().await?;
        known = client.jobs.find_known(&id, &client.caller).await?;
    }
    if told == Some((known.partition, known.offset)) {
        if known.event.is_over() {
            // Nothing will ever follow, and this is how a browser is told not to come back.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        watch.mark_delivered((known.partition, known.offset));
    }
    stream_job(&api, watch, None)
}

/// The stream of a job's states; `first` was taken from the watch before.
fn stream_job(api: &Api, watch: JobWatch, first: Option<JobView>) -> Result<Response, Problem> {
    let permit = acquire_permit(&api.streams)?;
    let stream = JobStream { watch, first, stop: api.stop.clone(), ended: false, _permit: permit };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok((unbuffered(), Sse::new(unfold(stream, JobStream::next)).keep_alive(keep_alive))
        .into_response())
}

/// The states of one job.
struct JobStream {
    watch: JobWatch,
    /// A state that was taken from the watch and not sent yet.
    first: Option<JobView>,
    stop: CancellationToken,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl JobStream {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.ended {
            return None;
        }
        let job = match self.first.take() {
            Some(job) => Ok(job),
            None => tokio::select! {
                next = self.watch.next() => next,
                () = self.stop.cancelled() => return None,
            },
        };
        let job = match job {
            Ok(job) => job,
            Err(error) => {
                // It was forgotten, or the ledger has failed: whoever asks again is told.
                tracing::debug!(error = fleet_ops::errors::chain(&error), "a stream of a job ends");
                return None;
            }
        };
        self.ended = job.is_terminal();
        let id = format_position(self.watch.position().unwrap_or_default());
        Some((Ok(job_event(&job, &id)), self))
    }
}

/// `GET /events`.
pub(super) async fn follow_jobs(
    State(api): State<Api>,
    client: ApiClient,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query { asker: client.caller.owner.clone(), ..parameters.filter()? };
    let from = last_event_id(&headers, parse_positions)?;
    client.jobs.check_log_is_read()?;
    let permit = acquire_permit(&api.streams)?;
    let (reader, reset) = match from {
        None => (follow_from_now(&client.jobs)?, None),
        Some(from) => resume(&client.jobs, from).await?,
    };
    let (jobs, stop) = (client.jobs, api.stop.clone());
    // The first thing told is the place, so that nothing is missed however early the stream breaks.
    let feed =
        EventFeed { jobs, query, reader, reset, alive_at: Instant::now(), stop, _permit: permit };
    Ok((unbuffered(), Sse::new(feed.events())).into_response())
}

/// What comes from now on.
fn follow_from_now(jobs: &Jobs) -> Result<EventReader, Problem> {
    jobs.follow(None)
        .ok_or_else(|| Problem::new(ProblemKind::NotReady, "the log can't be followed"))
}

/// What comes from `from` on; where that is not known any more, what comes from now on, and why.
async fn resume(
    jobs: &Jobs,
    from: Positions,
) -> Result<(EventReader, Option<&'static str>), Problem> {
    let is_ahead = |live: &EventReader| {
        let reached = |(partition, offset): (&i32, &i64)| {
            live.positions().get(partition).is_some_and(|at| at >= offset)
        };
        !from.iter().all(reached)
    };
    if is_ahead(&follow_from_now(jobs)?) {
        // Another replica has heard of more than this one.
        jobs.catch_up().await?;
        let live = follow_from_now(jobs)?;
        if is_ahead(&live) {
            return Ok((live, Some("the log ends before Last-Event-ID: it was made again")));
        }
    }
    match jobs.follow(Some(from)) {
        Some(reader) => Ok((reader, None)),
        None => Ok((
            follow_from_now(jobs)?,
            Some("what came after Last-Event-ID is not at hand any more"),
        )),
    }
}

/// The states of all jobs that somebody may see.
struct EventFeed {
    jobs: Jobs,
    query: Query,
    reader: EventReader,
    /// Why there is a gap that was not told of yet.
    reset: Option<&'static str>,
    /// When to say next that the stream is alive.
    alive_at: Instant,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl EventFeed {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        unfold(self, async |mut feed| feed.next().await.map(|event| (Ok(event), feed)))
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(reason) = self.reset.take() {
                self.alive_at = Instant::now() + KEEP_ALIVE;
                let data = json!({ "reason": reason }).to_string();
                return Some(Event::default().event("reset").id(self.id()).data(data));
            }
            if self.alive_at <= Instant::now() {
                self.alive_at = Instant::now() + KEEP_ALIVE;
                // An id without data is no event and moves the place, however little of what comes
                // is wanted.
                return Some(Event::default().comment("").id(self.id()));
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                () = sleep_until(self.alive_at) => {}
                next = self.reader.next() => match next {
                    Ok(update) => if let Some(event) = self.wanted_event(&update) {
                        return Some(event);
                    },
                    Err(_) => {
                        self.reader = self.jobs.follow(None)?;
                        self.reset = Some("the stream was read more slowly than events came");
                    }
                }
            }
        }
    }

    fn wanted_event(&self, update: &Update) -> Option<Event> {
        let job = update.event().filter(|event| is_wanted(&self.query, event))?;
        let known =
            Known { partition: update.partition, offset: update.offset, event: job.clone() };
        Some(job_event(&self.jobs.view(known), &self.id()))
    }

    fn id(&self) -> String {
        let positions = self.reader.positions().iter();
        positions
            .map(|(partition, offset)| format!("{partition}:{offset}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}

fn is_wanted(query: &Query, event: &JobEvent) -> bool {
    query.may_see(event.owner.as_deref()) && query.filter.matches(event)
}

fn job_event(job: &JobView, id: &str) -> Event {
    // A view of a job is plain data and can't fail to become JSON.
    let data = serde_json::to_string(job).unwrap_or_default();
    Event::default().event(job.event.state.as_str()).id(id).data(data)
}

fn acquire_permit(streams: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
    streams.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{MAX_STREAMS} streams are open, which is as many as there may be");
        Problem::new(ProblemKind::TooManyStreams, detail).with_limit(MAX_STREAMS)
    })
}

/// What keeps proxies from holding events back.
fn unbuffered() -> [(HeaderName, &'static str); 2] {
    [(HeaderName::from_static("x-accel-buffering"), "no"), (header::CACHE_CONTROL, "no-store")]
}

fn last_event_id<T>(
    headers: &HeaderMap,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Problem> {
    let Some(text) = header_text(headers, LAST_EVENT_ID)? else { return Ok(None) };
    let read =
        read(text).ok_or_else(|| Problem::parameter(LAST_EVENT_ID, "is none of this stream's"))?;
    Ok(Some(read))
}

/// The id of an event of one job: partition and offset in the events topic. The partition of a job
/// that waits in the jobs topic is negative, and its id begins with this word.
const WAITING_PREFIX: &str = "waiting-";

fn format_position((partition, offset): (i32, i64)) -> String {
    match partition {
        0.. => format!("{partition}-{offset}"),
        _ => format!("{WAITING_PREFIX}{}-{offset}", !partition),
    }
}

fn parse_position(text: &str) -> Option<(i32, i64)> {
    let waiting = text.strip_prefix(WAITING_PREFIX);
    let (partition, offset) = waiting.unwrap_or(text).split_once('-')?;
    let partition: i32 = parse_digits(partition)?;
    Some((if waiting.is_some() { !partition } else { partition }, parse_digits(offset)?))
}

/// `partition:offset`, comma-separated, each partition once.
fn parse_positions(text: &str) -> Option<Positions> {
    let mut positions = Positions::new();
    for pair in text.split(',') {
        let (partition, offset) = pair.split_once(':')?;
        if positions.insert(parse_digits(partition)?, parse_digits(offset)?).is_some() {
            return None;
        }
    }
    Some(positions)
}

/// A number as this server writes it: digits alone.
fn parse_digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use fleet_job::{event::JobState, time::Timestamp};

    use super::*;

    #[test]
    fn places_are_read_and_nonsense_is_not() {
        assert_eq!(parse_positions("0:18,1:5"), Some([(0, 18), (1, 5)].into()));
        for bad in [
            "",
            "0",
            "0:",
            ":1",
            "0:1,",
            "0:-1",
            "+0:1",
            "0:1,0:2",
            "0:1;1:2",
            "0:99999999999999999999",
        ] {
            assert_eq!(parse_positions(bad), None, "{bad}");
        }
    }

    #[test]
    fn positions_of_one_job_are_read_as_they_are_written() {
        for (position, id) in
            [((3, 18), "3-18"), ((-1, 7), "waiting-0-7"), ((-4, 0), "waiting-3-0")]
        {
            assert_eq!(
                (format_position(position).as_str(), parse_position(id)),
                (id, Some(position))
            );
        }
        for bad in ["", "3", "-1-7", "waiting-0", "waiting--1-7", "0-7-1", "waiting-waiting-0-7"] {
            assert_eq!(parse_position(bad), None, "{bad}");
        }
    }

    #[test]
    fn places_for_streams_are_bounded_and_come_back() {
        let streams = Arc::new(Semaphore::new(1));
        let taken = acquire_permit(&streams).unwrap();
        let problem = serde_json::to_value(acquire_permit(&streams).unwrap_err()).unwrap();
        assert_eq!(problem["status"], 503, "{problem}");
        drop(taken);
        drop(acquire_permit(&streams).unwrap());
    }

    #[test]
    fn only_what_is_wanted_and_may_be_seen_is_told() {
        let mut event = JobEvent::new("j", JobState::Failed, Timestamp::default());
        event.tool = Some("t".to_owned());
        let check = |change: fn(&mut Query), wanted| {
            let mut query = Query::default();
            change(&mut query);
            assert_eq!(is_wanted(&query, &event), wanted, "{query:?}");
        };
        check(|_| {}, true);
        check(|query| query.filter.states = vec![JobState::Failed], true);
        check(|query| query.filter.states = vec![JobState::Queued], false);
        check(|query| query.filter.tool = Some("t".to_owned()), true);
        check(|query| query.filter.tool = Some("u".to_owned()), false);
        check(|query| query.filter.tenant = Some("x".to_owned()), false);
        event.owner = Some("me".to_owned());
        assert!(!is_wanted(&Query::default(), &event), "somebody's job is nobody else's");
        assert!(is_wanted(&Query { asker: Some("me".to_owned()), ..Query::default() }, &event));
    }
}
