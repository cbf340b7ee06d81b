//! Reads the events of a stream, and converts them for rmcp.

use std::collections::VecDeque;

use bytes::Bytes;
use fleet_wire::{
    Message,
    body::BodyError,
    encoding::DecodeError,
    is_cut, quote,
    sse::{Decoder, Event, EventTooLarge},
    stream::{Odd, Start, odd},
};
use futures::stream::{self, BoxStream, StreamExt};
use rmcp::{
    model::{ErrorData, RequestId},
    transport::streamable_http_client::SseError,
};
use serde_json::Value;
use sse_stream::Sse;

use super::{
    exchange::{Body, MAX_ANSWER, SHOWN},
    messages::{answer_elsewhere, error_json, messages_in},
};
use crate::{secrets::Secrets, unreadable::unreadable_answer};

/// Events as rmcp expects them.
pub(super) type Events = BoxStream<'static, Result<Sse, SseError>>;

/// Reads the events of a body, which answers `request` if there is one. If the body is unreadable
/// before the answer, or ends with something else in its place, the answer is an error. If the
/// connection is lost, there is no answer, since rmcp may resume the stream. The log does not show
/// the values of `secrets`.
pub(super) fn read_events(body: Body, request: Option<RequestId>, secrets: Secrets) -> Events {
    let source = Some((body, Decoder::new(MAX_ANSWER)));
    let reader = Reader {
        source,
        secrets,
        chunk: Bytes::new(),
        request,
        ready: VecDeque::new(),
        start: Start::default(),
        is_answered: false,
        odd: None,
        is_resumable: false,
    };
    stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader))).boxed()
}

struct Reader {
    /// `None` if nothing more is to be read.
    source: Option<(Body, Decoder)>,
    secrets: Secrets,
    /// The part of the body that was received but not decoded yet.
    chunk: Bytes,
    request: Option<RequestId>,
    ready: VecDeque<Result<Sse, SseError>>,
    start: Start,
    is_answered: bool,
    /// What came in the place of an answer, as long as an answer may still come.
    odd: Option<String>,
    /// Whether an event has an id. Then rmcp can resume the stream, so its end does not end the
    /// call.
    is_resumable: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Sse, SseError>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            self.read().await?;
        }
    }

    /// Reads the next part of the body. Returns `None` at the end.
    async fn read(&mut self) -> Option<()> {
        let (body, decoder) = self.source.as_mut()?;
        match decoder.next_event(&mut self.chunk) {
            Ok(Some(event)) => {
                self.take_event(event);
                return Some(());
            }
            Ok(None) => {}
            Err(EventTooLarge) => {
                self.end_with(too_large_error());
                return Some(());
            }
        }

        match body.chunk().await {
            Ok(Some(chunk)) => {
                let text = if self.request.is_some() { self.start.take(&chunk) } else { 0 };
                match text {
                    0 => self.chunk = chunk,
                    length if length > MAX_ANSWER => self.end_with(too_large_error()),
                    _ => {}
                }
            }
            Ok(None) => {
                let (_, decoder) = self.source.take()?;
                // Some servers leave out the last blank line. An event that is cut may come again
                // when the stream is resumed.
                if let Some(event) = decoder.finish().filter(|event| is_whole(&event.data)) {
                    self.take_event(event);
                }
                self.end();
            }
            Err(BodyError::Lost(error)) => {
                self.source = None;
                self.ready.push_back(Err(SseError::Body(Box::new(error.without_url()))));
            }
            Err(BodyError::Encoding(DecodeError::TooLarge)) => self.end_with(too_large_error()),
            Err(BodyError::Encoding(error)) => {
                self.end_with(unreadable_answer(&describe_decode_error(&error)));
            }
        }
        Some(())
    }

    fn take_event(&mut self, event: Event) {
        let request = self.request.as_ref();
        let messages = match event.is_message() {
            true => messages_in(&event.data, request, &self.secrets),
            false => request
                .and_then(|id| answer_elsewhere(&event.data, id, &self.secrets))
                .into_iter()
                .collect(),
        };
        if !event.data.is_empty() {
            // Only the last event can be in the place of an answer.
            self.odd = None;
            if messages.is_empty() {
                self.note_odd(&event);
            }
        }
        self.pass_on(messages);

        // The id to resume the stream with comes after all messages of the event.
        if event.id.is_some() || event.retry.is_some() {
            self.is_resumable |= event.id.is_some();
            let position = Sse { id: event.id, retry: event.retry, ..Sse::default() };
            self.ready.push_back(Ok(position));
        }
    }

    /// Passes messages on, except answers to other requests, since rmcp ends the stream at any
    /// answer.
    fn pass_on(&mut self, messages: Vec<Value>) {
        for message in messages {
            if let Some(request) = &self.request
                && message.get("method").is_none()
            {
                let is_own = message.get("id") == serde_json::to_value(request).ok().as_ref();
                self.is_answered |= is_own;
                if !is_own {
                    self.odd = Some("it is the answer to another request".to_owned());
                    continue;
                }
            }
            self.ready.push_back(Ok(Sse::default().data(message.to_string())));
        }
    }

    /// Notes an event that is not a message. If it can only be meant as the answer, the call ends.
    fn note_odd(&mut self, event: &Event) {
        if self.request.is_none() || self.is_answered {
            return;
        }

        match odd(event) {
            Some(Odd { why, is_end: true }) => self.end_with(unreadable_answer(&why)),
            Some(Odd { why, is_end: false }) => self.odd = Some(why),
            None => {}
        }
    }

    /// Ends the call at the end of a body that had something else in the place of the answer.
    fn end(&mut self) {
        let Some(request) = self.request.clone() else { return };
        if let Start::Text(text) = std::mem::replace(&mut self.start, Start::Events) {
            self.pass_on(messages_in(&text, Some(&request), &self.secrets));
            let shown = quote(&String::from_utf8_lossy(&text), SHOWN);
            self.odd.get_or_insert(format!("it is not the answer to this request: {shown}"));
        }
        let is_open = !self.is_answered && !self.is_resumable;
        if let Some(why) = self.odd.take().filter(|_| is_open) {
            self.end_with(unreadable_answer(&why));
        }
    }

    fn end_with(&mut self, error: ErrorData) {
        self.source = None;
        self.ready.push_back(match &self.request {
            Some(request) => Ok(Sse::default().data(error_json(request, &error).to_string())),
            None => Err(SseError::Body(error.message.into_owned().into())),
        });
    }
}

/// Returns whether the data of the last event, which lacks its blank line, is complete.
fn is_whole(data: &[u8]) -> bool {
    let is_noise = |message: &Message| matches!(message, Message::Noise(_));
    !is_cut(data) && !fleet_wire::read(data).iter().any(is_noise)
}

fn too_large_error() -> ErrorData {
    unreadable_answer(&format!("it is larger than {MAX_ANSWER} bytes"))
}

/// Describes what is wrong with an encoded body.
pub(super) fn describe_decode_error(error: &DecodeError) -> String {
    match error {
        DecodeError::Unknown(name) => {
            format!("the answer is encoded as {:?}, which was not asked for", quote(name, 40))
        }
        DecodeError::Broken(why) => format!("the Content-Encoding of the answer is wrong: {why}"),
        DecodeError::TooLarge => format!("the answer is larger than {MAX_ANSWER} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::NumberOrString;
    use serde_json::{Value, json};

    use super::*;

    async fn read(chunks: &[&[u8]], encoding: Option<&str>) -> Vec<Result<Sse, SseError>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let body = Body::new(stream::iter(chunks).boxed(), encoding, None, MAX_ANSWER).unwrap();
        read_events(body, Some(NumberOrString::Number(7)), Secrets::default()).collect().await
    }

    fn message(event: &Result<Sse, SseError>) -> Value {
        serde_json::from_str(event.as_ref().unwrap().data.as_ref().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn messages_come_before_the_id_to_resume_with() {
        let found = read(&[b"id: 1\ndata: {\"id\":7,\ndata: \"result\":{}}\n\n"], None).await;
        assert_eq!(message(&found[0]), json!({"jsonrpc": "2.0", "id": 7, "result": {}}));
        assert_eq!(found[1].as_ref().unwrap(), &Sse::default().id("1"));
        assert_eq!(found.len(), 2);
    }

    #[tokio::test]
    async fn the_last_event_needs_no_blank_line() {
        let found = read(&[b"event: ping\ndata: 1\n\ndata: {\"id\":7,\"result\":{}}"], None).await;
        assert_eq!(message(&found[0])["result"], json!({}));
        for cut in ["{\"id\":7,\"resu", "{\"id\":7,\"result\":{\"a\":\"b"] {
            assert!(read(&[b"data: ", cut.as_bytes()], None).await.is_empty(), "{cut}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_unreadable_before_the_answer_ends_the_call() {
        let line = vec![b'x'; MAX_ANSWER / 2];
        let found = read(&[b"data: ", &line, b"\ndata: ", &line, b"\n\n"], None).await;
        assert_eq!(message(&found[0])["error"]["data"]["reason"], "unreadable-answer", "{found:?}");
        let found = read(&[b"this is no gzip at all"], Some("gzip")).await;
        assert!(message(&found[0])["error"].to_string().contains("Content-Encoding"), "{found:?}");
    }

    #[tokio::test]
    async fn something_else_in_the_place_of_the_answer_ends_the_call() {
        let check = async |text: &str, shown: &str| {
            let found = read(&[text.as_bytes()], None).await;
            let found = found.last().unwrap();
            let error = &message(found)["error"];
            assert_eq!(error["data"]["reason"], "unreadable-answer", "{text}: {error}");
            assert!(error["message"].as_str().unwrap().contains(shown), "{text}: {error}");
        };
        check("data: {broken\n\n", "{broken").await;
        check("event: error\ndata: overloaded\n\n", "overloaded").await;
        check("data: <p>Internal Server Error</p>\n\n: bye\n\n", "Internal Server Error").await;
        check("data: {\"jsonrpc\":\"2.0\",\"result\":{}}\n\n", "which request").await;
        check("data: {\"id\":8,\"result\":{}}\n\n", "another request").await;
        check("<html>login</html>", "<html>").await;
        check(r#"{"jsonrpc":"2.0","id":7,"resul"#, "resul").await;
    }

    #[tokio::test]
    async fn an_answer_is_found_wherever_it_is() {
        let answer = r#"{"jsonrpc":"2.0","id":7,"result":{}}"#;
        for text in [
            answer.to_owned(),
            format!("\n{answer}\n"),
            format!("event: result\ndata: {answer}\n\n"),
            format!("data: ping\n\ndata: {answer}\n\n"),
            format!("data: {{\"id\":8,\"result\":{{}}}}\n\ndata: {answer}\n\n"),
            format!("event: ping\ndata: {{broken\n\ndata: {answer}\n\n"),
            format!("data: {answer}\n\ndata: {{broken\n\n"),
        ] {
            let found = read(&[text.as_bytes()], None).await;
            let [found] = &found[..] else { panic!("{text}: {found:?}") };
            assert_eq!(message(found)["result"], json!({}), "{text}");
        }
    }

    #[tokio::test]
    async fn an_end_without_an_answer_is_left_to_rmcp() {
        for text in [
            ": hi\n\n",
            "",
            "event: ping\ndata: 1\n\n",
            "id: 1\ndata: soon\n\n",
            "data: ping\n\n",
            "data: {\"level\":\"info\"}\n\ndata: ping\n\n",
            "data: {\"id\":8,\"result\":{}}\n\nevent: ping\ndata: 1\n\n",
        ] {
            let found = read(&[text.as_bytes()], None).await;
            assert!(found.iter().all(|event| event.as_ref().unwrap().data.is_none()), "{found:?}");
        }
    }
}
