//! An event stream that survives interruptions: it is reopened where it ended, for as long as there
//! is a listener.

use std::time::Duration;

use fleet_job::view::JobView;
use tokio::{sync::mpsc, time::sleep};
use url::Url;

use super::{
    api::Api,
    error::{ApiError, Pauses},
    filter::STATES,
    sse::{Decoder, Event},
};

/// The number of updates that may wait for the listener. If it is reached, reading from the server
/// pauses.
const QUEUE: usize = 256;
/// The maximum size of an event.
const MAX_EVENT: usize = 16 << 20;
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
        let (mut decoder, mut events) = (Decoder::new(MAX_EVENT), Vec::new());
        loop {
            let chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Err(self.api.lost("the server closed the stream"))),
                Ok(Err(error)) => return Ok(Err(self.api.failed(&error))),
                Err(_) => return Ok(Err(self.api.lost("the server stopped sending"))),
            };
            if decoder.push(&chunk, &mut events).is_err() {
                return Ok(Err(self.api.unreadable(format!("an event exceeds {MAX_EVENT} bytes"))));
            }
            for event in events.drain(..) {
                self.pauses = Pauses::new();
                if let Some(id) = &event.id {
                    self.last_id = Some(id.clone()).filter(|id| !id.is_empty());
                }
                match parse_update(&event) {
                    Ok(Some(news)) => {
                        if matches!(news, StreamUpdate::Missed) && event.id.is_none() {
                            // An id that could not be resumed from will not work later either.
                            self.last_id = None;
                        }
                        self.news.send(news).await.map_err(|_| ListenerGone)?;
                    }
                    Ok(None) => {}
                    Err(error) => return Ok(Err(self.api.unreadable(error))),
                }
            }
        }
    }
}

/// Converts an event to an update; `None` if this client does not know its kind.
fn parse_update(event: &Event) -> Result<Option<StreamUpdate>, serde_json::Error> {
    let name = event.name.as_str();
    match &event.data {
        _ if name == "reset" => Ok(Some(StreamUpdate::Missed)),
        // Events of a job are named after the state that it has entered, or all alike.
        Some(data) if name == "state" || STATES.iter().any(|state| state.as_str() == name) => {
            Ok(Some(StreamUpdate::Job(Box::new(serde_json::from_str(data)?))))
        }
        _ => Ok(None),
    }
}
