//! Event streams: of one job, and of all jobs.

use std::time::{Duration, Instant};

use fleet_tests::{
    Env,
    rest::{Events, get, post, post_with},
    wait,
};
use serde_json::json;

use super::{read_file, start};

pub(crate) fn a_job_is_followed_to_its_end(env: &Env) {
    let (mut fleet, first) = start(env, "rest-watch");
    let second = fleet.start_job_server();
    let mut job = read_file();
    job["jobID"] = "watched".into();
    post(first.address, "/jobs", &job).expect(202);
    let mut events = Events::open(first.address, "/jobs/watched/events", &[]).expect("a stream");
    assert_eq!(events.headers["x-accel-buffering"], "no");
    assert_eq!(events.headers["cache-control"], "no-store");

    let queued = events.next(wait::LONG).expect("the present state");
    assert_eq!((queued.event.as_str(), &queued.json()["jobID"]), ("queued", &json!("watched")));
    drop(events);

    // Another replica continues where the stream broke, without repeating events.
    let mut events =
        Events::open(second.address, "/jobs/watched/events", &[("last-event-id", &queued.id)])
            .expect("a stream");
    fleet.start_worker();
    let mut states = Vec::new();
    let mut last = None;
    while let Some(event) = events.next(wait::LONG) {
        assert_eq!(event.event, event.json()["state"]);
        states.push(event.event.clone());
        last = Some(event);
    }

    // Intermediate states may be left out, but never the end.
    assert_eq!(states.last().map(String::as_str), Some("succeeded"), "{states:?}");
    assert!(!states.contains(&"queued".to_owned()), "{states:?}");

    let last = last.expect("an end");
    // This replica may learn of it a moment later.
    assert_eq!(last.json(), get(first.address, "/jobs/watched?wait=60").expect(200));

    // A client that has seen the end is told not to reconnect; a client that has not gets it.
    for server in [&first, &second] {
        let heard =
            Events::open(server.address, "/jobs/watched/events", &[("last-event-id", &last.id)]);
        assert_eq!(heard.expect_err("no stream").status, 204);
        let mut again =
            Events::open(server.address, "/jobs/watched/events", &[]).expect("a stream");
        assert_eq!(again.next(wait::LONG), Some(last.clone()));
        assert_eq!(again.next(wait::LONG), None);
    }
}

pub(crate) fn all_jobs_are_followed_over_replicas(env: &Env) {
    let (mut fleet, first) = start(env, "rest-events");
    let second = fleet.start_job_server();
    let mine = [("authorization", "Bearer me")];
    let open = |address, path: &str, headers: &[(&str, &str)]| {
        Events::open(address, path, headers).expect("a stream")
    };
    let mut all = open(first.address, "/events", &[]).placed(wait::LONG);
    let mut own = open(first.address, "/events?state=queued", &mine).placed(wait::LONG);
    let mut filtered =
        open(second.address, "/events?tool=file_list&state=succeeded", &[]).placed(wait::LONG);
    let submit = |id: &str, tool: &str, headers: &[(&str, &str)]| {
        let job = json!({"jobID": id, "tool": tool, "arguments": {"path": "."}, "maxAttempts": 1});
        post_with(first.address, "/jobs", headers, &job).expect(202);
    };
    submit("secret", "file_list", &mine);
    submit("open", "file_list", &[]);
    for expected in ["secret", "open"] {
        let event = own.next(wait::LONG).expect("an event");
        assert_eq!((&event.json()["jobID"], event.event.as_str()), (&json!(expected), "queued"));
        assert!(event.json().get("owner").is_none(), "{event:?}");
    }
    let event = all.next(wait::LONG).expect("an event");
    assert_eq!(event.json()["jobID"], "open", "jobs of other owners must not be reported");
    drop(all);

    // Another replica sends the events that arrived while no client listened.
    fleet.start_worker();
    submit("later", "file_list", &[]);
    for id in ["open", "later"] {
        let job = get(first.address, &format!("/jobs/{id}?wait=60")).expect(200);
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    let mut resumed =
        open(second.address, "/events", &[("last-event-id", &event.id)]).placed(wait::LONG);
    let mut told = Vec::new();
    while !["open", "later"]
        .iter()
        .all(|id| told.contains(&((*id).to_owned(), "succeeded".to_owned())))
    {
        let event = resumed.next(wait::LONG).expect("an event");
        told.push((event.json()["jobID"].as_str().expect("an id").to_owned(), event.event));
    }
    assert!(told.contains(&("later".to_owned(), "queued".to_owned())), "{told:?}");
    assert!(
        !told.contains(&("open".to_owned(), "queued".to_owned())),
        "that event was sent before: {told:?}"
    );
    assert!(told.iter().all(|(id, _)| id != "secret"), "{told:?}");

    let mut succeeded: Vec<_> = (0..2)
        .map(|_| filtered.next(wait::LONG).expect("an event").json()["jobID"].clone())
        .collect();
    succeeded.sort_by_key(ToString::to_string);
    assert_eq!(succeeded, ["later", "open"]);

    // For positions that don't exist, the stream reports a gap and then continues.
    for nowhere in ["0:999999999,1:999999999", "7:0"] {
        let mut reset = open(second.address, "/events", &[("last-event-id", nowhere)]);
        let event = reset.next(wait::LONG).expect("an event");
        assert_eq!(event.event, "reset", "{nowhere}");
        assert!(event.json()["reason"].is_string() && !event.id.is_empty(), "{event:?}");
    }
}

/// Open streams don't keep a server from stopping.
pub(crate) fn streams_end_with_the_server(env: &Env) {
    let (_fleet, mut server) = start(env, "rest-stop");
    post(server.address, "/jobs", &json!({"jobID": "queued", "tool": "file_list"})).expect(202);
    let mut all =
        Events::open(server.address, "/events", &[]).expect("a stream").placed(wait::LONG);
    let mut one = Events::open(server.address, "/jobs/queued/events", &[]).expect("a stream");
    assert_eq!(one.next(wait::LONG).expect("a state").event, "queued");

    let begin = Instant::now();
    server.process.signal(nix::sys::signal::Signal::SIGTERM);
    // The stream of all jobs may have begun before the server had read that event.
    while let Some(event) = all.next(wait::LONG) {
        assert_eq!(event.event, "queued", "{event:?}");
    }
    assert_eq!(one.next(wait::LONG), None);
    assert!(server.process.wait(wait::LONG).success());

    // Stopping doesn't wait for the drain timeout, which is for running calls.
    assert!(begin.elapsed() < Duration::from_secs(9), "it took {:?}", begin.elapsed());
}
