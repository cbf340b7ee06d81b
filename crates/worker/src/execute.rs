//! Making the calls of one attempt. Dropping the future cancels the calls that are under way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_job::{
    envelope::Envelope,
    meta,
    outcome::{ErrorKind, Failure, JobError, Outcome},
    record::RawRecord,
};
use fleet_mcp_client::{McpClient, ToolCall};
use futures::{StreamExt as _, stream};
use serde_json::Value;

use crate::plan::Plan;

/// A job with everything that an attempt needs.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) record: Arc<RawRecord>,
    /// How long the attempt may take.
    pub(crate) timeout: Duration,
    /// What earlier attempts have done already, by index of the call.
    pub(crate) done: BTreeMap<usize, Value>,
}

/// Makes attempt number `attempt`. Returns the outcome, and what is done now.
pub(crate) async fn attempt(client: &McpClient, job: Job, attempt: u32) -> (Outcome, BTreeMap<usize, Value>) {
    let plan = Plan::new(&job.envelope.work);
    let mut done = job.done;
    let mut failures = BTreeMap::new();
    let open: Vec<usize> = (0..plan.calls.len()).filter(|index| !done.contains_key(index)).collect();
    let total = open.len();
    let calls = open.into_iter().filter_map(|index| {
        let call = plan.calls.get(index)?;
        let label = plan.has_many().then_some(index);
        let request = ToolCall {
            name: call.tool.clone(),
            arguments: call.arguments.clone(),
            meta: meta::for_call(&job.envelope, attempt, label, &job.record),
            timeout: Some(job.timeout),
            progress: None,
        };
        Some(async move { (index, client.call_tool(request).await) })
    });
    let mut outcomes = stream::iter(calls).buffer_unordered(plan.parallel);
    let deadline = tokio::time::Instant::now() + job.timeout;
    loop {
        match tokio::time::timeout_at(deadline, outcomes.next()).await {
            Ok(Some((index, Outcome::Succeeded(result)))) => {
                done.insert(index, result);
            }
            Ok(Some((index, Outcome::Failed(failure)))) => {
                let unavailable = !failure.class.spends_attempt();
                failures.insert(index, failure);
                // Without a server the other calls would only meet the same.
                if unavailable {
                    break;
                }
            }
            Ok(None) => break,
            Err(_) => {
                let index = (0..plan.calls.len())
                    .find(|index| !done.contains_key(index) && !failures.contains_key(index));
                failures.insert(index.unwrap_or_default(), timed_out(job.timeout, total));
                break;
            }
        }
    }
    drop(outcomes);
    (plan.combine(&done, failures), done)
}

fn timed_out(timeout: Duration, calls: usize) -> Failure {
    let message = format!(
        "the attempt with its {calls} calls took longer than {} ms: raise timeoutMs or MCP_CALL_TIMEOUT",
        timeout.as_millis()
    );
    Failure::retry(JobError::new(ErrorKind::Timeout, message))
}
