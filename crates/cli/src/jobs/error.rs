//! What a question to the server's REST interface can come to, besides its answer.

use std::time::Duration;

use fleet_retry::{Backoff, Retry};
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use crate::dlq::text::shortened;

/// The longest text of a server that is repeated to people.
const MAX_DETAIL: usize = 1_000;

/// Why the server has not answered the question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// There is nobody. The reason is the innermost one: the layers around it say nothing to
    /// people.
    #[error("no mcp-server answers at {url}: {reason}")]
    NoServer { url: String, reason: String },
    /// The connection broke, or the answer took too long.
    #[error("the connection to {url} was lost: {reason}")]
    Lost { url: String, reason: String },
    /// The server says no.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The answer is none that we know.
    #[error("what {url} answers is not what an mcp-server answers about jobs: {reason}")]
    Unreadable { url: String, reason: String },
    /// The HTTP client can't be made.
    #[error("the HTTP client can't be set up")]
    Client(#[source] reqwest::Error),
    /// What was asked for can't be asked.
    #[error("{0}")]
    Usage(String),
}

/// A refusal, as the server words it.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    /// When the server wants to be asked again.
    pub(crate) retry_after: Option<Duration>,
    /// The job it is about, where that came along.
    pub(crate) job: Option<Value>,
}

/// The parts of an `application/problem+json` that are of use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    job: Option<Value>,
}

impl ApiError {
    /// The refusal that a response with this status and body is.
    pub(super) fn refused(
        url: &str,
        status: StatusCode,
        retry_after: Option<&str>,
        body: &[u8],
    ) -> Self {
        let problem: Option<Problem> = serde_json::from_slice(body).ok();
        let retry_after =
            retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let text = String::from_utf8_lossy(body);
        let (detail, job) = match problem {
            Some(Problem { detail: Some(detail), job, .. }) => (detail, job),
            Some(Problem { title: Some(title), job, .. }) => (title, job),
            _ if status == StatusCode::NOT_FOUND && text.trim().is_empty() => (
                format!(
                    "{url} knows nothing of jobs: is it an mcp-server that has KAFKA_BROKERS set?"
                ),
                None,
            ),
            Some(Problem { job, .. }) => (String::new(), job),
            None => (text.trim().to_owned(), None),
        };
        let detail = match detail.is_empty() {
            true => format!("{url} answered {status}"),
            false => shortened(&detail, MAX_DETAIL),
        };
        let detail = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("{detail} ({status}; --token or MCP_SERVER_TOKEN says who asks)")
            }
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

    /// Whether the server is there and has asked for some patience, while it reads its ledger for
    /// one.
    pub(super) fn is_busy(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
        )
    }

    /// Whether the same question may be answered later, by a server that was started again for one.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::NoServer { .. } | Self::Lost { .. } => true,
            Self::Refused(refusal) => {
                refusal.status.is_server_error()
                    || matches!(
                        refusal.status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            Self::Unreadable { .. } | Self::Client(_) | Self::Usage(_) => false,
        }
    }

    /// When the server wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}

/// Growing pauses between attempts. A server may ask for longer ones.
#[derive(Debug)]
pub(super) struct Pauses(Retry);

impl Pauses {
    const BACKOFF: Backoff =
        Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };
    /// However long the server asks us to stay away, we look sooner: there may be another one by
    /// then.
    const LONGEST_ASKED: Duration = Duration::from_secs(30);

    pub(super) fn new() -> Self {
        Self(Retry::new(Self::BACKOFF, rand::random()))
    }

    /// The next pause, after `error`.
    pub(super) fn after(&mut self, error: &ApiError) -> Duration {
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
    fn refusals_are_worded_by_the_server_where_it_says_something() {
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
        check(404, "", "http://a:1 knows nothing of jobs");
        check(502, "", "http://a:1 answered 502");
        check(502, "{}", "http://a:1 answered 502");
        check(502, "<html>\u{1b}[2Jbad gateway", "<html> [2Jbad gateway");
        check(401, r#"{"detail":"who are you"}"#, "who are you (401 Unauthorized; --token");
    }

    #[test]
    fn what_passes_and_how_long_to_wait() {
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
