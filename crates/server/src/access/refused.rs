//! HTTP statuses for refusals that are decided on behind an MCP handler.
//!
//! Most refusals are JSON-RPC errors with status 200, which every client shows to its user. For
//! some, the status and headers tell a client what to do: get a token with more scopes, or come
//! back later. The handler notes those here, and the layer that put the note into the request's
//! extensions applies it, unless the answer is an event stream, whose headers are already sent.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use fleet_access::{Challenge, RequiredScopes};

/// A note of why a request was refused. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct RefusalNote(Arc<OnceLock<RefusedFor>>);

/// Why a request was refused.
#[derive(Debug)]
enum RefusedFor {
    /// The token lacks some of these scopes.
    Scopes(Vec<String>),
    /// A limit was met.
    Limit { retry_after: Duration },
    /// It may not be done by this caller, whatever its credentials.
    Forbidden,
    /// It can't be recorded in the audit log, and must be.
    Unrecorded { retry_after: Duration },
}

impl RefusalNote {
    /// Notes that a token lacks some of these scopes.
    pub(crate) fn note_scopes(&self, scopes: &[String]) {
        // A request has one operation, so a second note would be the same.
        _ = self.0.set(RefusedFor::Scopes(scopes.to_vec()));
    }

    /// Notes that a limit was met.
    pub(crate) fn note_limit(&self, retry_after: Duration) {
        _ = self.0.set(RefusedFor::Limit { retry_after });
    }

    /// Notes that the caller may not make such requests at all.
    pub(crate) fn note_forbidden(&self) {
        _ = self.0.set(RefusedFor::Forbidden);
    }

    /// Notes that what was asked for can't be recorded, and must be.
    pub(crate) fn note_unrecorded(&self, retry_after: Duration) {
        _ = self.0.set(RefusedFor::Unrecorded { retry_after });
    }

    /// Gives a response the status and headers of its refusal, if there was one.
    pub(super) fn apply(self, mut response: Response, metadata_url: Option<&str>) -> Response {
        if let Some(RequiredScopes(scopes)) = response.extensions_mut().remove() {
            challenge(&mut response, scopes, metadata_url);
            return response;
        }

        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        match self.0.get() {
            Some(RefusedFor::Scopes(scopes)) if !is_stream => {
                *response.status_mut() = StatusCode::FORBIDDEN;
                challenge(&mut response, scopes.clone(), metadata_url);
            }
            Some(RefusedFor::Forbidden) if !is_stream => {
                *response.status_mut() = StatusCode::FORBIDDEN;
            }
            Some(RefusedFor::Limit { retry_after }) if !is_stream => {
                put_off(&mut response, StatusCode::TOO_MANY_REQUESTS, *retry_after);
            }
            Some(RefusedFor::Unrecorded { retry_after }) if !is_stream => {
                put_off(&mut response, StatusCode::SERVICE_UNAVAILABLE, *retry_after);
            }
            _ => {}
        }
        response
    }
}

/// Tells a client when to try again.
fn put_off(response: &mut Response, status: StatusCode, retry_after: Duration) {
    *response.status_mut() = status;
    let seconds = super::layer::whole_seconds(retry_after);
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
}

fn challenge(response: &mut Response, scopes: Vec<String>, metadata_url: Option<&str>) {
    let challenge = Challenge::of_scopes(scopes, metadata_url).to_string();
    if let Ok(value) = HeaderValue::try_from(challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::HeaderName};

    use super::*;

    fn response(kind: &'static str) -> Response {
        Response::builder().header(header::CONTENT_TYPE, kind).body(Body::empty()).unwrap()
    }

    fn check(
        note: RefusalNote,
        kind: &'static str,
        status: u16,
        found: (HeaderName, Option<&str>),
    ) {
        let response = note.apply(response(kind), Some("https://me/meta"));
        assert_eq!(response.status(), status);
        let (name, expected) = found;
        let value = response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(value, expected);
    }

    #[test]
    fn scopes_are_named_all_at_once() {
        let note = RefusalNote::default();
        note.note_scopes(&["a".to_owned(), "b".to_owned()]);
        let challenge = r#"Bearer error="insufficient_scope", error_description="needs the scopes a b", scope="a b", resource_metadata="https://me/meta""#;
        check(note.clone(), "application/json", 403, (header::WWW_AUTHENTICATE, Some(challenge)));
        check(note, "text/event-stream", 200, (header::WWW_AUTHENTICATE, None));
    }

    #[test]
    fn limits_say_when_to_come_back() {
        let note = RefusalNote::default();
        note.note_limit(Duration::from_millis(1001));
        check(note, "application/json", 429, (header::RETRY_AFTER, Some("2")));
        check(RefusalNote::default(), "application/json", 200, (header::RETRY_AFTER, None));

        let note = RefusalNote::default();
        note.note_unrecorded(Duration::from_secs(5));
        check(note, "application/json", 503, (header::RETRY_AFTER, Some("5")));
    }
}
