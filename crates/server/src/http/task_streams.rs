//! `subscriptions/listen` requests that subscribe to the states of tasks (`notifications.taskIds`,
//! SEP-2663).
//!
//! rmcp's filter has no such member, so this layer reads it before rmcp sees the request. The tasks
//! that may be watched go with the request to the gateway, which sends the notifications; this
//! layer also adds them to the acknowledgement.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderName, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http_body_util::BodyExt as _;
use rmcp::model::{ClientCapabilities, ErrorData};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::MAX_BODY;
use crate::gateway::{Gateway, WatchedTasks};

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// The most streams that may watch tasks at once.
pub(crate) const MAX_STREAMS: usize = 256;
/// The most tasks that one stream may watch. Further tasks are not acknowledged.
const MAX_TASKS: usize = 100;

/// Decides which tasks a stream may watch, and bounds the number of such streams.
#[derive(Clone)]
pub(super) struct TaskStreams {
    gateway: Gateway,
    permits: Arc<Semaphore>,
}

impl TaskStreams {
    pub(super) fn new(gateway: Gateway) -> Self {
        Self { gateway, permits: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

#[derive(Deserialize)]
struct Listen {
    #[serde(default)]
    id: Value,
    params: Params,
}

#[derive(Deserialize)]
struct Params {
    #[serde(default, rename = "_meta")]
    meta: Value,
    notifications: Notifications,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notifications {
    task_ids: Option<Value>,
}

/// Lets a stream watch the tasks that it requests. The body is already in memory.
pub(super) async fn watch_tasks(
    State(streams): State<TaskStreams>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.headers().get(METHOD);
    let is_listen = method.is_some_and(|method| method == "subscriptions/listen");
    if !is_listen || !streams.gateway.has_tasks() {
        return next.run(request).await;
    }

    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let asked = serde_json::from_slice::<Listen>(&body).ok();
    let Some((id, params, ids)) = asked.and_then(|Listen { id, mut params }| {
        let ids = params.notifications.task_ids.take()?;
        Some((id, params, ids))
    }) else {
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    };

    let (ids, permit) = match admit_stream(&params.meta, ids, &streams.permits) {
        Ok(admitted) => admitted,
        Err(Refused { status, error }) => {
            let answer = json!({ "jsonrpc": "2.0", "id": id, "error": error });
            return (status, axum::Json(answer)).into_response();
        }
    };
    let ids = streams.gateway.visible_tasks(ids, Some(&parts)).await;
    if ids.is_empty() {
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    }

    parts.extensions.insert(WatchedTasks::new(ids.clone(), permit));
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let mut is_open = true;
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            frame.map_data(|data| {
                let acknowledged = is_open.then(|| add_task_ids(&data, &ids)).flatten();
                is_open &= acknowledged.is_none();
                acknowledged.map_or(data, Bytes::from)
            })
        }))
    })
}

/// Why a stream may not watch tasks.
pub(crate) struct Refused {
    status: StatusCode,
    pub(crate) error: ErrorData,
}

/// Validates the requested tasks, and acquires a permit for their stream.
pub(crate) fn admit_stream(
    meta: &Value,
    ids: Value,
    permits: &Arc<Semaphore>,
) -> Result<(Vec<String>, OwnedSemaphorePermit), Refused> {
    let refused = |status, error| Refused { status, error };
    let capabilities =
        meta.get("io.modelcontextprotocol/clientCapabilities").cloned().unwrap_or_default();
    let declared: Option<ClientCapabilities> = serde_json::from_value(capabilities).ok();
    if !declared.is_some_and(|declared| declared.supports_tasks()) {
        let required = ClientCapabilities::builder().enable_tasks().build();
        let error = ErrorData::missing_required_client_capability(required);
        return Err(refused(StatusCode::BAD_REQUEST, error));
    }

    let mut ids: Vec<String> = serde_json::from_value(ids).map_err(|_| {
        let error =
            ErrorData::invalid_params("notifications.taskIds must be an array of strings", None);
        refused(StatusCode::BAD_REQUEST, error)
    })?;
    ids.sort_unstable();
    ids.dedup();
    ids.truncate(MAX_TASKS);

    let permit = permits.clone().try_acquire_owned().map_err(|_| {
        let message = format!(
            "all {MAX_STREAMS} streams for tasks are in use; \
             poll with tasks/get, or try again later"
        );
        let code = fleet_codes::TOO_MANY_STREAMS.as_str();
        let data = json!({ "reason": "too-many-streams", "code": code, "limit": MAX_STREAMS });
        refused(StatusCode::SERVICE_UNAVAILABLE, ErrorData::internal_error(message, Some(data)))
    })?;
    Ok((ids, permit))
}

/// Adds the tasks to the event that acknowledges the subscription; `None` if it is another event.
fn add_task_ids(event: &[u8], ids: &[String]) -> Option<String> {
    let text = std::str::from_utf8(event).ok()?;
    if !text.contains("notifications/subscriptions/acknowledged") {
        return None;
    }

    let mut is_changed = false;
    let mut changed = String::with_capacity(text.len() + 64);
    for line in text.split_inclusive('\n') {
        let mut message: Option<Value> =
            line.strip_prefix("data:").and_then(|data| serde_json::from_str(data).ok());
        match message
            .as_mut()
            .and_then(|message| message["params"]["notifications"].as_object_mut())
        {
            Some(accepted) => {
                accepted.insert("taskIds".to_owned(), json!(ids));
                is_changed = true;
                changed.push_str(&format!("data: {}\n", message.unwrap_or_default()));
            }
            None => changed.push_str(line),
        }
    }

    is_changed.then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaring() -> Value {
        let tasks = json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
        json!({"io.modelcontextprotocol/clientCapabilities": tasks})
    }

    #[test]
    fn only_clients_that_declare_tasks_may_watch_a_bounded_number() {
        let permits = Arc::new(Semaphore::new(1));
        let check = |meta: &Value, ids: Value, expected: Result<usize, i32>| {
            let found = admit_stream(meta, ids, &permits).map(|(ids, _permit)| ids.len());
            assert_eq!(found.map_err(|refused| refused.error.code.0), expected);
        };
        check(&declaring(), json!(["a", "b", "a"]), Ok(2));
        check(
            &declaring(),
            json!((0..200).map(|n| n.to_string()).collect::<Vec<_>>()),
            Ok(MAX_TASKS),
        );
        check(&json!({}), json!(["a"]), Err(-32021));
        check(&declaring(), json!("a"), Err(-32602));
        check(&declaring(), json!([1]), Err(-32602));

        let _taken = permits.clone().try_acquire_owned().unwrap();
        check(&declaring(), json!(["a"]), Err(-32603));
    }

    #[test]
    fn the_acknowledgement_names_the_tasks() {
        let acknowledged = json!({
            "jsonrpc": "2.0",
            "method": "notifications/subscriptions/acknowledged",
            "params": {"notifications": {"toolsListChanged": true}},
        });
        let event =
            add_task_ids(format!("id: 1\ndata: {acknowledged}\n\n").as_bytes(), &["t".to_owned()]);
        let event = event.unwrap();
        let data = event.strip_prefix("id: 1\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        let message: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            message["params"]["notifications"],
            json!({"toolsListChanged": true, "taskIds": ["t"]})
        );

        let other = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
        assert_eq!(add_task_ids(format!("data: {other}\n\n").as_bytes(), &[]), None);
    }
}
