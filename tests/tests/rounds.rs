//! Calls that are rounds of a task: a tool asks a question, and the answer comes as another job of
//! the same id.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::sync::Arc;

use fleet_job::{
    event::{JobEvent, JobState},
    outcome::ErrorKind,
};
use fleet_tests::{
    Env, Fleet, Oracle, fleet::ServerOptions, on_every_broker, topics::Record, wait,
};
use serde_json::{Value, json};

on_every_broker!(a_tool_asks_twice_and_is_answered, an_error_of_the_tool_is_final_in_a_task);

/// A fleet with tools that ask questions.
fn fleet<'e>(env: &'e Env, name: &str) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, 1);
    fleet.start_server(&ServerOptions {
        args: vec!["--conformance".to_owned()],
        ..ServerOptions::default()
    });
    fleet.start_worker();
    fleet
}

fn submit(fleet: &mut Fleet<'_>, id: &str, tool: &str, task: Option<Value>) -> Record {
    let mut payload = json!({"tool": tool});
    if let Some(mut task) = task {
        let tasks = json!({"io.modelcontextprotocol/tasks": {}});
        task["clientCapabilities"] = json!({"elicitation": {}, "extensions": tasks});
        payload["task"] = task;
    }
    fleet.submit_job(&json!({"jobID": id, "jobType": "tool-call", "payload": payload}))
}

fn end(fleet: &Fleet<'_>, record: &Record) -> JobEvent {
    let oracle = Oracle::new(&fleet.topic, &fleet.submitted);
    wait::poll_until("the end of a round", wait::LONG, || {
        let last =
            oracle.read(&fleet.env.brokers).states.remove(&(record.partition, record.offset));
        last.filter(|event| event.state.is_terminal()).map(Arc::unwrap_or_clone)
    })
}

/// Each round is a job of its own that ends with the tool's question, and the last round ends with
/// its answer. The server, which remembers results by job and arguments, doesn't take a later round
/// for a repeat of the first.
fn a_tool_asks_twice_and_is_answered(env: &Env) {
    let mut fleet = fleet(env, "rounds");
    let tool = "test_input_required_result_multi_round";
    let mut task = json!({});
    let mut asked = Vec::new();
    let text = loop {
        let round = submit(&mut fleet, "job", tool, Some(task));
        let end = end(&fleet, &round);
        assert_eq!((end.state, end.attempts), (JobState::Succeeded, 1), "{end:?}");
        let result = end.result.expect("a result");
        if result["resultType"] != "input_required" {
            break result["content"][0]["text"].as_str().expect("a text").to_owned();
        }
        let question = result["inputRequests"]
            .as_object()
            .expect("questions")
            .keys()
            .next()
            .expect("one")
            .clone();
        let content =
            if question == "step1" { json!({"name": "Ada"}) } else { json!({"color": "blue"}) };
        task = json!({"requestState": result["requestState"],
            "inputResponses": {question.clone(): {"action": "accept", "content": content}}});
        asked.push(question);
    };
    assert_eq!((asked, &*text), (vec!["step1".to_owned(), "step2".to_owned()], "Ada likes blue."));

    let refused = submit(&mut fleet, "nobody-to-ask", tool, None);
    let account = fleet.settle(0);
    let refused = account.of(&refused);
    assert_eq!((refused.state, refused.attempts), (JobState::Failed, 1), "{refused:?}");
}

/// A client that waits for a task needs the tool's first error, not that of the fifth attempt.
fn an_error_of_the_tool_is_final_in_a_task(env: &Env) {
    let mut fleet = fleet(env, "final");
    let task = submit(&mut fleet, "task", "test_error_handling", Some(json!({})));
    let job = submit(&mut fleet, "job", "test_error_handling", None);
    let account = fleet.settle(0);
    let (task, job) = (account.of(&task), account.of(&job));
    assert_eq!((task.state, task.attempts), (JobState::Failed, 1), "{task:?}");

    let error = task.error.as_ref().expect("an error");
    assert_eq!(error.kind, ErrorKind::Tool);
    assert_eq!(error.data.as_ref().expect("the result")["isError"], true);
    assert_eq!((job.state, job.attempts), (JobState::Failed, 5), "{job:?}");
}
