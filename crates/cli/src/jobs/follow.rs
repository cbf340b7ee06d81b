//! A stream of events that survives cuts: opened again where it ended, for as long as somebody
//! listens.

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

/// News that nobody has taken yet. The server is read no further meanwhile.
const QUEUE: usize = 256;
/// The largest event that is read.
const MAX_EVENT: usize = 16 << 20;
/// A server sends something every few seconds, if only a comment; after such a silence it is gone.
const SILENCE: Duration = Duration::from_secs(90);

/// What comes from a stream.
#[derive(Debug)]
pub(super) enum News {
    /// It is open.
    Open,
    /// What was before is not known here: at the beginning, and where the server can't say what was
    /// missed.
    Missed,
    /// A job is in a state that it was not in before.
    Job(Box<JobView>),
    /// It is not open, and will be tried again.
    Trouble(ApiError),
    /// It can't be read; this is the last that is heard.
    Ended(ApiError),
}

/// Follows the events at `url` until the receiver is dropped.
pub(super) fn follow(api: Api, url: Url) -> mpsc::Receiver<News> {
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
    news: mpsc::Sender<News>,
    last_id: Option<String>,
    pauses: Pauses,
}

/// Nobody listens any more.
struct Unheard;

impl Follow {
    async fn run(mut self) {
        // Without a listener this is dropped as a whole, so that there is nothing left to be done
        // about it.
        while let Ok(Err(error)) = self.read().await {
            let (pause, passing) = (self.pauses.after(&error), error.is_passing());
            let news = if passing { News::Trouble(error) } else { News::Ended(error) };
            if self.tell(news).await.is_err() || !passing {
                return;
            }
            sleep(pause).await;
        }
    }

    async fn tell(&self, news: News) -> Result<(), Unheard> {
        self.news.send(news).await.map_err(|_| Unheard)
    }

    /// Reads until the stream ends, which is an error of its own kind.
    async fn read(&mut self) -> Result<Result<(), ApiError>, Unheard> {
        let mut response = match self.api.open(self.url.clone(), self.last_id.as_deref()).await {
            Ok(response) => response,
            Err(error) => return Ok(Err(error)),
        };
        self.tell(News::Open).await?;
        if self.last_id.is_none() {
            self.tell(News::Missed).await?;
        }
        let (mut decoder, mut events) = (Decoder::new(MAX_EVENT), Vec::new());
        loop {
            let chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Err(self.api.lost("the server has closed it"))),
                Ok(Err(error)) => return Ok(Err(self.api.failed(&error))),
                Err(_) => return Ok(Err(self.api.lost("the server has fallen silent"))),
            };
            if decoder.push(&chunk, &mut events).is_err() {
                return Ok(Err(self
                    .api
                    .unreadable(format!("an event has more than {MAX_EVENT} bytes"))));
            }
            for event in events.drain(..) {
                self.pauses = Pauses::new();
                if let Some(id) = &event.id {
                    self.last_id = Some(id.clone()).filter(|id| !id.is_empty());
                }
                match read(&event) {
                    Ok(Some(news)) => {
                        if matches!(news, News::Missed) && event.id.is_none() {
                            // What could not be continued from once, can't be again.
                            self.last_id = None;
                        }
                        self.news.send(news).await.map_err(|_| Unheard)?;
                    }
                    Ok(None) => {}
                    Err(error) => return Ok(Err(self.api.unreadable(error))),
                }
            }
        }
    }
}

/// What an event says; nothing where it is of a kind that is not known here.
fn read(event: &Event) -> Result<Option<News>, serde_json::Error> {
    let name = event.name.as_str();
    match &event.data {
        _ if name == "reset" => Ok(Some(News::Missed)),
        // Events of a job are called after the state that it has entered, or all alike.
        Some(data) if name == "state" || STATES.iter().any(|state| state.as_str() == name) => {
            Ok(Some(News::Job(Box::new(serde_json::from_str(data)?))))
        }
        _ => Ok(None),
    }
}
