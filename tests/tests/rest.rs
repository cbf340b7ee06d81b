//! Jobs over plain HTTP: real replicas of the server, real workers, and a client that checks every
//! byte.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

mod documents;
mod inspecting;
mod operating;
mod principals;
mod refusals;
mod streams;
mod submitting;

use fleet_tests::{Env, Fleet, fleet::Service, on_every_broker};
use serde_json::{Value, json};

use self::{inspecting::*, operating::*, principals::*, refusals::*, streams::*, submitting::*};

on_every_broker!(
    a_job_is_submitted_and_asked_for,
    many_jobs_are_listed_page_by_page,
    a_repeated_submission_is_one_job_and_one_call,
    a_job_is_cancelled_or_it_is_too_late,
    a_job_of_a_producer_is_found_and_cancelled,
    a_log_of_many_partitions_is_searched_in_time,
    jobs_are_counted_and_searched,
    a_job_shows_its_arguments_and_its_history,
    a_job_without_its_record_says_so,
    a_job_runs_again_and_with_other_arguments,
    all_that_match_are_cancelled_and_run_again,
    dead_letters_are_counted_and_replayed,
    nonsense_and_too_much_are_refused_clearly,
    somebody_elses_jobs_are_not_there,
    another_principals_jobs_are_not_there,
    what_principals_do_is_recorded,
    a_job_is_followed_to_its_end,
    all_jobs_are_followed_over_replicas,
    streams_end_with_the_server,
);

/// A fleet with one server that accepts jobs, and no workers yet.
fn start<'e>(env: &'e Env, name: &str) -> (Fleet<'e>, Service) {
    let mut fleet = Fleet::new(env, name, 2);
    fleet.create_control_topic();
    let server = fleet.start_job_server();
    (fleet, server)
}

/// A job that reads a small file.
fn read_file() -> Value {
    json!({"tool": "file_read", "arguments": {"path": "hello.txt"}})
}
