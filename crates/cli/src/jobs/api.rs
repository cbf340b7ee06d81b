//! The server's REST interface for jobs, as a client sees it.

use std::time::Duration;

use fleet_job::view::{CancelOutcome, Cancellation, JobList, JobView};
use fleet_mcp_client::ClientConfig;
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    error::{ApiError, Pauses},
    filter::Filter,
};
use crate::{error::CliError, patience::Patience};

const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may take for an answer that needs no waiting.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a server that reads its ledger is asked again.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest answer that is read: a page of jobs, or a job with its result.
const MAX_BODY: usize = 64 << 20;
/// The longest wait that the server takes part in.
pub(super) const MAX_WAIT: u64 = 60;

/// Which server a command talks to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerArgs {
    /// The mcp-server; of several, comma-separated, the first one. A path in it does not matter.
    #[arg(
        long,
        env = "MCP_SERVER_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    server: String,

    /// A bearer token for it. Better in the environment: others can see the command line.
    #[arg(long, env = "MCP_SERVER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
}

/// A client of one server. Clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Api {
    http: reqwest::Client,
    base: Url,
}

impl ServerArgs {
    pub(super) fn api(&self) -> Result<Api, CliError> {
        // A variable that is set to nothing is as good as none.
        let token = self.token.as_deref().filter(|token| !token.is_empty());
        Ok(Api::new(base(&self.server)?, token)?)
    }
}

/// Scheme, host and port of the first of these URLs.
fn base(urls: &str) -> Result<Url, CliError> {
    let mut base = ClientConfig::parse_urls(urls)?.swap_remove(0);
    base.set_path("");
    base.set_query(None);
    Ok(base)
}

impl Api {
    pub(super) fn new(base: Url, token: Option<&str>) -> Result<Self, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| {
                ApiError::Usage("the token has characters that HTTP does not allow".into())
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let mut builder = reqwest::Client::builder();
        if base.scheme() == "http" {
            // A slim container has no root certificates to load, and without them the client could
            // not be made.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .user_agent(concat!("mcp-fleet/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tcp_keepalive(CONNECT)
            .build()
            .map_err(ApiError::Client)?;
        Ok(Self { http, base })
    }

    /// The server as it may be shown: without user and password.
    pub(super) fn name(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Says after a second that the server has not answered.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(format!("an answer from mcp-server at {}", self.name()))
    }

    /// One page of jobs.
    pub(super) async fn list(
        &self,
        filter: &Filter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<JobList, ApiError> {
        let mut url = self.url(&["jobs"])?;
        url.query_pairs_mut()
            .extend_pairs(filter.pairs())
            .append_pair("limit", &limit.to_string())
            .extend_pairs(cursor.map(|cursor| ("cursor", cursor)));
        self.patiently(Method::GET, url, ANSWER).await
    }

    /// A job with its result.
    pub(super) async fn get(&self, job_id: &str) -> Result<JobView, ApiError> {
        self.patiently(Method::GET, self.url(&["jobs", job_id])?, ANSWER).await
    }

    /// The same, asked once and with little time.
    pub(super) async fn glance(&self, job_id: &str, limit: Duration) -> Result<JobView, ApiError> {
        self.once(Method::GET, self.url(&["jobs", job_id])?, limit).await
    }

    /// Asks for a job to be cancelled, and waits for at most `wait` seconds to see what that comes
    /// to.
    pub(super) async fn cancel(
        &self,
        job_id: &str,
        reason: Option<&str>,
        wait: u64,
    ) -> Result<Cancellation, ApiError> {
        let mut url = self.url(&["jobs", job_id])?;
        url.query_pairs_mut()
            .append_pair("wait", &wait.to_string())
            .extend_pairs(reason.map(|reason| ("reason", reason)));
        let limit = ANSWER + Duration::from_secs(wait);
        match self.patiently(Method::DELETE, url, limit).await {
            // Too late is an answer too: the job came to another end.
            Err(ApiError::Refused(refusal)) if refusal.status == StatusCode::CONFLICT => {
                match refusal.job.clone().map(serde_json::from_value) {
                    Some(Ok(job)) => Ok(Cancellation {
                        outcome: CancelOutcome::TooLate,
                        known: true,
                        job: Some(job),
                    }),
                    _ => Err(ApiError::Refused(refusal)),
                }
            }
            other => other,
        }
    }

    /// Where the events of one job come from.
    pub(super) fn events_of(&self, job_id: &str) -> Result<Url, ApiError> {
        self.url(&["jobs", job_id, "events"])
    }

    /// Where the events of all jobs come from.
    pub(super) fn events(&self, filter: &Filter) -> Result<Url, ApiError> {
        let (mut url, pairs) = (self.url(&["events"])?, filter.lasting_pairs());
        if !pairs.is_empty() {
            url.query_pairs_mut().extend_pairs(pairs);
        }
        Ok(url)
    }

    /// Opens a stream of events, which goes on after the event with this id.
    pub(super) async fn open(&self, url: Url, last_id: Option<&str>) -> Result<Response, ApiError> {
        let mut request = self.http.get(url).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let opened = tokio::time::timeout(ANSWER, request.send()).await;
        let response = opened.map_err(|_| self.lost("it did not answer in time"))?;
        let response = response.map_err(|error| self.failed(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, retry_after) = (response.status(), retry_after(&response));
        let body = self.body(response).await?;
        Err(ApiError::refused(&self.name(), status, retry_after.as_deref(), &body))
    }

    /// The URL of these path segments, whatever characters they have.
    fn url(&self, segments: &[&str]) -> Result<Url, ApiError> {
        if let Some(id) = segments.iter().find(|segment| matches!(**segment, "" | "." | "..")) {
            return Err(ApiError::Usage(format!(
                "a job called `{id}` can't be asked for over HTTP"
            )));
        }
        let mut url = self.base.clone();
        // Only URLs without a host have no path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(segments);
        }
        Ok(url)
    }

    /// Asks until the server has read its ledger, but not for ever.
    async fn patiently<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let (end, mut pauses) = (Instant::now() + PATIENCE, Pauses::new());
        // Other methods wait for jobs, which takes as long as it takes.
        let patience = (method == Method::GET).then(|| self.patience());
        loop {
            match self.once(method.clone(), url.clone(), limit).await {
                Err(error) if error.is_busy() && Instant::now() < end => {
                    if let Some(patience) = &patience {
                        patience.wait_for(format!("mcp-server at {}: {error}", self.name()));
                    }
                    sleep(pauses.after(&error)).await;
                }
                other => return other,
            }
        }
    }

    async fn once<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let request = self.http.request(method, url).timeout(limit);
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let body = self.body(response).await?;
        if !status.is_success() {
            return Err(ApiError::refused(&self.name(), status, retry_after.as_deref(), &body));
        }
        serde_json::from_slice(&body).map_err(|error| self.unreadable(error))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ApiError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(self.unreadable(format!("it is larger than {MAX_BODY} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(super) fn lost(&self, reason: impl ToString) -> ApiError {
        ApiError::Lost { url: self.name(), reason: reason.to_string() }
    }

    pub(super) fn unreadable(&self, reason: impl ToString) -> ApiError {
        ApiError::Unreadable { url: self.name(), reason: reason.to_string() }
    }

    pub(super) fn failed(&self, error: &reqwest::Error) -> ApiError {
        let reason = match error.is_timeout() {
            true => "it took too long".to_owned(),
            false => innermost(error).to_string(),
        };
        match error.is_connect() {
            true => ApiError::NoServer { url: self.name(), reason },
            false => self.lost(reason),
        }
    }
}

fn retry_after(response: &Response) -> Option<String> {
    Some(response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.to_owned())
}

fn innermost(error: &dyn std::error::Error) -> &dyn std::error::Error {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_servers_url_only_scheme_host_and_port_count() {
        for (urls, expected) in [
            ("http://a:8080/mcp", "http://a:8080"),
            ("https://u:hunter2@a/x?y=1,http://b", "https://a"),
            ("http://[::1]:1,http://b", "http://[::1]:1"),
        ] {
            assert_eq!(Api::new(base(urls).unwrap(), None).unwrap().name(), expected, "{urls}");
        }
        assert!(base("a:b").is_err() && base("").is_err());
    }

    #[test]
    fn ids_of_any_characters_are_one_segment() {
        let api = Api::new(base("http://a").unwrap(), Some("t")).unwrap();
        let url = api.events_of("a/b c?d#e%").unwrap();
        assert_eq!(url.as_str(), "http://a/jobs/a%2Fb%20c%3Fd%23e%25/events");
        assert!(api.events_of("..").is_err());
        assert!(Api::new(base("http://a").unwrap(), Some("a\nb")).is_err());
    }
}
