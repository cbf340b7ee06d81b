//! The handlers of the operations, which translate between HTTP and [`Jobs`].

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use fleet_access::Asker;
use fleet_job::{
    trace::TraceContext,
    view::{CancelOutcome, JobView, Submitted, SubmittedJobs},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Api,
    params::{CANCEL_WAIT_SECONDS, IDEMPOTENCY_KEY, JobId, Parameters, header_text},
    problem::{Problem, ProblemKind},
};
use crate::{Caller, JobRequest, Jobs, MAX_JOBS};

/// The job service and the caller of a request.
pub(super) struct ApiClient {
    pub(super) jobs: Jobs,
    pub(super) caller: Caller,
}

impl FromRequestParts<Api> for ApiClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let jobs = api.jobs.clone();
        let jobs = jobs.ok_or_else(|| {
            Problem::new(
                ProblemKind::JobsOff,
                "this server accepts no jobs; to enable them, set KAFKA_BROKERS and don't set MCP_JOBS=false",
            )
        })?;
        let asker = parts.extensions.get::<Asker>().ok_or_else(|| {
            // The layer in front of every route puts it there.
            Problem::new(ProblemKind::Internal, "nobody was authenticated for this request")
        })?;
        let caller = jobs.caller(Some(&parts.headers), asker);
        Ok(Self { jobs, caller })
    }
}

/// `POST /jobs`.
pub(super) async fn submit_jobs(
    client: ApiClient,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    require_uncompressed(&headers)?;

    let mut requests = parse_jobs(&body)?;
    if let Some(key) = header_text(&headers, IDEMPOTENCY_KEY)? {
        apply_idempotency_key(&mut requests, key)?;
    }

    // An unreadable trace context is no reason to refuse a job.
    let trace = TraceContext::find(|name| header_text(&headers, name).ok()?);
    let jobs = client.jobs.submit(requests, &client.caller, &trace).await?;

    Ok(submitted(jobs))
}

/// The answer to a submission.
pub(super) fn submitted(jobs: Vec<Submitted>) -> Response {
    let all_existed = jobs.iter().all(|job| job.existing);
    let status = if all_existed { StatusCode::OK } else { StatusCode::ACCEPTED };
    let location = match jobs.as_slice() {
        [job] => HeaderValue::try_from(format!("/jobs/{}", encode_segment(&job.job_id))).ok(),
        _ => None,
    };

    let mut response = (status, Json(SubmittedJobs { jobs })).into_response();
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// `GET /jobs`.
pub(super) async fn list_jobs(
    client: ApiClient,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let jobs = client.jobs.list(parameters.filter()?, &client.caller).await?;
    Ok(Json(jobs).into_response())
}

/// `GET /jobs/{id}`.
pub(super) async fn show_job(
    State(api): State<Api>,
    client: ApiClient,
    JobId(id): JobId,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let deadline = tokio::time::Instant::now() + parameters.wait(0)?;
    let mut watch = client.jobs.watch(&id, &client.caller);
    let mut job = watch.next().await?;
    while !job.is_terminal() {
        tokio::select! {
            next = watch.next() => job = next?,
            () = tokio::time::sleep_until(deadline) => break,
            () = api.stop.cancelled() => break,
        }
    }

    let tag = etag(watch.position(), &job);
    let known =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(str::trim);

    let headers =
        [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "private, no-cache".to_owned())];
    if known.any(|known| known == "*" || known.trim_start_matches("W/") == tag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    Ok((headers, Json(job)).into_response())
}

/// `DELETE /jobs/{id}`.
pub(super) async fn cancel_job(
    client: ApiClient,
    JobId(id): JobId,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let (wait, reason) = (parameters.wait(CANCEL_WAIT_SECONDS)?, parameters.reason()?);
    let cancellation = client.jobs.cancel(&id, &client.caller, reason.as_deref(), wait).await?;

    match cancellation.outcome {
        CancelOutcome::Cancelled => Ok(Json(cancellation).into_response()),
        CancelOutcome::Requested => Ok((StatusCode::ACCEPTED, Json(cancellation)).into_response()),
        CancelOutcome::TooLate => {
            let summary = cancellation.job.as_ref().map(JobView::summary).unwrap_or_default();
            let problem = Problem::new(
                ProblemKind::TooLate,
                format!("{summary}; it can no longer be cancelled"),
            );
            Err(match cancellation.job {
                Some(job) => problem.with_job(job),
                None => problem,
            })
        }
    }
}

/// Serves a document that does not change while the server runs.
pub(super) fn serve_document(text: &Bytes) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let cache = (header::CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    // The document contains no data, so any web page may read it; many viewers are web pages.
    let origin =
        (HeaderName::from_static("access-control-allow-origin"), HeaderValue::from_static("*"));
    ([kind, cache, origin], text.clone()).into_response()
}

/// Refuses a body whose content type is not JSON.
///
/// # Errors
///
/// Returns what it is instead.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind =
        headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" {
        return Ok(());
    }

    let found = if kind.is_empty() {
        "there is no Content-Type".to_owned()
    } else {
        format!("it is {essence}")
    };
    let detail = format!("the body must be application/json, but {found}");
    Err(Problem::new(ProblemKind::UnsupportedMediaType, detail))
}

/// Refuses a body with a content encoding.
fn require_uncompressed(headers: &HeaderMap) -> Result<(), Problem> {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    let is_plain = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| value.trim().eq_ignore_ascii_case("identity"))
    };
    match encodings.iter().find(|value| !is_plain(value)) {
        None => Ok(()),
        Some(encoding) => Err(Problem::new(
            ProblemKind::UnsupportedMediaType,
            format!(
                "the body must not be compressed, but its Content-Encoding is {}",
                String::from_utf8_lossy(encoding.as_bytes())
            ),
        )),
    }
}

/// Parses the jobs in a body: one job, an array of jobs, or an object with `jobs`.
fn parse_jobs(body: &[u8]) -> Result<Vec<JobRequest>, Problem> {
    let body: Value = serde_json::from_slice(body).map_err(|error| {
        Problem::new(ProblemKind::BadRequest, format!("the body is not JSON: {error}"))
    })?;
    let many = match body {
        Value::Array(many) => many,
        Value::Object(mut object) => match object.shift_remove("jobs") {
            None => return Ok(vec![parse_job(Value::Object(object), None)?]),
            Some(Value::Array(many)) if object.is_empty() => many,
            Some(Value::Array(_)) => {
                let detail = "give either `jobs` or the fields of one job, not both";
                return Err(Problem::new(ProblemKind::BadJob, detail));
            }
            Some(_) => {
                return Err(Problem::new(ProblemKind::BadJob, "`jobs` must be an array of jobs"));
            }
        },
        _ => {
            let detail = "the body must be a job, an array of jobs, or an object with `jobs`";
            return Err(Problem::new(ProblemKind::BadJob, detail));
        }
    };

    // Check the number before the jobs, because there can be very many.
    if !(1..=MAX_JOBS).contains(&many.len()) {
        let detail =
            format!("a request must contain 1 to {MAX_JOBS} jobs; this one has {}", many.len());
        return Err(Problem::new(ProblemKind::BadJob, detail).with_limit(MAX_JOBS));
    }

    many.into_iter().enumerate().map(|(index, job)| parse_job(job, Some(index))).collect()
}

fn parse_job(job: Value, index: Option<usize>) -> Result<JobRequest, Problem> {
    serde_path_to_error::deserialize(job).map_err(|error| {
        let location = match (index, error.path().to_string().as_str()) {
            (None, path) => describe_location("the job", path),
            (Some(index), ".") => format!("job {index}"),
            (Some(index), path) => format!("job {index}, `{path}`"),
        };
        let detail = format!("{location}: {}", error.into_inner());
        Problem::new(ProblemKind::BadJob, detail).with_index(index)
    })
}

/// Parses the JSON body of a request, of which `whole` is the name in errors.
///
/// # Errors
///
/// Returns a problem that names the part that can't be read: `bad-request` if the body is not JSON,
/// or else one of this kind.
pub fn parse_body<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &[u8],
    (whole, kind): (&str, ProblemKind),
) -> Result<T, Problem> {
    require_json(headers)?;
    require_uncompressed(headers)?;

    let body: Value = serde_json::from_slice(body).map_err(|error| {
        Problem::new(ProblemKind::BadRequest, format!("the body is not JSON: {error}"))
    })?;
    serde_path_to_error::deserialize(body).map_err(|error| {
        let location = describe_location(whole, &error.path().to_string());
        Problem::new(kind, format!("{location}: {}", error.into_inner()))
    })
}

/// Names the part of a body that can't be read.
fn describe_location(whole: &str, path: &str) -> String {
    match path {
        "." => whole.to_owned(),
        path => format!("`{path}`"),
    }
}

/// Refuses an idempotency key that no job can have.
pub(super) fn check_idempotency_key(key: &str) -> Result<(), Problem> {
    if !(1..=fleet_job::envelope::MAX_ID_BYTES).contains(&key.len()) {
        return Err(Problem::parameter(IDEMPOTENCY_KEY, "must be 1 to 256 bytes long"));
    }
    Ok(())
}

/// Applies the idempotency key of the header to the one job of the request.
fn apply_idempotency_key(requests: &mut [JobRequest], key: &str) -> Result<(), Problem> {
    check_idempotency_key(key)?;

    match requests {
        [job] => {
            job.idempotency_key.get_or_insert_with(|| key.to_owned());
            Ok(())
        }
        // Ignoring the key would submit all jobs again if the request is repeated.
        _ => {
            let detail = format!(
                "`{IDEMPOTENCY_KEY}` works for a single job; give each of several jobs its own `idempotencyKey`"
            );
            Err(Problem::new(ProblemKind::BadJob, detail))
        }
    }
}

/// Returns a tag that changes with every state of a job, and with a cancel request.
fn etag(position: Option<(i32, i64)>, job: &JobView) -> String {
    let (partition, offset) = position.unwrap_or_default();
    let cancel = if job.cancel_requested_at.is_some() { "-cancel" } else { "" };
    format!("\"{partition}-{offset}{cancel}\"")
}

/// Percent-encodes an id as one segment of a path.
fn encode_segment(id: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    id.bytes()
        .map(
            |byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(body: &str, detail: &str) {
        let problem = serde_json::to_value(parse_jobs(body.as_bytes()).expect_err(body)).unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{body}: {problem}");
    }

    #[test]
    fn a_body_contains_one_job_or_many() {
        let count = |body: Value| parse_jobs(body.to_string().as_bytes()).unwrap().len();
        let job = || json!({"tool": "t"});
        assert_eq!(count(job()), 1);
        assert_eq!(count(json!([job(), job()])), 2);
        assert_eq!(count(json!({"jobs": [job(), job(), job()]})), 3);
    }

    #[test]
    fn errors_name_their_location_in_the_body() {
        check("{", "not JSON: EOF while parsing an object at line 1 column 1");
        check("3", "must be a job, an array");
        check("[]", "1 to 1000 jobs; this one has 0");
        check(r#"{"jobs":[{"tool":"t"}],"tool":"t"}"#, "not both");
        check(r#"{"jobs":3}"#, "`jobs` must be an array");
        check(r#"{"tool":"t","key":7}"#, "`key`: invalid type: number");
        check(
            r#"[{"tool":"t"},{"calls":[{"tool":"t"},{"tool":7}]}]"#,
            "job 1, `calls[1].tool`: invalid type",
        );
        check(r#"[{"tool":"t"},7]"#, "job 1: invalid type");
    }

    #[test]
    fn a_key_in_the_header_is_for_one_job_and_does_not_replace_its_own() {
        let mut jobs = parse_jobs(br#"[{"tool":"t"}]"#).unwrap();
        apply_idempotency_key(&mut jobs, "k").unwrap();
        apply_idempotency_key(&mut jobs, "another").unwrap();
        assert_eq!(jobs[0].idempotency_key.as_deref(), Some("k"));
        apply_idempotency_key(&mut jobs, "").unwrap_err();
        apply_idempotency_key(&mut parse_jobs(br#"[{"tool":"t"},{"tool":"t"}]"#).unwrap(), "k")
            .unwrap_err();
    }

    #[test]
    fn ids_are_encoded_as_one_segment() {
        assert_eq!(encode_segment("mcp-jobs/0/17"), "mcp-jobs%2F0%2F17");
        assert_eq!(encode_segment("ä?#%.~"), "%C3%A4%3F%23%25.~");
    }
}
