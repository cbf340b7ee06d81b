//! The beginning of a connection to a remote: how to interpret refusals of the first requests.
//! Pure.

use fleet_wire::revision;
use http::StatusCode;
use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, ErrorCode, ErrorData, JsonRpcMessage, ProtocolVersion,
    ServerJsonRpcMessage,
};
use serde_json::Value;

use super::exchange::{Answer, request_id};

/// Returns whether a message is `server/discover`.
pub(super) fn is_discover(message: &ClientJsonRpcMessage) -> bool {
    matches!(message, JsonRpcMessage::Request(request)
        if matches!(request.request, ClientRequest::DiscoverRequest(_)))
}

/// Returns whether a message is `initialize`.
pub(super) fn is_initialize(message: &ClientJsonRpcMessage) -> bool {
    matches!(message, JsonRpcMessage::Request(request)
        if matches!(request.request, ClientRequest::InitializeRequest(_)))
}

/// Returns whether a status means that nothing at the URL accepts `initialize`. A server with the
/// transport of 2024 answers like this, because it expects a request for a stream.
pub(crate) fn expects_other_transport(status: u16) -> bool {
    matches!(status, 400 | 404 | 405)
}

/// Creates the answer to `server/discover` that makes rmcp try `initialize`.
pub(super) fn refusal(message: &ClientJsonRpcMessage, why: String) -> ServerJsonRpcMessage {
    ServerJsonRpcMessage::error(ErrorData::invalid_request(why, None), request_id(message).cloned())
}

/// Returns the answer to pass on instead if a server does not answer `server/discover` like one of
/// the newer revisions; `None` if its own answer can be passed on. A server that refuses our
/// credentials or fails may speak any revision.
pub(super) fn not_discovered(
    message: &ClientJsonRpcMessage,
    answer: &Answer,
) -> Option<ServerJsonRpcMessage> {
    let rejected = match answer {
        Answer::Accepted(_) => {
            return Some(refusal(message, "server/discover was not answered".to_owned()));
        }
        Answer::Rejected(rejected) => rejected,
        Answer::Message(..) | Answer::Stream(..) => return None,
    };
    let locked = matches!(rejected.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let said = rejected.error.as_ref().map(|refusal| &refusal.error);
    let error = match said {
        Some(error) if speaks_older_revisions_only(error) => {
            return Some(refusal(message, format!("server/discover was answered with {rejected}")));
        }
        _ if locked || !rejected.status.is_client_error() => return None,
        Some(error) => error.clone(),
        None => {
            return Some(refusal(message, format!("server/discover was answered with {rejected}")));
        }
    };
    Some(ServerJsonRpcMessage::error(error, request_id(message).cloned()))
}

fn speaks_older_revisions_only(error: &ErrorData) -> bool {
    let newest = ProtocolVersion::LATEST;
    let lists_newest = |data: &Value| {
        let listed = data.get("supported").and_then(Value::as_array);
        listed.is_some_and(|listed| listed.iter().any(|version| version == newest.as_str()))
    };
    error.code == ErrorCode::UNSUPPORTED_PROTOCOL_VERSION
        && !error.data.as_ref().is_some_and(lists_newest)
}

/// Returns `initialize` with another revision, if it was refused with a list of revisions.
pub(super) fn in_listed_revision(
    message: &ClientJsonRpcMessage,
    answer: &Answer,
) -> Option<ClientJsonRpcMessage> {
    let error = match answer {
        Answer::Rejected(rejected) => &rejected.error.as_ref()?.error,
        Answer::Message(answer, _) => match answer.as_ref() {
            JsonRpcMessage::Error(answer) => &answer.error,
            _ => return None,
        },
        Answer::Accepted(_) | Answer::Stream(..) => return None,
    };

    let mut message = message.clone();
    let JsonRpcMessage::Request(request) = &mut message else { return None };
    let ClientRequest::InitializeRequest(initialize) = &mut request.request else { return None };
    let asked = &mut initialize.params.protocol_version;
    *asked = listed_revision(error, asked)?;
    Some(message)
}

/// Returns the newest revision with a handshake that a server lists in its refusal of another one.
pub(crate) fn listed_revision(
    error: &ErrorData,
    asked: &ProtocolVersion,
) -> Option<ProtocolVersion> {
    let listed = revision::listed(error.data.as_ref(), asked.as_str())?;
    serde_json::from_value(Value::from(listed)).ok()
}
