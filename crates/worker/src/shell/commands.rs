//! Carrying out what the engine decides.

use std::{panic::AssertUnwindSafe, time::Instant};

use fleet_engine::{Command, Input, Token};
use fleet_job::time::Timestamp;
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
    /// Carries out all commands that the engine has.
    pub(super) fn carry_out_commands(&mut self) {
        while let Some(command) = self.next_command() {
            if self.is_stale(&command) {
                continue;
            }

            match command {
                Command::Start(token, attempt) => self.start_attempt(token, attempt),
                Command::Settle(token, terminal, attempts) => {
                    self.write_end(token, terminal, attempts)
                }
                Command::Retrying(token, attempts, at) => self.publish_retry(token, attempts, at),
                Command::Forget(token) => self.forget_record(token),
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
                        "the log begins after the committed offset: records were lost, or the \
                         topic was deleted and made again"
                    );
                }

                Command::Probe => self.probe_server(),
                Command::Violation(broken, token) => {
                    invariant::violated(broken.name(), format_args!("{token:?}"))
                }
            }
        }

        self.track_breaker();
    }

    /// The next command, if we may still act. This has to be asked before each command, because
    /// the process can be stopped between any two of them.
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

    /// Whether a command was decided before its partition was taken away, and must not be carried
    /// out any more.
    fn is_stale(&self, command: &Command) -> bool {
        match command {
            Command::Start(token, _)
            | Command::Settle(token, ..)
            | Command::Retrying(token, ..) => {
                self.engine.token(token.partition, token.offset) != Some(*token)
            }
            _ => false,
        }
    }

    fn publish_retry(&self, token: Token, attempts: u32, at: Timestamp) {
        let Some(held) = self.jobs.get(&token) else { return };
        let event = self.reporter.waiting_event(&held.subject(), self.clock.now(), attempts, at);
        self.publish_event(event);
    }

    fn forget_record(&mut self, token: Token) {
        let Some(held) = self.jobs.remove(&token) else { return };
        if let Some(task) = held.task() {
            task.abort();
        }

        // The broker may have the end of a job whose partition is lost, or still get it. If the
        // record comes back, it must end in the same way.
        let identity = held.identity;
        if let Some(event) = held.into_unconfirmed_event() {
            self.settled.remember(Instant::now(), identity, Some(event));
        }
    }

    fn probe_server(&self) {
        let client = self.client.clone();
        let probe = async move { Answer::Probed(client.probe().await.is_ok()) };
        self.spawn_task(probe, || Answer::Probed(false));
    }

    // --- What carrying out takes ----------------------------------------------------------------

    /// Writes an event that nothing waits for; if it is lost, the terminal event says the rest.
    /// Without contact to the group it is dropped: it may be out of date, and would be the last
    /// word about a job that another worker has ended.
    pub(super) fn publish_event(&self, event: Outgoing) {
        if self.is_out_of_contact() {
            return;
        }

        let report = |error: KafkaError| {
            counter!(names::WRITE_FAILURES.name, "kind" => "event").increment(1);
            tracing::warn!(%error, "could not publish a job event");
        };
        let after = move |result: Result<_, _>| result.map(drop).unwrap_or_else(report);
        self.producers.for_jobs().enqueue_then(&event, after).unwrap_or_else(report);
    }

    /// Runs `work` as a task whose answer comes back to the loop. The engine waits for an answer,
    /// so there is one even if the task panics.
    pub(super) fn spawn_task(
        &self,
        work: impl Future<Output = Answer> + Send + 'static,
        after_panic: impl FnOnce() -> Answer + Send + 'static,
    ) -> AbortHandle {
        let answers = self.answers.clone();
        // The runtime moves a task several times, and a call takes kilobytes.
        let work = Box::pin(work);

        let task = tokio::spawn(async move {
            // Nothing that the work has touched is used after a panic.
            let answer = AssertUnwindSafe(work).catch_unwind().await;
            send_answer(&answers, answer.unwrap_or_else(|_| after_panic()));
        });
        task.abort_handle()
    }
}
