//! Serves one client over standard input and output.
//!
//! rmcp's filter of a `subscriptions/listen` request has no member for tasks
//! (`notifications.taskIds`, SEP-2663). So it is moved into the request's `_meta` before rmcp reads
//! the request, and added to the acknowledgement after rmcp has made it. Over HTTP,
//! `http::task_streams` does the same.

use std::sync::Arc;

use fleet_hosting::kept_items::Restoring;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use rmcp::{
    RoleServer,
    model::{
        ClientRequest, CustomNotification, ErrorData, GetExtensions as _, GetMeta as _,
        JsonRpcMessage, RequestId, ServerJsonRpcMessage, ServerNotification,
    },
    service::{RxJsonRpcMessage, ServerInitializeError, TxJsonRpcMessage},
    transport::{Transport, async_rw::AsyncRwTransport},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    error::ServerError,
    gateway::{Gateway, WatchedTasks},
    http::task_streams::{MAX_STREAMS, admit_stream},
};

/// Carries `notifications.taskIds` through rmcp.
const TASK_IDS: &str = "io.mcp-fleet/taskIds";
/// The longest line that is searched for tasks, in bytes. A stream watches few tasks.
const MAX_SEARCHED: usize = 64 << 10;
/// How many bytes may wait to be read by rmcp.
const PIPE: usize = 64 << 10;

/// Serves the client until it closes the connection or `stop` is cancelled.
pub(crate) async fn serve_client(
    gateway: Gateway,
    input: impl AsyncRead + Send + Unpin + 'static,
    output: impl AsyncWrite + Send + Unpin + 'static,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let (carried, pipe) = tokio::io::duplex(PIPE);
    let _carrier = AbortOnDropHandle::new(tokio::spawn(carry_lines(input, pipe)));
    let transport = Restoring(AsyncRwTransport::new_server(carried, output));
    let transport = TaskTransport::new(transport, gateway.clone());

    match rmcp::service::serve_server_with_ct(gateway, transport, stop).await {
        Ok(service) => {
            let ended = service.waiting().await;
            ended.map(drop).map_err(|error| ServerError::Stdio(error.to_string()))
        }
        // The client closed the connection before the handshake, which is not a failure.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => {
            Ok(())
        }
        Err(error) => Err(ServerError::Stdio(fleet_ops::errors::chain(&error))),
    }
}

/// Carries lines to rmcp until the input ends, and moves requested tasks into `_meta`.
async fn carry_lines(
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    let mut is_long = false;
    loop {
        let chunk = input.fill_buf().await?;
        if chunk.is_empty() {
            output.write_all(&line).await?;
            return output.shutdown().await;
        }

        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |at| at + 1);
        line.extend_from_slice(&chunk[..taken]);
        input.consume(taken);

        if end.is_some()
            && !is_long
            && let Some(moved) = move_task_ids(&line)
        {
            line = moved;
        }
        if end.is_some() || is_long || line.len() > MAX_SEARCHED {
            is_long = end.is_none();
            output.write_all(&line).await?;
            line.clear();
        }
    }
}

/// Moves the tasks of a `subscriptions/listen` request into its `_meta`. Returns `None` for any
/// other line.
fn move_task_ids(line: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(line).ok()?;
    if !text.contains("listen") || !text.contains("taskIds") {
        return None;
    }

    let mut message: Value = serde_json::from_str(text).ok()?;
    if message.get("method")? != "subscriptions/listen" {
        return None;
    }
    let params = message.get_mut("params")?;
    let ids = params.get_mut("notifications")?.as_object_mut()?.shift_remove("taskIds")?;
    params.get_mut("_meta")?.as_object_mut()?.insert(TASK_IDS.to_owned(), ids);
    Some(format!("{message}\n").into_bytes())
}

/// A transport that lets streams watch tasks.
struct TaskTransport<T> {
    inner: T,
    gateway: Gateway,
    permits: Arc<Semaphore>,
    /// Requests whose tasks are being looked up.
    lookups: FuturesUnordered<BoxFuture<'static, Lookup>>,
    /// The tasks of streams that have not been acknowledged yet.
    unacknowledged: Vec<(RequestId, Vec<String>)>,
}

/// A request whose tasks have been looked up, and those that its stream may watch.
struct Lookup {
    id: RequestId,
    message: RxJsonRpcMessage<RoleServer>,
    ids: Vec<String>,
}

impl<T: Transport<RoleServer>> TaskTransport<T> {
    fn new(inner: T, gateway: Gateway) -> Self {
        Self {
            inner,
            gateway,
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            lookups: FuturesUnordered::new(),
            unacknowledged: Vec::new(),
        }
    }

    /// Takes a message of the client. Returns it unless it requests tasks, which are looked up
    /// first.
    fn take_message(
        &mut self,
        mut message: RxJsonRpcMessage<RoleServer>,
    ) -> Option<RxJsonRpcMessage<RoleServer>> {
        let JsonRpcMessage::Request(request) = &mut message else { return Some(message) };
        if !matches!(request.request, ClientRequest::SubscriptionsListenRequest(_)) {
            return Some(message);
        }
        let meta = request.request.get_meta_mut();
        let Some(ids) = meta.shift_remove(TASK_IDS) else { return Some(message) };
        if !self.gateway.has_tasks() {
            return Some(message);
        }

        let meta = json!(meta);
        let id = request.id.clone();
        match admit_stream(&meta, ids, &self.permits) {
            Ok((ids, permit)) => {
                let gateway = self.gateway.clone();
                let lookup = async move {
                    let ids = gateway.visible_tasks(ids, None).await;
                    if let JsonRpcMessage::Request(request) = &mut message
                        && !ids.is_empty()
                    {
                        let watched = WatchedTasks::new(ids.clone(), permit);
                        request.request.extensions_mut().insert(watched);
                    }
                    Lookup { id, message, ids }
                };
                self.lookups.push(lookup.boxed());
            }
            Err(refused) => self.refuse(id, refused.error),
        }
        None
    }

    fn refuse(&mut self, id: RequestId, error: ErrorData) {
        let sent = self.inner.send(ServerJsonRpcMessage::error(error, Some(id)));
        tokio::spawn(async move {
            // A client that reads nothing more has ended the connection.
            _ = sent.await;
        });
    }

    /// Adds the watched tasks to the acknowledgement of a stream.
    fn complete(&mut self, message: TxJsonRpcMessage<RoleServer>) -> TxJsonRpcMessage<RoleServer> {
        match &message {
            JsonRpcMessage::Notification(notification) => {
                let completed = self.complete_acknowledgement(&notification.notification);
                completed.map_or(message, JsonRpcMessage::notification)
            }
            // A stream that could not be opened is never acknowledged.
            JsonRpcMessage::Error(error) => {
                self.unacknowledged.retain(|(id, _)| Some(id) != error.id.as_ref());
                message
            }
            JsonRpcMessage::Request(_) | JsonRpcMessage::Response(_) => message,
        }
    }

    fn complete_acknowledgement(
        &mut self,
        notification: &ServerNotification,
    ) -> Option<ServerNotification> {
        let ServerNotification::SubscriptionsAcknowledgedNotification(_) = notification else {
            return None;
        };
        let mut message = serde_json::to_value(notification).ok()?;
        let params = message.get_mut("params")?;
        let stream = params.pointer("/_meta/io.modelcontextprotocol~1subscriptionId")?;
        let id = self.unacknowledged.iter().position(|(id, _)| json!(id) == *stream)?;
        let (_, ids) = self.unacknowledged.swap_remove(id);
        params.get_mut("notifications")?.as_object_mut()?.insert("taskIds".to_owned(), json!(ids));

        let method = message.get("method")?.as_str()?.to_owned();
        let params = message.get_mut("params").map(Value::take);
        let custom = CustomNotification::new(method, params);
        Some(ServerNotification::CustomNotification(custom))
    }
}

impl<T: Transport<RoleServer>> Transport<RoleServer> for TaskTransport<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let item = self.complete(item);
        self.inner.send(item)
    }

    // rmcp drops the future whenever it sends something, so this must be cancel safe.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            tokio::select! {
                Some(Lookup { id, message, ids }) = self.lookups.next() => {
                    if !ids.is_empty() {
                        self.unacknowledged.push((id, ids));
                    }
                    return Some(message);
                }
                message = self.inner.receive() => {
                    if let Some(message) = self.take_message(message?) {
                        return Some(message);
                    }
                }
            }
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_tasks_of_a_listen_request_are_moved() {
        let listen = |notifications: Value, meta: Value| {
            let params = json!({"notifications": notifications, "_meta": meta});
            let method = "subscriptions/listen";
            json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
        };
        let call = json!({"method": "tools/call", "params": {"name": "listen", "taskIds": []}});
        let long = format!("{{\"text\":\"listen taskIds {}\"}}", "x".repeat(3 * MAX_SEARCHED));
        let lines = [
            call.to_string(),
            listen(json!({"taskIds": ["t"], "toolsListChanged": true}), json!({"a": 1.10})),
            long,
            "no JSON: listen taskIds".to_owned(),
        ];
        let (carried, mut read) = tokio::io::duplex(PIPE);
        let input = lines.join("\n");
        let carrier =
            tokio::spawn(async move { carry_lines(input.as_bytes(), carried).await.unwrap() });
        let mut found = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut read, &mut found).await.unwrap();
        carrier.await.unwrap();

        let found: Vec<&str> = found.split('\n').collect();
        let meta = json!({"a": 1.10, TASK_IDS: ["t"]});
        let moved: Value = serde_json::from_str(found[1]).unwrap();
        assert_eq!(moved["params"]["_meta"], meta, "{moved}");
        assert_eq!(moved["params"]["notifications"], json!({"toolsListChanged": true}), "{moved}");
        for unchanged in [0, 2, 3] {
            assert_eq!(found[unchanged], lines[unchanged]);
        }
    }
}
