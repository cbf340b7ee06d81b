//! Operations on many jobs at once, and on dead letters.

use std::collections::BTreeSet;

use fleet_tests::{
    Env,
    rest::{self, get, post},
    topics, wait,
};
use serde_json::{Value, json};

use super::start;

/// Sends a request without a body.
fn send(address: std::net::SocketAddr, method: &str, path: &str) -> rest::Answer {
    rest::request(address, method, path, &[], b"")
}

pub(crate) fn all_that_match_are_cancelled_and_run_again(env: &Env) {
    let (mut fleet, server) = start(env, "rest-bulk");
    let address = server.address;
    let job = |n: usize| {
        let team = if n < 12 { "a" } else { "b" };
        json!({"jobID": format!("job-{n}"), "tool": "file_list", "metadata": {"team": team}})
    };
    post(address, "/jobs", &json!({"jobs": (0..15).map(job).collect::<Vec<_>>()})).expect(202);

    // A preview changes nothing.
    let filter = "metadata=team%3Da";
    let preview = send(address, "POST", &format!("/job-cancellations?{filter}&dryRun=true"));
    let preview = preview.expect(200);
    assert_eq!((&preview["matched"], &preview["done"]), (&json!(12), &json!(0)), "{preview}");
    assert_eq!((&preview["complete"], &preview["dryRun"]), (&json!(true), &json!(true)));
    assert_eq!(preview["jobs"][0]["outcome"], "planned", "{preview}");
    assert_eq!(get(address, "/job-counts").expect(200)["states"]["queued"], 15);

    // Each step is one page; the last one says so.
    let (mut steps, mut done, mut cursor) = (0, 0, String::new());
    loop {
        let path = format!("/job-cancellations?{filter}&limit=5&reason=enough{cursor}");
        let step = send(address, "POST", &path).expect(200);
        assert_eq!((&step["failed"], &step["retryStep"]), (&json!(0), &json!(false)), "{step}");
        done += step["done"].as_u64().expect("a number");
        steps += 1;
        match step["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(steps >= 3 && done == 12, "{steps} steps, {done} jobs");
    let left = send(address, "POST", "/job-runs?state=cancelled&dryRun=true").expect(200);
    assert_eq!(left["matched"], 0, "no worker has told of their end: {left}");

    fleet.start_worker();
    for n in 0..15 {
        let job = get(address, &format!("/jobs/job-{n}?wait=60")).expect(200);
        let expected = if n < 12 { "cancelled" } else { "succeeded" };
        assert_eq!(job["state"], expected, "{job}");
    }

    // The same operation again runs no job twice.
    let run =
        || send(address, "POST", "/job-runs?state=cancelled&operation=o&limit=20").expect(200);
    let (first, second) = (run(), run());
    assert_eq!((&first["done"], &first["operation"]), (&json!(12), &json!("o")), "{first}");
    let new = |report: &Value| -> BTreeSet<String> {
        let jobs = report["jobs"].as_array().expect("jobs");
        jobs.iter().map(|job| job["newJobID"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(new(&first), new(&second));
    for id in new(&first) {
        assert_eq!(get(address, &format!("/jobs/{id}?wait=60")).expect(200)["state"], "succeeded");
    }
    assert_eq!(get(address, "/job-counts").expect(200)["total"], 27);

    send(address, "POST", "/job-cancellations?stat=queued").problem(400, "bad-request");
    send(address, "POST", "/job-runs?dryRun=maybe").problem(400, "bad-request");
}

pub(crate) fn dead_letters_are_counted_and_replayed(env: &Env) {
    let (mut fleet, server) = start(env, "rest-letters");
    let address = server.address;
    fleet.start_worker();
    let job = |id: &str, tool: &str| json!({"jobID": id, "tool": tool, "maxAttempts": 1, "arguments": {"path": "nowhere"}});
    let jobs = [job("a", "file_read"), job("b", "file_read"), job("c", "no_such_tool")];
    post(address, "/jobs", &json!({"jobs": jobs})).expect(202);
    for id in ["a", "b", "c"] {
        assert_eq!(get(address, &format!("/jobs/{id}?wait=60")).expect(200)["state"], "failed");
    }

    let list = get(address, "/dead-letters").expect(200);
    assert_eq!((&list["letters"], &list["replayed"]), (&json!(3), &json!(0)), "{list}");
    assert_eq!(
        (&list["complete"], list["newestLetters"].as_array().map(Vec::len)),
        (&json!(true), Some(3))
    );
    let reasons = list["reasons"].as_array().expect("reasons");
    let read = reasons.iter().find(|reason| reason["about"] == "file_read").expect("a reason");
    assert_eq!(read["count"], 2, "{read}");
    let slots = read["slots"].as_array().expect("slots");
    assert_eq!(slots.iter().filter_map(|slot| slot["letters"].as_u64()).sum::<u64>(), 2, "{read}");
    let some = get(address, "/dead-letters?about=no_such_tool&limit=0").expect(200);
    assert_eq!((&some["letters"], &some["newestLetters"]), (&json!(1), &json!([])), "{some}");

    let letter = list["newestLetters"][0]["letter"].as_str().expect("a position");
    let place: Vec<_> = letter.rsplit('/').take(2).collect();
    let place = format!("{}-{}", place[1], place[0]);
    let shown = get(address, &format!("/dead-letters/{place}")).expect(200);
    assert_eq!(shown["letter"], letter, "{shown}");
    assert!(shown["value"]["text"].as_str().is_some_and(|text| text.contains("jobID")), "{shown}");
    get(address, "/dead-letters/0-1000000").problem(404, "no-such-letter");
    get(address, "/dead-letters/nonsense").problem(400, "bad-request");

    // A dry run of a group, and then the replay of one letter of it.
    let group = "/dead-letters/replays?about=file_read";
    let planned = send(address, "POST", &format!("{group}&dryRun=true")).expect(200);
    assert_eq!((&planned["toReplay"], &planned["replayed"]), (&json!(2), &json!(0)), "{planned}");
    assert_eq!(topics::read(&env.brokers, &fleet.topic).len(), 3, "nothing was written");

    std::fs::write(fleet.files().join("nowhere"), "here now").expect("a file");
    let one = send(address, "POST", &format!("{group}&job=a")).expect(200);
    assert_eq!((&one["replayed"], &one["verdicts"]["replay"]), (&json!(1), &json!(1)), "{one}");
    let rest = send(address, "POST", group).expect(200);
    assert_eq!((&rest["replayed"], &rest["verdicts"]["already-replayed"]), (&json!(1), &json!(1)));
    for id in ["a", "b"] {
        wait::poll_until("the replayed job", wait::LONG, || {
            let job = get(address, &format!("/jobs/{id}?wait=10")).expect(200);
            Some(()).filter(|()| job["state"] == "succeeded")
        });
    }
    assert_eq!(get(address, "/dead-letters").expect(200)["replayed"], 2);

    // The loop guard.
    let parked = send(address, "POST", "/dead-letters/replays?job=c&maxReplays=0").expect(200);
    assert_eq!((&parked["replayed"], &parked["verdicts"]["parked"]), (&json!(0), &json!(1)));
    assert_eq!(parked["letters"][0]["verdict"], "parked", "{parked}");

    send(address, "DELETE", "/dead-letters").problem(400, "bad-request");
    let counted = send(address, "DELETE", "/dead-letters?before=2100-01-01T00:00:00Z&dryRun=true")
        .expect(200);
    assert_eq!((&counted["letters"], &counted["dryRun"]), (&json!(3), &json!(true)), "{counted}");
    let purged = send(address, "DELETE", "/dead-letters?before=2100-01-01T00:00:00Z");
    if purged.status == 200 {
        assert_eq!(get(address, "/dead-letters").expect(200)["letters"], 0);
    } else {
        let detail = purged.problem(502, "kafka-refused");
        assert!(detail.contains("embedded broker"), "{detail}");
    }
}
