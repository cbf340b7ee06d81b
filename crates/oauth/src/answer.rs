//! What may be told about the answer of an authorization server to a request for a token.
//!
//! Such an answer may quote the client's secret, its assertion or a token, in whatever encoding.
//! Errors go to logs and to everybody who calls the MCP server, so they have no more of the answer
//! than its status and a code of the standards.

use std::{error::Error, sync::Arc};

use http::{Method, Response, StatusCode};
use parking_lot::Mutex;
use rmcp::transport::auth::{
    OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRequest,
};
use serde_json::Value;

use crate::fetch::BoundedClient;

/// The codes of RFC 6749 (section 5.2), RFC 8707 and RFC 9449, and those for servers in trouble.
const CODES: [&str; 11] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "invalid_dpop_proof",
    "use_dpop_nonce",
    "server_error",
    "temporarily_unavailable",
];

/// A client that remembers what came of the request for a token.
#[derive(Clone)]
pub(crate) struct WatchedClient {
    http: BoundedClient,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

/// What came of a request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It could not be sent, or there was no answer.
    Failed(String),
    /// The authorization server answered with this status, and this code if it is a known one.
    Answered(StatusCode, Option<&'static str>),
}

impl WatchedClient {
    pub(crate) fn new(http: BoundedClient) -> Self {
        Self { http, outcome: Arc::default() }
    }

    /// Says why there is no token, after a request for one.
    pub(crate) fn failure(&self) -> String {
        match &*self.outcome.lock() {
            None => "the request for a token could not be made".to_owned(),
            Some(Outcome::Failed(why)) => format!("the request for a token failed: {why}"),
            Some(Outcome::Answered(status, _)) if status.is_success() => {
                format!("the answer of the authorization server ({status}) is not a token response")
            }
            Some(Outcome::Answered(status, code)) => {
                let code = code.map(|code| format!(": {code}")).unwrap_or_default();
                format!("the authorization server answered {}{code}", status.as_u16())
            }
        }
    }

    async fn send(
        &self,
        request: OAuthHttpRequest,
    ) -> Result<Response<Vec<u8>>, OAuthHttpClientError> {
        let is_for_token = request.request.method() == Method::POST;
        let answer = self.http.execute(request).await;
        if is_for_token {
            *self.outcome.lock() = Some(match &answer {
                Ok(answer) => Outcome::Answered(answer.status(), code_in(answer.body())),
                Err(error) => Outcome::Failed(with_causes(&**error)),
            });
        }
        answer
    }
}

impl OAuthHttpClient for WatchedClient {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(self.send(request))
    }
}

/// Returns the code in an error response, if it is a known one.
fn code_in(body: &[u8]) -> Option<&'static str> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let code = body["error"].as_str()?;
    CODES.into_iter().find(|known| *known == code)
}

/// An error and its causes.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
