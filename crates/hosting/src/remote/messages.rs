//! Converts messages of remotes, as read by `fleet_wire`, to rmcp's types.
//!
//! rmcp drops messages that it can't read, and then the call waits until its timeout. So rmcp gets
//! nothing that it can't read: an unreadable answer becomes an error that ends its call.

use fleet_job::number;
use fleet_wire::{Answer, Id, Message, Reply, Unreadable, quote};
use rmcp::model::{ErrorData, NumberOrString, RequestId, ServerJsonRpcMessage};
use serde_json::{Map, Value};

use crate::{
    forgiven::forgive_handshake,
    inbound::{SHOWN, hide_from_rmcp, not_a_result, to_error_data, wire_id},
    secrets::Secrets,
    unreadable::unreadable_answer,
};

/// Converts a result to rmcp's type. The log does not show the values of `secrets`, here and below.
pub(super) fn to_response(
    id: RequestId,
    mut result: Map<String, Value>,
    secrets: &Secrets,
) -> ServerJsonRpcMessage {
    forgive_handshake(&mut result, secrets);
    let result = Value::Object(hide_from_rmcp(result));
    let shown = quote(&result.to_string(), SHOWN);
    match number::read(result) {
        Ok(result) => ServerJsonRpcMessage::response(result, id),
        Err(_) => ServerJsonRpcMessage::error(not_a_result(&shown), Some(id)),
    }
}

/// Returns the answer to `request` in an event that is not called a message, as JSON that rmcp can
/// read.
pub(super) fn answer_elsewhere(
    data: &[u8],
    request: &RequestId,
    secrets: &Secrets,
) -> Option<Value> {
    match fleet_wire::answer_in(data, &wire_id(request))? {
        Answer::Result(result) => Some(result_json(request, result, secrets)),
        Answer::Error { error, addressed: true } => {
            Some(error_json(request, &to_error_data(error)))
        }
        Answer::Unreadable(why) => Some(error_json(request, &unreadable_answer(&why))),
        Answer::Error { .. } | Answer::Malformed(_) => None,
    }
}

/// Returns the messages in the data of an event, as JSON that rmcp can read. If the event is part
/// of the answer to `request`, an error that names no request is about that one.
pub(super) fn messages_in(
    data: &[u8],
    request: Option<&RequestId>,
    secrets: &Secrets,
) -> Vec<Value> {
    let messages = fleet_wire::read(data).into_iter();
    messages.filter_map(|message| to_json(message, request, secrets)).collect()
}

fn to_json(message: Message, request: Option<&RequestId>, secrets: &Secrets) -> Option<Value> {
    let message = match message {
        Message::Request(_, message) | Message::Notification(_, message) => return Some(message),
        Message::Noise(why) => {
            tracing::debug!(why, "ignoring an event of a hosted server that is not a message");
            return None;
        }
        reply @ (Message::Reply(..) | Message::Quoted(..)) => reply,
    };
    let Some(request) = request else { return other_answer(message, secrets) };
    match message.answer_to(&wire_id(request)) {
        Ok(Answer::Result(result)) => Some(result_json(request, result, secrets)),
        Ok(Answer::Error { error, .. }) => Some(error_json(request, &to_error_data(error))),
        Ok(Answer::Unreadable(why) | Answer::Malformed(why)) => {
            Some(error_json(request, &unreadable_answer(&why)))
        }
        Err(other) => other_answer(other, secrets),
    }
}

/// Converts an answer to another request.
fn other_answer(message: Message, secrets: &Secrets) -> Option<Value> {
    let (Message::Reply(Some(id), reply) | Message::Quoted(id, reply)) = message else {
        return None;
    };
    let id = match id {
        Id::Number(number) => NumberOrString::Number(number),
        Id::Text(text) => NumberOrString::String(text.into()),
    };
    Some(match reply {
        Reply::Result(result) => result_json(&id, result, secrets),
        Reply::Error(error) => error_json(&id, &to_error_data(error)),
        Reply::Unreadable(Unreadable { why, .. }) => error_json(&id, &unreadable_answer(&why)),
    })
}

fn result_json(id: &RequestId, mut result: Map<String, Value>, secrets: &Secrets) -> Value {
    forgive_handshake(&mut result, secrets);
    reply_json(id, "result", Value::Object(hide_from_rmcp(result)))
}

/// Returns an error that answers a request, as JSON.
pub(super) fn error_json(id: &RequestId, error: &ErrorData) -> Value {
    // Text, numbers and JSON always serialize.
    reply_json(id, "error", serde_json::to_value(error).unwrap_or_default())
}

fn reply_json(id: &RequestId, member: &str, value: Value) -> Value {
    let id = match id {
        NumberOrString::Number(number) => Value::from(*number),
        NumberOrString::String(text) => Value::from(text.as_ref()),
    };
    let members = [("jsonrpc", Value::from("2.0")), ("id", id), (member, value)];
    Value::Object(members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inbound::raw_result;

    fn messages_in(data: &[u8], request: Option<&RequestId>) -> Vec<Value> {
        super::messages_in(data, request, &Secrets::default())
    }

    const SEVEN: RequestId = NumberOrString::Number(7);

    #[test]
    fn every_answer_ends_its_request() {
        let check = |text: &str, expected: Value| {
            let found = messages_in(text.as_bytes(), Some(&SEVEN));
            assert_eq!(Value::from(found), expected, "{text}");
        };
        let error = |code: i64, message: &str| {
            let error = json!({"code": code, "message": message});
            json!([{"jsonrpc": "2.0", "id": 7, "error": error}])
        };
        check(
            r#"{"id":"7","result":{"v":NaN},"error":null}"#,
            json!([{"jsonrpc": "2.0", "id": 7, "result": {"v": null}}]),
        );
        check(r#"{"id":null,"error":{"code":-32000,"message":"m"}}"#, error(-32000, "m"));
        check(r#"{"id":7,"error":{"code":99999999999,"message":"m"}}"#, error(-32603, "m"));
        check("ping", json!([]));
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": "ping"});
        check(&request.to_string(), json!([request]));

        let unreadable = messages_in(br#"{"id":7,"result":"boom"}"#, Some(&SEVEN));
        assert_eq!(unreadable[0]["error"]["data"]["reason"], "unreadable-answer", "{unreadable:?}");
        assert!(unreadable[0].to_string().contains("boom"), "{unreadable:?}");
    }

    #[test]
    fn answers_to_other_requests_keep_their_ids() {
        for request in [Some(&SEVEN), None] {
            let found =
                messages_in(br#"[{"id":"a","result":{}},{"id":8,"error":"boom"}]"#, request);
            assert_eq!(found[0], json!({"jsonrpc": "2.0", "id": "a", "result": {}}));
            assert_eq!((&found[1]["id"], &found[1]["error"]["code"]), (&json!(8), &json!(-32603)));
        }
        assert!(messages_in(br#"{"error":{"code":1,"message":"m"}}"#, None).is_empty());
    }

    #[test]
    fn results_of_tools_pass_through_rmcp_unchanged() {
        let check = |result: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{result}}}"#);
            let read = |message: ServerJsonRpcMessage| match message {
                ServerJsonRpcMessage::Response(response) => {
                    Value::Object(raw_result(response.result)).to_string()
                }
                other => panic!("{other:?}"),
            };
            // In the data of an event, and as the whole body.
            let event = messages_in(text.as_bytes(), Some(&SEVEN)).remove(0).to_string();
            assert_eq!(read(serde_json::from_str(&event).unwrap()), result);
            assert_eq!(
                read(number::read(messages_in(text.as_bytes(), None).remove(0)).unwrap()),
                result
            );
            let Some(Answer::Result(answer)) =
                fleet_wire::answer_in(text.as_bytes(), &Id::Number(7))
            else {
                panic!("{text}")
            };
            assert_eq!(read(to_response(SEVEN, answer, &Secrets::default())), result);
        };
        let numbers = "[1e+400,12345678901234567890123,1.10,-0,0.00001]";
        check(&format!(
            r#"{{"resultType":"complete","z":{numbers},"content":[{{"type":"text","text":"x","a":{numbers}}}]}}"#
        ));
        check(&format!(
            r#"{{"content":[{{"type":"video","z":1}}],"structuredContent":{{"n":{numbers}}}}}"#
        ));
        check(&format!(r#"{{"isError":false,"_meta":{{"z":{numbers},"a":1}}}}"#));
        check(&format!(r#"{{"novel":{numbers},"z":{{"y":1,"a":2}}}}"#));
    }

    #[test]
    fn a_server_need_not_name_itself() {
        for info in [json!(null), json!({}), json!({"name": "s"})] {
            let result =
                json!({"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": info});
            let Value::Object(result) = result else { panic!("no object") };
            let message = to_response(SEVEN, result, &Secrets::default());
            assert!(format!("{message:?}").contains("InitializeResult("), "{message:?}");
        }
    }
}
