//! The transport of 2024, for clients that know no other: `GET /sse` opens a stream whose first
//! event names the path to post messages to, and what is posted there is answered on the stream.
//!
//! A stream is a connection to this process, so what belongs to it must be posted to this replica.
//! Behind a balancer that needs sticky sessions; the newer transports need none.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{SinkExt, Stream, StreamExt, channel::mpsc};
use parking_lot::{Mutex, MutexGuard};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    service::serve_server_with_ct,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::gateway::Gateway;

/// How many streams there may be. Each holds a connection for as long as its client is there, and a
/// process has only so many of those.
const MAX_STREAMS: usize = 256;
/// How many messages wait for the handler, and how many for the client, before the sender has to.
const QUEUE: usize = 16;
/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The streams that are open. Clones share them.
#[derive(Clone)]
pub(super) struct Streams {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    stop: CancellationToken,
    limit: usize,
    open: Mutex<HashMap<String, mpsc::Sender<ClientJsonRpcMessage>>>,
}

/// An open stream, as long as its client is there.
struct OpenStream {
    streams: Streams,
    id: String,
    /// Ends the handler, and with it the calls that run.
    _handler: DropGuard,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.open().remove(&self.id);
    }
}

impl Streams {
    /// No streams yet. All of them end with `stop`.
    pub(super) fn new(gateway: Gateway, stop: CancellationToken) -> Self {
        Self::with_limit(gateway, stop, MAX_STREAMS)
    }

    fn with_limit(gateway: Gateway, stop: CancellationToken, limit: usize) -> Self {
        Self { inner: Arc::new(Inner { gateway, stop, limit, open: Mutex::default() }) }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<ClientJsonRpcMessage>>> {
        self.inner.open.lock()
    }

    /// Opens a stream and starts its handler. `None` where there are too many.
    fn start(&self) -> Option<(OpenStream, mpsc::Receiver<ServerJsonRpcMessage>)> {
        let (inbox, posted) = mpsc::channel(QUEUE);
        let (outbox, answers) = mpsc::channel(QUEUE);
        let id = uuid::Uuid::new_v4().simple().to_string();
        {
            let mut open = self.open();
            if open.len() >= self.inner.limit {
                return None;
            }
            open.insert(id.clone(), inbox);
        }
        let token = self.inner.stop.child_token();
        let stream = OpenStream { streams: self.clone(), id, _handler: token.clone().drop_guard() };
        let gateway = self.inner.gateway.for_session();
        tokio::spawn(async move {
            match serve_server_with_ct(gateway, (outbox, posted), token).await {
                Ok(service) => drop(service.waiting().await),
                Err(error) => tracing::debug!(%error, "a stream ended before its handshake"),
            }
        });
        Some((stream, answers))
    }

    /// Hands a message to the handler of a stream. `false` where there is no such stream.
    pub(super) async fn post(&self, id: &str, message: ClientJsonRpcMessage) -> bool {
        let inbox = self.open().get(id).cloned();
        match inbox {
            Some(mut inbox) => inbox.send(message).await.is_ok(),
            None => false,
        }
    }
}

/// `GET /sse`.
pub(super) async fn open_stream(State(streams): State<Streams>) -> Response {
    let Some((stream, answers)) = streams.start() else {
        let problem =
            format!("{} streams are open, which is as many as there may be\n", streams.inner.limit);
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], problem)
            .into_response();
    };
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    ([unbuffered], Sse::new(stream_events(stream, answers)).keep_alive(keep_alive)).into_response()
}

/// What stands on a stream. It ends with its handler, and its handler ends with it.
fn stream_events(
    stream: OpenStream,
    answers: mpsc::Receiver<ServerJsonRpcMessage>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let endpoint =
        Event::default().event("endpoint").data(format!("/message?sessionId={}", stream.id));
    let answers = answers.filter_map(move |message| {
        _ = &stream;
        let event = match serde_json::to_string(&message) {
            Ok(text) => Some(Event::default().event("message").data(text)),
            Err(error) => {
                tracing::warn!(%error, "an answer can't be written as JSON");
                None
            }
        };
        std::future::ready(event)
    });
    futures::stream::once(std::future::ready(endpoint)).chain(answers).map(Ok)
}

#[cfg(test)]
mod tests {
    use fleet_hosting::Fleet;
    use fleet_policy::{Policy, current::CurrentPolicy};

    use super::*;

    #[tokio::test]
    async fn streams_are_bounded_and_end_with_their_clients() {
        let gateway = Gateway::new(
            Vec::new(),
            Fleet::new(CurrentPolicy::new(Policy::default())),
            Duration::ZERO,
            0,
            None,
        );
        let stop = CancellationToken::new();
        let streams = Streams::with_limit(gateway, stop.clone(), 1);
        let (stream, _answers) = streams.start().unwrap();
        let id = stream.id.clone();
        assert!(streams.start().is_none());
        let refused = open_stream(State(streams.clone())).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(stream);
        let ping = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
        assert!(!streams.post(&id, serde_json::from_value(ping).unwrap()).await);

        let (_place, mut answers) = streams.start().unwrap();
        stop.cancel();
        let end = tokio::time::timeout(Duration::from_secs(30), answers.next()).await.unwrap();
        assert!(end.is_none(), "all streams end with the server");
    }
}
