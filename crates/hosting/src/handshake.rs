//! The handshake with a child process, as a state machine that does no IO.
//!
//! A child may speak a revision with or without sessions, and may take long to start: a package
//! runner may download for half a minute before the server reads its first line. So no request has
//! a timeout of its own. `server/discover` is sent at once. If it is refused, or is not answered
//! for a third of the limit, `initialize` is sent to the same child, too; an answer to
//! `server/discover` still counts. A child that refuses the revision of `initialize` with a list of
//! others is asked once more, for the newest of them that is known here. The only timeout is that of the whole start, which the caller
//! enforces.
//!
//! The caller
//! - sends what [`Handshake::next_message`] returns until it returns `None`,
//! - checks [`Handshake::outcome`], and is finished unless that is [`Outcome::Pending`],
//! - passes in what it reads ([`Handshake::read`]), or the time once [`Handshake::wake_at`] has
//!   come ([`Handshake::pass_time`]), and starts over.
//!
//! If both requests were sent, a server that has accepted `initialize` is in a session, whatever it
//! answers to `server/discover`. So an answer to `server/discover` waits, for at most a third of
//! the limit, for the answer to `initialize`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fleet_job::number;
use rmcp::{
    RoleClient,
    model::{
        ClientConfig, ClientNotification, ClientRequest, ClientResult, CustomResult,
        DiscoverRequest, DiscoverRequestParams, ErrorCode, ErrorData, InitializeRequest,
        InitializeResult, InitializedNotification, JsonRpcError, JsonRpcMessage, JsonRpcRequest,
        JsonRpcResponse, NumberOrString, ProtocolVersion, RequestId, RequestMetaObject,
        ServerPeerInfo, ServerRequest, ServerResult,
    },
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
};
use serde_json::json;

use crate::remote::opening::listed_revision;

pub(super) mod drive;

/// The ids of our requests. rmcp later counts up from 0 on the same connection, and must not take a
/// late answer for one of its own. The ids fit into 32 bits, because some servers keep no more.
const DISCOVER_ID: i64 = 2_000_000_001;
const INITIALIZE_ID: i64 = 2_000_000_002;
/// The id of `initialize` in a revision that the server has listed.
const REVISED_ID: i64 = 2_000_000_003;

/// The longest part of an unreadable answer that is quoted, in bytes.
const SHOWN: usize = 200;

/// The handshake waits for this fraction of its limit for one answer.
const PATIENCE: u32 = 3;

/// Which requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// `server/discover`, and `initialize` if necessary.
    DiscoverFirst,
    /// `initialize` alone, for a server that exits when it receives an unknown method.
    InitializeOnly,
}

/// The outcome of the handshake.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// There is no outcome yet.
    Pending,
    /// Client and server have agreed on a revision.
    Agreed(Box<ServerPeerInfo>),
    /// The server has refused every request, for these reasons.
    Refused(String),
}

/// The state of one of our requests.
#[derive(Debug, Clone, PartialEq)]
enum Question {
    Unasked,
    Open,
    Refused(String),
    Answered(Box<ServerPeerInfo>),
}

/// A handshake in progress.
#[derive(Debug)]
pub(super) struct Handshake {
    client: ClientConfig,
    patience: Duration,
    /// When to stop waiting for the present answer.
    patient_until: Instant,
    discover: Question,
    initialize: Question,
    /// The id of the last `initialize`, and its revision.
    initialize_id: i64,
    revision: ProtocolVersion,
    outbox: VecDeque<TxJsonRpcMessage<RoleClient>>,
}

impl Handshake {
    /// Begins a handshake that may take as long as `limit`.
    pub(super) fn new(
        client: ClientConfig,
        opening: Opening,
        limit: Duration,
        now: Instant,
    ) -> Self {
        let patience = limit / PATIENCE;
        let mut handshake = Self {
            client,
            patience,
            patient_until: now + patience,
            discover: Question::Unasked,
            initialize: Question::Unasked,
            initialize_id: INITIALIZE_ID,
            revision: ProtocolVersion::LATEST_WITH_INITIALIZE,
            outbox: VecDeque::new(),
        };

        match opening {
            Opening::DiscoverFirst => handshake.ask_discover(),
            Opening::InitializeOnly => handshake.ask_initialize(),
        }
        handshake
    }

    /// Returns the next message to send.
    #[must_use]
    pub(super) fn next_message(&mut self) -> Option<TxJsonRpcMessage<RoleClient>> {
        self.outbox.pop_front()
    }

    /// Returns when to call [`Handshake::pass_time`] if nothing is read before.
    #[must_use]
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let waits = matches!(
            (&self.discover, &self.initialize),
            (Question::Open, Question::Unasked) | (Question::Answered(_), Question::Open)
        );
        waits.then_some(self.patient_until)
    }

    /// Returns whether the server has answered anything, even if with an error.
    #[must_use]
    pub(super) fn was_answered(&self) -> bool {
        let silent = |question| matches!(question, &Question::Unasked | &Question::Open);
        let is_silent = silent(&self.discover) && silent(&self.initialize);
        !is_silent || self.is_revised()
    }

    /// Returns what is waited for, in words for people.
    #[must_use]
    pub(super) fn awaited(&self) -> &'static str {
        match (&self.discover, &self.initialize) {
            (Question::Open, Question::Open) => "an answer to `server/discover` or `initialize`",
            (Question::Open, _) => "an answer to `server/discover`",
            _ => "an answer to `initialize`",
        }
    }

    /// Returns the outcome.
    #[must_use]
    pub(super) fn outcome(&self) -> Outcome {
        match (&self.discover, &self.initialize) {
            (_, Question::Answered(info))
            | (Question::Answered(info), Question::Unasked | Question::Refused(_)) => {
                Outcome::Agreed(info.clone())
            }
            (Question::Refused(discover), Question::Refused(initialize)) => {
                Outcome::Refused(format!(
                    "it refused `server/discover` ({discover}) and `initialize` ({initialize})"
                ))
            }
            (_, Question::Refused(initialize)) if self.discover == Question::Unasked => {
                Outcome::Refused(format!("it refused `initialize` ({initialize})"))
            }
            _ => Outcome::Pending,
        }
    }

    /// Processes a message of the server.
    pub(super) fn read(&mut self, message: RxJsonRpcMessage<RoleClient>, now: Instant) {
        match message {
            JsonRpcMessage::Response(JsonRpcResponse { id, result, .. }) => match id_number(&id) {
                Some(DISCOVER_ID) => self.end_discover(read_discover_result(result), now),
                Some(id) if id == self.initialize_id => {
                    self.end_initialize(read_initialize_result(result));
                }
                _ => tracing::debug!(%id, "a hosted server answered an unknown request"),
            },
            JsonRpcMessage::Error(JsonRpcError { id, error, .. }) => {
                match id.as_ref().map(id_number) {
                    Some(Some(DISCOVER_ID)) => self.end_discover(Err(reason_of(&error)), now),
                    Some(Some(id)) if id == self.initialize_id => self.refuse_initialize(&error),
                    // A server that can't read a request does not know its id. Requests are read in
                    // order.
                    None if self.discover == Question::Open => {
                        self.end_discover(Err(reason_of(&error)), now);
                    }
                    None => self.refuse_initialize(&error),
                    Some(_) => {
                        tracing::debug!(?id, "a hosted server refused an unknown request")
                    }
                }
            }
            // The server may wait for our answer before it answers.
            JsonRpcMessage::Request(request) => self.outbox.push_back(answer_to(request)),
            // No notification is allowed before the handshake, but one does no harm.
            JsonRpcMessage::Notification(_) => {}
        }
    }

    /// Processes the passing of time.
    pub(super) fn pass_time(&mut self, now: Instant) {
        if self.wake_at().is_none_or(|at| now < at) {
            return;
        }

        match self.discover {
            // There is no session, and a server that answers `server/discover` needs none.
            Question::Answered(_) => {
                self.initialize = Question::Refused("no answer".to_owned());
            }
            _ => self.ask_initialize(),
        }
    }

    fn ask_discover(&mut self) {
        let ClientConfig { client_info, capabilities, .. } = self.client.clone();
        let mut request = DiscoverRequest::new(DiscoverRequestParams {});
        let meta = RequestMetaObject::with_client_context(
            ProtocolVersion::LATEST,
            client_info,
            capabilities,
        );
        request.extensions.insert(meta);

        let request = ClientRequest::DiscoverRequest(request);
        self.outbox
            .push_back(JsonRpcMessage::request(request, NumberOrString::Number(DISCOVER_ID)));
        self.discover = Question::Open;
    }

    fn ask_initialize(&mut self) {
        let mut params = self.client.clone();
        params.protocol_version = self.revision.clone();

        let request = ClientRequest::InitializeRequest(InitializeRequest::new(params));
        let id = NumberOrString::Number(self.initialize_id);
        self.outbox.push_back(JsonRpcMessage::request(request, id));
        self.initialize = Question::Open;
    }

    /// Returns whether `initialize` was sent again in another revision.
    fn is_revised(&self) -> bool {
        self.initialize_id == REVISED_ID
    }

    fn end_discover(&mut self, answer: Result<ServerPeerInfo, String>, now: Instant) {
        if self.discover != Question::Open {
            return;
        }

        self.discover = to_question(answer);
        self.patient_until = now + self.patience;
        if matches!(self.discover, Question::Refused(_)) && self.initialize == Question::Unasked {
            self.ask_initialize();
        }
    }

    /// Processes a refusal of `initialize`. If the server lists revisions, `initialize` is sent once
    /// more, in one of them.
    fn refuse_initialize(&mut self, error: &ErrorData) {
        let is_first = self.initialize == Question::Open && !self.is_revised();
        match listed_revision(error, &self.revision).filter(|_| is_first) {
            Some(listed) => {
                self.revision = listed;
                self.initialize_id = REVISED_ID;
                self.ask_initialize();
            }
            None => self.end_initialize(Err(reason_of(error))),
        }
    }

    fn end_initialize(&mut self, answer: Result<ServerPeerInfo, String>) {
        if self.initialize != Question::Open {
            return;
        }

        self.initialize = to_question(answer);
        if matches!(self.initialize, Question::Answered(_)) {
            let notification = InitializedNotification::default();
            let notification = ClientNotification::InitializedNotification(notification);
            self.outbox.push_back(JsonRpcMessage::notification(notification));
        }
    }
}

/// Answers a request of the server as it would be answered after the handshake.
fn answer_to(
    JsonRpcRequest { id, request, .. }: JsonRpcRequest<ServerRequest>,
) -> TxJsonRpcMessage<RoleClient> {
    let result = match request {
        ServerRequest::PingRequest(_) => ClientResult::empty(()),
        ServerRequest::ListRootsRequest(_) => CustomResult(json!({ "roots": [] })).into(),
        other => {
            let why = "this request is not supported during the handshake";
            tracing::debug!(request = ?other, "a hosted server sent a request during the handshake");
            let error = ErrorData::new(ErrorCode::METHOD_NOT_FOUND, why, None);
            return JsonRpcMessage::error(error, Some(id));
        }
    };
    JsonRpcMessage::response(result, id)
}

fn reason_of(error: &ErrorData) -> String {
    format!("error {}: {}", error.code.0, error.message)
}

fn to_question(answer: Result<ServerPeerInfo, String>) -> Question {
    match answer {
        Ok(info) => Question::Answered(Box::new(info)),
        Err(reason) => Question::Refused(reason),
    }
}

/// Returns an id as a number, since some servers send it back as text.
fn id_number(id: &RequestId) -> Option<i64> {
    match id {
        NumberOrString::Number(number) => Some(*number),
        NumberOrString::String(text) => text.parse().ok(),
    }
}

fn read_discover_result(result: ServerResult) -> Result<ServerPeerInfo, String> {
    let ServerResult::DiscoverResult(result) = result else {
        return Err("its answer is not a result of `server/discover`".to_owned());
    };
    if !result.supported_versions.contains(&ProtocolVersion::LATEST) {
        return Err(format!("it does not support revision {}", ProtocolVersion::LATEST));
    }
    Ok(ServerPeerInfo::from_discover_result(ProtocolVersion::LATEST, result))
}

/// Reads what a server says about itself in its answer to `initialize`.
pub(super) fn read_initialize_result(result: ServerResult) -> Result<ServerPeerInfo, String> {
    let result = match result {
        ServerResult::InitializeResult(result) => result,
        // rmcp may have taken the result for another one, so read it again.
        other => {
            let written = serde_json::to_value(other).unwrap_or_default();
            let shown = fleet_wire::quote(&written.to_string(), SHOWN);
            let missing = ["protocolVersion", "capabilities", "serverInfo"]
                .into_iter()
                .find(|member| written.get(*member).is_none())
                .map_or(String::new(), |member| format!("it has no `{member}`: "));
            number::read::<InitializeResult>(written).map_err(|_| {
                format!("its answer to `initialize` can't be read: {missing}{shown}")
            })?
        }
    };
    Ok(result.into())
}

#[cfg(test)]
#[path = "handshake/tests.rs"]
mod tests;
