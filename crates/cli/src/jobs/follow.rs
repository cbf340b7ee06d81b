//! An event stream that survives interruptions: it is reopened where it ended, for as long as there
//! is a listener.

use std::time::Duration;

use fleet_job::view::JobView;
use fleet_wire::sse::{Decoder, Event, MAX_EVENT};
use tokio::{sync::mpsc, time::sleep};
use url::Url;

use super::{api::Api, filter::STATES};
use crate::api_error::{ApiError, Pauses};

/// The number of updates that may wait for the listener. If it is reached, reading from the server
/// pauses.
const QUEUE: usize = 256;
/// A server sends something every few seconds, even if only a comment; after this much silence, it
/// is considered gone.
const SILENCE: Duration = Duration::from_secs(90);

/// An update from an event stream.
#[derive(Debug)]
pub(super) enum StreamUpdate {
    /// The stream is open.
    Open,
    /// Earlier events are unknown: at the start, and if the server cannot tell what was missed.
    Missed,
    /// A job has entered a new state.
    Job(Box<JobView>),
    /// The stream is not open; it will be retried.
    Trouble(ApiError),
    /// The stream cannot be read; this is the last update.
    Ended(ApiError),
}

/// Follows the events at `url` until the receiver is dropped.
pub(super) fn follow(api: Api, url: Url) -> mpsc::Receiver<StreamUpdate> {
    let (news, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let gone = news.clone();
        let follow = Follow { api, url, news, last_id: None, pauses: Pauses::new() };
        tokio::select! {
            () = follow.run() => {}
            () = gone.closed() => {}
        }
    });
    receiver
}

struct Follow {
    api: Api,
    url: Url,
    news: mpsc::Sender<StreamUpdate>,
    last_id: Option<String>,
    pauses: Pauses,
}

/// The listener is gone.
struct ListenerGone;

impl Follow {
    async fn run(mut self) {
        // Without a listener, this future is dropped as a whole, so there is nothing to clean up.
        while let Ok(Err(error)) = self.read().await {
            let (pause, passing) = (self.pauses.after(&error), error.is_passing());
            let news =
                if passing { StreamUpdate::Trouble(error) } else { StreamUpdate::Ended(error) };
            if self.send(news).await.is_err() || !passing {
                return;
            }
            sleep(pause).await;
        }
    }

    async fn send(&self, news: StreamUpdate) -> Result<(), ListenerGone> {
        self.news.send(news).await.map_err(|_| ListenerGone)
    }

    /// Reads until the stream ends, which is an error of its own kind.
    async fn read(&mut self) -> Result<Result<(), ApiError>, ListenerGone> {
        let mut response = match self.api.open(self.url.clone(), self.last_id.as_deref()).await {
            Ok(response) => response,
            Err(error) => return Ok(Err(error)),
        };
        self.send(StreamUpdate::Open).await?;
        if self.last_id.is_none() {
            self.send(StreamUpdate::Missed).await?;
        }
        let mut decoder = Decoder::new(MAX_EVENT);
        loop {
            let mut chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Err(self.api.lost("the server closed the stream"))),
                Ok(Err(error)) => return Ok(Err(self.api.failed(&error))),
                Err(_) => return Ok(Err(self.api.lost("the server stopped sending"))),
            };
            loop {
                let event = match decoder.next_event(&mut chunk) {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    Err(_) => {
                        let why = format!("an event exceeds {MAX_EVENT} bytes");
                        return Ok(Err(self.api.unreadable(why)));
                    }
                };
                if let Err(error) = self.take_event(&event).await? {
                    return Ok(Err(self.api.unreadable(error)));
                }
            }
        }
    }

    /// Sends the update in an event, and notes where the stream can be resumed.
    async fn take_event(
        &mut self,
        event: &Event,
    ) -> Result<Result<(), serde_json::Error>, ListenerGone> {
        if event.id.is_none() && event.data.is_empty() {
            return Ok(Ok(()));
        }
        self.pauses = Pauses::new();
        if let Some(id) = &event.id {
            self.last_id = Some(id.clone()).filter(|id| !id.is_empty());
        }

        match parse_update(event) {
            Ok(Some(news)) => {
                if matches!(news, StreamUpdate::Missed) && event.id.is_none() {
                    // An id that could not be resumed from will not work later either.
                    self.last_id = None;
                }
                self.send(news).await.map(Ok)
            }
            Ok(None) => Ok(Ok(())),
            Err(error) => Ok(Err(error)),
        }
    }
}

/// Converts an event to an update; `None` if this client does not know its kind.
fn parse_update(event: &Event) -> Result<Option<StreamUpdate>, serde_json::Error> {
    match event.name.as_str() {
        "reset" => Ok(Some(StreamUpdate::Missed)),
        // Events of a job are named after the state that it has entered, or all alike.
        name if !event.data.is_empty()
            && (name == "state" || STATES.iter().any(|state| state.as_str() == name)) =>
        {
            Ok(Some(StreamUpdate::Job(Box::new(serde_json::from_slice(&event.data)?))))
        }
        _ => Ok(None),
    }
}
