//! The events of a stream, made ready for rmcp.

use std::collections::VecDeque;

use fleet_wire::{
    Message, Reply, Unreadable,
    body::BodyError,
    encoding::DecodeError,
    sse::{Decoder, Event},
};
use futures::stream::{self, BoxStream, StreamExt};
use rmcp::{
    model::{ErrorData, RequestId},
    transport::streamable_http_client::SseError,
};
use sse_stream::Sse;

use super::{
    exchange::{Body, MAX_ANSWER},
    messages::{error_json, messages_in},
};
use crate::unreadable::unreadable_answer;

/// Events as rmcp takes them.
pub(super) type Events = BoxStream<'static, Result<Sse, SseError>>;

/// The events of a body, which answers `request` if there is one. If the body can't be read to the
/// answer, an error is the answer, except when the connection is lost: rmcp may resume the stream
/// then.
pub(super) fn events(body: Body, request: Option<RequestId>) -> Events {
    let source = Some((body, Decoder::new(MAX_ANSWER)));
    let reader = Reader { source, request, ready: VecDeque::new() };
    stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader))).boxed()
}

struct Reader {
    /// Nothing more is read if it is gone.
    source: Option<(Body, Decoder)>,
    request: Option<RequestId>,
    ready: VecDeque<Result<Sse, SseError>>,
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

    /// Reads on. `None` at the end.
    async fn read(&mut self) -> Option<()> {
        let (body, decoder) = self.source.as_mut()?;
        match body.chunk().await {
            Ok(Some(chunk)) => {
                let mut events = Vec::new();
                let decoded = decoder.push(&chunk, &mut events);
                events.into_iter().for_each(|event| self.take(event));
                if decoded.is_err() {
                    self.end_with(too_large());
                }
            }
            Ok(None) => {
                let (_, decoder) = self.source.take()?;
                // Some servers leave the last blank line out. What is cut may come again when the
                // stream is resumed.
                if let Some(event) = decoder.finish().filter(|event| is_whole(&event.data)) {
                    self.take(event);
                }
            }
            Err(BodyError::Lost(error)) => {
                self.source = None;
                self.ready.push_back(Err(SseError::Body(Box::new(error.without_url()))));
            }
            Err(BodyError::Encoding(DecodeError::TooLarge)) => self.end_with(too_large()),
            Err(BodyError::Encoding(error)) => {
                self.end_with(ErrorData::internal_error(not_decoded(&error), None));
            }
        }
        Some(())
    }

    fn take(&mut self, event: Event) {
        let messages = match event.is_message() {
            true => messages_in(&event.data, self.request.as_ref()),
            false => Vec::new(),
        };
        let messages = messages.into_iter().map(|message| Sse::default().data(message.to_string()));
        self.ready.extend(messages.map(Ok));

        // The place to resume the stream at is behind all of them.
        if event.id.is_some() || event.retry.is_some() {
            let place = Sse { id: event.id, retry: event.retry, ..Sse::default() };
            self.ready.push_back(Ok(place));
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

fn is_whole(data: &[u8]) -> bool {
    !fleet_wire::read(data).iter().any(|message| {
        let is_cut =
            |reply: &Reply| matches!(reply, Reply::Unreadable(Unreadable { cut: true, .. }));
        match message {
            Message::Noise(_) => true,
            Message::Reply(_, reply) => is_cut(reply),
            Message::Request(..) | Message::Notification(..) => false,
        }
    })
}

fn too_large() -> ErrorData {
    unreadable_answer(&format!("it is larger than {MAX_ANSWER} bytes"))
}

/// What is wrong with an encoded body.
pub(super) fn not_decoded(error: &DecodeError) -> String {
    match error {
        DecodeError::Unknown(name) => {
            format!(
                "the answer is encoded as {:?}, which was not asked for",
                fleet_wire::quote(name, 40)
            )
        }
        DecodeError::Broken(why) => format!("the Content-Encoding of the answer is wrong: {why}"),
        DecodeError::TooLarge => format!("the answer is larger than {MAX_ANSWER} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rmcp::model::NumberOrString;
    use serde_json::{Value, json};

    use super::*;

    async fn read(chunks: &[&[u8]], encoding: Option<&str>) -> Vec<Result<Sse, SseError>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let body = Body::new(stream::iter(chunks).boxed(), encoding, None, MAX_ANSWER).unwrap();
        events(body, Some(NumberOrString::Number(7))).collect().await
    }

    fn message(event: &Result<Sse, SseError>) -> Value {
        serde_json::from_str(event.as_ref().unwrap().data.as_ref().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn messages_come_before_the_place_to_resume_at() {
        let found = read(&[b"id: 1\ndata: {\"id\":7,\ndata: \"result\":{}}\n\n"], None).await;
        assert_eq!(message(&found[0]), json!({"jsonrpc": "2.0", "id": 7, "result": {}}));
        assert_eq!(found[1].as_ref().unwrap(), &Sse::default().id("1"));
        assert_eq!(found.len(), 2);
    }

    #[tokio::test]
    async fn the_last_event_needs_no_blank_line_behind_it() {
        let found = read(&[b"event: ping\ndata: 1\n\ndata: {\"id\":7,\"result\":{}}"], None).await;
        assert_eq!(message(&found[0])["result"], json!({}));
        for cut in ["{\"id\":7,\"resu", "{\"id\":7,\"result\":{\"a\":\"b"] {
            assert!(read(&[b"data: ", cut.as_bytes()], None).await.is_empty(), "{cut}");
        }
    }

    #[tokio::test]
    async fn what_can_not_be_read_to_the_answer_ends_the_call() {
        let line = vec![b'x'; MAX_ANSWER / 2];
        let found = read(&[b"data: ", &line, b"\ndata: ", &line, b"\n\n"], None).await;
        assert_eq!(message(&found[0])["error"]["data"]["reason"], "unreadable-answer", "{found:?}");
        let found = read(&[b"this is no gzip at all"], Some("gzip")).await;
        assert!(message(&found[0])["error"].to_string().contains("Content-Encoding"), "{found:?}");
    }
}
