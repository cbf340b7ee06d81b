//! Making the calls of one attempt. Dropping the future cancels the calls that are under way.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::{
    envelope::Envelope,
    event::Progress,
    meta,
    outcome::{ErrorKind, Failure, FailureClass, JobError, Outcome},
    record::RawRecord,
    trace::TraceContext,
};
use fleet_kafka::consumer::GroupContact;
use fleet_mcp_client::{McpClient, ToolCall};
use fleet_ops::trace::{Span, SpanKind};
use futures::{StreamExt as _, future::Either, stream};
use tokio::sync::watch;

use crate::{
    call_plan::{Call, Plan},
    call_results::{Failures, KeptResult, Results},
    progress_pace::ProgressPace,
};

/// What is held is told of when it has changed by so many bytes: small enough for a bound of
/// megabytes, and large enough that most jobs never tell.
pub(crate) const REPORTED_CHANGE: u64 = 64 << 10;

/// A job with everything that an attempt needs.
#[derive(Debug, Clone)]
pub(crate) struct AttemptContext {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) record: Arc<RawRecord>,
    /// How long the attempt may take.
    pub(crate) timeout: Duration,
    /// The least time between two notices of progress; `None` where nobody wants any.
    pub(crate) progress: Option<Duration>,
    /// The trace that the calls belong to.
    pub(crate) trace: TraceContext,
    /// What earlier attempts have done already.
    pub(crate) done: Results,
    /// The largest result that can be written.
    pub(crate) max_result_bytes: u64,
    /// Whether the job is still ours. No call is made while that is not known.
    pub(crate) contact: GroupContact,
}

/// What is told of an attempt while it is under way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AttemptNews {
    Progress(Progress),
    /// How many bytes the results and errors hold that it has so far.
    HeldBytes(u64),
}

/// Makes attempt number `attempt`, and tells of it. Returns the outcome, and what is done now. The
/// outcome is `None` if contact with the group was lost before the first call: whether the job may
/// still start has to be decided again.
///
/// The progress of a job with one call is what the tool says; of a job with several it is how many
/// of them are done, and for `server-init` how far the start of the next server is, since that can
/// take half a minute.
pub(crate) async fn make_attempt(
    client: &McpClient,
    mut job: AttemptContext,
    attempt: u32,
    tell: impl Fn(AttemptNews),
) -> (Option<Result<KeptResult, Failure>>, Results) {
    if job.contact.is_lost() {
        job.contact.regained().await;
        return (None, job.done);
    }
    let mut plan = Plan::new(&job.envelope.work);
    // Each call is made once, and its arguments can be large.
    let mut arguments: Vec<_> =
        plan.calls.iter_mut().map(|call| std::mem::take(&mut call.arguments)).collect();
    let plan = plan;
    let mut done = std::mem::take(&mut job.done);
    let mut failures = Failures::default();
    let limit = job.max_result_bytes;
    let mut told_bytes = done.held_bytes();
    let open: Vec<usize> = (0..plan.calls.len()).filter(|index| !done.contains(*index)).collect();
    let total = open.len();
    let (news, mut heard) = watch::channel(None);
    let news = job.progress.filter(|_| plan.reports_calls()).map(|_| news);
    let calls = open.into_iter().filter_map(|index| {
        let call = plan.calls.get(index)?;
        let label = plan.has_many().then_some(index);
        let span = start_call_span(call, attempt, &job);
        let request = ToolCall {
            name: call.tool.clone(),
            arguments: std::mem::take(arguments.get_mut(index)?),
            meta: meta::for_call(&job.envelope, attempt, label, &job.record, span.context()),
            timeout: Some(job.timeout),
            progress: news.clone(),
            input: call.input.clone(),
        };
        let contact = job.contact.clone();
        Some(async move {
            contact.regained().await;
            let outcome = read_outcome(call, client.call_tool(request).await);
            if let Outcome::Failed(failure) = &outcome {
                span.fail(failure.error.kind.as_str(), &failure.error.message);
            }
            (index, outcome)
        })
    });
    let calls = stream::iter(calls);
    let mut outcomes = pin!(match plan.parallel {
        1 => Either::Left(calls.then(|call| call)),
        parallel => Either::Right(calls.buffer_unordered(parallel)),
    });
    let deadline = tokio::time::Instant::now() + job.timeout;
    let mut pace = ProgressPace::new(job.progress.unwrap_or_default());
    loop {
        let next = tokio::select! {
            // An end goes before news, which it makes superfluous.
            biased;
            next = tokio::time::timeout_at(deadline, outcomes.next()) => next,
            Ok(()) = heard.changed() => {
                let news = heard.borrow_and_update().clone();
                let news = news.map(|news| plan.job_progress(to_job_progress(news), &done, &failures));
                news.and_then(|news| pace.offer(Instant::now(), news)).map(AttemptNews::Progress).into_iter().for_each(&tell);
                continue;
            }
            () = sleep_until(pace.next_due()) => {
                pace.take_due(Instant::now()).map(AttemptNews::Progress).into_iter().for_each(&tell);
                continue;
            }
        };
        match next {
            Ok(Some((index, Outcome::Succeeded(result)))) => {
                done.insert(index, result, limit);
                // Of the last one the job's end will tell.
                let wanted =
                    job.progress.is_some() && plan.has_many() && done.len() < plan.calls.len();
                if let Some(call) = plan.calls.get(index).filter(|_| wanted) {
                    let progress = calls_progress(done.len(), plan.calls.len(), call);
                    pace.offer(Instant::now(), progress)
                        .map(AttemptNews::Progress)
                        .into_iter()
                        .for_each(&tell);
                }
            }
            Ok(Some((index, Outcome::Failed(failure)))) => {
                let unavailable = !failure.class.spends_attempt();
                failures.insert(index, failure, limit);
                // Without a server the other calls would only meet the same.
                if unavailable {
                    break;
                }
            }
            Ok(None) => break,
            Err(_) => {
                let index = (0..plan.calls.len())
                    .find(|index| !done.contains(*index) && !failures.contains(*index));
                failures.insert(
                    index.unwrap_or_default(),
                    timeout_failure(job.timeout, total),
                    limit,
                );
                break;
            }
        }

        let holds = done.held_bytes() + failures.held_bytes();
        if holds.abs_diff(told_bytes) >= REPORTED_CHANGE {
            told_bytes = holds;
            tell(AttemptNews::HeldBytes(holds));
        }
    }
    let outcome = plan.combine_outcomes(&mut done, failures, limit);
    (Some(outcome), done)
}

/// The span of a call, as OpenTelemetry's conventions for MCP clients name it.
fn start_call_span(call: &Call, attempt: u32, job: &AttemptContext) -> Span {
    Span::start(SpanKind::Client, format!("tools/call {}", call.tool), &job.trace, || {
        [
            ("mcp.method.name", "tools/call".into()),
            ("gen_ai.operation.name", "execute_tool".into()),
            ("gen_ai.tool.name", call.tool.clone().into()),
            ("fleet.job.id", job.envelope.job_id.clone().into()),
            ("fleet.job.attempt", i64::from(attempt).into()),
        ]
    })
}

/// What a call came to. In a task the tool's own error is the answer that somebody waits for, and
/// not one to be tried again.
fn read_outcome(call: &Call, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failed(failure)
            if call.input.is_some() && failure.error.kind == ErrorKind::Tool =>
        {
            Outcome::Failed(Failure {
                class: FailureClass::Permanent,
                retry_after: None,
                ..failure
            })
        }
        other => other,
    }
}

fn to_job_progress(news: fleet_mcp_client::Progress) -> Progress {
    Progress { progress: news.progress, total: news.total, message: news.message }
}

fn calls_progress(done: usize, total: usize, last: &Call) -> Progress {
    Progress { progress: done as f64, total: Some(total as f64), message: Some(last.label.clone()) }
}

/// Waits until then, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn timeout_failure(timeout: Duration, calls: usize) -> Failure {
    let message = format!(
        "the attempt with its {calls} calls took longer than {} ms: raise timeoutMs or MCP_CALL_TIMEOUT",
        timeout.as_millis()
    );
    Failure::retry(JobError::new(ErrorKind::Timeout, message))
}

#[cfg(test)]
mod tests {
    use fleet_mcp_client::Input;

    use super::*;

    #[test]
    fn an_error_of_the_tools_is_the_answer_of_a_task() {
        let call = |input| Call {
            tool: "t".into(),
            arguments: Default::default(),
            input,
            label: "t".into(),
        };
        let tools = || Outcome::Failed(Failure::retry(JobError::new(ErrorKind::Tool, "no")));
        let class = |outcome| match outcome {
            Outcome::Failed(failure) => failure.class,
            Outcome::Succeeded(_) => panic!("it has failed"),
        };
        assert_eq!(class(read_outcome(&call(None), tools())), FailureClass::Retry);
        let task = call(Some(Input::default()));
        assert_eq!(class(read_outcome(&task, tools())), FailureClass::Permanent);
        let lost =
            Outcome::Failed(Failure::retry(JobError::new(ErrorKind::ConnectionLost, "lost")));
        assert_eq!(
            class(read_outcome(&task, lost)),
            FailureClass::Retry,
            "the tool has not said anything"
        );
    }
}
