//! MCP tasks (SEP-2663, `io.modelcontextprotocol/tasks`) as jobs: a call of a long-running tool
//! becomes a job before it is answered, and every replica can report its state.
//!
//! A task's id is random and not stored anywhere: the job's id is a digest of the task's id and the
//! caller's credentials. So only somebody who was given the id can find the task, and only with the
//! same credentials.

use std::{sync::Arc, time::Duration};

use fleet_access::{Action, Asker};
use fleet_job::{
    decode,
    envelope::{Envelope, MAX_TIMEOUT_MS, TaskRound, ToolCall, Work},
    event::{JobEvent, JobState, RESULT_OMITTED},
    glob::Glob,
    number,
    outcome::ErrorKind,
    record::SIGNATURE_HEADER,
    time::Timestamp,
    trace::TraceContext,
    view::{JobView, tool_result},
};
use fleet_kafka::reader;
use fleet_ledger::{Known, Update};
use fleet_ops::blocking::run_blocking;
use futures::{FutureExt as _, Stream, stream::unfold};
use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, CreateTaskResult, DetailedTask, InputRequests,
    InputResponses, MetaObject, Task, TaskPayload, TaskStatus,
};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use super::{
    Caller, Jobs, JobsError,
    caller::derived_id,
    not_found, outcome_of,
    signing::{Submitter, without_signature},
    submit::{Approval, Submission, Undo},
};
use crate::config::JobsConfig;

/// The key in the result of a round that asks for input, which holds the answers so far.
const ANSWERED: &str = "io.mcp-fleet/inputResponses";
/// How long it may take to read the first record of a job again.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates tasks and reports their states.
#[derive(Debug, Clone)]
pub struct Tasks {
    jobs: Jobs,
    tools: Arc<[Glob]>,
    ttl: Duration,
    poll_interval: Duration,
    /// Held while an answer is processed, so that two answers don't start the next round twice.
    answering: Arc<Mutex<()>>,
}

impl Tasks {
    /// Creates tasks as jobs of this service.
    pub fn new(jobs: Jobs, config: &JobsConfig) -> Self {
        Self {
            jobs,
            tools: config.task_tools.clone().into(),
            ttl: config.task_ttl,
            poll_interval: config.task_poll_interval,
            answering: Arc::default(),
        }
    }

    /// Returns the caller that `asker` is, as [`Jobs::caller`] does.
    pub fn caller(&self, headers: Option<&http::HeaderMap>, asker: &Asker) -> Caller {
        self.jobs.caller(headers, asker)
    }

    /// Returns whether the settings declare this tool long-running.
    pub fn is_configured(&self, tool: &str) -> bool {
        self.tools.iter().any(|pattern| pattern.matches(tool))
    }

    /// Turns a call into a task. When this returns, every replica can report the task's state.
    pub async fn create(
        &self,
        params: CallToolRequestParams,
        capabilities: Option<ClientCapabilities>,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<CreateTaskResult, JobsError> {
        let now = fleet_ops::clock::now();
        let task_id = uuid::Uuid::new_v4().simple().to_string();
        let job_id = task_job_id(&task_id, caller);

        let round = TaskRound {
            client_capabilities: to_object(&capabilities),
            input_responses: params.input_responses.into_iter().flatten().collect(),
            request_state: params.request_state,
        };
        let call = ToolCall {
            arguments: params.arguments.unwrap_or_default(),
            task: Some(round),
            ..ToolCall::new(None, params.name.into_owned())
        };
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let envelope = Envelope {
            owner: caller.owner.clone(),
            tenant: caller.tenant().map(str::to_owned),
            deadline: Some(now.plus(self.ttl)),
            timeout_ms: Some(ttl_ms.clamp(1, MAX_TIMEOUT_MS)),
            ..Envelope::new(job_id.clone(), Work::ToolCall(call))
        };

        self.jobs.check_size(&envelope)?;
        self.jobs.check_log_is_read()?;

        let span = self.jobs.start_send_span(trace, 1);
        let headers = span.context().headers();
        let job = Submission {
            envelope,
            value: None,
            key: None,
            submitted_at: now,
            headers,
            submitter: Some(Submitter::new(Arc::clone(caller.principal()))),
            approval: Approval::NotNeeded,
            undo: Undo::Remove,
        };
        self.jobs
            .enqueue_detached(job)
            .await
            .inspect_err(|error| span.fail("submit", &error.to_string()))?;

        let mut meta = MetaObject::new();
        meta.insert(fleet_job::meta::JOB_ID.to_owned(), job_id.into());
        Ok(CreateTaskResult::new(self.build_task(&task_id, TaskStatus::Working, now, now))
            .with_meta(meta))
    }

    /// Returns the state of a task.
    pub async fn get(&self, task_id: &str, caller: &Caller) -> Result<DetailedTask, JobsError> {
        let known = self.find_task(task_id, caller).await?;
        Ok(self.describe_task(task_id, &self.jobs.view(known)))
    }

    /// Returns the state of a task now and whenever it changes, until the task ends. The stream is
    /// empty if the caller doesn't know the task.
    pub fn watch(
        &self,
        task_id: &str,
        caller: &Caller,
    ) -> impl Stream<Item = DetailedTask> + use<> {
        let (tasks, task_id, caller) = (self.clone(), task_id.to_owned(), caller.clone());
        let opened = async move {
            let known = tasks.find_task(&task_id, &caller).await.ok()?;
            let watch = tasks.jobs.watch(&known.event.job_id, &caller);
            Some((tasks, task_id, watch))
        };
        let states = opened.map(|states| {
            unfold(states, async |states| {
                let (tasks, task_id, mut watch) = states?;
                let view = watch.next().await.ok()?;
                let task = tasks.describe_task(&task_id, &view);
                Some((task, (!view.is_terminal()).then_some((tasks, task_id, watch))))
            })
        });
        states.flatten_stream()
    }

    fn describe_task(&self, task_id: &str, view: &JobView) -> DetailedTask {
        let event = &view.event;
        let submitted_at = event.submitted_at.unwrap_or(event.time);
        let mut task = self.build_task(task_id, TaskStatus::Working, submitted_at, event.time);
        task.status_message = status_message(view);
        DetailedTask::new(task, task_payload(event))
    }

    /// Requests the cancellation of a task. Does nothing if the task has ended.
    pub async fn cancel(&self, task_id: &str, caller: &Caller) -> Result<(), JobsError> {
        let _answering = self.answering.lock().await;
        let known = self.find_task(task_id, caller).await?;
        let reason = Some("tasks/cancel");
        self.jobs.cancel(&known.event.job_id, caller, reason, Duration::ZERO).await.map(drop)
    }

    /// Takes answers to the input that a task asks for. Answers to other questions are ignored.
    pub async fn update(
        &self,
        task_id: &str,
        responses: InputResponses,
        caller: &Caller,
    ) -> Result<(), JobsError> {
        let known = self.find_task(task_id, caller).await?;
        let record = caller.begin_with(Action::AnswerJob, &known.event).await?;
        let answered = self.answer(task_id, caller, responses).await;
        record.end(outcome_of(&answered), None);
        answered
    }

    async fn answer(
        &self,
        task_id: &str,
        caller: &Caller,
        responses: InputResponses,
    ) -> Result<(), JobsError> {
        let _answering = self.answering.lock().await;
        // Another answer may have come before this one.
        let known = self.find_task(task_id, caller).await?;
        let Some(event) = apply_answers(&known.event, responses) else { return Ok(()) };

        let is_complete = open_requests(&event).is_some_and(|requests| requests.is_empty());
        if is_complete {
            self.start_next_round(event, known).await
        } else {
            self.jobs.write_event(JobEvent { time: fleet_ops::clock::now(), ..event }).await
        }
    }

    /// Enqueues the job again, with the answers. If that fails, the task asks for input again as
    /// it did `before`.
    async fn start_next_round(&self, event: JobEvent, before: Known) -> Result<(), JobsError> {
        let lost =
            || JobsError::NotReady("the task's call is no longer in the jobs topic".to_owned());

        let source = event.source.clone().ok_or_else(lost)?;
        let settings = self.jobs.inner.link.follower.settings().clone();
        let (topic, from) = (source.topic, [(source.partition, source.offset)]);
        let topic_of_task = topic.clone();
        let mut found = run_blocking(move || {
            let records = reader::first_records(&settings, &topic, &from, READ_TIMEOUT);
            Ok::<_, JobsError>(records?)
        })
        .await?;
        let record = found.remove(&source.partition);
        let record = record.filter(|record| record.position.offset == source.offset);
        let record = record.ok_or_else(lost)?;

        let mut envelope = decode::decode(&record, usize::MAX).map_err(|_| lost())?;
        // Whoever may write to the events topic can point to any record.
        if topic_of_task != self.jobs.inner.topics.jobs || envelope.job_id != event.job_id {
            return Err(lost());
        }
        // Whoever answers, the call remains that of its submitter.
        let submitter = self.jobs.signed_submitter(&record);
        if submitter.is_none() && self.jobs.signs() && record.header(SIGNATURE_HEADER).is_some() {
            let why = "the signature of the task's call is not accepted any more";
            return Err(JobsError::NotReady(why.to_owned()));
        }
        let Work::ToolCall(ToolCall { task: Some(round), .. }) = &mut envelope.work else {
            return Err(lost());
        };
        let result = event.result.as_ref();
        let state = result.and_then(|result| result.get("requestState")?.as_str());
        round.request_state = state.map(str::to_owned);
        round.input_responses = given_answers(result);
        self.jobs.check_size(&envelope)?;

        let key = record.key.and_then(|key| String::from_utf8(key).ok());
        let submitted_at = event.submitted_at.unwrap_or(event.time);
        let undo = Undo::Restore(Box::new(before));
        let headers = without_signature(record.headers);
        let (value, approval) = (None, Approval::NotNeeded);
        let job =
            Submission { envelope, value, key, submitted_at, headers, submitter, approval, undo };
        self.jobs.enqueue_detached(job).await
    }

    /// Returns the newest event of a task's job.
    async fn find_task(&self, task_id: &str, caller: &Caller) -> Result<Known, JobsError> {
        let not_found = || not_found(task_id);
        // No other ids are ever given out, so don't search for them.
        if task_id.len() != 32 || !task_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_found());
        }

        let known = async || {
            let found = self.jobs.find_known(&task_job_id(task_id, caller), caller).await;
            let found = match (found, caller.as_former()) {
                (Err(JobsError::NotFound(_)), Some(former)) => {
                    self.jobs.find_known(&task_job_id(task_id, &former), &former).await
                }
                (found, _) => found,
            };
            found.map_err(|error| match error {
                JobsError::NotFound(_) => not_found(),
                error => error,
            })
        };
        let mut found = known().await?;
        if open_requests(&found.event).is_some() {
            // Another replica may have received the answer; don't ask for it twice.
            self.jobs.catch_up().await?;
            found = known().await?;
        }

        if found.submitted_at().plus(self.ttl) < fleet_ops::clock::now() {
            return Err(not_found());
        }
        Ok(found)
    }

    fn build_task(
        &self,
        task_id: &str,
        status: TaskStatus,
        created: Timestamp,
        updated: Timestamp,
    ) -> Task {
        let ms =
            |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
        Task::new(task_id, status, created.to_string(), updated.to_string())
            .with_ttl_ms(ms(self.ttl))
            .with_poll_interval_ms(ms(self.poll_interval))
    }
}

/// Returns the id of the job behind a task.
pub(crate) fn task_job_id(task_id: &str, caller: &Caller) -> String {
    derived_id("task", &[caller.owner.as_deref().unwrap_or_default(), task_id])
}

fn to_object<T: serde::Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

fn status_message(view: &JobView) -> Option<String> {
    if view.is_terminal() { None } else { Some(view.summary()) }
}

/// Returns the open requests of a round that ended by asking for input; `None` if the job asks for
/// nothing.
fn open_requests(event: &JobEvent) -> Option<&Map<String, Value>> {
    let result = event.result.as_ref().filter(|_| event.asks_for_input())?;
    result.get("inputRequests").and_then(Value::as_object)
}

fn given_answers(result: Option<&Value>) -> Map<String, Value> {
    let answered = result.and_then(|result| result.get(ANSWERED)?.as_object());
    answered.cloned().unwrap_or_default()
}

/// Returns the event with these answers applied; `None` if none of them was asked for.
fn apply_answers(event: &JobEvent, responses: InputResponses) -> Option<JobEvent> {
    let mut open = open_requests(event)?.clone();
    let mut answers = given_answers(event.result.as_ref());
    let before = open.len();
    for (key, response) in responses {
        if open.shift_remove(&key).is_some() {
            answers.insert(key, response);
        }
    }
    if open.len() == before {
        return None;
    }

    let mut event = event.clone();
    if let Some(Value::Object(result)) = &mut event.result {
        result.insert("inputRequests".to_owned(), open.into());
        result.insert(ANSWERED.to_owned(), answers.into());
    }
    Some(event)
}

/// Returns the status of a task and its payload. A tool's own error is a result; only a protocol
/// error is a failure.
fn task_payload(event: &JobEvent) -> TaskPayload {
    match event.state {
        JobState::Queued | JobState::Running | JobState::Retrying => TaskPayload::Working,
        // Nobody is asked here: somebody who may decides elsewhere.
        JobState::AwaitingApproval => {
            TaskPayload::InputRequired { input_requests: InputRequests::default() }
        }
        JobState::Cancelled => TaskPayload::Cancelled,
        JobState::Succeeded | JobState::Failed | JobState::Expired => {
            let input: Option<InputRequests> = open_requests(event)
                .and_then(|requests| number::read(Value::Object(requests.clone())).ok());
            match (input, tool_result(event)) {
                (Some(input_requests), _) => TaskPayload::InputRequired { input_requests },
                (None, Some(Value::Object(result))) => {
                    TaskPayload::Completed { result: result.clone() }
                }
                _ => TaskPayload::Failed { error: task_error(event) },
            }
        }
    }
}

/// Returns the JSON-RPC error of a failed task.
fn task_error(event: &JobEvent) -> Map<String, Value> {
    let (code, message, data) = match (&event.error, &event.result_omitted) {
        (Some(error), _) => {
            let code = error.code.filter(|_| error.kind == ErrorKind::JsonRpc);
            let data = error.data.clone().unwrap_or_else(|| json!({"kind": error.kind}));
            (code.unwrap_or(-32603), error.message.clone(), data)
        }
        (None, Some(omitted)) => {
            let message = format!("the result of {} bytes is too large to store", omitted.bytes);
            (-32603, message, json!({"code": RESULT_OMITTED, "limitBytes": omitted.limit_bytes}))
        }
        (None, None) => (-32603, "the task has no result".to_owned(), Value::Null),
    };
    Map::from_iter([
        ("code".to_owned(), code.into()),
        ("message".to_owned(), message.into()),
        ("data".to_owned(), data),
    ])
}

impl Jobs {
    /// Enqueues a job that no other request can submit, even if the caller stops waiting.
    async fn enqueue_detached(&self, job: Submission) -> Result<(), JobsError> {
        let this = self.clone();
        let writing = tokio::spawn(async move { this.enqueue(vec![job], None).await });
        writing.await.map_err(|error| JobsError::NotReady(error.to_string()))?
    }

    /// Writes an event of a job that no worker has, and applies it to the ledger at once.
    pub(super) async fn write_event(&self, event: JobEvent) -> Result<(), JobsError> {
        let record = fleet_kafka::producer::Outgoing {
            topic: self.inner.topics.events.clone(),
            key: Some(event.job_id.clone().into_bytes()),
            value: Some(event.to_bytes()),
            ..Default::default()
        };
        let at = self.inner.link.producer.send(&record).await?;
        let update = Update::new(at.partition, at.offset, event);
        self.apply_written(vec![update]).await
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::JobError;

    use super::*;

    fn event(state: JobState) -> JobEvent {
        JobEvent::new("j", state, Timestamp::default())
    }

    fn asking() -> JobEvent {
        let ask = |message: &str| {
            let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}});
            let params = json!({"mode": "form", "message": message, "requestedSchema": schema});
            json!({"method": "elicitation/create", "params": params})
        };
        let requests = json!({"a": ask("A?"), "b": ask("B?")});
        let result =
            json!({"resultType": "input_required", "inputRequests": requests, "requestState": "s"});
        JobEvent { result: Some(result), ..event(JobState::Succeeded) }
    }

    #[test]
    fn a_tool_error_is_a_result_and_a_protocol_error_is_a_failure() {
        let failed = |error| JobEvent { error: Some(error), ..event(JobState::Failed) };
        let tool = json!({"isError": true, "content": []});
        let tool = failed(JobError::new(ErrorKind::Tool, "no").with_data(tool));
        assert!(
            matches!(task_payload(&tool), TaskPayload::Completed { result } if result["isError"] == true)
        );
        let rpc = failed(JobError::new(ErrorKind::JsonRpc, "bad").with_code(-32602));
        assert!(
            matches!(task_payload(&rpc), TaskPayload::Failed { error } if error["code"] == -32602)
        );
        let http = failed(JobError::new(ErrorKind::Http, "gone").with_code(503));
        assert!(
            matches!(task_payload(&http), TaskPayload::Failed { error } if error["code"] == -32603)
        );
        let omitted = fleet_job::event::ResultOmitted { bytes: 5, limit_bytes: 4 };
        let omitted = JobEvent { result_omitted: Some(omitted), ..event(JobState::Succeeded) };
        assert!(matches!(task_payload(&omitted), TaskPayload::Failed { .. }));
        assert_eq!(task_payload(&event(JobState::Retrying)), TaskPayload::Working);
        assert_eq!(task_payload(&event(JobState::Cancelled)), TaskPayload::Cancelled);
    }

    #[test]
    fn answers_are_collected_until_all_are_there() {
        let asked = asking();
        assert!(
            matches!(task_payload(&asked), TaskPayload::InputRequired { input_requests } if input_requests.len() == 2)
        );
        let answer =
            |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), json!(key))).collect();
        assert_eq!(apply_answers(&asked, answer(&["x"])), None);
        let first = apply_answers(&asked, answer(&["b", "x"])).unwrap();
        assert_eq!(open_requests(&first).unwrap().keys().collect::<Vec<_>>(), ["a"]);
        let both = apply_answers(&first, answer(&["a", "b"])).unwrap();
        assert!(open_requests(&both).unwrap().is_empty());
        assert_eq!(Value::from(given_answers(both.result.as_ref())), json!({"b": "b", "a": "a"}));
        assert_eq!(apply_answers(&event(JobState::Running), answer(&["a"])), None);
    }

    #[test]
    fn the_same_id_is_another_task_for_another_caller() {
        let caller =
            |name: Option<&str>| Caller::new(name.map(str::to_owned), None, Asker::local());
        let owner = |name| caller(Some(name));
        assert_eq!(task_job_id("t", &owner("a")), task_job_id("t", &owner("a")));
        assert_ne!(task_job_id("t", &owner("a")), task_job_id("t", &owner("b")));
        assert_ne!(task_job_id("t", &owner("a")), task_job_id("t", &caller(None)));
        assert!(!task_job_id("secret", &owner("a")).contains("secret"));
    }
}
