//! `POST /message`: one JSON-RPC request in, one JSON-RPC response out, without a session, a
//! handshake or a stream.
//!
//! This is for callers such as `curl` that only want to call a tool. A request without a protocol
//! version is answered according to revision 2025-11-25, a request with the `_meta` of 2026-07-28
//! according to that revision.
//!
//! With `?sessionId=…`, it is the other half of [`sse`](super::sse): the answer to the posted
//! message goes to a stream.

use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use fleet_job::{number, size::clipped};
use rmcp::{
    model::{
        ClientCapabilities, ClientJsonRpcMessage, ClientRequest, ErrorCode, GetExtensions,
        Implementation, InitializeRequestParams, ProtocolVersion, ServerJsonRpcMessage,
    },
    service::serve_directly_with_ct,
    transport::OneshotTransport,
};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{MAX_BODY, sse::Streams};
use crate::{access, gateway::Gateway};

/// The receivers of posted messages.
#[derive(Clone)]
pub(super) struct Receiver {
    /// Answers messages that belong to no stream.
    pub(super) gateway: Gateway,
    /// Takes messages that belong to a stream.
    pub(super) streams: Streams,
}

/// Handles `POST /message`.
pub(super) async fn handle_message(State(receiver): State<Receiver>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if !is_json(&parts.headers) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json\n")
            .into_response();
    }

    // `read_body` has already read the body into memory, within its limits.
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let mut message = match parse_message(&body) {
        Ok(message) => message,
        Err(refusal) => return refusal.into_response(),
    };

    let stream = stream_of(&parts.uri);
    let owner = access::owner_of(&parts.extensions);
    if let ClientJsonRpcMessage::Request(message) = &mut message {
        // Handlers find the HTTP request in the same place as for `/mcp`.
        message.request.extensions_mut().insert(parts);
    }
    if let Some(stream) = stream {
        return match receiver.streams.post(&stream, owner, message).await {
            true => (StatusCode::ACCEPTED, "Accepted").into_response(),
            false => {
                (StatusCode::NOT_FOUND, "this replica has no open stream with this sessionId\n")
                    .into_response()
            }
        };
    }

    match message {
        ClientJsonRpcMessage::Request(_) => answer_request(receiver.gateway, message).await,
        // Without a session, there is nothing that a notification could refer to.
        ClientJsonRpcMessage::Notification(_) => StatusCode::ACCEPTED.into_response(),
        ClientJsonRpcMessage::Response(_) | ClientJsonRpcMessage::Error(_) => {
            let message = "the message is a response, but the server has sent no request";
            Refusal::new(ErrorCode::INVALID_REQUEST, None, message).into_response()
        }
    }
}

/// The longest message of a refusal, in bytes. A message may quote a part of the body of any
/// length.
const MAX_REFUSAL: usize = 1024;

/// A JSON-RPC error in a message that is found before the message is handled.
struct Refusal {
    code: ErrorCode,
    id: Value,
    message: String,
}

impl Refusal {
    fn new(code: ErrorCode, id: Option<Value>, message: impl Into<String>) -> Self {
        Self {
            code,
            id: id.unwrap_or(Value::Null),
            message: clipped(&message.into(), MAX_REFUSAL).into_owned(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = json!({ "code": self.code, "message": self.message });
        let body = json!({ "jsonrpc": "2.0", "id": self.id, "error": error });
        (StatusCode::BAD_REQUEST, axum::Json(body)).into_response()
    }
}

/// The id of the stream for the answer, if the URL names one.
fn stream_of(uri: &Uri) -> Option<String> {
    let parameters = url::form_urlencoded::parse(uri.query()?.as_bytes());
    parameters.into_iter().find(|(name, _)| name == "sessionId").map(|(_, id)| id.into_owned())
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return false;
    };
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn parse_message(body: &[u8]) -> Result<ClientJsonRpcMessage, Refusal> {
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        Refusal::new(ErrorCode::PARSE_ERROR, None, format!("the body is not valid JSON: {error}"))
    })?;
    let invalid =
        |id: Option<Value>, message: &str| Refusal::new(ErrorCode::INVALID_REQUEST, id, message);
    let Value::Object(mut object) = value else {
        return Err(invalid(
            None,
            "the body must be one JSON-RPC message (batches are not supported)",
        ));
    };

    let id = object.get("id").filter(|id| id.is_string() || id.is_i64()).cloned();
    if object.get("jsonrpc") != Some(&json!("2.0")) {
        return Err(invalid(id, "`jsonrpc` must be \"2.0\""));
    }
    if object.contains_key("id") && id.is_none() {
        return Err(invalid(None, "`id` must be a string or an integer"));
    }
    if let Some(method) = object.get("method") {
        if !method.is_string() {
            return Err(invalid(id, "`method` must be a string"));
        }
        if !object.get("params").is_none_or(Value::is_object) {
            return Err(Refusal::new(ErrorCode::INVALID_PARAMS, id, "`params` must be an object"));
        }
        if object.get("method") == Some(&json!("server/discover")) {
            complete_discovery(&mut object);
        }
    }

    number::read(Value::Object(object))
        .map_err(|error| invalid(id, &format!("the body is not a JSON-RPC message: {error}")))
}

/// Adds the `_meta` that `server/discover` of the stateless protocol requires, so that callers can
/// leave it out.
fn complete_discovery(object: &mut Map<String, Value>) {
    let Some(params) = object.entry("params").or_insert_with(|| json!({})).as_object_mut() else {
        return;
    };
    let Some(meta) = params.entry("_meta").or_insert_with(|| json!({})).as_object_mut() else {
        return;
    };
    let version = meta.entry("io.modelcontextprotocol/protocolVersion");
    version.or_insert_with(|| ProtocolVersion::LATEST.as_str().into());
    meta.entry("io.modelcontextprotocol/clientCapabilities").or_insert_with(|| json!({}));
}

async fn answer_request(gateway: Gateway, message: ClientJsonRpcMessage) -> Response {
    let mut version = ProtocolVersion::LATEST_WITH_INITIALIZE;
    if let ClientJsonRpcMessage::Request(request) = &message
        && let ClientRequest::InitializeRequest(initialize) = &request.request
    {
        version = initialize.params.protocol_version.clone();
    }

    let caller = InitializeRequestParams::new(
        ClientCapabilities::default(),
        Implementation::new("message", "0"),
    )
    .with_protocol_version(version);
    let (transport, mut responses) = OneshotTransport::new(message);
    // Dropping the guard cancels the request when the caller disconnects.
    let token = CancellationToken::new();
    let _guard = token.clone().drop_guard();
    let service = serve_directly_with_ct(gateway, transport, Some(caller), token);
    tokio::spawn(service.waiting());

    while let Some(response) = responses.recv().await {
        // Messages before the answer, such as progress, have no stream to go to.
        if matches!(response, ServerJsonRpcMessage::Response(_) | ServerJsonRpcMessage::Error(_)) {
            return axum::Json(response).into_response();
        }
    }

    (StatusCode::INTERNAL_SERVER_ERROR, "the request ended without an answer\n").into_response()
}
