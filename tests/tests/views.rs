//! Jobs that are submitted in a view: names of the view stand for its tools, and no job reaches a
//! tool that the view does not have.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::fs;

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet, Oracle,
    fleet::{LARGE_FILE, ServerOptions, Service},
    http, on_every_broker, wait,
};
use serde_json::{Value, json};

on_every_broker!(a_job_of_a_view_runs_the_tool_that_its_name_stands_for);

const POLICY: &str = "
    [[view.desk.select]]
    servers = ['']
    tools = ['file_digest', 'file_list', 'job_submit', 'job_list', 'server_list']

    [[view.desk.tool]]
    tool = 'file_digest'
    as = 'sum'

    [[view.desk.rule]]
    name = 'never'
    effect = 'deny'
    principals = ['anyone']
    actions = ['tools.call']
    tools = ['file_list']
";

/// Submits jobs in the view; returns the result of `job_submit`.
fn submit(server: &Service, arguments: &Value) -> Value {
    ask_to_submit(server, arguments)["result"].clone()
}

/// Submits jobs in the view; returns the whole answer.
fn ask_to_submit(server: &Service, arguments: &Value) -> Value {
    let params = json!({"name": "job_submit", "arguments": arguments});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let (status, answer) = http::post(server.address, "/mcp/desk", &request).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    answer
}

fn a_job_of_a_view_runs_the_tool_that_its_name_stands_for(env: &Env) {
    let mut fleet = Fleet::new(env, "views", 1);
    let policy = fleet.directory.join("policy.toml");
    fs::write(&policy, POLICY).expect("the policy");
    let options = ServerOptions {
        roots: vec![fleet.files()],
        args: vec!["--policy".to_owned(), policy.display().to_string()],
        ..ServerOptions::default()
    };
    let options = fleet.with_jobs(options);
    fleet.start_server(&options);
    fleet.start_worker();
    let server = fleet.server.as_ref().expect("the server");

    let path = json!({"path": LARGE_FILE});
    let named = json!({"jobID": "named", "tool": "sum", "arguments": path});
    let batch = json!({"jobID": "batch", "calls": [{"tool": "sum", "arguments": path}]});
    for job in [named, batch] {
        let submitted = submit(server, &job);
        assert_eq!(submitted["isError"], false, "{submitted}");
    }
    for id in ["named", "batch"] {
        wait::poll_until_ok("the end of the job", wait::LONG, || {
            let account = Oracle::new(&fleet.topic, &fleet.submitted).read(&env.brokers);
            let event = account.last.values().find(|event| event.job_id == id);
            match event.map(|event| event.state) {
                Some(JobState::Succeeded) => Ok(()),
                _ => Err(format!("{id}: {event:?}")),
            }
        });
    }

    let nested = json!({"tool": "file_read", "arguments": path});
    for (job, refusal) in [
        (json!({"tool": "file_read", "arguments": path}), "unknown tool `file_read`"),
        (json!({"tool": "file_digest", "arguments": path}), "unknown tool `file_digest`"),
        (json!({"tool": "crm__get"}), "unknown tool `crm__get`"),
        (json!({"server": "crm", "tool": "get"}), "unknown tool `crm__get`"),
        (
            json!({"calls": [{"tool": "sum", "arguments": path}, nested]}),
            "unknown tool `file_read`",
        ),
        (
            json!({"jobType": "tool-call", "payload": nested.to_string()}),
            "unknown tool `file_read`",
        ),
        (json!({"tool": "job_submit", "arguments": nested}), "can't call `job_submit`"),
        (json!({"tool": "server_list"}), "can't call `server_list`"),
        (json!({"mcpServers": {"x": {"command": "x"}}}), "unknown tool `server_initialize`"),
        (json!({"jobs": [{"tool": "sum", "arguments": path}, nested]}), "unknown tool `file_read`"),
    ] {
        let refused = submit(server, &job);
        let text = refused["content"][0]["text"].as_str().unwrap_or_default();
        assert!(refused["isError"] == true && text.contains(refusal), "{job}: {refused}");
    }

    // Nothing asks the view any more when a job runs.
    let listing = json!({"tool": "file_list", "arguments": {}});
    for job in [
        listing.clone(),
        json!({"calls": [{"tool": "sum", "arguments": path}, listing]}),
        json!({"jobs": [listing]}),
    ] {
        let refused = ask_to_submit(server, &job);
        assert_eq!(refused["error"]["data"]["rule"], "view:desk/never", "{job}: {refused}");
    }

    // Nothing of that was submitted.
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "job_list", "arguments": {}}});
    let (_, jobs) = http::post(server.address, "/mcp/desk", &request).expect("the jobs");
    let jobs = jobs["result"]["structuredContent"]["jobs"].as_array().expect("a list").len();
    assert_eq!(jobs, 2);
}
