//! Looking into jobs, counting and searching them, and running them again.

use std::collections::BTreeSet;

use fleet_tests::{
    Env,
    rest::{self, get, post},
    topics, wait,
};
use serde_json::{Value, json};

use super::{read_file, start};

fn ids(list: &Value) -> BTreeSet<String> {
    let jobs = list["jobs"].as_array().expect("jobs");
    jobs.iter().map(|job| job["jobID"].as_str().expect("an id").to_owned()).collect()
}

pub(crate) fn jobs_are_counted_and_searched(env: &Env) {
    let (mut fleet, server) = start(env, "rest-search");
    fleet.start_worker();
    let job = |id: &str, tool: &str, team: &str| json!({"jobID": id, "tool": tool, "maxAttempts": 1, "metadata": {"team": team, "n": 1}});
    let jobs = json!({"jobs": [
        job("order-1", "file_list", "search"),
        job("order-2", "no_such_tool", "search"),
        job("refund-1", "file_list", "billing"),
    ]});
    post(server.address, "/jobs", &jobs).expect(202);
    let ended: Vec<Value> = ["order-1", "order-2", "refund-1"]
        .map(|id| get(server.address, &format!("/jobs/{id}?wait=60")).expect(200))
        .into();
    let code = ended[1]["error"]["errorCode"].as_str().expect("a code");

    let counts = get(server.address, "/job-counts").expect(200);
    assert_eq!(
        (&counts["states"]["succeeded"], &counts["states"]["failed"]),
        (&json!(2), &json!(1))
    );
    assert_eq!((&counts["states"]["queued"], &counts["total"]), (&json!(0), &json!(3)), "{counts}");
    assert!(counts.get("completeSince").is_none(), "nothing was forgotten: {counts}");

    let listed = |query: &str| ids(&get(server.address, &format!("/jobs?{query}")).expect(200));
    let these = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(listed("idPrefix=order-"), these(&["order-1", "order-2"]));
    assert_eq!(listed("idPrefix=nothing"), these(&[]));
    assert_eq!(listed(&format!("errorCode={code}")), these(&["order-2"]));
    assert_eq!(listed("metadata=team=billing"), these(&["refund-1"]));
    assert_eq!(listed("metadata=team%3Dsearch&metadata=n=1&state=succeeded"), these(&["order-1"]));
    assert_eq!(listed("metadata=n=2"), these(&[]));
}

pub(crate) fn a_job_shows_its_arguments_and_its_history(env: &Env) {
    let (mut fleet, server) = start(env, "rest-envelope");
    let job = json!({"jobID": "j", "tool": "file_read", "arguments": {"path": "hello.txt"},
        "key": "k", "timeoutMs": 30_000, "metadata": {"team": "x"}});
    post(server.address, "/jobs", &job).expect(202);
    fleet.submit_job(
        &json!({"jobID": "produced", "jobType": "tool-call", "payload": {"tool": "file_list"}}),
    );

    // No worker has reported them yet.
    let check = |id: &str| get(server.address, &format!("/jobs/{id}/envelope")).expect(200);
    let queued = check("j");
    let produced = wait::poll_until("the job in the backlog", wait::LONG, || {
        Some(get(server.address, "/jobs/produced/envelope")).filter(|answer| answer.status == 200)
    });
    assert_eq!(produced.json()["envelope"]["payload"], json!({"tool": "file_list"}));
    let history = get(server.address, "/jobs/j/history").expect(200);
    assert_eq!(history["events"][0]["state"], "queued", "{history}");

    fleet.start_worker();
    assert_eq!(get(server.address, "/jobs/j?wait=60").expect(200)["state"], "succeeded");
    get(server.address, "/jobs/produced?wait=60");
    let record = check("j");
    assert_eq!(record["envelope"], queued["envelope"]);
    assert_eq!(record["envelope"]["payload"]["arguments"], json!({"path": "hello.txt"}));
    assert_eq!((&record["key"], &record["envelope"]["timeoutMs"]), (&json!("k"), &json!(30_000)));
    let records = topics::read(&env.brokers, &fleet.topic);
    let written = records.iter().find(|record| record.text().contains("\"j\"")).expect("a record");
    assert_eq!(record["source"]["offset"], written.offset, "{record}");

    let history = get(server.address, "/jobs/j/history").expect(200);
    let events = history["events"].as_array().expect("events");
    let states: Vec<_> =
        events.iter().map(|event| event["state"].as_str().expect("a state")).collect();
    // The embedded broker and Kafka may have compacted the log in between.
    assert_eq!(states.last(), Some(&"succeeded"), "{history}");
    assert!(states.len() == 1 || states.contains(&"running"), "{history}");
    assert_eq!(history["complete"], true, "{history}");
    assert!(events.iter().all(|event| event.get("result").is_none()), "{history}");

    for path in ["/jobs/nowhere/envelope", "/jobs/nowhere/history"] {
        get(server.address, path).problem(404, "no-such-job");
    }
}

pub(crate) fn a_job_without_its_record_says_so(env: &Env) {
    let (mut fleet, server) = start(env, "rest-gone");
    fleet.start_worker();
    post(server.address, "/jobs", &json!({"jobID": "j", "tool": "file_list"})).expect(202);
    assert_eq!(get(server.address, "/jobs/j?wait=60").expect(200)["state"], "succeeded");

    // An event may point to a record of another job, as after the topic was created again.
    let event = json!({"jobID": "moved", "state": "succeeded", "time": "2026-11-21T08:00:00Z",
        "source": {"topic": fleet.topic, "partition": 0, "offset": 1_000_000}});
    let elsewhere = json!({"jobID": "elsewhere", "state": "succeeded",
        "time": "2026-11-21T08:00:00Z",
        "source": {"topic": format!("{}.events", fleet.topic), "partition": 0, "offset": 0}});
    for event in [&event, &elsewhere] {
        let id = event["jobID"].as_str().expect("an id");
        let record = topics::Outgoing::value(event.to_string()).key(id);
        topics::produce(&env.brokers, &format!("{}.events", fleet.topic), vec![record]);
        wait::poll_until("the event", wait::LONG, || {
            Some(()).filter(|()| get(server.address, &format!("/jobs/{id}")).status == 200)
        });
        let gone = get(server.address, &format!("/jobs/{id}/envelope"));
        let detail = gone.problem(410, "record-gone");
        assert!(detail.contains("retention"), "{detail}");
        assert_eq!(gone.json()["code"], "FLEET-RECORD-GONE");
        post(server.address, &format!("/jobs/{id}/runs"), &json!({})).problem(410, "record-gone");
    }
}

pub(crate) fn a_job_runs_again_and_with_other_arguments(env: &Env) {
    let (mut fleet, server) = start(env, "rest-again");
    fleet.start_worker();
    let mut job = read_file();
    job["jobID"] = "first".into();
    job["arguments"]["path"] = "nowhere".into();
    job["maxAttempts"] = 1.into();
    post(server.address, "/jobs", &job).expect(202);
    assert_eq!(get(server.address, "/jobs/first?wait=60").expect(200)["state"], "failed");

    let edited = json!({"jobID": "second", "arguments": {"path": "hello.txt"}});
    let answer = post(server.address, "/jobs/first/runs", &edited);
    assert_eq!(answer.expect(202)["jobs"][0]["jobID"], "second");
    assert_eq!(answer.header("location"), "/jobs/second");
    let second = get(server.address, "/jobs/second?wait=60").expect(200);
    assert_eq!((&second["state"], &second["attempts"]), (&json!("succeeded"), &json!(1)));
    assert_eq!(second["metadata"]["io.mcp-fleet/runOf"], "first", "{second}");
    post(server.address, "/jobs/first/runs", &edited).expect(200);

    // A success runs again as it was, and not from the server's memory of its first run.
    let again = rest::request(server.address, "POST", "/jobs/second/runs", &[], b"").expect(202);
    let third = again["jobs"][0]["jobID"].as_str().expect("an id").to_owned();
    assert!(!["first", "second"].contains(&third.as_str()), "{again}");
    let third = get(server.address, &format!("/jobs/{third}?wait=60")).expect(200);
    assert_eq!(third["result"]["content"], second["result"]["content"]);
    assert_eq!(third["metadata"]["io.mcp-fleet/runOf"], "second");

    let runs = get(server.address, "/jobs?metadata=io.mcp-fleet/runOf=first").expect(200);
    assert_eq!(ids(&runs), BTreeSet::from(["second".to_owned()]));

    let refused = post(server.address, "/jobs/first/runs", &json!({"tool": "file_list"}));
    assert!(refused.problem(422, "bad-job").contains("`tool`"), "{refused:?}");
    let refused = post(server.address, "/jobs/first/runs", &json!({"arguments": 7}));
    assert!(refused.problem(422, "bad-job").contains("`arguments`"), "{refused:?}");
    rest::request(server.address, "POST", "/jobs/first/runs", &[], b"{}")
        .problem(415, "unsupported-media-type");
    post(server.address, "/jobs/nowhere/runs", &json!({})).problem(404, "no-such-job");
}
