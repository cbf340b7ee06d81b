//! The HTTP+SSE transport of 2024, for clients that support no other: `GET /sse` opens a stream
//! whose first event names the path for posting messages, and their answers appear on the stream.
//!
//! A stream is a connection to this process, so its messages must be posted to this replica. Behind
//! a load balancer, this transport needs sticky sessions; the newer transports don't. Only the
//! principal that opened a stream may post to it; to others, the stream doesn't exist.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{Extensions, HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use fleet_access::{Action, Asker, Context, PrincipalId, Resource};
use futures::{SinkExt, Stream, StreamExt, channel::mpsc};
use parking_lot::{Mutex, MutexGuard};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    service::serve_server_with_ct,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{access, gateway::Gateway};

/// The most open streams. Each holds a connection until its client leaves, and a process has a
/// limited number of connections.
const MAX_STREAMS: usize = 256;
/// The most messages that are queued for the handler or for the client before their sender waits.
const QUEUE: usize = 16;
/// How often an idle stream sends a keep-alive comment.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The open streams. Clones share them.
#[derive(Clone)]
pub(super) struct Streams {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    stop: CancellationToken,
    limit: usize,
    open: Mutex<HashMap<String, Inbox>>,
}

/// Where messages for a stream's handler go.
struct Inbox {
    /// The principal that opened the stream; `None` if nobody was identified.
    owner: Option<PrincipalId>,
    sender: mpsc::Sender<ClientJsonRpcMessage>,
}

/// An open stream. Dropping it, which happens when its client leaves, closes the stream.
struct OpenStream {
    streams: Streams,
    id: String,
    /// Ends the handler, and with it the running calls.
    _handler: DropGuard,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.open().remove(&self.id);
    }
}

impl Streams {
    /// Creates an empty set of streams. Cancelling `stop` ends them all.
    pub(super) fn new(gateway: Gateway, stop: CancellationToken) -> Self {
        Self::with_limit(gateway, stop, MAX_STREAMS)
    }

    fn with_limit(gateway: Gateway, stop: CancellationToken, limit: usize) -> Self {
        Self { inner: Arc::new(Inner { gateway, stop, limit, open: Mutex::default() }) }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Inbox>> {
        self.inner.open.lock()
    }

    /// Opens a stream of `owner` and starts its handler. `None` if there are too many streams.
    fn start(
        &self,
        owner: Option<PrincipalId>,
    ) -> Option<(OpenStream, mpsc::Receiver<ServerJsonRpcMessage>)> {
        let (sender, posted) = mpsc::channel(QUEUE);
        let (outbox, answers) = mpsc::channel(QUEUE);
        let id = uuid::Uuid::new_v4().simple().to_string();
        {
            let mut open = self.open();
            if open.len() >= self.inner.limit {
                return None;
            }
            open.insert(id.clone(), Inbox { owner, sender });
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

    /// Passes a message to the handler of a stream. `false` if `owner` has no such stream.
    pub(super) async fn post(
        &self,
        id: &str,
        owner: Option<PrincipalId>,
        message: ClientJsonRpcMessage,
    ) -> bool {
        let sender = {
            let open = self.open();
            let inbox = open.get(id).filter(|inbox| inbox.owner == owner);
            inbox.map(|inbox| inbox.sender.clone())
        };

        match sender {
            Some(mut sender) => sender.send(message).await.is_ok(),
            None => false,
        }
    }
}

/// Handles `GET /sse`.
pub(super) async fn open_stream(
    State(streams): State<Streams>,
    extensions: Extensions,
) -> Response {
    let action = Action::UseSession;
    let decision = extensions
        .get::<Asker>()
        .map(|asker| asker.check(action, &Resource::default(), &Context::default()));
    if !matches!(decision, Some(Ok(_))) {
        let decision = decision.and_then(Result::err);
        let refusal = decision.and_then(|decision| decision.message(action.as_str()));
        return (StatusCode::FORBIDDEN, format!("{}\n", refusal.unwrap_or_default()))
            .into_response();
    }

    let Some((stream, answers)) = streams.start(access::owner_of(&extensions)) else {
        let problem =
            format!("all {} event streams are in use; try again later\n", streams.inner.limit);
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], problem)
            .into_response();
    };

    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    ([unbuffered], Sse::new(stream_events(stream, answers)).keep_alive(keep_alive)).into_response()
}

/// The events of a stream. The stream ends with its handler, and the handler with the stream.
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
                tracing::warn!(%error, "could not write a message as JSON; dropping it");
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
        let (stream, _answers) = streams.start(None).unwrap();
        let id = stream.id.clone();
        assert!(streams.start(None).is_none());
        let mut extensions = Extensions::new();
        extensions.insert(Asker::local());
        let refused = open_stream(State(streams.clone()), extensions).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(stream);
        let ping = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
        assert!(!streams.post(&id, None, serde_json::from_value(ping).unwrap()).await);

        let (_place, mut answers) = streams.start(None).unwrap();
        stop.cancel();
        let end = tokio::time::timeout(Duration::from_secs(30), answers.next()).await.unwrap();
        assert!(end.is_none(), "all streams end with the server");
    }
}
