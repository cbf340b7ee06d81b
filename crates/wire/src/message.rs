//! Reading JSON-RPC messages as leniently as their meaning allows.
//!
//! None of the following loses an answer: a byte order mark, UTF-16, an array or a string around
//! messages, several messages in a row, text around an answer, `"error": null` beside a result, an
//! id that is returned as text, and whatever [`mend`](crate::mend) repairs. An answer that still
//! cannot be read is distinguished from a message that is not an answer: the caller must learn of
//! it at once and must not repeat the call, since the call has been carried out.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::{
    mend::mend,
    outline::{find_id_at_end, outline},
    quote,
    surround::{find_answers, read_row, to_utf8},
};

/// How much of an unreadable message is quoted, in characters.
const SHOWN: usize = 200;
/// The most strings within strings that are searched for messages.
const MAX_STRINGS: usize = 3;

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A string.
    Text(String),
}

impl Id {
    pub(crate) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => whole_number(number).map(Self::Number),
            Value::String(text) => Some(Self::Text(text.clone())),
            _ => None,
        }
    }

    /// Returns whether this is `id`, or `id` written as text, as some servers return every id.
    #[must_use]
    pub fn is(&self, id: &Self) -> bool {
        match id {
            Self::Number(number) => self.is_number(*number),
            Self::Text(_) => self == id,
        }
    }

    /// Returns whether this is the number `id`, possibly written as text.
    #[must_use]
    pub fn is_number(&self, id: i64) -> bool {
        match self {
            Self::Number(number) => *number == id,
            Self::Text(text) => text.parse() == Ok(id),
        }
    }
}

/// A JSON-RPC error.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    /// The code of the error.
    pub code: i64,
    /// The message of the error, for people.
    pub message: String,
    /// Additional data.
    pub data: Option<Value>,
}

/// An answer that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong with the answer, and how it starts.
    pub why: String,
    /// Whether the answer breaks off, so that it was cut by its writer or in transit.
    pub cut: bool,
}

/// The content of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A result.
    Result(Map<String, Value>),
    /// An error.
    Error(RpcError),
    /// Something that cannot be read.
    Unreadable(Unreadable),
}

/// A message from the other side.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The answer to a request, with the request's id if the message names it.
    Reply(Option<Id>, Reply),
    /// An answer inside something else: a line of a log, a JSON string, or a list of other values.
    /// It is the answer of a server that prints something before it, or the quotation of a text
    /// that a third party wrote. A caller that reads on should wait for an answer by itself.
    Quoted(Id, Reply),
    /// A request: its method and the whole message.
    Request(String, Value),
    /// A notification: its method and the whole message.
    Notification(String, Value),
    /// Something that is not JSON-RPC, with the reason.
    Noise(&'static str),
}

/// The meaning of a message for the one request that its connection serves.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The result of the request.
    Result(Map<String, Value>),
    /// An error. A server that could not read the request does not know the request's id.
    Error {
        /// The error itself.
        error: RpcError,
        /// Whether the error names the request's id.
        addressed: bool,
    },
    /// The answer to this request, which was carried out, but in a form that cannot be read. Tells
    /// what is wrong.
    Unreadable(String),
    /// Something that may be the answer but does not name the request. Tells what is wrong.
    Malformed(String),
}

impl Message {
    /// Interprets this message as the answer to request `id`.
    ///
    /// # Errors
    ///
    /// Returns the message itself if it is not the answer.
    pub fn answer_to(self, id: &Id) -> Result<Answer, Self> {
        let (found, reply) = match self {
            Self::Quoted(found, reply) if !found.is(id) => return Err(Self::Quoted(found, reply)),
            Self::Quoted(found, reply) => (Some(found), reply),
            Self::Reply(found, reply) => (found, reply),
            Self::Noise(why) => return Ok(Answer::Malformed(why.to_owned())),
            other => return Err(other),
        };

        let addressed = found.as_ref().is_some_and(|found| found.is(id));
        if !addressed && found.is_some() {
            return Err(Self::Reply(found, reply));
        }

        Ok(match reply {
            Reply::Result(result) if addressed => Answer::Result(result),
            Reply::Result(_) => {
                Answer::Malformed("it does not say which request it answers".to_owned())
            }
            Reply::Error(error) => Answer::Error { error, addressed },
            Reply::Unreadable(Unreadable { why, .. }) if addressed => Answer::Unreadable(why),
            Reply::Unreadable(Unreadable { why, .. }) => Answer::Malformed(why),
        })
    }

    /// Returns an answer that names its request as a quoted one, and any other message unchanged.
    pub(crate) fn into_quoted(self) -> Self {
        match self {
            Self::Reply(Some(id), reply) => Self::Quoted(id, reply),
            other => other,
        }
    }
}

/// Reads the messages in a text: a single one, those of an array, or several in a row. If the text
/// is not JSON but contains answers, as a line of a log may, returns those answers. A text that has
/// an answer by itself has no quoted one to the same request.
#[must_use]
pub fn read(bytes: &[u8]) -> Vec<Message> {
    let mut messages = read_all(bytes);
    if messages.is_empty() {
        messages.push(Message::Noise("it is not JSON"));
    }
    remove_outranked(&mut messages);
    messages
}

fn read_all(bytes: &[u8]) -> Vec<Message> {
    let bytes = &*to_utf8(bytes);
    let problem = match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => return read_value(value),
        Err(problem) => problem,
    };

    let mended = mend(bytes);
    let start = mended.trim_start().chars().next();
    if !matches!(start, Some('{' | '[')) {
        return find_answers(&mended, 0);
    }

    if let Ok(value) = serde_json::from_str(&mended) {
        return read_value(value);
    }

    let row = read_row(&mended, &problem);
    match start {
        _ if !row.is_empty() => row,
        Some('{') => read_broken(&mended, &problem),
        // The line of a log may begin with `[INFO]`.
        _ => find_answers(&mended, 0),
    }
}

/// Removes the quoted answers to requests that have an answer by itself, too.
fn remove_outranked(messages: &mut Vec<Message>) {
    if !messages.iter().any(|message| matches!(message, Message::Quoted(..))) {
        return;
    }
    // Some servers return every id as text.
    let as_text = |id: &Id| match id {
        Id::Number(number) => number.to_string(),
        Id::Text(text) => text.clone(),
    };
    let answered: HashSet<String> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Reply(Some(id), _) => Some(as_text(id)),
            _ => None,
        })
        .collect();
    messages.retain(|message| match message {
        Message::Quoted(id, _) => !answered.contains(&as_text(id)),
        _ => true,
    });
}

/// Reads a text that is not JSON but would otherwise be an answer.
pub(crate) fn read_broken(text: &str, problem: &serde_json::Error) -> Vec<Message> {
    let outline = outline(text);
    let is_answer = outline.has_answer && !outline.has_method && text.trim_start().starts_with('{');
    if !is_answer {
        return Vec::new();
    }

    let why = format!("it is not JSON: {problem}: {}", quote(text, SHOWN));
    let id = outline.id().cloned();
    vec![Message::Reply(id, Reply::Unreadable(Unreadable { why, cut: !outline.whole }))]
}

/// Returns whether a text breaks off: it is empty, or it is a message without an end.
#[must_use]
pub fn is_cut(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);

    match text.chars().next() {
        None => true,
        Some('{' | '[') => !outline(text).whole,
        Some(_) => false,
    }
}

/// Finds the answer to request `id` in a text. An answer that names the request takes precedence
/// over one that merely may be meant.
#[must_use]
pub fn answer_in(bytes: &[u8], id: &Id) -> Option<Answer> {
    let mut malformed = None;
    for message in read(bytes) {
        match message.answer_to(id) {
            Ok(answer @ Answer::Malformed(_)) => _ = malformed.get_or_insert(answer),
            Ok(answer) => return Some(answer),
            Err(_) => {}
        }
    }
    malformed
}

/// Returns the ids at the top level of an answer. There are several if the member is repeated.
#[must_use]
pub fn ids_in(bytes: &[u8]) -> Vec<Id> {
    outline(&String::from_utf8_lossy(&to_utf8(bytes))).ids
}

/// Finds the id near the start or end of an answer that is too long to keep. Returns `None` if the
/// message is not an answer.
#[must_use]
pub fn id_of_long(head: &[u8], tail: &[u8]) -> Option<Id> {
    let outline = outline(&String::from_utf8_lossy(head));
    if outline.has_method {
        return None;
    }

    outline.id().cloned().or_else(|| find_id_at_end(&String::from_utf8_lossy(tail)))
}

/// Reads the messages in a value: the value itself, the elements of an array, or the JSON in a
/// string. Answers in a string, or in an array that has other elements than messages, are quoted.
pub(crate) fn read_value(value: Value) -> Vec<Message> {
    let mut found = Vec::new();
    let has_string = add_messages(value, 0, &mut found);

    let has_other = found.len() > 1 && found.iter().any(|found| matches!(found, Message::Noise(_)));
    match has_string || has_other {
        true => found.into_iter().map(Message::into_quoted).collect(),
        false => found,
    }
}

/// Adds the messages in a value, which is inside this many strings. Elements that are not messages
/// count once, however many follow each other. Returns whether one of the messages is in a string.
fn add_messages(value: Value, strings: usize, found: &mut Vec<Message>) -> bool {
    match value {
        Value::Array(values) if !values.is_empty() => {
            let mut has_string = false;
            for value in values {
                has_string |= add_messages(value, strings, found);
            }
            has_string
        }
        Value::String(text)
            if strings < MAX_STRINGS && text.trim_start().starts_with(['{', '[']) =>
        {
            match serde_json::from_str(&text) {
                Ok(value) => _ = add_messages(value, strings + 1, found),
                Err(_) => add_message(read_one(text.into()), found),
            }
            true
        }
        value => {
            add_message(read_one(value), found);
            false
        }
    }
}

fn add_message(message: Message, found: &mut Vec<Message>) {
    let is_noise = |message: &Message| matches!(message, Message::Noise(_));
    if !is_noise(&message) || !found.last().is_some_and(is_noise) {
        found.push(message);
    }
}

fn read_one(value: Value) -> Message {
    let Value::Object(mut message) = value else {
        return Message::Noise("it is not a JSON object");
    };
    if let Some(method) = message.get("method").and_then(Value::as_str).map(str::to_owned) {
        return match message.contains_key("id") {
            true => Message::Request(method, message.into()),
            false => Message::Notification(method, message.into()),
        };
    }

    let id = message.get("id").and_then(Id::of);
    // Programs write logs in JSON with members such as `error`, and others that no answer has.
    let is_of_answer = |key: &String| matches!(key.as_str(), "jsonrpc" | "id" | "result" | "error");
    if id.is_none() && !message.contains_key("jsonrpc") && !message.keys().all(is_of_answer) {
        return Message::Noise("it is neither a request nor an answer");
    }

    if let Some(error) = message.get("error").filter(|error| !error.is_null()) {
        return Message::Reply(id, read_error(error));
    }

    match message.remove("result") {
        Some(Value::Object(result)) => Message::Reply(id, Reply::Result(result)),
        Some(result) => Message::Reply(id, unreadable("its result is not an object", &result)),
        None if message.contains_key("error") => {
            Message::Reply(id, unreadable("it is neither a result nor an error", &message.into()))
        }
        None if id.is_some() && message.get("jsonrpc").is_some_and(|version| version == "2.0") => {
            Message::Reply(id, unreadable("it is neither a result nor an error", &message.into()))
        }
        None => Message::Noise("it is neither a request nor an answer"),
    }
}

fn read_error(error: &Value) -> Reply {
    let code = match error.get("code") {
        Some(Value::Number(code)) => whole_number(code),
        _ => None,
    };
    let Some(code) = code else { return unreadable("its error has no code", error) };
    let Some(message) = error.get("message").and_then(Value::as_str) else {
        return unreadable("its error has no message", error);
    };

    let data = error.get("data").filter(|data| !data.is_null()).cloned();
    Reply::Error(RpcError { code, message: message.to_owned(), data })
}

fn unreadable(why: &str, what: &Value) -> Reply {
    let why = format!("{why}: {}", quote(&what.to_string(), SHOWN));
    Reply::Unreadable(Unreadable { why, cut: false })
}

/// Returns a number without a fraction, however it is written.
fn whole_number(number: &serde_json::Number) -> Option<i64> {
    let rounded =
        |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    number.as_i64().or_else(|| number.as_f64().and_then(rounded))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
