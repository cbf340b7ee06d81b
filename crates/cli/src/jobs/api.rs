//! A client of the server's REST interface for jobs.

use std::time::Duration;

use fleet_job::{
    filter::JobFilter,
    pause::{Pause, PauseList, PauseRequest},
    view::{CancelOutcome, Cancellation, JobList, JobView, SubmittedJobs},
};
use fleet_lag::WorkerList;
use fleet_ops::tls::ClientTls;
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use url::Url;

use crate::{
    api_error::{ApiError, Pauses},
    dlq::text::shorten,
    error::CliError,
    server_args::ServerArgs,
    wait_notice::WaitNotice,
};

const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may take for a response that involves no waiting.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the server may take to submit many jobs.
const SUBMITTED: Duration = Duration::from_secs(120);
/// The maximum length of the reason why a server is not ready.
const MAX_REASON: usize = 500;
/// How long to retry while a server reads its ledger.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest response to read: a page of jobs, or a job with its result.
const MAX_BODY: usize = 64 << 20;
/// The longest wait that the server accepts, in seconds.
pub(super) const MAX_WAIT: u64 = 60;

/// A client of one server. Clones share its connections.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: Url,
}

/// What a job was asked to do.
#[derive(Debug, Deserialize)]
pub(super) struct JobRecord {
    /// The envelope, with the payload as an object.
    pub(super) envelope: Value,
}

impl ServerArgs {
    pub(crate) fn api(&self) -> Result<Api, CliError> {
        let token = self.read_token()?;
        Ok(Api::new(self.base_url()?, token.as_deref(), &self.read_tls()?)?)
    }
}

impl Api {
    pub(crate) fn new(base: Url, token: Option<&str>, tls: &ClientTls) -> Result<Self, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| {
                ApiError::Usage(
                    "the token contains characters that HTTP headers do not allow".into(),
                )
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }

        let mut builder = reqwest::Client::builder();
        if base.scheme() == "http" {
            // A slim container has no root certificates, without which building a TLS client fails.
            builder = builder.tls_certs_only([]);
        }

        let http = tls
            .apply(builder)
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

    /// Returns the server in a form that may be shown: without user and password.
    pub(crate) fn name(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Tells the user after a second that the server has not responded.
    pub(crate) fn wait_notice(&self) -> WaitNotice {
        WaitNotice::new(format!("a response from mcp-server at {}", self.name()))
    }

    /// Returns one page of jobs.
    pub(crate) async fn list(
        &self,
        filter: &JobFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<JobList, ApiError> {
        let mut url = self.url(&["jobs"])?;
        url.query_pairs_mut()
            .extend_pairs(filter.parameters())
            .append_pair("limit", &limit.to_string())
            .extend_pairs(cursor.map(|cursor| ("cursor", cursor)));

        self.request_with_retries(Method::GET, url, ANSWER).await
    }

    /// Submits jobs. The request can be repeated: jobs that exist are not submitted twice.
    pub(crate) async fn submit(&self, jobs: &[Value]) -> Result<SubmittedJobs, ApiError> {
        let request = self.http.post(self.url(&["jobs"])?).json(&json!({ "jobs": jobs }));
        self.send_with_retries(request, SUBMITTED, None).await
    }

    /// Checks that the server is ready, and otherwise says why it is not.
    pub(crate) async fn check_ready(&self, limit: Duration) -> Result<(), ApiError> {
        let request = self.http.get(self.url(&["ready"])?).timeout(limit);
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        if response.status().is_success() {
            return Ok(());
        }

        let status = response.status();
        let body = self.read_body(response).await?;
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        let reason = said.as_ref().and_then(|said| said.get("reason")?.as_str());
        let reason = reason.map_or_else(|| status.to_string(), |text| shorten(text, MAX_REASON));
        Err(ApiError::NotReady { url: self.name(), reason })
    }

    /// Checks that the server answers questions about jobs.
    pub(crate) async fn check_jobs(&self) -> Result<(), ApiError> {
        self.list(&JobFilter::default(), 1, None).await.map(drop)
    }

    /// Returns a job with its result.
    pub(crate) async fn get(&self, job_id: &str) -> Result<JobView, ApiError> {
        self.request_with_retries(Method::GET, self.url(&["jobs", job_id])?, ANSWER).await
    }

    /// Returns what a job was asked to do, as long as its record exists.
    pub(super) async fn envelope(&self, job_id: &str) -> Result<JobRecord, ApiError> {
        let url = self.url(&["jobs", job_id, "envelope"])?;
        self.request_once(Method::GET, url, ANSWER).await
    }

    /// Returns the workers of the fleet.
    pub(crate) async fn workers(&self) -> Result<WorkerList, ApiError> {
        self.request_with_retries(Method::GET, self.url(&["workers"])?, ANSWER).await
    }

    /// Returns the pauses in force.
    pub(crate) async fn pauses(&self) -> Result<PauseList, ApiError> {
        self.request_with_retries(Method::GET, self.url(&["pauses"])?, ANSWER).await
    }

    /// Pauses jobs. The request is not repeated: each makes a pause of its own.
    pub(crate) async fn pause_jobs(&self, request: &PauseRequest) -> Result<Pause, ApiError> {
        let url = self.url(&["pauses"])?;
        self.send_once(self.http.post(url).json(request), ANSWER).await
    }

    /// Ends a pause.
    pub(crate) async fn resume_jobs(&self, pause_id: &str) -> Result<Pause, ApiError> {
        let url = self.url(&["pauses", pause_id])?;
        self.request_once(Method::DELETE, url, ANSWER).await
    }

    /// Starts a hosted server again. Returns its state.
    pub(crate) async fn restart_server(&self, name: &str) -> Result<Value, ApiError> {
        let url = self.url(&["servers", name, "restarts"])?;
        self.request_once(Method::POST, url, SUBMITTED).await
    }

    /// Decides about a job that awaits approval.
    pub(crate) async fn decide(
        &self,
        job_id: &str,
        approve: bool,
        reason: Option<&str>,
    ) -> Result<JobView, ApiError> {
        let url = self.url(&["jobs", job_id, "decision"])?;
        let body = json!({ "approve": approve, "reason": reason });
        self.send_with_retries(self.http.post(url).json(&body), ANSWER, None).await
    }

    /// Returns how the tools of a hosted server stand to their pins.
    pub(crate) async fn pins<T: DeserializeOwned>(&self, server: &str) -> Result<T, ApiError> {
        let url = self.url(&["servers", server, "pins"])?;
        self.request_once(Method::GET, url, ANSWER).await
    }

    /// Decides about the definition of a tool that has this digest.
    pub(crate) async fn decide_pin<T: DeserializeOwned>(
        &self,
        (server, tool): (&str, &str),
        approve: bool,
        digest: &str,
        reason: Option<&str>,
    ) -> Result<T, ApiError> {
        let url = self.url(&["servers", server, "pins", tool, "decision"])?;
        let body = json!({ "approve": approve, "digest": digest, "reason": reason });
        self.send_once(self.http.post(url).json(&body), ANSWER).await
    }

    /// Submits a job again, with these changes. A request that names the new job can be repeated.
    pub(super) async fn run_again(
        &self,
        job_id: &str,
        changes: &Value,
    ) -> Result<SubmittedJobs, ApiError> {
        let request = self.http.post(self.url(&["jobs", job_id, "runs"])?).json(changes);
        self.send_with_retries(request, ANSWER, None).await
    }

    /// Like `get`, but tries only once and within `limit`.
    pub(super) async fn get_within(
        &self,
        job_id: &str,
        limit: Duration,
    ) -> Result<JobView, ApiError> {
        self.request_once(Method::GET, self.url(&["jobs", job_id])?, limit).await
    }

    /// Requests the cancellation of a job, and waits for at most `wait` seconds for the outcome.
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

        match self.request_with_retries(Method::DELETE, url, limit).await {
            // A conflict is an outcome too: the job has already ended.
            Err(ApiError::Refused(refusal)) if refusal.status == StatusCode::CONFLICT => {
                match refusal.job.clone().map(fleet_job::number::read) {
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

    /// Returns the URL of one job's events.
    pub(super) fn events_of(&self, job_id: &str) -> Result<Url, ApiError> {
        self.url(&["jobs", job_id, "events"])
    }

    /// Begins to export the jobs that match a filter, with their results.
    pub(super) async fn export(&self, filter: &JobFilter) -> Result<ExportedJobs<'_>, ApiError> {
        let mut url = self.url(&["job-exports"])?;
        url.query_pairs_mut().extend_pairs(filter.parameters());
        let response = self.open_stream(self.http.get(url)).await?;
        Ok(ExportedJobs { api: self, response, read: Vec::new() })
    }

    /// Returns the URL of the events of all jobs.
    pub(super) fn events(&self, filter: &JobFilter) -> Result<Url, ApiError> {
        let (mut url, pairs) = (self.url(&["events"])?, filter.lasting_parameters());
        if !pairs.is_empty() {
            url.query_pairs_mut().extend_pairs(pairs);
        }
        Ok(url)
    }

    /// Opens an event stream that continues after the event with this id.
    pub(super) async fn open(&self, url: Url, last_id: Option<&str>) -> Result<Response, ApiError> {
        let mut request = self.http.get(url).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }

        self.open_stream(request).await
    }

    /// Sends a request whose answer may take any time to read.
    async fn open_stream(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        let opened = tokio::time::timeout(ANSWER, request.send()).await;
        let response = opened.map_err(|_| self.lost("it did not respond in time"))?;
        let response = response.map_err(|error| self.failed(&error))?;

        if response.status().is_success() {
            return Ok(response);
        }

        let (status, retry_after) = (response.status(), retry_after(&response));
        let body = self.read_body(response).await?;
        Err(ApiError::refused(&self.name(), status, retry_after.as_deref(), &body))
    }

    /// Returns the URL with these path segments, percent-encoded as needed.
    fn url(&self, segments: &[&str]) -> Result<Url, ApiError> {
        if let Some(id) = segments.iter().find(|segment| matches!(**segment, "" | "." | "..")) {
            return Err(ApiError::Usage(format!(
                "`{id}` cannot be used in a URL; choose another name or id"
            )));
        }

        let mut url = self.base.clone();
        // This fails only for URLs without a host.
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(segments);
        }
        Ok(url)
    }

    /// Retries while the server reads its ledger, for a limited time.
    async fn request_with_retries<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        limit: Duration,
    ) -> Result<T, ApiError> {
        // Other methods may wait for jobs, so silence is normal there.
        let notice = (method == Method::GET).then(|| self.wait_notice());
        self.send_with_retries(self.http.request(method, url), limit, notice).await
    }

    /// Retries while the server reads its ledger. `notice` tells the user what for.
    async fn send_with_retries<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: Duration,
        notice: Option<WaitNotice>,
    ) -> Result<T, ApiError> {
        let (end, mut pauses) = (Instant::now() + PATIENCE, Pauses::new());
        loop {
            let attempt = request.try_clone().ok_or_else(|| self.lost("it can't be sent again"))?;
            match self.send_once(attempt, limit).await {
                Err(error) if error.is_busy() && Instant::now() < end => {
                    if let Some(notice) = &notice {
                        notice.wait_for(format!("mcp-server at {}: {error}", self.name()));
                    }
                    sleep(pauses.after(&error)).await;
                }
                other => return other,
            }
        }
    }

    async fn request_once<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        limit: Duration,
    ) -> Result<T, ApiError> {
        self.send_once(self.http.request(method, url), limit).await
    }

    async fn send_once<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let response = request.timeout(limit).send().await.map_err(|error| self.failed(&error))?;
        let (status, retry_after) = (response.status(), retry_after(&response));

        let body = self.read_body(response).await?;

        if !status.is_success() {
            return Err(ApiError::refused(&self.name(), status, retry_after.as_deref(), &body));
        }

        serde_json::from_slice(&body).map_err(|error| self.unreadable(error))
    }

    async fn read_body(&self, mut response: Response) -> Result<Vec<u8>, ApiError> {
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

/// The jobs of an export, as they arrive.
#[derive(Debug)]
pub(super) struct ExportedJobs<'a> {
    api: &'a Api,
    response: Response,
    /// What was read and not returned yet: less than a line, or several.
    read: Vec<u8>,
}

impl ExportedJobs<'_> {
    /// Returns the next job; `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<JobView>, ApiError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.read.drain(..=end).collect();
                let job = serde_json::from_slice(&line);
                return job.map(Some).map_err(|error| self.api.unreadable(error));
            }
            if self.read.len() > MAX_BODY {
                return Err(self.api.unreadable(format!("a job is larger than {MAX_BODY} bytes")));
            }

            let chunk = self.response.chunk();
            let chunk = tokio::time::timeout(ANSWER, chunk).await;
            let chunk = chunk.map_err(|_| self.api.lost("it sent nothing in time"))?;
            match chunk.map_err(|error| self.api.failed(&error))? {
                Some(chunk) => self.read.extend_from_slice(&chunk),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(self.api.lost("the answer has ended within a job")),
            }
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

    fn api(url: &str, token: Option<&str>) -> Result<Api, ApiError> {
        let base = ServerArgs::of(url).base_url().unwrap();
        Api::new(base, token, &ClientTls::default())
    }

    #[test]
    fn the_servers_name_has_no_password() {
        for (urls, expected) in [
            ("http://a:8080/mcp", "http://a:8080"),
            ("https://u:hunter2@a/x?y=1,http://b", "https://a"),
            ("http://[::1]:1,http://b", "http://[::1]:1"),
        ] {
            assert_eq!(api(urls, None).unwrap().name(), expected, "{urls}");
        }
    }

    #[test]
    fn ids_of_any_characters_are_one_segment() {
        let server = api("http://a", Some("t")).unwrap();
        let url = server.events_of("a/b c?d#e%").unwrap();
        assert_eq!(url.as_str(), "http://a/jobs/a%2Fb%20c%3Fd%23e%25/events");
        assert!(server.events_of("..").is_err());
        assert!(api("http://a", Some("a\nb")).is_err());
    }
}
