//! Reads what a child sends, or a remote on a stream for all answers, before rmcp does.
//!
//! rmcp drops messages that it can't read, and then the call waits until its timeout. So messages
//! are read here first, with the fleet's own reader ([`fleet_wire`]), and an unreadable answer
//! becomes an error of its request. The results of calls and lists are passed on unread
//! (`raw_result`), so that one element that is not understood does not make the rest unreadable.

use std::collections::{BTreeMap, BTreeSet};

use fleet_job::number;
use fleet_wire::{
    Id, Message, Reply, RpcError, Unreadable, quote,
    sse::Event,
    stream::{Odd, odd},
};
use rmcp::{
    RoleClient,
    model::{
        ClientJsonRpcMessage, ClientNotification, ClientRequest, CustomResult, ErrorCode,
        ErrorData, JsonRpcMessage, NumberOrString, RequestId, ServerJsonRpcMessage, ServerResult,
    },
    service::RxJsonRpcMessage,
};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    forgiven::forgive_result,
    held::{HeldAnswers, MAX_NAMELESS, UnreadableAnswers},
    secrets::Secrets,
    unreadable::unreadable_answer,
};

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
    /// Answers that a better one may follow.
    held: HeldAnswers,
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

    /// Reads the messages in a line that came at `now`. Returns `None` if the line is not JSON-RPC.
    ///
    /// An answer inside other text is held for a while, and an unreadable one until the next line
    /// was read, so that a better answer to the same request takes precedence. At
    /// [`Self::release_at`] the caller must call [`Self::release_due`].
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Vec<RxJsonRpcMessage<RoleClient>>> {
        let before = self.held.take_unreadable();
        let messages = fleet_wire::read(bytes);
        let is_alone = messages.len() == 1;
        let mut passed = Vec::new();
        let (mut is_noise, mut is_held) = (false, false);
        // A line has room for a million answers without an id.
        let mut nameless = 0;
        for message in messages {
            match message {
                Message::Reply(Some(id), reply) => {
                    let (id, reply) = match is_alone {
                        true => self.match_open(id, reply, bytes),
                        false => (id, reply),
                    };
                    match (self.match_id(id), reply) {
                        (id, Reply::Unreadable(problem)) if self.open.contains_key(&id) => {
                            self.held.hold_unreadable(id, problem, now);
                            is_held = true;
                        }
                        (id, reply) => passed.extend(self.pass_answer(id, reply)),
                    }
                }
                Message::Reply(None, Reply::Unreadable(problem)) => {
                    let open = &self.open;
                    self.held.hold_nameless(problem, || suspects(open), now);
                    is_held = true;
                }
                Message::Reply(None, reply) => {
                    nameless += 1;
                    if nameless <= MAX_NAMELESS {
                        passed.extend(self.take_nameless(reply));
                    }
                }
                Message::Quoted(id, reply) => {
                    let id = self.match_id(id);
                    match self.open.contains_key(&id) {
                        true => {
                            self.held.hold_quoted(id, reply, now);
                            is_held = true;
                        }
                        false => is_noise = true,
                    }
                }
                Message::Request(_, message) | Message::Notification(_, message) => {
                    passed.extend(number::read::<RxJsonRpcMessage<RoleClient>>(message).ok());
                }
                Message::Noise(_) => is_noise = true,
            }
        }
        let is_garbage = is_noise && passed.is_empty() && !is_held;
        passed.extend(before.into_iter().flat_map(|before| self.end_unreadable(before)));
        if is_garbage && passed.is_empty() { None } else { Some(passed) }
    }

    /// Reads an event of a stream for all answers, which came at `now`. An event is complete, so
    /// none of its answers is held.
    ///
    /// An event of another type than `message` counts only if it answers a request. An event that
    /// was clearly meant as an answer but can't be read as one ends the request that it may belong
    /// to.
    #[must_use]
    pub(super) fn read_event(
        &mut self,
        event: &Event,
        now: Instant,
    ) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let is_read = event.is_message() || self.answers_open_request(&event.data);
        let messages = if is_read { self.read(&event.data, now) } else { None };
        match messages {
            Some(mut passed) => {
                passed.extend(self.release_all());
                passed
            }
            None => match odd(event) {
                Some(Odd { why, is_end: true }) => self.end_nameless(why),
                Some(Odd { is_end: false, .. }) | None => Vec::new(),
            },
        }
    }

    fn answers_open_request(&self, text: &[u8]) -> bool {
        fleet_wire::read(text).into_iter().any(|message| match message {
            Message::Reply(Some(id), _) => self.open.contains_key(&self.match_id(id)),
            _ => false,
        })
    }

    /// Ends the request that an unreadable answer without an id may belong to; `why` quotes the
    /// answer.
    #[must_use]
    pub(super) fn end_nameless(&mut self, why: String) -> Vec<RxJsonRpcMessage<RoleClient>> {
        self.take_nameless(Reply::Unreadable(Unreadable { why, cut: false }))
    }

    /// Forgets a request that could not be sent.
    #[must_use]
    pub(super) fn forget(&mut self, id: &RequestId) -> Vec<RxJsonRpcMessage<RoleClient>> {
        self.open.remove(&wire_id(id));
        self.attribute_nameless()
    }

    /// Returns when answers that are held must be passed on.
    pub(super) fn release_at(&self) -> Option<Instant> {
        self.held.release_at()
    }

    /// Passes on the answers that have been held for long enough, since no better ones replaced
    /// them.
    #[must_use]
    pub(super) fn release_due(&mut self, now: Instant) -> Vec<RxJsonRpcMessage<RoleClient>> {
        self.release(Some(now))
    }

    /// Passes on all held answers, since the output has ended.
    #[must_use]
    pub(super) fn release_all(&mut self) -> Vec<RxJsonRpcMessage<RoleClient>> {
        self.release(None)
    }

    fn release(&mut self, now: Option<Instant>) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let unreadable = self.held.take_due_unreadable(now);
        let mut passed: Vec<_> =
            unreadable.into_iter().flat_map(|due| self.end_unreadable(due)).collect();
        for (id, reply) in self.held.take_due_quoted(now) {
            if self.open.contains_key(&id) {
                passed.extend(self.pass_answer(id, reply));
            }
        }
        passed
    }

    /// Ends the request that an overlong line answers. Returns `None` if the line is not an answer.
    /// If an answer is inside other text, it is held like that in a shorter line.
    pub(super) fn end_too_long(
        &mut self,
        head: &[u8],
        tail: &[u8],
        limit: usize,
        now: Instant,
    ) -> Option<Vec<RxJsonRpcMessage<RoleClient>>> {
        // The cut may be within a secret, and the sign of the cut helps to find it.
        let head_text = format!("{}…", String::from_utf8_lossy(head));
        let shown = quote(&head_text, SHOWN);
        let why = format!("it is a line of more than {limit} bytes: {shown}");
        let problem = Unreadable { why, cut: false };

        if let Some(id) = fleet_wire::id_of_long(head, tail) {
            let id = self.match_id(id);
            let is_quoted = !shown.starts_with('{');
            if is_quoted && self.open.contains_key(&id) {
                self.held.hold_quoted(id, Reply::Unreadable(problem), now);
                return Some(Vec::new());
            }
            return Some(self.pass_answer(id, Reply::Unreadable(problem)));
        }
        let is_answer =
            fleet_wire::read(head).iter().any(|message| matches!(message, Message::Reply(..)));
        is_answer.then(|| self.take_nameless(Reply::Unreadable(problem)))
    }

    /// Ends the requests of unreadable answers, as far as they are still open.
    fn end_unreadable(&mut self, answers: UnreadableAnswers) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let UnreadableAnswers { named, nameless, mut suspects, .. } = answers;
        let mut passed = Vec::new();
        for (id, problem) in named {
            if self.open.contains_key(&id) {
                passed.extend(self.pass_answer(id, Reply::Unreadable(problem)));
            }
        }
        for problem in nameless {
            suspects.retain(|id| self.open.contains_key(id));
            if suspects.is_empty() {
                break;
            }
            passed.extend(self.blame(suspects.clone(), unreadable_answer(&problem.why)));
        }
        passed
    }

    fn pass_answer(&mut self, id: Id, reply: Reply) -> Vec<RxJsonRpcMessage<RoleClient>> {
        let id = self.match_id(id);
        let asked = self.open.remove(&id);
        self.held.drop_quoted(&id);
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
        self.blame(suspects(&self.open), error)
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

/// Returns the requests that an answer without an id may belong to.
fn suspects(open: &BTreeMap<Id, RequestKind>) -> BTreeSet<Id> {
    let open = open.iter().filter(|(_, asked)| **asked != RequestKind::Stream);
    open.map(|(id, _)| id.clone()).collect()
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
mod tests;
