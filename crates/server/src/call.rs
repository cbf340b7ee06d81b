//! Passing one tool call on to a hosted server, with its progress, its cancellation and its `_meta`.

use std::{sync::Arc, time::Duration};

use rmcp::{
    RoleServer,
    model::{
        CallToolRequest, CallToolRequestParams, CallToolResponse, CancelledNotificationParam, ClientRequest,
        ErrorCode, ErrorData, ProgressNotificationParam, ProgressToken, RequestMetaObject, ResultType,
        ServerResult,
    },
    service::{PeerRequestOptions, RequestContext, ServiceError},
};
use serde_json::{Value, json};

use crate::{
    error::chain,
    hosting::{
        Fleet,
        fleet::Down,
        upstream::{Upstream, transport_error},
    },
};

/// What belongs to the hop between two neighbours and is not passed on.
const HOP_KEYS: [&str; 5] = [
    "progressToken",
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/logLevel",
];

/// Calls a tool of a hosted server. `params` names the tool as the server knows it.
///
/// # Errors
///
/// The server's own JSON-RPC errors as they are; `-32603` with `data.reason` where it can't be reached.
pub(crate) async fn forward(
    fleet: &Arc<Fleet>,
    server: &str,
    params: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let _ticket = fleet.calls(server).map(|calls| calls.begin());
    let upstream = fleet.connection(server).await.map_err(|error| down(&error))?;
    send(server, &upstream, params, context, fleet.policy().limits.call_timeout).await
}

async fn send(
    server: &str,
    upstream: &Upstream,
    mut params: CallToolRequestParams,
    context: &RequestContext<RoleServer>,
    limit: Duration,
) -> Result<CallToolResponse, ErrorData> {
    params.meta = None;
    let options = PeerRequestOptions::with_timeout(limit).with_meta(passed_on(&context.meta));
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
    let sent = upstream.peer.send_request_with_option(request, options).await;
    let handle = sent.map_err(|error| failed(server, upstream, error))?;
    let id = handle.id.clone();
    let wanted = context.meta.get_progress_token();
    let mut progress =
        wanted.map(|wanted| (wanted, upstream.progress.register(handle.progress_token.clone())));
    let mut response = std::pin::pin!(handle.await_response());
    let result = loop {
        let next = async {
            match &mut progress {
                Some((token, stream)) => (token.clone(), stream.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = &mut response => break result,
            (token, Some(notification)) = next => notify(context, token, notification).await,
            () = context.ct.cancelled() => {
                let reason = Some("the caller cancelled the call".to_owned());
                let cancelled = CancelledNotificationParam::new(Some(id), reason);
                // Where the server is gone, there is nothing to cancel.
                _ = upstream.peer.notify_cancelled(cancelled).await;
                return Err(unavailable(server, "cancelled", "the call was cancelled", None));
            }
        }
    };
    // What stood before the result goes out before the result.
    if let Some((token, stream)) = &mut progress {
        while let Some(notification) = stream.try_next() {
            notify(context, token.clone(), notification).await;
        }
    }
    match result.map_err(|error| failed(server, upstream, error))? {
        ServerResult::CallToolResult(mut result) => {
            // Servers of older revisions leave it out; the front end leaves it out again for older callers.
            result.result_type = Some(ResultType::COMPLETE);
            Ok(CallToolResponse::Complete(result))
        }
        ServerResult::InputRequiredResult(result) => Ok(CallToolResponse::InputRequired(result)),
        ServerResult::CreateTaskResult(result) => Ok(CallToolResponse::Task(result)),
        _ => Err(unavailable(server, "protocol", "it answered with something that is no tool result", None)),
    }
}

/// The `_meta` that a hosted server gets to see.
fn passed_on(meta: &RequestMetaObject) -> RequestMetaObject {
    let mut meta = meta.clone();
    for key in HOP_KEYS {
        meta.remove(key);
    }
    meta
}

async fn notify(
    context: &RequestContext<RoleServer>,
    token: ProgressToken,
    mut notification: ProgressNotificationParam,
) {
    notification.progress_token = token;
    // A caller that does not listen any more loses nothing but progress.
    _ = context.peer.notify_progress(notification).await;
}

fn failed(server: &str, upstream: &Upstream, error: ServiceError) -> ErrorData {
    match error {
        ServiceError::McpError(error) => error,
        ServiceError::Timeout { timeout } => {
            unavailable(server, "timeout", &format!("no answer within {} ms", timeout.as_millis()), None)
        }
        error => {
            let text = match &error {
                ServiceError::TransportSend(error) => transport_error(error),
                error => chain(error),
            };
            let stderr = upstream.child.as_ref().map(|child| child.stderr.text(1024));
            unavailable(server, "connection-lost", &text, stderr.filter(|tail| !tail.is_empty()))
        }
    }
}

/// The error for a call that a hosted server could not take or did not answer. A later call may do better.
fn unavailable(server: &str, reason: &str, message: &str, stderr: Option<String>) -> ErrorData {
    let mut data = json!({ "reason": reason, "server": server });
    if let (Some(stderr), Value::Object(data)) = (stderr, &mut data) {
        data.insert("stderrTail".to_owned(), stderr.into());
    }
    ErrorData::new(ErrorCode::INTERNAL_ERROR, format!("server `{server}`: {message}"), Some(data))
}

/// The error for a call of a server that is down.
pub(crate) fn down(error: &Down) -> ErrorData {
    let retry_after = error.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let data = json!({ "reason": "server-unavailable", "server": error.server, "retryAfterMs": retry_after });
    ErrorData::new(ErrorCode::INTERNAL_ERROR, error.to_string(), Some(data))
}
