//! Streams of job states (server-sent events): of one job until it ends, or of all jobs that the
//! caller may see.
//!
//! The id of an event is a position in the events topic: a partition and an offset, or the next
//! offset of each partition. So any replica can resume an interrupted stream.

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

/// The most open streams. Each holds a connection until its client leaves, and connections are
/// limited.
pub(super) const MAX_STREAMS: usize = 256;
/// How often a silent stream sends a comment to show that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// `GET /jobs/{id}/events`.
pub(super) async fn watch_job(
    State(api): State<Api>,
    client: ApiClient,
    JobId(id): JobId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_seen = last_event_id(&headers, parse_position)?;
    let mut watch = client.jobs.watch(&id, &client.caller);
    let mut known = match client.jobs.find_known(&id, &client.caller).await {
        Err(JobsError::NotFound(_)) => {
            // The job may wait in the jobs topic, where no worker has read it yet.
            let job = watch.next().await?;
            let first = (last_seen != watch.position()).then_some(job);
            return stream_job(&api, watch, first);
        }
        known => known?,
    };

    let is_behind = |(partition, offset)| partition == known.partition && offset > known.offset;
    if last_seen.is_some_and(is_behind) {
        // The client has seen a later event on another replica.
        client.jobs.catch_up().await?;
        known = client.jobs.find_known(&id, &client.caller).await?;
    }

    if last_seen == Some((known.partition, known.offset)) {
        if known.event.is_over() {
            // Nothing will follow. This status tells browsers not to reconnect.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        watch.mark_delivered((known.partition, known.offset));
    }

    stream_job(&api, watch, None)
}

/// Streams a job's states. `first` has been taken from the watch already.
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
    /// A state that was taken from the watch but not sent yet.
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
                // The ledger has forgotten the job, or has failed. A new request gets the error.
                let error = fleet_ops::errors::chain(&error);
                tracing::debug!(error, "ending the stream of a job that can't be read");
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
    let query = Query { visibility: client.caller.visibility(), ..parameters.filter()? };
    let from = last_event_id(&headers, parse_positions)?;
    client.jobs.check_log_is_read()?;

    let permit = acquire_permit(&api.streams)?;
    let (reader, reset) = match from {
        None => (follow_from_now(&client.jobs)?, None),
        Some(from) => resume(&client.jobs, from).await?,
    };

    let (jobs, stop) = (client.jobs, api.stop.clone());
    // Send the position first, so that the client can resume however early the stream breaks.
    let feed =
        EventFeed { jobs, query, reader, reset, alive_at: Instant::now(), stop, _permit: permit };
    Ok((unbuffered(), Sse::new(feed.events())).into_response())
}

/// Returns a reader of events from now on.
fn follow_from_now(jobs: &Jobs) -> Result<EventReader, Problem> {
    jobs.follow(None)
        .ok_or_else(|| Problem::new(ProblemKind::NotReady, "the events topic can't be followed"))
}

/// Returns a reader of events from `from` on. If those are no longer available, returns one of
/// events from now on, and the reason.
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
        // The client has seen later events on another replica.
        jobs.catch_up().await?;
        let live = follow_from_now(jobs)?;
        if is_ahead(&live) {
            let reason = "the events topic ends before Last-Event-ID; it was created again";
            return Ok((live, Some(reason)));
        }
    }

    match jobs.follow(Some(from)) {
        Some(reader) => Ok((reader, None)),
        None => {
            let reason = "the events after Last-Event-ID are no longer available";
            Ok((follow_from_now(jobs)?, Some(reason)))
        }
    }
}

/// The states of all jobs that a caller may see.
struct EventFeed {
    jobs: Jobs,
    query: Query,
    reader: EventReader,
    /// The reason for a gap that was not reported yet.
    reset: Option<&'static str>,
    /// When to show next that the stream is alive.
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
                // An id without data is not an event, but moves the client's position past events
                // that its filter leaves out.
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
                        self.reset = Some("the client read the stream more slowly than events came");
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
    query.visibility.covers(event.owner.as_deref(), event.tenant.as_deref())
        && query.filter.matches(event)
}

fn job_event(job: &JobView, id: &str) -> Event {
    // A view of a job is plain data, which always serializes.
    let data = serde_json::to_string(job).unwrap_or_default();
    Event::default().event(job.event.state.as_str()).id(id).data(data)
}

pub(super) fn acquire_permit(streams: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
    streams.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{MAX_STREAMS} streams are open, which is the limit; try again later");
        Problem::new(ProblemKind::TooManyStreams, detail).with_limit(MAX_STREAMS)
    })
}

/// Returns the headers that keep proxies from buffering events.
fn unbuffered() -> [(HeaderName, &'static str); 2] {
    [(HeaderName::from_static("x-accel-buffering"), "no"), (header::CACHE_CONTROL, "no-store")]
}

fn last_event_id<T>(
    headers: &HeaderMap,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Problem> {
    let Some(text) = header_text(headers, LAST_EVENT_ID)? else { return Ok(None) };
    let invalid = || Problem::parameter(LAST_EVENT_ID, "is not an event id of this stream");
    Ok(Some(read(text).ok_or_else(invalid)?))
}

/// Begins the id of a state of a job that waits in the jobs topic. Its partition is negative; other
/// ids consist of partition and offset in the events topic.
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

/// Parses comma-separated `partition:offset` pairs, each partition once.
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

/// Parses a number as this server writes it: digits only.
fn parse_digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use fleet_job::{event::JobState, time::Timestamp};
    use fleet_ledger::query::Visibility;

    use super::*;

    #[test]
    fn positions_of_all_jobs_are_read_and_nonsense_is_not() {
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
    fn permits_for_streams_are_bounded_and_returned() {
        let streams = Arc::new(Semaphore::new(1));
        let taken = acquire_permit(&streams).unwrap();
        let problem = serde_json::to_value(acquire_permit(&streams).unwrap_err()).unwrap();
        assert_eq!(problem["status"], 503, "{problem}");
        drop(taken);
        drop(acquire_permit(&streams).unwrap());
    }

    #[test]
    fn only_wanted_and_visible_events_are_sent() {
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
        assert!(
            !is_wanted(&Query::default(), &event),
            "by default, a job with an owner is not seen"
        );
        let mine = Visibility::new(|owner, _| owner == Some("me"));
        assert!(is_wanted(&Query { visibility: mine, ..Query::default() }, &event));
    }
}
