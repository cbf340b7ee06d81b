//! Which calls a job makes, and what their outcomes add up to. Pure: [`execute`](crate::execute)
//! makes the calls.

use fleet_job::{
    envelope::{TaskRound, Work},
    event::{Progress, ResultOmitted},
    outcome::{Failure, FailureClass, JobError, WaitReason},
    size::json_bytes,
};
use fleet_mcp_client::Input;
use serde_json::{Map, Value, json};

use crate::call_results::{Failures, FinishedCalls, KeptResult, Results};

/// One call to make.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    /// The tool's full name.
    pub(crate) tool: String,
    pub(crate) arguments: Map<String, Value>,
    /// What the tool may ask for, if somebody who can answer waits for the call.
    pub(crate) input: Option<Input>,
    /// The name of the call in a result with several: that of the server or of the tool.
    pub(crate) label: String,
}

/// All calls of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) calls: Vec<Call>,
    pub(crate) parallel: usize,
    shape: Shape,
}

/// How the results are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The result of the only call.
    Single,
    /// `{"servers": {name: result}}`
    Servers,
    /// `{"calls": [result]}`
    Batch,
}

impl Plan {
    /// The calls that `work` asks for.
    pub(crate) fn new(work: &Work) -> Self {
        let (shape, parallel) = match work {
            Work::ToolCall(_) => (Shape::Single, 1),
            Work::ToolBatch(batch) => (Shape::Batch, batch.parallel.unwrap_or(1).max(1) as usize),
            Work::ServerInit(_) => (Shape::Servers, 1),
        };
        let calls = work.calls().map(|call| Call {
            tool: call.tool.into_owned(),
            arguments: call.arguments.into_owned(),
            input: call.round.map(task_input),
            label: call.label.into_owned(),
        });
        Self { calls: calls.collect(), parallel, shape }
    }

    /// Whether the calls have to be told apart, for example in idempotency keys.
    pub(crate) fn has_many(&self) -> bool {
        self.shape != Shape::Single
    }

    /// Whether calls that have not started would be turned away in the same way as one that failed
    /// like this. Each call of a `server-init` is about a server of its own.
    pub(crate) fn turns_away_others(&self, class: FailureClass) -> bool {
        match class {
            FailureClass::Held(
                WaitReason::ServerUnavailable | WaitReason::UpstreamUnauthorized,
            ) => self.shape != Shape::Servers,
            class => !class.spends_attempt(),
        }
    }

    /// Whether the progress of a call is progress of the job. In a batch it is not, because its
    /// calls may run in parallel.
    pub(crate) fn reports_calls(&self) -> bool {
        matches!(self.shape, Shape::Single | Shape::Servers)
    }

    /// The progress of the job if the current call has come as far as `of_call`. Calls that report
    /// progress run one after another.
    pub(crate) fn job_progress(&self, of_call: Progress, done: &FinishedCalls) -> Progress {
        if self.calls.len() == 1 {
            return of_call;
        }

        let is_open = |index: &usize| !done.contains(*index);
        let current = (0..self.calls.len()).find(is_open).and_then(|index| self.calls.get(index));
        let label = current.map_or("", |call| &*call.label);
        let message = of_call
            .message
            .map_or_else(|| label.to_owned(), |message| format!("{label}: {message}"));

        // A call that is still running is not done, whatever it reports.
        let total = of_call.total.filter(|total| *total > 0.0);
        let part = total.map_or(0.0, |total| (of_call.progress / total).clamp(0.0, 0.99));
        let progress = done.results.len() as f64 + part;
        Progress { progress, total: Some(self.calls.len() as f64), message: Some(message) }
    }

    /// The outcome of the attempt, given the results so far and this attempt's failures. Takes the
    /// results if all calls have one. A result of more than `limit` bytes is left out, and so are
    /// the details of an error.
    ///
    /// A job is tried again as long as any of its calls can still succeed, even if another call has
    /// failed for good, so that everything that can be done is done. A call that has failed and can
    /// be retried goes first: it has run, so the attempt counts, and the job is tried again after
    /// its own backoff, even if other calls were turned away. Otherwise each scout that asks about
    /// an outage would repeat that call, as often as the outage lasts. Without such a call, an
    /// outage, which is nobody's fault, goes before failures for good.
    pub(crate) fn combine_outcomes(
        &self,
        results: &mut Results,
        failures: &Failures,
        limit: u64,
    ) -> Result<KeptResult, Failure> {
        let rank = |class| match class {
            FailureClass::Retry => 0,
            FailureClass::Unavailable => 1,
            FailureClass::Held(_) => 2,
            FailureClass::Permanent => 3,
        };
        let worst = failures.iter().min_by_key(|(_, failure)| rank(failure.class));
        let Some((index, worst)) = worst else {
            return Ok(self.build_result(std::mem::take(results), limit));
        };
        if !self.has_many() {
            return Err(worst.clone());
        }

        let outline = self.build_outline(results, failures, limit);
        let alike = failures.iter().filter(|(_, other)| rank(other.class) == rank(worst.class));
        let retry_after = alike.filter_map(|(_, failure)| failure.retry_after).max();
        let (total, failed) = (self.calls.len(), self.calls.len() - results.len());
        let worst = worst.clone();
        let label = self.calls.get(index).map_or("", |call| &*call.label);
        let message =
            format!("{failed} of {total} calls failed; `{label}`: {}", worst.error.message);
        let error = JobError { message, data: outline, ..worst.error };
        Err(Failure { error, retry_after, ..worst })
    }

    /// The outcome of each call, for the details of the job's error, unless it is too large to be
    /// written.
    fn build_outline(&self, results: &Results, failures: &Failures, limit: u64) -> Option<Value> {
        let is_too_large = results.held_bytes().saturating_add(failures.held_bytes()) > limit;
        if is_too_large || results.omitted_bytes().is_some() || failures.is_clipped() {
            return None;
        }

        let entry = |(index, call): (usize, &Call)| {
            let mut entry = Map::from_iter([("call".to_owned(), Value::from(&*call.label))]);
            match (results.get(index), failures.get(index)) {
                (Some(result), _) => entry.insert("result".to_owned(), result.clone()),
                (None, Some(failure)) => entry.insert("error".to_owned(), json!(failure.error)),
                (None, None) => entry.insert("error".to_owned(), "not tried".into()),
            };
            Value::Object(entry)
        };
        Some(self.calls.iter().enumerate().map(entry).collect::<Vec<_>>().into())
    }

    /// The result of a job whose calls have all succeeded.
    fn build_result(&self, mut results: Results, limit: u64) -> KeptResult {
        let (held, omitted) = (results.held_bytes(), results.omitted_bytes());
        if self.shape == Shape::Single && omitted.is_none() {
            return KeptResult::Whole { result: results.take(0).unwrap_or_default(), bytes: held };
        }

        let framed = self.frame_results(|index| results.take(index).unwrap_or_default());
        let Some(bytes) = omitted else { return KeptResult::within(framed, limit) };

        // The frame has `null` in the place of each result.
        let frame = json_bytes(&framed).saturating_sub(4 * results.len() as u64);
        KeptResult::Omitted(ResultOmitted {
            bytes: bytes.saturating_add(frame),
            limit_bytes: limit,
        })
    }

    /// The results of the calls, in the shape of the job's result.
    fn frame_results(&self, mut result: impl FnMut(usize) -> Value) -> Value {
        let calls = self.calls.iter().enumerate();
        match self.shape {
            Shape::Single => result(0),
            Shape::Batch => {
                let calls =
                    calls.map(|(index, call)| json!({"tool": call.tool, "result": result(index)}));
                json!({"calls": calls.collect::<Vec<_>>()})
            }
            Shape::Servers => {
                let servers = calls.map(|(index, call)| (call.label.clone(), result(index)));
                json!({"servers": servers.collect::<Map<_, _>>()})
            }
        }
    }
}

fn task_input(round: &TaskRound) -> Input {
    Input {
        client_capabilities: round.client_capabilities.clone(),
        responses: round.input_responses.clone(),
        request_state: round.request_state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_job::{decode, outcome::ErrorKind};

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn plan(job_type: &str, payload: Value) -> Plan {
        let text = json!({"jobID": "j", "jobType": job_type, "payload": payload}).to_string();
        Plan::new(&decode::from_json(text.as_bytes()).unwrap().work)
    }

    fn failure(class: FailureClass, message: &str) -> Failure {
        Failure { class, ..Failure::retry(JobError::new(ErrorKind::Tool, message)) }
    }

    #[test]
    fn a_call_of_a_hosted_server_has_the_offered_name() {
        let plan =
            plan("tool-call", json!({"server": "fs", "tool": "read", "arguments": {"p": 1}}));
        assert_eq!(plan.calls[0].tool, "fs__read");
        assert!(!plan.has_many() && plan.calls[0].input.is_none());
    }

    #[test]
    fn only_a_single_call_can_ask() {
        let call = json!({"tool": "t", "task": {"clientCapabilities": {"elicitation": {}}, "requestState": "s"}});
        let input = plan("tool-call", call.clone()).calls[0].input.clone().unwrap();

        assert_eq!(input.request_state.as_deref(), Some("s"));
        assert!(
            input.client_capabilities.contains_key("elicitation") && input.responses.is_empty()
        );
        assert_eq!(plan("tool-batch", json!({"calls": [call]})).calls[0].input, None);
    }

    #[test]
    fn every_server_is_initialised_under_its_name() {
        let plan = plan(
            "server-init",
            json!({"mcpServers": {"a": {"command": "x"}, "b": {"url": "http://b"}}}),
        );
        assert!(plan.calls.iter().all(|call| call.tool == "server_initialize"));
        assert_eq!(plan.calls[1].arguments["name"], "b");

        let mut results = Results::from([(0, json!(1)), (1, json!(2))]);
        let combined = plan.combine_outcomes(&mut results, &Failures::default(), LIMIT);
        let Ok(KeptResult::Whole { result, .. }) = combined else { panic!("{combined:?}") };
        assert_eq!(result, json!({"servers": {"a": 1, "b": 2}}));
        assert_eq!(results, Results::default(), "they are not held twice");
    }

    #[test]
    fn entries_that_can_not_be_read_are_left_to_the_server_and_hide_no_others() {
        let plan = plan(
            "server-init",
            json!({"mcp": {"servers": {"bad": {"command": 7}, "good": {"command": "x"}, "off": {"enabled": false}}}}),
        );

        let labels: Vec<_> = plan.calls.iter().map(|call| &*call.label).collect();
        assert_eq!(labels, ["bad", "good", "off"]);
        assert_eq!(plan.calls[2].arguments["config"], json!({"enabled": false}));
    }

    #[test]
    fn what_may_still_succeed_decides_and_everything_is_told() {
        let plan = plan(
            "tool-batch",
            json!({"calls": [{"tool": "a"}, {"tool": "b"}, {"tool": "c"}], "parallel": 2}),
        );
        let mut results = Results::from([(0, json!("done"))]);
        let mut failures = Failures::from([
            (1, failure(FailureClass::Permanent, "never")),
            (2, failure(FailureClass::Retry, "later")),
        ]);

        let combined = plan.combine_outcomes(&mut results, &failures, LIMIT).unwrap_err();
        assert_eq!(combined.class, FailureClass::Retry);
        assert_eq!(combined.error.message, "2 of 3 calls failed; `c`: later");
        assert_eq!(combined.error.data.unwrap()[0]["result"], "done");

        failures.retain_permanent();
        failures.insert(2, failure(FailureClass::Unavailable, "away"), LIMIT);
        let combined = plan.combine_outcomes(&mut results, &failures, LIMIT).unwrap_err();
        assert_eq!(combined.class, FailureClass::Unavailable, "it may still succeed");
    }

    #[test]
    fn a_call_that_has_run_and_failed_counts_beside_those_that_were_turned_away() {
        let plan = plan(
            "tool-batch",
            json!({"calls": [{"tool": "a"}, {"tool": "b"}, {"tool": "c"}], "parallel": 3}),
        );
        let wish = |failure: Failure, secs| Failure {
            retry_after: Some(Duration::from_secs(secs)),
            ..failure
        };
        let held = FailureClass::Held(WaitReason::ServerUnavailable);
        let failures = Failures::from([
            (0, wish(failure(held, "waits"), 60)),
            (1, failure(FailureClass::Unavailable, "away")),
            (2, wish(failure(FailureClass::Retry, "failed"), 2)),
        ]);

        let combined =
            plan.combine_outcomes(&mut Results::default(), &failures, LIMIT).unwrap_err();
        assert_eq!(combined.class, FailureClass::Retry);
        assert_eq!(combined.retry_after, Some(Duration::from_secs(2)), "its own delay");
    }

    #[test]
    fn a_result_that_is_left_out_has_the_size_that_it_would_have() {
        let batch = plan("tool-batch", json!({"calls": [{"tool": "a"}, {"tool": "b"}]}));
        let of = |limit: u64| {
            let mut results = Results::default();
            results.insert(0, json!({"text": "x".repeat(300)}), limit);
            results.insert(1, json!("y".repeat(300)), limit);
            batch.combine_outcomes(&mut results, &Failures::default(), limit).unwrap()
        };
        let KeptResult::Whole { result: whole, .. } = of(LIMIT) else { panic!("it fits") };

        for limit in [400, 620] {
            let expected = ResultOmitted { bytes: json_bytes(&whole), limit_bytes: limit };
            assert_eq!(of(limit), KeptResult::Omitted(expected), "{limit}");
        }
    }

    #[test]
    fn the_start_of_a_server_is_news_of_its_job() {
        let at = |progress: f64, total| Progress {
            progress,
            total,
            message: Some("waiting".to_owned()),
        };
        let one = plan("server-init", json!({"mcpServers": {"a": {"command": "x"}}}));
        assert!(one.reports_calls());
        assert_eq!(
            one.job_progress(at(3.0, Some(30.0)), &FinishedCalls::default()),
            at(3.0, Some(30.0))
        );

        let two = plan(
            "server-init",
            json!({"mcpServers": {"a": {"command": "x"}, "b": {"command": "y"}}}),
        );

        let none = FinishedCalls::default();
        let done =
            FinishedCalls { results: Results::from([(0, Value::Null)]), ..Default::default() };
        let check = |news: Progress, done: &FinishedCalls, expected: f64, message: &str| {
            let progress = two.job_progress(news, done);
            assert_eq!((progress.progress, progress.total), (expected, Some(2.0)));
            assert_eq!(progress.message.as_deref(), Some(message));
        };

        check(at(15.0, Some(30.0)), &none, 0.5, "a: waiting");
        check(at(15.0, Some(30.0)), &done, 1.5, "b: waiting");
        check(at(40.0, Some(30.0)), &done, 1.99, "b: waiting");
        check(at(40.0, None), &done, 1.0, "b: waiting");

        let batch = plan("tool-batch", json!({"calls": [{"tool": "a"}]}));
        assert!(!batch.reports_calls());
    }
}
