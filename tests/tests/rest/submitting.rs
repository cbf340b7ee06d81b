//! Submitting, querying, listing and cancelling jobs.

use std::{collections::BTreeSet, thread};

use fleet_tests::{
    Env, Fleet, http, rest,
    rest::{Events, delete, get, post, post_with},
    topics, wait,
};
use serde_json::{Value, json};

use super::{read_file, start};

pub(crate) fn a_job_is_submitted_and_asked_for(env: &Env) {
    let (mut fleet, server) = start(env, "rest-submit");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = post_with(server.address, "/jobs", &[("traceparent", trace)], &read_file());
    let submitted = answer.expect(202);
    let id = submitted["jobs"][0]["jobID"].as_str().expect("an id");
    assert_eq!(submitted["jobs"][0]["existing"], false);

    let path = answer.header("location").to_owned();
    assert_eq!(path, format!("/jobs/{id}"));
    let queued = get(server.address, &path);
    assert_eq!(queued.expect(200)["state"], "queued");

    // The job carries the trace.
    let records = topics::read(&env.brokers, &fleet.topic);
    assert_eq!(records[0].header("traceparent"), Some(trace.as_bytes()));

    // A client that already has the current state doesn't get it again.
    let tag = queued.header("etag").to_owned();
    let same = rest::request(server.address, "GET", &path, &[("if-none-match", &tag)], b"");
    assert_eq!((same.status, same.text.as_str()), (304, ""), "{same:?}");

    fleet.start_worker();
    let ended = get(server.address, &format!("{path}?wait=60"));
    let job = ended.expect(200);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(job["result"].to_string().contains("hello, fleet"), "{job}");
    assert_ne!(ended.header("etag"), tag);
    assert!(job.get("owner").is_none());

    // The id contains slashes, like those of jobs whose producers set no id.
    let odd = json!({"jobID": "a/b ä?", "tool": "file_read", "arguments": {"path": "hello.txt"}});
    let answer = post(server.address, "/jobs", &odd);
    answer.expect(202);
    assert_eq!(answer.header("location"), "/jobs/a%2Fb%20%C3%A4%3F");

    let job = get(server.address, &format!("{}?wait=60", answer.header("location"))).expect(200);
    assert_eq!((&job["jobID"], &job["state"]), (&json!("a/b ä?"), &json!("succeeded")));

    // Requests are counted under a bounded set of labels.
    let (_, metrics) = http::get(server.address, "/metrics").expect("metrics");
    assert!(metrics.contains(r#"http_route="/jobs/{id}""#) && !metrics.contains(id), "{metrics}");
}

pub(crate) fn many_jobs_are_listed_page_by_page(env: &Env) {
    let (mut fleet, server) = start(env, "rest-list");
    fleet.start_worker();
    let job = |n: usize| {
        let (tool, tenant) = if n < 5 { ("file_read", "a") } else { ("file_list", "b") };
        let path = if n == 0 { "nowhere" } else { "." };
        json!({"jobID": format!("job-{n}"), "tool": tool, "tenant": tenant, "maxAttempts": 1,
            "arguments": {"path": if n < 5 && n > 0 { "hello.txt" } else { path }}})
    };
    let submitted =
        post(server.address, "/jobs", &json!({"jobs": (0..12).map(job).collect::<Vec<_>>()}));
    let submitted = submitted.expect(202);
    let ids: Vec<_> = (0..12).map(|n| json!(format!("job-{n}"))).collect();
    let answered =
        submitted["jobs"].as_array().expect("jobs").iter().map(|job| job["jobID"].clone());
    assert_eq!(answered.collect::<Vec<_>>(), ids, "in the order of the request");

    for id in &ids {
        let path = format!("/jobs/{}?wait=60", id.as_str().expect("an id"));
        let job = get(server.address, &path).expect(200);
        assert!(
            ["succeeded", "failed"].contains(&job["state"].as_str().expect("a state")),
            "{job}"
        );
    }
    let listed = |query: &str| -> BTreeSet<String> {
        let list = get(server.address, &format!("/jobs?{query}")).expect(200);
        let jobs = list["jobs"].as_array().expect("jobs");
        jobs.iter().map(|job| job["jobID"].as_str().expect("an id").to_owned()).collect()
    };
    let these =
        |range: std::ops::Range<usize>| range.map(|n| format!("job-{n}")).collect::<BTreeSet<_>>();
    assert_eq!(listed(""), these(0..12));
    assert_eq!(listed("tenant=a"), these(0..5));
    assert_eq!(listed("tool=file_list"), these(5..12));
    assert_eq!(listed("state=failed"), these(0..1));
    assert_eq!(listed("state=failed&state=succeeded"), these(0..12));
    assert_eq!(listed("state=failed,succeeded&tenant=a&type=tool-call"), these(0..5));
    assert_eq!(listed("type=tool-batch"), these(0..0));
    assert_eq!(listed("since=2100-01-01T00:00:00Z"), these(0..0));
    assert_eq!(listed("until=2100-01-01T00:00:00Z&since=0"), these(0..12));

    // The pages contain every job once.
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let page = get(server.address, &format!("/jobs?limit=5{cursor}")).expect(200);
        let jobs = page["jobs"].as_array().expect("jobs");
        assert!(jobs.len() <= 5);
        assert!(jobs.iter().all(|job| job.get("result").is_none()), "{page}");
        seen.extend(jobs.iter().map(|job| job["jobID"].as_str().expect("an id").to_owned()));
        match &page["nextCursor"] {
            Value::String(next) => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    assert_eq!(seen.len(), 12, "{seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), these(0..12));
}

/// The same key is submitted to two replicas at the same time, repeatedly.
pub(crate) fn a_repeated_submission_is_one_job_and_one_call(env: &Env) {
    let (mut fleet, first) = start(env, "rest-once");
    let second = fleet.start_job_server();
    let addresses = [first.address, second.address];
    let submit = |n: usize| {
        let key = [("idempotency-key", "order-4711")];
        let answer = post_with(addresses[n % 2], "/jobs", &key, &read_file());
        assert!([200, 202].contains(&answer.status), "{answer:?}");
        (answer.status, answer.json()["jobs"][0].clone())
    };
    let answers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || submit(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let ids: BTreeSet<_> = answers.iter().map(|(_, job)| job["jobID"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{answers:?}");

    let new =
        answers.iter().filter(|(status, job)| *status == 202 && job["existing"] == false).count();
    assert_eq!(new, 1, "{answers:?}");

    fleet.start_worker();
    let path = format!("/jobs/{}?wait=60", answers[0].1["jobID"].as_str().expect("an id"));
    for address in addresses {
        assert_eq!(get(address, &path).expect(200)["state"], "succeeded");
    }
    let (status, job) = submit(1);
    assert_eq!((status, &job["state"], &job["existing"]), (200, &json!("succeeded"), &json!(true)));
    assert_eq!(topics::read(&env.brokers, &fleet.topic).len(), 1, "records");

    let calls = |address| http::metric(address, "mcp_server_tool_calls_total").unwrap_or_default();
    assert_eq!(addresses.map(calls).iter().sum::<f64>(), 1.0, "calls");
}

pub(crate) fn a_job_is_cancelled_or_it_is_too_late(env: &Env) {
    let (mut fleet, server) = start(env, "rest-cancel");
    // No worker runs yet, so the job stays queued.
    post(server.address, "/jobs", &json!({"jobID": "late", "tool": "file_list"})).expect(202);
    let requested = delete(server.address, "/jobs/late?wait=0&reason=not%20needed").expect(202);
    assert_eq!(
        (&requested["outcome"], &requested["job"]["state"]),
        (&json!("requested"), &json!("queued"))
    );

    let job = get(server.address, "/jobs/late").expect(200);
    assert!(job["cancelRequestedAt"].is_string(), "{job}");
    let control = topics::read(&env.brokers, &format!("{}.control", fleet.topic));
    assert!(control.len() == 1 && control[0].text().contains("not needed"), "{control:?}");

    post(server.address, "/jobs", &json!({"jobID": "done", "tool": "file_list"})).expect(202);
    fleet.start_worker();
    assert_eq!(get(server.address, "/jobs/done?wait=60").expect(200)["state"], "succeeded");

    let answer = delete(server.address, "/jobs/done");
    let detail = answer.problem(409, "too-late");
    assert!(detail.contains("`done` is succeeded"), "{detail}");
    assert_eq!(answer.json()["job"]["state"], "succeeded");

    let job = get(server.address, "/jobs/late?wait=60").expect(200);
    assert_eq!((&job["state"], &job["attempts"]), (&json!("cancelled"), &json!(0)));
    assert!(job.get("cancelRequestedAt").is_none(), "it has ended: {job}");
}

/// A search has to find the end of each partition, which must not take longer than a request waits.
pub(crate) fn a_log_of_many_partitions_is_searched_in_time(env: &Env) {
    let mut fleet = Fleet::new(env, "rest-partitions", 1);
    fleet.topic.push_str("-wide");
    let events = format!("{}.events", fleet.topic);
    topics::create(&env.brokers, &[(&fleet.topic, 1), (&events, 24)]);
    let server = fleet.start_job_server();
    get(server.address, "/jobs/unknown").problem(404, "no-such-job");
    let submitted =
        post_with(server.address, "/jobs", &[("idempotency-key", "k")], &read_file()).expect(202);
    let id = submitted["jobs"][0]["jobID"].as_str().expect("an id");
    assert_eq!(get(server.address, &format!("/jobs/{id}")).expect(200)["state"], "queued");
}

/// A job that was written directly to Kafka can be found and cancelled by its id before a worker
/// reads it.
pub(crate) fn a_job_of_a_producer_is_found_and_cancelled(env: &Env) {
    let (mut fleet, server) = start(env, "rest-produced");
    let job =
        json!({"jobID": "produced", "jobType": "tool-call", "payload": {"tool": "file_list"}});
    fleet.submit_job(&job);

    // On a busy machine, a search may time out first.
    let found = wait::poll_until("the job in the backlog", wait::LONG, || {
        Some(get(server.address, "/jobs/produced")).filter(|answer| answer.status == 200)
    });
    let found = found.json();
    assert_eq!(
        (&found["state"], &found["tool"]),
        (&json!("queued"), &json!("file_list")),
        "{found}"
    );
    get(server.address, "/jobs/nowhere").problem(404, "no-such-job");
    get(server.address, "/jobs/nowhere/events").problem(404, "no-such-job");
    let mut events = Events::open(server.address, "/jobs/produced/events", &[]).expect("a stream");
    let queued = events.next(wait::LONG).expect("the present state");
    assert_eq!((queued.event.as_str(), &queued.json()["jobID"]), ("queued", &json!("produced")));

    let again = [("last-event-id", queued.id.as_str())];
    let mut again =
        Events::open(server.address, "/jobs/produced/events", &again).expect("a stream");

    let cancelled = delete(server.address, "/jobs/produced?wait=0&reason=too%20soon").expect(202);
    assert_eq!(cancelled, json!({"outcome": "requested", "known": false}));
    fleet.start_worker();

    // Between the job's commit and the moment when the server reads its end, it is in neither
    // place.
    let ended = wait::poll_until("the job's end", wait::LONG, || {
        Some(get(server.address, "/jobs/produced?wait=60")).filter(|answer| answer.status == 200)
    });
    let ended = ended.json();
    assert_eq!((&ended["state"], &ended["attempts"]), (&json!("cancelled"), &json!(0)), "{ended}");

    for events in [&mut events, &mut again] {
        assert_eq!(events.next(wait::LONG).expect("the next state").event, "cancelled");
    }
}
