//! Messages of JSON-RPC, read as leniently as their meaning allows.
//!
//! A byte order mark, UTF-16, an array or a string around messages, several messages in a row, text
//! around an answer, `"error": null` beside a result, an id that comes back as text, and what
//! [`mend`](crate::mend) replaces are no reason to lose an answer. An answer that can't be read even
//! so is told apart from what is no answer at all: whoever made the call must hear of it at once,
//! and must not make the call again, since it has been carried out.

use serde_json::{Map, Value};

use crate::{
    mend::mend,
    outline::{id_at_end, outline},
    quote,
    surround::{answers_within, as_utf8, values_in_a_row},
};

/// How much of a message that can't be read is quoted.
const SHOWN: usize = 200;

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl Id {
    pub(crate) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => whole(number).map(Self::Number),
            Value::String(text) => Some(Self::Text(text.clone())),
            _ => None,
        }
    }

    /// Whether this is `id`, perhaps as a server writes it that makes a text of every id.
    #[must_use]
    pub fn is(&self, id: &Self) -> bool {
        match id {
            Self::Number(number) => self.is_number(*number),
            Self::Text(_) => self == id,
        }
    }

    /// Whether this is the number `id`, perhaps as text.
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
    /// What kind of error it is.
    pub code: i64,
    /// What went wrong, for people.
    pub message: String,
    /// More about it.
    pub data: Option<Value>,
}

/// An answer that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong with it, with its beginning.
    pub why: String,
    /// It breaks off, so it was cut, by its writer or on its way.
    pub cut: bool,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A result.
    Result(Map<String, Value>),
    /// An error.
    Error(RpcError),
    /// Something that can't be read.
    Unreadable(Unreadable),
}

/// One message of the other side.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The answer to a request; without an id if the message names none.
    Reply(Option<Id>, Reply),
    /// A request, with its method and the whole message.
    Request(String, Value),
    /// A notification, with its method and the whole message.
    Notification(String, Value),
    /// Not JSON-RPC: what is wrong with it.
    Noise(&'static str),
}

/// What a message says to the one request that its connection was opened for.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A result.
    Result(Map<String, Value>),
    /// An error. A server that could not read the request does not know its id.
    Error {
        /// What went wrong.
        error: RpcError,
        /// Whether it names the request's id.
        addressed: bool,
    },
    /// The answer to this request, in a form that can't be read: what is wrong with it. The request
    /// has been carried out.
    Unreadable(String),
    /// What may have been the answer, and does not say so: what is wrong with it.
    Malformed(String),
}

impl Message {
    /// The answer that this message is to request `id`.
    ///
    /// # Errors
    ///
    /// If it is something else, the message itself.
    pub fn answer_to(self, id: &Id) -> Result<Answer, Self> {
        let (found, reply) = match self {
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
}

/// The messages in a text: one, those of an array, or several in a row. Of a text that is not JSON
/// but has answers in it, as a line of a log may, the answers.
#[must_use]
pub fn read(bytes: &[u8]) -> Vec<Message> {
    let bytes = &*as_utf8(bytes);
    let problem = match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => return read_value(value),
        Err(problem) => problem,
    };

    let mended = mend(bytes);
    if !mended.trim_start().starts_with(['{', '[']) {
        return or_noise(answers_within(&mended));
    }
    if let Ok(value) = serde_json::from_str(&mended) {
        return read_value(value);
    }
    let (values, rest) = values_in_a_row(&mended);
    if !values.is_empty() {
        let mut messages: Vec<_> = values.into_iter().flat_map(read_value).collect();
        messages.extend(match rest.trim_start().starts_with('{') {
            true => read_broken(rest, &problem),
            false => answers_within(rest),
        });
        return messages;
    }
    or_noise(read_broken(&mended, &problem))
}

/// The answer that a text would be if it were JSON.
fn read_broken(text: &str, problem: &serde_json::Error) -> Vec<Message> {
    let outline = outline(text);
    let is_answer = outline.has_answer && !outline.has_method && text.trim_start().starts_with('{');
    if !is_answer {
        return Vec::new();
    }
    let why = format!("it is not JSON: {problem}: {}", quote(text, SHOWN));
    let id = outline.id().cloned();
    vec![Message::Reply(id, Reply::Unreadable(Unreadable { why, cut: !outline.whole }))]
}

fn or_noise(messages: Vec<Message>) -> Vec<Message> {
    if messages.is_empty() { vec![Message::Noise("it is not JSON")] } else { messages }
}

/// Whether a text breaks off: there is nothing, or a message without its end.
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

/// The answer to request `id` in a text, if there is one. What says that it is the answer goes
/// before what may be.
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

/// The ids that the top level of an answer names: more than one if it has the member twice.
#[must_use]
pub fn ids_in(bytes: &[u8]) -> Vec<Id> {
    outline(&String::from_utf8_lossy(&as_utf8(bytes))).ids
}

/// The id in the beginning or at the end of an answer that is too long to be kept; `None` if it is
/// no answer.
#[must_use]
pub fn id_of_long(head: &[u8], tail: &[u8]) -> Option<Id> {
    let outline = outline(&String::from_utf8_lossy(head));
    if outline.has_method {
        return None;
    }
    outline.id().cloned().or_else(|| id_at_end(&String::from_utf8_lossy(tail)))
}

/// The messages in a value: itself, or those of an array, or of the JSON that a text holds.
pub(crate) fn read_value(value: Value) -> Vec<Message> {
    let inner = match &value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
            serde_json::from_str(text).ok()
        }
        _ => None,
    };
    match inner.unwrap_or(value) {
        Value::Array(values) if !values.is_empty() => {
            values.into_iter().flat_map(read_value).collect()
        }
        value => vec![read_one(value)],
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
    // Programs write logs in JSON, with members like `error` and others that no answer has.
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
        Some(Value::Number(code)) => whole(code),
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

/// A number without a fraction, however it is written.
fn whole(number: &serde_json::Number) -> Option<i64> {
    let rounded =
        |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    number.as_i64().or_else(|| number.as_f64().and_then(rounded))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
