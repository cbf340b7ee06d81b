//! What the engine decides is carried out here.

use std::panic::AssertUnwindSafe;

use fleet_engine::{Command, Input};
use fleet_kafka::{KafkaError, producer::Outgoing};
use fleet_ops::invariant;
use futures::FutureExt as _;
use metrics::counter;
use tokio::task::AbortHandle;

use super::{
    Shell,
    answers::{Answer, send_answer},
    topic_of,
};
use crate::metrics as names;

impl Shell {
    /// The next command that may be carried out. Asks each time whether it is still ours to do so:
    /// the process can be stopped between any two.
    fn next_command(&mut self) -> Option<Command> {
        if self.is_out_of_contact() {
            self.has_old_commands = true;
            return None;
        }
        if std::mem::take(&mut self.has_old_commands) {
            self.feed_engine(Input::ContactRegained);
        }
        self.engine.poll()
    }

    pub(super) fn carry_out_commands(&mut self) {
        while let Some(command) = self.next_command() {
            match command {
                // Decided before the partition was taken away, and not carried out yet.
                Command::Start(token, _)
                | Command::Settle(token, ..)
                | Command::Retrying(token, ..)
                    if self.engine.token(token.partition, token.offset) != Some(token) => {}
                Command::Start(token, attempt) => self.start_attempt(token, attempt),
                Command::Settle(token, terminal, attempts) => {
                    self.write_end(token, terminal, attempts)
                }
                Command::Retrying(token, attempts, at) => {
                    let now = self.clock.now();
                    let held = self.jobs.get(&token);
                    self.publish_event(held.map(|held| {
                        self.reporter.waiting_event(&held.subject(), now, attempts, at)
                    }));
                }
                Command::Forget(token) => {
                    if let Some(held) = self.jobs.remove(&token)
                        && let Some(task) = held.task()
                    {
                        task.abort();
                    }
                }
                Command::Abort(token) => self.abort_attempt(token),
                Command::Commit(commit) => {
                    self.uncommitted.note_sent(commit.partition);
                    self.consumer.commit(commit);
                }
                Command::Pause(partition, generation) => self.consumer.pause(partition, generation),
                Command::Resume(partition, generation) => {
                    self.consumer.resume(partition, generation)
                }
                Command::LogReset(partition) => {
                    tracing::error!(
                        topic = topic_of(partition),
                        partition = partition.number,
                        "the log begins below the committed offset: its records were lost, or its topic was made again"
                    );
                }
                Command::Probe => {
                    let client = self.client.clone();
                    let probe = async move { Answer::Probed(client.probe().await.is_ok()) };
                    self.spawn_task(probe, || Answer::Probed(false));
                }
                Command::Violation(name, token) => {
                    invariant::violated(name, format_args!("{token:?}"))
                }
            }
        }
        self.track_breaker();
    }

    /// Writes an event that nothing waits for: the terminal one will tell the rest. Where the
    /// process was stopped since it was made up, it may be out of date, and would be the last word
    /// about a job that another worker has ended.
    pub(super) fn publish_event(&self, event: Option<Outgoing>) {
        let Some(event) = event.filter(|_| !self.is_out_of_contact()) else { return };
        let missing = |error: KafkaError| {
            counter!(names::WRITE_FAILURES.name, "kind" => "event").increment(1);
            tracing::warn!(%error, "could not publish a job event");
        };
        let later = move |result: Result<_, _>| result.map(drop).unwrap_or_else(missing);
        self.producers.for_jobs().enqueue_then(&event, later).unwrap_or_else(missing);
    }

    /// Runs `work` as a task whose answer comes back to the loop, also where it panics: the engine
    /// waits for it.
    pub(super) fn spawn_task(
        &self,
        work: impl Future<Output = Answer> + Send + 'static,
        after_panic: impl FnOnce() -> Answer + Send + 'static,
    ) -> AbortHandle {
        let done = self.answers.clone();
        // The runtime moves a task several times, and a call is kilobytes.
        let work = Box::pin(work);
        let task = tokio::spawn(async move {
            // Nothing that the work has touched is used after a panic.
            let answer = AssertUnwindSafe(work).catch_unwind().await;
            send_answer(&done, answer.unwrap_or_else(|_| after_panic()));
        });
        task.abort_handle()
    }
}
