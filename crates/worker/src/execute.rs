//! Making the calls of an attempt. Dropping the future cancels the calls under way.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
use fleet_signing::JobProof;
use futures::{StreamExt as _, future::Either, stream};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    call_plan::{Call, Plan},
    call_results::{Failures, FinishedCalls, KeptResult},
    progress_pace::ProgressPace,
};

/// How much the bytes held by an attempt have to change before that is reported: little for a bound
/// of megabytes, and so much that most jobs never report.
pub(crate) const REPORTED_CHANGE: u64 = 64 << 10;

/// Everything that an attempt needs.
#[derive(Debug, Clone)]
pub(crate) struct AttemptContext {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) record: Arc<RawRecord>,
    /// How long the attempt may take.
    pub(crate) timeout: Duration,
    /// The least time between two notices of progress; `None` if nobody wants any.
    pub(crate) progress: Option<Duration>,
    /// The trace that the calls belong to.
    pub(crate) trace: TraceContext,
    /// The calls that earlier attempts have finished.
    pub(crate) done: FinishedCalls,
    /// The largest result that can be written.
    pub(crate) max_result_bytes: u64,
    /// Whether the job is still ours. While that is not known, no call is made.
    pub(crate) contact: GroupContact,
}

/// How an attempt ended.
#[derive(Debug, PartialEq)]
pub(crate) struct AttemptEnd {
    pub(crate) outcome: Result<KeptResult, Failure>,
    /// Why a call was turned away, if one was beside calls that have failed and decide the outcome.
    pub(crate) turned_away: Option<Failure>,
    /// The calls that this attempt and earlier ones have finished.
    pub(crate) done: FinishedCalls,
}

impl AttemptEnd {
    /// The end of an attempt of which nothing is known but this failure.
    pub(crate) fn failed(failure: Failure) -> Self {
        Self { outcome: Err(failure), turned_away: None, done: FinishedCalls::default() }
    }
}

/// What is reported of an attempt under way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AttemptNews {
    Progress(Progress),
    /// How many bytes its results and errors hold so far.
    HeldBytes(u64),
}

/// Makes attempt number `attempt`, and reports its news to `tell`.
///
/// # Errors
/// The calls that earlier attempts have finished, if contact with the group was lost before the
/// first call: whether the job may still start has to be decided again.
///
/// The progress of a job with one call is what the tool reports. For a job with several calls it is
/// the number of finished calls; for `server-init`, how far the current server has started counts
/// as well, because that can take half a minute.
pub(crate) async fn make_attempt(
    client: &McpClient,
    mut context: AttemptContext,
    attempt: u32,
    tell: impl Fn(AttemptNews),
) -> Result<AttemptEnd, FinishedCalls> {
    if context.contact.is_lost() {
        context.contact.regained().await;
        return Err(context.done);
    }

    let proof = JobProof::new(&context.record, &context.envelope.work);
    let mut plan = Plan::new(&context.envelope.work);
    // Arguments can be large and each call is made once, so they are moved and not copied.
    let mut arguments: Vec<_> =
        plan.calls.iter_mut().map(|call| std::mem::take(&mut call.arguments)).collect();
    let plan = plan;
    let done = std::mem::take(&mut context.done);
    let open: Vec<usize> = (0..plan.calls.len()).filter(|index| !done.contains(*index)).collect();
    let open_calls = open.len();
    let (news, mut heard) = watch::channel(None);
    let news = context.progress.filter(|_| plan.reports_calls()).map(|_| news);

    // Calls that run when another one is turned away go on: they may have effects, and an attempt
    // that is not counted would repeat them again and again.
    let turned_away = AtomicBool::new(false);
    let open = open.into_iter().take_while(|_| !turned_away.load(Ordering::Relaxed));
    let calls = open.filter_map(|index| {
        let call = plan.calls.get(index)?;
        let label = plan.has_many().then_some(index);
        let span = start_call_span(call, attempt, &context);
        let (envelope, record) = (&context.envelope, &context.record);
        let mut meta = meta::for_call(envelope, attempt, label, record, span.context());
        meta.insert(meta::SIGNED_JOB.to_owned(), proof.of_call(index));
        let request = ToolCall {
            name: call.tool.clone(),
            arguments: std::mem::take(arguments.get_mut(index)?),
            meta,
            timeout: Some(context.timeout),
            progress: news.clone(),
            input: call.input.clone(),
        };
        let contact = context.contact.clone();
        Some(async move { (index, make_call(client, call, request, contact, span).await) })
    });
    let calls = stream::iter(calls);
    let mut outcomes = pin!(match plan.parallel {
        1 => Either::Left(calls.then(|call| call)),
        parallel => Either::Right(calls.buffer_unordered(parallel)),
    });

    let deadline = tokio::time::Instant::now() + context.timeout;
    let mut tally = Tally::new(&plan, done, &context, tell);
    loop {
        let next = tokio::select! {
            // The end of a call makes news about it superfluous.
            biased;
            next = tokio::time::timeout_at(deadline, outcomes.next()) => next,
            Ok(()) = heard.changed() => {
                let news = heard.borrow_and_update().clone();
                tally.report_call(news);
                continue;
            }
            () = sleep_until(tally.pace.next_due()) => {
                tally.report_due();
                continue;
            }
        };

        match next {
            Ok(Some((index, Outcome::Succeeded(result)))) => tally.add_result(index, result),
            Ok(Some((index, Outcome::Failed(failure)))) => {
                if plan.turns_away_others(failure.class) {
                    turned_away.store(true, Ordering::Relaxed);
                }
                tally.add_failure(index, failure);
            }
            Ok(None) => break,
            Err(_) => {
                tally.add_timeout(context.timeout, open_calls);
                break;
            }
        }
        tally.report_bytes();
    }

    Ok(tally.into_end())
}

/// Makes a call, once the job is known to be ours.
async fn make_call(
    client: &McpClient,
    call: &Call,
    request: ToolCall,
    contact: GroupContact,
    span: Span,
) -> Outcome {
    contact.regained().await;
    let outcome = read_outcome(call, client.call_tool(request).await);

    if let Outcome::Failed(failure) = &outcome {
        span.fail(failure.error.kind.as_str(), &failure.error.message);
    }
    outcome
}

/// What an attempt has come to so far, and how much of that is reported.
struct Tally<'a, T> {
    plan: &'a Plan,
    /// The calls with an outcome, among them those that failed in this attempt only.
    done: FinishedCalls,
    /// The largest result that can be written.
    limit: u64,
    wants_progress: bool,
    pace: ProgressPace,
    reported_bytes: u64,
    tell: T,
}

impl<'a, T: Fn(AttemptNews)> Tally<'a, T> {
    fn new(plan: &'a Plan, done: FinishedCalls, context: &AttemptContext, tell: T) -> Self {
        Self {
            plan,
            reported_bytes: done.held_bytes(),
            done,
            limit: context.max_result_bytes,
            wants_progress: context.progress.is_some(),
            pace: ProgressPace::new(context.progress.unwrap_or_default()),
            tell,
        }
    }

    /// Adds the result of a call.
    fn add_result(&mut self, index: usize, result: Value) {
        self.done.results.insert(index, result, self.limit);

        // The last call is reported by the end of the job.
        let (done, total) = (self.done.results.len(), self.plan.calls.len());
        let is_reported = self.wants_progress && self.plan.has_many() && done < total;
        if let Some(call) = self.plan.calls.get(index).filter(|_| is_reported) {
            self.report(calls_progress(done, total, call));
        }
    }

    /// Adds the failure of a call.
    fn add_failure(&mut self, index: usize, failure: Failure) {
        self.done.failures.insert(index, failure, self.limit);
    }

    /// The attempt has taken too long.
    fn add_timeout(&mut self, timeout: Duration, open_calls: usize) {
        let is_open = |index: &usize| !self.done.contains(*index);
        let index = (0..self.plan.calls.len()).find(is_open).unwrap_or_default();
        self.done.failures.insert(index, timeout_failure(timeout, open_calls), self.limit);
    }

    /// Takes up the progress of the current call.
    fn report_call(&mut self, news: Option<fleet_mcp_client::Progress>) {
        let Some(news) = news else { return };
        let progress = self.plan.job_progress(to_job_progress(news), &self.done);
        self.report(progress);
    }

    fn report(&mut self, progress: Progress) {
        if let Some(progress) = self.pace.offer(Instant::now(), progress) {
            (self.tell)(AttemptNews::Progress(progress));
        }
    }

    /// Reports the progress that has waited for its interval.
    fn report_due(&mut self) {
        if let Some(progress) = self.pace.take_due(Instant::now()) {
            (self.tell)(AttemptNews::Progress(progress));
        }
    }

    /// Adds up the outcomes of all calls.
    fn into_end(self) -> AttemptEnd {
        let FinishedCalls { mut results, mut failures } = self.done;
        let outcome = self.plan.combine_outcomes(&mut results, &failures, self.limit);

        let counts = matches!(&outcome, Err(failure) if failure.class.spends_attempt());
        let turned_away = first_turned_away(&failures).filter(|_| counts);
        failures.retain_permanent();
        AttemptEnd { outcome, turned_away, done: FinishedCalls { results, failures } }
    }

    /// Reports how many bytes are held, if that has changed enough.
    fn report_bytes(&mut self) {
        let bytes = self.done.held_bytes();
        if bytes.abs_diff(self.reported_bytes) >= REPORTED_CHANGE {
            self.reported_bytes = bytes;
            (self.tell)(AttemptNews::HeldBytes(bytes));
        }
    }
}

/// Why a call was turned away; the first one, if there were several.
fn first_turned_away(failures: &Failures) -> Option<Failure> {
    let mut failures = failures.iter().map(|(_, failure)| failure);
    failures.find(|failure| !failure.class.spends_attempt()).cloned()
}

/// The span of a call, as OpenTelemetry's conventions for MCP clients name it.
fn start_call_span(call: &Call, attempt: u32, context: &AttemptContext) -> Span {
    Span::start(SpanKind::Client, format!("tools/call {}", call.tool), &context.trace, || {
        [
            ("mcp.method.name", "tools/call".into()),
            ("gen_ai.operation.name", "execute_tool".into()),
            ("gen_ai.tool.name", call.tool.clone().into()),
            ("fleet.job.id", context.envelope.job_id.clone().into()),
            ("fleet.job.attempt", i64::from(attempt).into()),
        ]
    })
}

/// The outcome of a call. In a task, the tool's own error is the answer that somebody waits for, so
/// it is final.
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

/// Waits until `at`, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn timeout_failure(timeout: Duration, calls: usize) -> Failure {
    let message = format!(
        "the attempt with its {calls} calls took longer than {} ms; raise timeoutMs or MCP_CALL_TIMEOUT",
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
