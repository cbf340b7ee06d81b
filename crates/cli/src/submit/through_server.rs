//! Submits jobs through an mcp-server, which recognises those that were submitted before, and waits
//! for them there.

use std::{collections::HashSet, time::Duration};

use fleet_job::view::Submitted;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Submission, check, kafka::progress_bar, requested::Job};
use crate::{
    error::CliError,
    job_end::{EndPrinter, WaitResult},
    jobs::{
        api::Api,
        wait::{JobWaits, WaitEnd},
    },
    output,
    server_args::ServerArgs,
};

/// The most jobs in a request; servers accept a thousand.
const MAX_JOBS: usize = 500;
/// The most bytes of jobs in a request with several; servers accept four MiB.
const MAX_BYTES: usize = 1 << 20;

/// Submits jobs and, if `wait` is set, waits for their ends. With `checked`, tools that the server
/// does not know are an error before anything is submitted.
pub(super) async fn submit(
    args: &ServerArgs,
    jobs: &[Job],
    checked: bool,
    wait: Option<(EndPrinter, Duration)>,
    stop: CancellationToken,
) -> Result<Submission, CliError> {
    let api = args.api()?;
    if checked {
        let server = args.mcp()?;
        check::check_tools(&server, jobs).await?;
        server.close().await;
    }

    let deadline = wait.as_ref().map(|(_, timeout)| Instant::now() + *timeout);
    let submitted = send_jobs(&api, jobs).await?;
    let existing = submitted.iter().filter(|job| job.existing).count();
    let (Some((printer, _)), Some(deadline)) = (wait, deadline) else {
        return Ok(Submission::Written { to: api.name(), existing: Some(submitted) });
    };

    // A file may name a job twice.
    let mut seen = HashSet::new();
    let ids: Vec<_> =
        submitted.iter().map(|job| &job.job_id).filter(|id| seen.insert(*id)).collect();
    let waiting = JobWaits::new(api, deadline, ids.len());
    let ends = tokio::select! {
        ends = waiting.wait_for_all(&ids, &printer) => ends,
        () = stop.cancelled() => {
            waiting.clear();
            return Ok(Submission::Interrupted { open: None });
        }
    };
    waiting.clear();

    let mut waited = WaitResult::of(ids.len());
    waited.existing = Some(existing);
    for end in &ends {
        if let WaitEnd::Ended(job) = end {
            waited.add_end(&job.event);
        }
    }
    Ok(Submission::Waited(waited))
}

/// Sends the jobs in order, many in each request.
async fn send_jobs(api: &Api, jobs: &[Job]) -> Result<Vec<Submitted>, CliError> {
    let bar = progress_bar(jobs.len(), "submitting");
    let mut submitted = Vec::with_capacity(jobs.len());
    for batch in batches(jobs.iter().map(request_of)) {
        let answer = api.submit(&batch).await;
        let answer = answer.inspect_err(|_| {
            bar.finish_and_clear();
            if !submitted.is_empty() {
                output::problem(&format!(
                    "the first {} of {} jobs were submitted before this error; the same command \
                     recognises them",
                    submitted.len(),
                    jobs.len()
                ));
            }
        })?;
        bar.inc(batch.len() as u64);
        submitted.extend(answer.jobs);
    }
    bar.finish_and_clear();
    Ok(submitted)
}

/// Returns the request for a job: its envelope, and the key of its record.
fn request_of(job: &Job) -> Value {
    let mut request = job.envelope.to_json();
    if let Some(key) = &job.key {
        request["key"] = key.as_str().into();
    }
    request
}

/// Divides requests into those of one body each.
fn batches(requests: impl Iterator<Item = Value>) -> Vec<Vec<Value>> {
    let mut batches: Vec<Vec<Value>> = Vec::new();
    let mut room = 0;
    for request in requests {
        let bytes = request.to_string().len();
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_JOBS && bytes <= room => {
                room -= bytes;
                batch.push(request);
            }
            _ => {
                room = MAX_BYTES.saturating_sub(bytes);
                batches.push(vec![request]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use fleet_job::decode;
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_divided_by_count_and_size() {
        let sizes = |requests: Vec<Value>| {
            batches(requests.into_iter()).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(vec![json!(1); 1200]), [500, 500, 200]);
        let large = || json!("x".repeat(MAX_BYTES / 2));
        assert_eq!(sizes(vec![large(), json!(1), large(), large()]), [2, 1, 1]);
        assert_eq!(sizes(vec![json!("x".repeat(2 * MAX_BYTES)), json!(1)]), [1, 1]);
        assert_eq!(sizes(Vec::new()), [0; 0]);
    }

    #[test]
    fn a_request_is_the_envelope_with_the_key_of_its_record() {
        let text = br#"{"jobID":"j","jobType":"tool-call","payload":{"tool":"t"},"tenant":"a"}"#;
        let mut job = Job { envelope: decode::from_json(text).unwrap(), key: None };
        assert_eq!(request_of(&job).get("key"), None);
        job.key = Some("k".to_owned());
        let request = request_of(&job);
        assert_eq!((&request["key"], &request["tenant"]), (&json!("k"), &json!("a")));
        assert_eq!(request["jobType"], "tool-call");
    }
}
