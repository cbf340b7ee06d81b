//! Errors of requests to the server's REST interface.

use std::time::Duration;

use fleet_codes as codes;
use fleet_ops::tls::TlsError;
use fleet_retry::{Backoff, Retry};
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use crate::dlq::text::shorten;

/// The maximum length of a server's text that is shown to people.
const MAX_DETAIL: usize = 1_000;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nothing listens there. The reason is the innermost error; the layers around it mean nothing
    /// to people.
    #[error("no mcp-server responds at {url}: {reason} [{code}]", code = codes::NO_SERVER)]
    NoServer { url: String, reason: String },
    /// The server runs, but can't work.
    #[error("mcp-server at {url} is not ready: {reason} [{code}]", code = codes::NOT_READY)]
    NotReady { url: String, reason: String },
    /// The connection broke, or the response took too long.
    #[error("the connection to {url} was lost: {reason}")]
    Lost { url: String, reason: String },
    /// The server rejected the request.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The response could not be understood.
    #[error("{url} does not respond like an mcp-server: {reason}")]
    Unreadable { url: String, reason: String },
    /// The HTTP client could not be created.
    #[error("could not set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(TlsError),
    /// The request itself is invalid.
    #[error("{0}")]
    Usage(String),
}

/// A rejection, in the server's own words.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    /// How long the server asks the client to wait before retrying.
    pub(crate) retry_after: Option<Duration>,
    /// The job that the rejection is about, if the server sent it.
    pub(crate) job: Option<Value>,
}

/// The useful parts of an `application/problem+json` document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: Option<String>,
    code: Option<String>,
    detail: Option<String>,
    job: Option<Value>,
}

impl ApiError {
    /// Creates the rejection for a response with this status and body.
    pub(crate) fn refused(
        url: &str,
        status: StatusCode,
        retry_after: Option<&str>,
        body: &[u8],
    ) -> Self {
        let problem: Option<Problem> = serde_json::from_slice(body).ok();
        let retry_after =
            retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);

        let code = problem.as_ref().and_then(|problem| codes::find(problem.code.as_deref()?));
        let text = String::from_utf8_lossy(body);
        let (detail, job) = match problem {
            Some(Problem { detail: Some(detail), job, .. }) => (detail, job),
            Some(Problem { title: Some(title), job, .. }) => (title, job),
            _ if status == StatusCode::NOT_FOUND && text.trim().is_empty() => (
                format!("{url} does not serve jobs: is it an mcp-server with KAFKA_BROKERS set?"),
                None,
            ),
            Some(Problem { job, .. }) => (String::new(), job),
            None => (text.trim().to_owned(), None),
        };

        let detail = match detail.is_empty() {
            true => format!("{url} responded with {status}"),
            false => shorten(&detail, MAX_DETAIL),
        };

        let detail = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("{detail} ({status}; set --token-file, --token or MCP_SERVER_TOKEN)")
            }
            _ => detail,
        };

        let detail = match code {
            // An error of a library that the server quotes brings its own code.
            Some(code) if !detail.contains("[FLEET-") => format!("{detail} [{code}]"),
            _ => detail,
        };

        Self::Refused(Box::new(Refusal { status, detail, retry_after, job }))
    }

    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            _ => None,
        }
    }

    /// Returns whether the server is up but asks the client to wait, for example while it reads its
    /// ledger.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
        )
    }

    /// Returns whether the same request may succeed later, for example after a restart of the
    /// server.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::NoServer { .. } | Self::NotReady { .. } | Self::Lost { .. } => true,
            Self::Refused(refusal) => {
                refusal.status.is_server_error()
                    || matches!(
                        refusal.status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            Self::Unreadable { .. } | Self::Client(_) | Self::Tls(_) | Self::Usage(_) => false,
        }
    }

    /// Returns how long the server asks the client to wait before retrying.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}

/// Growing pauses between attempts. A server may ask for longer ones.
#[derive(Debug)]
pub(crate) struct Pauses(Retry);

impl Pauses {
    const BACKOFF: Backoff =
        Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };
    /// The longest pause that a server can ask for, since another server may have taken over by
    /// then.
    const LONGEST_ASKED: Duration = Duration::from_secs(30);

    pub(crate) fn new() -> Self {
        Self(Retry::new(Self::BACKOFF, rand::random()))
    }

    /// Returns the next pause, after `error`.
    pub(crate) fn after(&mut self, error: &ApiError) -> Duration {
        let asked = error.retry_after().unwrap_or_default().min(Self::LONGEST_ASKED);
        self.0.failed().max(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, retry_after: Option<&str>, body: &str) -> ApiError {
        let status = StatusCode::from_u16(status).unwrap();
        ApiError::refused("http://a:1", status, retry_after, body.as_bytes())
    }

    #[test]
    fn rejections_use_the_servers_words_if_there_are_any() {
        let check = |status, body, expected: &str| {
            let text = refusal(status, None, body).to_string();
            assert!(text.contains(expected), "{text}");
        };
        check(
            404,
            r#"{"title":"Not Found","detail":"there is no job `x`"}"#,
            "there is no job `x`",
        );
        check(400, r#"{"title":"Bad Request"}"#, "Bad Request");
        check(404, "", "http://a:1 does not serve jobs");
        check(502, "", "http://a:1 responded with 502");
        check(502, "{}", "http://a:1 responded with 502");
        check(502, "<html>\u{1b}[2Jbad gateway", "<html> [2Jbad gateway");
        check(
            401,
            r#"{"detail":"who are you"}"#,
            "who are you (401 Unauthorized; set --token-file",
        );
    }

    #[test]
    fn transient_errors_and_pauses() {
        let busy = refusal(503, Some("2"), "{}");
        assert!(busy.is_busy() && busy.is_passing());
        let broken = refusal(500, None, "");
        assert!(!broken.is_busy() && broken.is_passing());
        let no = refusal(404, Some("tomorrow"), "");
        assert!(!no.is_passing() && no.retry_after().is_none());
        let mut pauses = Pauses::new();
        for (error, ceiling) in [(&broken, 200), (&broken, 400), (&broken, 800), (&broken, 1600)] {
            let pause = pauses.after(error).as_millis();
            assert!(
                (ceiling / 2..=ceiling).contains(&pause),
                "{pause} ms is not up to {ceiling} ms"
            );
        }
        assert!(
            Pauses::new().after(&busy) >= Duration::from_secs(2),
            "the server asks for two seconds"
        );
    }
}
