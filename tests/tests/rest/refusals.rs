//! Refused requests, and the clarity of their errors.

use std::net::SocketAddr;

use fleet_tests::{
    Env,
    fleet::Standalone,
    rest::{delete, get, post, post_with, request},
};
use serde_json::{Value, json};

use super::{read_file, start};

pub(crate) fn nonsense_and_too_much_are_refused_clearly(env: &Env) {
    let (_fleet, server) = start(env, "rest-refusals");
    let address = server.address;
    ids(address);
    queries(address);
    bodies(address);
    sizes(address);
    methods_and_paths(address);
}

fn ids(address: SocketAddr) {
    for id in [
        "nope",
        "..%2F..%2Fetc%2Fpasswd",
        "%27%20OR%201=1",
        "%F0%9F%A6%80",
        "mcp-jobs%2F0%2F17",
        "0",
    ] {
        for answer in
            [get(address, &format!("/jobs/{id}")), get(address, &format!("/jobs/{id}/events"))]
        {
            answer.problem(404, "no-such-job");
        }
        let cancelled = delete(address, &format!("/jobs/{id}?wait=0")).expect(202);
        assert_eq!(cancelled, json!({"outcome": "requested", "known": false}), "{id}");
    }

    let long = get(address, &format!("/jobs/{}", "%C3%A4".repeat(200)));
    long.problem(404, "no-such-job");
    for id in ["%00", "a%0Ab", "%FF", &"x".repeat(257)] {
        let detail = get(address, &format!("/jobs/{id}")).problem(400, "bad-request");
        assert!(detail.contains("`id`"), "{detail}");
    }
}

fn queries(address: SocketAddr) {
    for (path, names) in [
        ("/jobs?stat=failed", "`stat`"),
        ("/jobs?state=nonsense", "`state`"),
        ("/jobs?limit=0", "`limit`"),
        ("/jobs?limit=501", "`limit`"),
        ("/jobs?limit=5&limit=6", "`limit`"),
        ("/jobs?cursor=nonsense", "`cursor`"),
        ("/jobs?since=yesterday", "`since`"),
        ("/jobs/x?wait=61", "`wait`"),
        ("/jobs/x?wait=-1", "`wait`"),
        ("/jobs/x?reason=x", "`reason`"),
        ("/events?wait=1", "`wait`"),
        ("/openapi.json?x", "`x`"),
    ] {
        let detail = get(address, path).problem(400, "bad-request");
        assert!(detail.contains(names), "{path}: {detail}");
    }
    for (path, id) in
        [("/jobs/x/events", "nonsense"), ("/events", "0"), ("/events", "0:1,0:1"), ("/events", "")]
    {
        let answer = request(address, "GET", path, &[("last-event-id", id)], b"");
        assert!(answer.problem(400, "bad-request").contains("Last-Event-ID"), "{path} {id}");
        assert_eq!(answer.json()["parameter"], "Last-Event-ID");
    }
}

fn bodies(address: SocketAddr) {
    let json = [("content-type", "application/json")];
    let malformed = request(address, "POST", "/jobs", &json, b"{\"tool\":");
    assert!(malformed.problem(400, "bad-request").contains("line 1 column 8"), "{malformed:?}");
    let latin = request(address, "POST", "/jobs", &json, b"{\"tool\":\"\xe4\"}");
    latin.problem(400, "bad-request");
    let deep = "[".repeat(100_000);
    request(address, "POST", "/jobs", &json, deep.as_bytes()).problem(400, "bad-request");
    for kind in [
        &[][..],
        &[("content-type", "text/plain")],
        &[("content-type", "application/x-www-form-urlencoded")],
    ] {
        request(address, "POST", "/jobs", kind, b"{}").problem(415, "unsupported-media-type");
    }

    request(
        address,
        "POST",
        "/jobs",
        &[("content-type", "Application/JSON; charset=utf-8")],
        b"{}",
    )
    .problem(422, "bad-job");
    let packed = [json[0], ("content-encoding", "gzip")];
    request(address, "POST", "/jobs", &packed, br#"{"tool":"t"}"#)
        .problem(415, "unsupported-media-type");
    let check = |body: Value, says: &str, index: Value| {
        let answer = post(address, "/jobs", &body);
        let detail = answer.problem(422, "bad-job");
        assert!(detail.contains(says), "{body}: {detail}");
        assert_eq!(answer.json()["index"], index, "{body}: {answer:?}");
    };

    let null = || Value::Null;
    check(json!({}), "exactly one of", null());
    check(json!(7), "must be a job", null());
    check(json!({"tool": "t", "priority": "high"}), "`priority`", null());
    check(json!({"tool": "t", "priority": 10}), "`priority` is 10", null());
    check(json!({"tool": "t", "jobID": ""}), "`jobID` is empty", null());
    check(json!({"tool": "t", "notBefore": "tomorrow"}), "RFC 3339", null());
    check(json!({"tool": "t", "replyTo": "no such topic"}), "`replyTo`", null());
    for topic in ["mcp-servers", "__consumer_offsets"] {
        check(json!({"tool": "t", "replyTo": topic}), "belongs to the fleet", null());
        check(json!([read_file(), {"tool": "t", "replyTo": topic}]), "to the fleet", json!(1));
    }
    check(json!({"jobType": "dance", "payload": {}}), "`dance` is unknown", null());
    check(json!([read_file(), {"tool": 7}]), "job 1, `tool`", json!(1));
    check(
        json!({"jobs": [read_file(), read_file(), {"tool": ""}]}),
        "`payload.tool` is empty",
        json!(2),
    );
    let many = post_with(
        address,
        "/jobs",
        &[("idempotency-key", "k")],
        &json!([read_file(), read_file()]),
    );

    assert!(many.problem(422, "bad-job").contains("Idempotency-Key"), "{many:?}");
    // No refused job was written.
    assert_eq!(get(address, "/jobs").expect(200)["jobs"], json!([]));
}

fn sizes(address: SocketAddr) {
    let calls = |n: usize| json!({"calls": vec![json!({"tool": "t"}); n]});
    let detail = post(address, "/jobs", &calls(10_001)).problem(422, "bad-job");
    assert!(detail.contains("has 10001 calls; it must have 1 to 10000"), "{detail}");
    let accepted = post(address, "/jobs", &calls(10_000)).expect(202);
    let id = accepted["jobs"][0]["jobID"].as_str().expect("an id");
    assert_eq!(get(address, &format!("/jobs/{id}")).expect(200)["calls"], 10_000);

    let many = post(address, "/jobs", &json!(vec![json!({"tool": "t"}); 1_001]));
    assert!(many.problem(422, "bad-job").contains("this one has 1001"), "{many:?}");
    assert_eq!(many.json()["limit"], 1_000);

    let large = json!({"tool": "t", "arguments": {"text": "x".repeat(1_500_000)}});
    let answer = post(address, "/jobs", &large);
    let detail = answer.problem(413, "too-large");
    assert!(detail.contains("at most 1048576"), "{detail}");
    assert_eq!(answer.json()["limit"], 1_048_576);

    let body = vec![b' '; 5 * 1024 * 1024];
    let answer = request(address, "POST", "/jobs", &[("content-type", "application/json")], &body);
    answer.problem(413, "too-large");
}

fn methods_and_paths(address: SocketAddr) {
    for (method, path, allow) in [
        ("PUT", "/jobs", "GET,HEAD,POST"),
        ("DELETE", "/jobs", "GET,HEAD,POST"),
        ("POST", "/jobs/x", "DELETE,GET,HEAD"),
        ("POST", "/events", "GET,HEAD"),
        ("PATCH", "/jobs/x/events", "GET,HEAD"),
    ] {
        let answer = request(address, method, path, &[], b"");
        answer.problem(405, "method-not-allowed");
        let mut allowed: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(","), allow, "{method} {path}");
    }

    for path in ["/jobs/", "/jobs/a/b", "/jobs/a/events/b", "/jobs/a/"] {
        get(address, path).problem(404, "no-such-path");
    }

    let foreign = request(address, "GET", "/jobs", &[("origin", "https://evil.example")], b"");
    assert!(foreign.problem(403, "forbidden").contains("Origin"), "{foreign:?}");
}

pub(crate) fn somebody_elses_jobs_are_not_there(env: &Env) {
    let (mut fleet, first) = start(env, "rest-foreign");
    let second = fleet.start_job_server();
    let (me, you) = (("authorization", "Bearer me"), ("authorization", "Bearer you"));
    let job = json!({"jobID": "mine", "tool": "file_list", "idempotencyKey": "k"});
    post_with(first.address, "/jobs", &[me], &job).expect(202);
    let everybodys = json!({"jobID": "everybodys", "tool": "file_list"});
    post(first.address, "/jobs", &everybodys).expect(202);
    for address in [first.address, second.address] {
        for who in [&[you][..], &[("x-api-key", "me")], &[]] {
            let ask = |method: &str, path: &str| request(address, method, path, who, b"");
            let refused = ask("GET", "/jobs/mine");
            let unknown = ask("GET", "/jobs/nobodys");
            let (refused, unknown) =
                (refused.problem(404, "no-such-job"), unknown.problem(404, "no-such-job"));
            assert_eq!(refused.replace("mine", "nobodys"), unknown, "the job must not be revealed");
            let (refused, unknown) = (
                ask("DELETE", "/jobs/mine?wait=0").expect(202),
                ask("DELETE", "/jobs/nobodys?wait=0").expect(202),
            );
            assert_eq!(refused, unknown, "the job must not be revealed");
            ask("GET", "/jobs/mine/events").problem(404, "no-such-job");
            let list = ask("GET", "/jobs").expect(200);
            assert_eq!(list["jobs"].as_array().map(Vec::len), Some(1), "{list}");
            assert_eq!(list["jobs"][0]["jobID"], "everybodys");
        }
        let mine = request(address, "GET", "/jobs/mine", &[me], b"").expect(200);
        assert!(mine.get("owner").is_none(), "{mine}");
        let list = request(address, "GET", "/jobs", &[me], b"").expect(200);
        assert_eq!(list["jobs"].as_array().map(Vec::len), Some(2), "{list}");
    }

    // Another owner's idempotency key is a different key, but another owner's id is taken.
    let same_key = json!({"tool": "file_list", "idempotencyKey": "k"});
    let theirs = post_with(first.address, "/jobs", &[you], &same_key).expect(202);
    assert_ne!(theirs["jobs"][0]["jobID"], "mine");

    let taken = post_with(second.address, "/jobs", &[you], &job).problem(422, "bad-job");
    assert!(taken.contains("`mine` can't be used here"), "{taken}");
}

/// A server without Kafka has the routes, and explains why they are unavailable.
#[test]
fn routes_without_kafka_explain_why_they_are_unavailable() {
    let server = Standalone::start("rest-off");
    let address = server.service.address;
    for answer in [
        get(address, "/jobs"),
        get(address, "/jobs/x"),
        get(address, "/events"),
        get(address, "/jobs/x/events"),
        delete(address, "/jobs/x"),
        post(address, "/jobs", &read_file()),
    ] {
        assert!(answer.problem(404, "jobs-off").contains("KAFKA_BROKERS"), "{answer:?}");
    }
    assert_eq!(get(address, "/openapi.json").expect(200)["openapi"], "3.1.0");
    assert_eq!(get(address, "/asyncapi.json").expect(200)["asyncapi"], "3.0.0");
}
