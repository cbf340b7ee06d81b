//! Reads what a child sends, before rmcp does.
//!
//! rmcp drops messages that it can't read, and then the call waits until its timeout. So messages
//! are read here first, with the fleet's own reader ([`fleet_wire`]), and an unreadable answer
//! becomes an error of its request. The results of calls and lists are passed on unread
//! (`raw_result`), so that one element that is not understood does not make the rest unreadable.

use std::collections::{BTreeMap, BTreeSet};

use fleet_job::number;
use fleet_wire::{Id, Message, Reply, RpcError, Unreadable, quote};
use rmcp::{
    RoleClient,
    model::{
        ClientJsonRpcMessage, ClientNotification, ClientRequest, CustomResult, ErrorCode,
        ErrorData, JsonRpcMessage, NumberOrString, RequestId, ServerJsonRpcMessage, ServerResult,
    },
    service::RxJsonRpcMessage,
};
use serde_json::{Map, Value};

use super::{forgiven::forgive_result, secrets::Secrets, unreadable::unreadable_answer};

/// The most answers without an id that are kept until their request is known.
const MAX_NAMELESS: usize = 16;
/// The longest part of an unreadable text that is quoted, in bytes.
pub(super) const SHOWN: usize = 200;

/// The kind of a request, which decides how its answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A call, a list or content; the gateway reads the result.
    Raw,
    /// `initialize`; the answer is read leniently.
    Initialize,
    /// A stream of changes, which the answer ends.
    Stream,
    /// Any other request.
    Other,
}

impl RequestKind {
    pub(super) fn of(request: &ClientRequest) -> Self {
        match request {
            ClientRequest::CallToolRequest(_)
            | ClientRequest::GetPromptRequest(_)
            | ClientRequest::ReadResourceRequest(_)
            | ClientRequest::ListToolsRequest(_)
            | ClientRequest::ListPromptsRequest(_)
            | ClientRequest::ListResourcesRequest(_)
            | ClientRequest::ListResourceTemplatesRequest(_) => Self::Raw,
            ClientRequest::InitializeRequest(_) => Self::Initialize,
            ClientRequest::SubscriptionsListenRequest(_) => Self::Stream,
            _ => Self::Other,
        }
    }
}

/// The open requests of one connection.
#[derive(Default)]
pub(super) struct Inbound {
    /// What the log must not show.
    secrets: Secrets,
    open: BTreeMap<Id, RequestKind>,
    /// Errors that name no request, each with the requests that were open when it came.
    nameless: Vec<(BTreeSet<Id>, ErrorData)>,
    /// Unreadable answers that wait for the next line.
    held: Vec<Held>,
}

/// An unreadable answer, which may be a log line that quotes the answer after it.
#[derive(Debug)]
struct Held {
    /// The request that it names, or the requests that it may answer if it names none.
    suspects: BTreeSet<Id>,
    is_named: bool,
    problem: Unreadable,
}

impl Inbound {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Notes a message that is sent.
    pub(super) fn note_sent(&mut self, message: &ClientJsonRpcMessage) {
        match message {
            JsonRpcMessage::Request(request) => {
                self.open.insert(wire_id(&request.id), RequestKind::of(&request.request));
            }
            JsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) =
                    &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.open.remove(&wire_id(id));
                }
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
        }
    }

    /// Reads the messages in a line. Returns `None` if the line is not JSON-RPC.
    ///
    /// An unreadable answer is held until the next line was read, so that a readable answer to the
    /// same request takes precedence. If no line follows, the caller calls [`Self::release`].
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<Vec<RxJsonRpcMessage<RoleClient>>> {
        let held = std::mem::take(&mut self.held);
        let messages = fleet_wire::read(bytes);
        let is_alone = messages.len() == 1;
        let mut passed = Vec::new();
        let mut is_noise = false;
        for message in messages {
            match message {
                Message::Reply(Some(id), reply) => {
                    let (id, reply) = match is_alone {
                        true => self.match_open(id, reply, bytes),
                        false => (id, reply),
                    };
                    passed.extend(self.answer_or_hold(id, reply));
                }
                Message::Reply(None, Reply::Unreadable(problem)) => {
                    self.held.push(Held { suspects: self.suspects(), is_named: false, problem });
                }
                Message::Reply(None, reply) => passed.extend(self.take_nameless(reply)),
                Message::Request(_, message) | Message::Notification(_, message) => {
                    passed.extend(number::read::<RxJsonRpcMessage<RoleClient>>(message).ok());
                }
                Message::Noise(_) => is_noise = true,
            }
        }
        let is_garbage = is_noise && passed.is_empty() && self.held.is_empty();
        passed.extend(held.into_iter().flat_map(|held| self.end_held(held)));
        if is_garbage && passed.is_empty() { None } else { Some(passed) }
    }

    /// Returns whether an answer is held, which the caller must [`Self::release`] in time.
    pub(super) fn holds_answers(&self) -> bool {
        !self.held.is_empty()
    }

    /// Passes on the held answers, since no readable ones replaced them.
    #[must_use]
    pub(super) fn release(&mut self) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let held = std::mem::take(&mut self.held);
        held.into_iter().flat_map(|held| self.end_held(held)).collect()
    }

    /// Ends the request that an overlong line answers. Returns `None` if the line is not an answer.
    pub(super) fn end_too_long(
        &mut self,
        head: &[u8],
        tail: &[u8],
        limit: usize,
    ) -> Option<Vec<RxJsonRpcMessage<RoleClient>>> {
        let why = format!(
            "it is a line of more than {limit} bytes: {}",
            quote(&String::from_utf8_lossy(head), SHOWN)
        );
        let reply = Reply::Unreadable(Unreadable { why, cut: false });
        if let Some(id) = fleet_wire::id_of_long(head, tail) {
            return Some(self.pass_answer(id, reply));
        }
        let is_answer =
            fleet_wire::read(head).iter().any(|message| matches!(message, Message::Reply(..)));
        is_answer.then(|| self.take_nameless(reply))
    }

    /// Holds an unreadable answer to an open request. Passes other answers on.
    fn answer_or_hold(&mut self, id: Id, reply: Reply) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let id = self.match_id(id);
        match reply {
            Reply::Unreadable(problem) if self.open.contains_key(&id) => {
                self.held.push(Held { suspects: BTreeSet::from([id]), is_named: true, problem });
                Vec::new()
            }
            reply => self.pass_answer(id, reply),
        }
    }

    /// Ends the request of a held answer, if it is still open.
    fn end_held(&mut self, held: Held) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let Held { mut suspects, is_named, problem } = held;
        suspects.retain(|id| self.open.contains_key(id));
        match suspects.first().cloned() {
            Some(id) if is_named => self.pass_answer(id, Reply::Unreadable(problem)),
            Some(_) => self.blame(suspects, unreadable_answer(&problem.why)),
            None => Vec::new(),
        }
    }

    fn pass_answer(&mut self, id: Id, reply: Reply) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let id = self.match_id(id);
        let asked = self.open.remove(&id);
        let reading = asked.unwrap_or(RequestKind::Other);
        let mut passed = vec![to_rmcp_answer(request_id(&id), reading, reply, &self.secrets)];
        if asked.is_some() {
            passed.extend(self.attribute_nameless());
        }
        passed
    }

    /// Matches an answer with an open request. If an answer has two ids and only one is of an open
    /// request, it answers that one, but is unreadable, since other members may be duplicated, too.
    /// Reads all of `written`, so call this only for a text that is one message.
    fn match_open(&self, id: Id, reply: Reply, written: &[u8]) -> (Id, Reply) {
        if self.open.contains_key(&self.match_id(id.clone())) {
            return (id, reply);
        }
        let others = fleet_wire::ids_in(written).into_iter().map(|other| self.match_id(other));
        match others.into_iter().find(|other| self.open.contains_key(other)) {
            Some(open) => {
                let shown = quote(&String::from_utf8_lossy(written), SHOWN);
                let why = format!("it has two ids: {shown}");
                (open, Reply::Unreadable(Unreadable { why, cut: false }))
            }
            None => (id, reply),
        }
    }

    /// Matches an id with that of an open request, since some servers send numbers back as text, or
    /// text as numbers.
    fn match_id(&self, id: Id) -> Id {
        if self.open.contains_key(&id) {
            return id;
        }
        let other = match &id {
            Id::Number(number) => Some(Id::Text(number.to_string())),
            Id::Text(text) => text.parse().ok().map(Id::Number),
        };
        other.filter(|other| self.open.contains_key(other)).unwrap_or(id)
    }

    /// Takes an answer that names no request. It belongs to one of the open requests, and so to the
    /// last one that stays open. If there are several, it is passed on unchanged, too.
    fn take_nameless(&mut self, reply: Reply) -> Vec<RxJsonRpcMessage<RoleClient>> {
        // A server that does not know a method has read the request and its id. Some servers refuse
        // notifications like this.
        if let Reply::Error(error) = &reply
            && error.code == i64::from(ErrorCode::METHOD_NOT_FOUND.0)
        {
            return vec![ServerJsonRpcMessage::error(to_error_data(error.clone()), None)];
        }

        let error = match reply {
            Reply::Result(_) => unreadable_answer("it does not say which request it answers"),
            Reply::Error(error) => to_error_data(error),
            Reply::Unreadable(problem) => unreadable_answer(&problem.why),
        };
        self.blame(self.suspects(), error)
    }

    /// Returns the requests that an answer without an id may belong to.
    fn suspects(&self) -> BTreeSet<Id> {
        let open = self.open.iter().filter(|(_, asked)| **asked != RequestKind::Stream);
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Ends the request with an error if there is a single suspect. Otherwise notes the error, and
    /// passes it on unchanged.
    fn blame(
        &mut self,
        suspects: BTreeSet<Id>,
        error: ErrorData,
    ) -> Vec<RxJsonRpcMessage<RoleClient>> {
        if suspects.len() > 1 {
            let nameless = ServerJsonRpcMessage::error(error.clone(), None);
            if self.nameless.len() < MAX_NAMELESS {
                self.nameless.push((suspects, error));
            }
            return vec![nameless];
        }
        self.nameless.push((suspects, error));
        self.attribute_nameless()
    }

    fn attribute_nameless(&mut self) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let mut passed = Vec::new();
        let mut kept = Vec::new();
        for (mut suspects, error) in std::mem::take(&mut self.nameless) {
            suspects.retain(|id| self.open.contains_key(id));
            if suspects.len() > 1 {
                kept.push((suspects, error));
            } else if let Some(id) = suspects.pop_first() {
                self.open.remove(&id);
                passed.push(ServerJsonRpcMessage::error(error, Some(request_id(&id))));
            }
        }
        self.nameless = kept;
        passed
    }
}

/// Converts the answer to a request to rmcp's type.
fn to_rmcp_answer(
    id: RequestId,
    asked: RequestKind,
    reply: Reply,
    secrets: &Secrets,
) -> ServerJsonRpcMessage {
    let result = match reply {
        Reply::Result(result) => read_result(asked, result, secrets),
        Reply::Error(error) => Err(to_error_data(error)),
        Reply::Unreadable(problem) => Err(unreadable_answer(&problem.why)),
    };
    match result {
        Ok(result) => ServerJsonRpcMessage::response(result, id),
        Err(error) => ServerJsonRpcMessage::error(error, Some(id)),
    }
}

fn read_result(
    asked: RequestKind,
    mut result: Map<String, Value>,
    secrets: &Secrets,
) -> Result<ServerResult, ErrorData> {
    match asked {
        RequestKind::Raw => return Ok(ServerResult::CustomResult(CustomResult(result.into()))),
        RequestKind::Initialize => forgive_result(&mut result, secrets),
        RequestKind::Stream | RequestKind::Other => {}
    }
    let shown = quote(&Value::from(result.clone()).to_string(), SHOWN);
    number::read(result.into()).map_err(|_| not_a_result(&shown))
}

/// The error for a result that does not fit its request.
pub(super) fn not_a_result(shown: &str) -> ErrorData {
    unreadable_answer(&format!("it is not a result of this request: {shown}"))
}

/// Precedes the names of a result's members on their way through rmcp, so that rmcp knows none of
/// them and reads none.
const UNREAD: &str = "io.mcp-fleet/unread/";

/// Converts a result that looks like that of a tool, a prompt or a resource to a form that rmcp
/// does not read. Returns other results unchanged.
pub(super) fn hide_from_rmcp(result: Map<String, Value>) -> Map<String, Value> {
    let lists = ["content", "structuredContent", "isError", "messages", "contents"];
    match lists.iter().any(|key| result.contains_key(*key)) {
        true => {
            result.into_iter().map(|(name, member)| (format!("{UNREAD}{name}"), member)).collect()
        }
        false => result,
    }
}

/// Returns a result as the server wrote it, as far as rmcp has not read it.
pub(crate) fn raw_result(result: ServerResult) -> Map<String, Value> {
    let value = match result {
        ServerResult::CustomResult(CustomResult(value)) => value,
        other => serde_json::to_value(other).unwrap_or_default(),
    };
    let Value::Object(result) = value else { return Map::new() };
    if !result.keys().any(|name| name.starts_with(UNREAD)) {
        return result;
    }
    let own_name = |name: String| name.strip_prefix(UNREAD).map(str::to_owned).unwrap_or(name);
    result.into_iter().map(|(name, member)| (own_name(name), member)).collect()
}

/// Converts an error to rmcp's type. A code that does not fit into 32 bits has no meaning.
pub(super) fn to_error_data(error: RpcError) -> ErrorData {
    let code = i32::try_from(error.code).unwrap_or(ErrorCode::INTERNAL_ERROR.0);
    ErrorData::new(ErrorCode(code), error.message, error.data)
}

/// Converts an id to the type of `fleet_wire`.
pub(super) fn wire_id(id: &RequestId) -> Id {
    match id {
        NumberOrString::Number(number) => Id::Number(*number),
        NumberOrString::String(text) => Id::Text(text.to_string()),
    }
}

fn request_id(id: &Id) -> RequestId {
    match id {
        Id::Number(number) => NumberOrString::Number(*number),
        Id::Text(text) => NumberOrString::String(text.as_str().into()),
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{CallToolRequest, CallToolRequestParams, PingRequest};
    use serde_json::json;

    use super::*;

    fn inbound(calls: &[i64]) -> Inbound {
        let mut inbound = Inbound::default();
        for id in calls {
            let call = CallToolRequest::new(CallToolRequestParams::new("t"));
            let request = ClientRequest::CallToolRequest(call);
            inbound.note_sent(&ClientJsonRpcMessage::request(request, NumberOrString::Number(*id)));
        }
        inbound
    }

    /// Returns the ids of the answers that are passed on, and their errors.
    fn ends(messages: Vec<ServerJsonRpcMessage>) -> Vec<(i64, Option<String>)> {
        let number = |id: &RequestId| match id {
            NumberOrString::Number(number) => *number,
            NumberOrString::String(text) => panic!("{text}"),
        };
        let end = |message: &ServerJsonRpcMessage| match message {
            JsonRpcMessage::Response(response) => (number(&response.id), None),
            JsonRpcMessage::Error(error) => {
                (number(error.id.as_ref().unwrap()), Some(error.error.message.to_string()))
            }
            other => panic!("{other:?}"),
        };
        let answers = messages.iter().filter(|message| {
            matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_))
        });
        answers.map(end).collect()
    }

    #[test]
    fn every_answer_ends_its_call() {
        let check = |text: &str, problem: Option<&str>| {
            let mut inbound = inbound(&[7]);
            let mut passed = inbound.read(text.as_bytes()).unwrap();
            passed.extend(inbound.release());
            let found = ends(passed);
            let [(7, error)] = &found[..] else { panic!("{text}: {found:?}") };
            match (error, problem) {
                (None, None) => {}
                (Some(error), Some(problem)) if error.contains(problem) => {}
                _ => panic!("{text}: {error:?}"),
            }
        };
        check(r#"{"id":7,"result":{"content":[]},"error":null}"#, None);
        check(r#"{"id":"7","result":{"content":[{"type":"video"}]}}"#, None);
        check(r#"{"id":7,"result":{"v":NaN}}"#, None);
        check(r#"{"id":7,"error":{"code":-32000,"message":"boom"}}"#, Some("boom"));
        check(
            r#"{"id":7,"error":{"code":"E_FAIL","message":"boom"}}"#,
            Some("its error has no code"),
        );
        check(r#"{"id":7,"error":"boom"}"#, Some("boom"));
        check(r#"{"id":7,"result":"boom"}"#, Some("boom"));
        check(r#"{"id":7,"result":{"cut"#, Some("it is not JSON"));
        check(r#"{"id":null,"error":{"code":-32603,"message":"boom"}}"#, Some("boom"));
        check(r#"{"result":{}}"#, Some("which request"));
        check(r#"{"method":"notifications/x"} {"id":7,"result":{"content":[]}}"#, None);
        check(r#"INFO called {"jsonrpc":"2.0","id":7,"result":{"content":[]}}"#, None);
        check(r#""{\"id\":7,\"result\":{}}""#, None);
        check(r"{'jsonrpc': '2.0', 'id': 7, 'result': {}}", Some("it is not JSON"));
        check(r#"{"id":7,"result":{},"id":99}"#, Some("it has two ids"));
        assert!(inbound(&[7]).read(b"[INFO] ready> {}").is_none());
        assert!(inbound(&[7]).read(br#"{"level":"info"}"#).is_none());
        assert!(
            inbound(&[7])
                .read(br#"{"level":"error","error":"refused","msg":"trying again"}"#)
                .is_none()
        );
    }

    #[test]
    fn an_answer_without_an_id_ends_the_last_request_that_it_may_belong_to() {
        let mut inbound = inbound(&[1, 2]);
        let nameless = br#"{"id":null,"error":{"code":-32603,"message":"boom"}}"#;
        let passed = inbound.read(nameless).unwrap();
        assert!(
            matches!(&passed[..], [JsonRpcMessage::Error(error)] if error.id.is_none()),
            "{passed:?}"
        );
        // It can't belong to a later request.
        let ping = ClientRequest::PingRequest(PingRequest::default());
        inbound.note_sent(&ClientJsonRpcMessage::request(ping, NumberOrString::Number(3)));
        let found = ends(inbound.read(br#"{"id":1,"result":{}}"#).unwrap());
        assert_eq!(found, [(1, None), (2, Some("boom".to_owned()))]);
    }

    #[test]
    fn a_log_line_does_not_end_the_call_whose_answer_it_quotes() {
        let check = |line: &str| {
            let mut inbound = inbound(&[7]);
            let passed = inbound.read(line.as_bytes()).unwrap_or_default();
            assert!(passed.is_empty(), "{line}: {passed:?}");
            let passed = inbound.read(br#"{"jsonrpc":"2.0","id":7,"result":{}}"#).unwrap();
            assert_eq!(ends(passed), [(7, None)], "{line}");
            assert!(!inbound.holds_answers() && inbound.release().is_empty(), "{line}");
        };
        check(r#"DEBUG -> {"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
        check("Sending {'jsonrpc': '2.0', 'id': 7, 'result': {}}");
        check("{'jsonrpc': '2.0', 'id': 7, 'result': {}}");
        check(r#"{"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
        check(r#"{"level":"debug"} {"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
        check(r#"{"jsonrpc":"2.0","result":{"content":[…"#);
    }

    #[test]
    fn an_unreadable_answer_is_held_for_one_line() {
        let unreadable = br#"{"id":7,"result":{"cut"#.as_slice();
        for next in [b"INFO next".as_slice(), br#"{"method":"notifications/x"}"#, unreadable] {
            let mut inbound = inbound(&[7]);
            assert_eq!(ends(inbound.read(unreadable).unwrap()), []);
            assert!(inbound.holds_answers());
            let found = ends(inbound.read(next).unwrap());
            assert!(matches!(&found[..], [(7, Some(error))] if error.contains("cut")), "{found:?}");
            assert_eq!(ends(inbound.release()), [], "the call is over");
        }
    }

    /// Each reply in a text names its own request.
    #[test]
    fn the_servers_own_request_does_not_end_the_call_of_its_id() {
        let mut inbound = inbound(&[7]);
        let text = br#"{"id":7,"method":"ping"}{"id":99,"result":{}}"#;
        assert_eq!(ends(inbound.read(text).unwrap()), [(99, None)]);
        assert_eq!(ends(inbound.read(br#"{"id":7,"result":{}}"#).unwrap()), [(7, None)]);
    }

    /// If each reply were searched for in the whole text, this test would run for more than an
    /// hour.
    #[test]
    fn a_text_of_many_foreign_replies_is_read_once() {
        let replies = vec![r#"{"id":1,"result":{}}"#; 200_000].join(",");
        let passed = inbound(&[7]).read(format!("[{replies}]").as_bytes()).unwrap();
        assert_eq!(passed.len(), 200_000);
    }

    #[test]
    fn the_refusal_of_a_notification_ends_no_call() {
        let mut inbound = inbound(&[7]);
        let refusal =
            br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"Method not found"}}"#;
        let passed = inbound.read(refusal).unwrap();
        assert!(
            matches!(&passed[..], [JsonRpcMessage::Error(error)] if error.id.is_none()),
            "{passed:?}"
        );
        assert_eq!(ends(inbound.read(br#"{"id":7,"result":{}}"#).unwrap()), [(7, None)]);
    }

    #[test]
    fn a_line_that_is_too_long_ends_its_call() {
        let check = |head: &str, tail: &str| {
            let found =
                ends(inbound(&[7]).end_too_long(head.as_bytes(), tail.as_bytes(), 100).unwrap());
            let [(7, Some(error))] = &found[..] else { panic!("{head}: {found:?}") };
            assert!(error.contains("a line of more than 100 bytes"), "{error}");
        };
        check(r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"data":"AAAA"#, "AAAA");
        check(r#"{"result":{"content":[{"data":"AAAA"#, r#"AAAA"}]},"jsonrpc":"2.0","id":7}"#);
        check(r#"{"result":{"content":[{"data":"AAAA"#, "AAAA");
        assert!(inbound(&[7]).end_too_long(b"{xxxx", b"xxxx", 100).is_none());
    }

    #[test]
    fn a_server_need_not_name_its_version() {
        let result = json!({"protocolVersion": "2025-06-18", "capabilities": null, "serverInfo": {"name": "s"}});
        let Value::Object(map) = result else { panic!("no object") };
        let found = read_result(RequestKind::Initialize, map, &Secrets::default()).unwrap();
        assert!(matches!(found, ServerResult::InitializeResult(_)), "{found:?}");
    }
}
