//! How records come to their end, or go on as other records.

use std::sync::Arc;

use fleet_engine::{Terminal, Token};
use fleet_job::{delayed::Delayed, event::JobState};
use fleet_kafka::{KafkaError, producer::Outgoing};
use fleet_ops::invariant;
use tracing::Instrument as _;

use super::{
    Shell,
    answers::{Answer, send_answer},
    end_writes::{
        Refusal, Remedy, choose_remedy, group_has_members, repeat_end, report_not_written,
        write_passed_on, write_settlement, write_short_event, write_when_room,
    },
    held_job::HeldJob,
    held_record::{Content, HeldRecord, NotRun},
    write_state::WriteState,
};
use crate::{
    delay_tiers::NextStop,
    report::{ANY_PARTITION, Letter, Settlement},
};

/// How a record is passed on.
struct Passage {
    letter: Letter,
    /// The event that reports it, if one is needed.
    event: Option<Outgoing>,
    /// The group whose job it is, if that is another one.
    other_group: Option<String>,
}

impl Shell {
    /// Writes the end of a record, or the record it goes on as.
    pub(super) fn write_end(&mut self, token: Token, terminal: Terminal, attempts: u32) {
        let now = self.clock.now();
        let Some(held) = self.jobs.get_mut(&token) else { return };
        held.begin_span(&self.reporter.group).set("fleet.job.attempts", i64::from(attempts));
        let before = held.begin_writing();

        if let Content::NotRun(NotRun::Repeat { end, .. }, _) = &held.content {
            let end = end.clone();
            let producer = self.producers.for_jobs();
            return self
                .spawn_write(token, async move { repeat_end(&producer, token, &end).await });
        }
        if terminal == Terminal::Failed {
            let is_outage = held.job().is_some_and(|job| job.was_turned_away);
            let detail = format_args!("{token:?} fails because of an outage");
            invariant::check("I7", !is_outage, detail);
        }

        let is_first_try = matches!(before, WriteState::Due);
        let settlement = match before {
            WriteState::Unacknowledged(Some(rest)) => Some(*rest),
            _ => self.reporter.build_settlement(&held.subject(), now, terminal, attempts),
        };
        let Some(settlement) = settlement else {
            return self.pass_on_record(token, terminal, attempts);
        };

        held.record_end(settlement.state, is_first_try);
        if settlement.is_event_only() {
            return self.enqueue_event(token, settlement.state, settlement.event);
        }
        let producer = self.producers.for_jobs();
        self.spawn_write(
            token,
            async move { write_settlement(&producer, token, settlement).await },
        );
    }

    /// Writes an end that takes one record, as most ends do, without a task.
    fn enqueue_event(&mut self, token: Token, state: JobState, mut event: Outgoing) {
        // It is remembered for a while.
        event.value.as_mut().map(Vec::shrink_to_fit);
        let event = Arc::new(event);
        if let Some(held) = self.jobs.get_mut(&token) {
            held.set_writing(WriteState::Enqueued(event.clone()));
        }

        let (answers, kept) = (self.answers.clone(), event.clone());
        let after = move |result| {
            let answer = match result {
                Ok(_) => Answer::Written(token, state, kept),
                Err(error) => Answer::EventNotWritten(token, state, kept, error),
            };
            send_answer(&answers, answer);
        };
        if let Err(error) = self.producers.for_jobs().enqueue_then(&event, after) {
            send_answer(&self.answers, Answer::EventNotWritten(token, state, event, error));
        }
    }

    /// Deals with a terminal event that the producer has not written.
    pub(super) fn handle_unwritten_event(
        &mut self,
        token: Token,
        state: JobState,
        event: Arc<Outgoing>,
        error: KafkaError,
    ) {
        let is_ours = self.engine.token(token.partition, token.offset) == Some(token);
        let Some(log) = self.jobs.get(&token).map(HeldRecord::log_span) else { return };
        let producer = self.producers.for_jobs();

        match choose_remedy(Refusal::from(&error), is_ours, self.is_out_of_contact()) {
            Remedy::Drop => {}
            Remedy::Shorten => {
                self.spawn_write(token, async move {
                    write_short_event(&producer, token, state, &event).await
                });
            }
            Remedy::Wait => {
                self.spawn_write(token, async move {
                    write_when_room(&producer, token, state, event).await
                });
            }
            Remedy::TryAgain => {
                let rest = Settlement::of_event(state, Arc::unwrap_or_clone(event));
                let answer =
                    log.in_scope(|| report_not_written(token, Some(rest), "event", &error));
                self.handle_answer(answer);
            }
        }
    }

    /// Writes the record as which a job goes on that has to wait.
    fn pass_on_record(&mut self, token: Token, terminal: Terminal, attempts: u32) {
        let Some(held) = self.jobs.get(&token) else { return };
        let passage = self.plan_passage(token, held, terminal, attempts);
        let Passage { letter, event, other_group } = passage;
        if let Some(event) = event {
            self.publish_event(event);
        }

        let producer = match self.producers.for_topic(token.partition.topic) {
            Ok(producer) => producer,
            Err(error) => {
                let answer = report_not_written(token, None, "delayed", &error);
                return send_answer(&self.answers, answer);
            }
        };
        let is_deferred = matches!(terminal, Terminal::Deferred(_));
        let settings = self.settings.clone();
        self.spawn_write(token, async move {
            if let Some(group) = other_group {
                match group_has_members(settings, &group).await {
                    Ok(true) => return Answer::LeftToOwnGroup(token, group),
                    Ok(false) => tracing::warn!(
                        group,
                        "a delayed job of another group is taken over: that group has no members"
                    ),
                    Err(error) => return report_not_written(token, None, "delayed", &error),
                }
            }
            write_passed_on(&producer, token, letter, is_deferred).await
        });
    }

    fn plan_passage(
        &self,
        token: Token,
        held: &HeldRecord,
        terminal: Terminal,
        attempts: u32,
    ) -> Passage {
        let now = self.clock.now();
        let own_group = &self.reporter.group;
        let position = &held.record.position;
        let job = held.job();
        let new_header = |until| Delayed {
            group: own_group.clone(),
            topic: position.topic.clone(),
            topic_id: held.topic_id.as_deref().map(str::to_owned),
            partition: position.partition,
            offset: position.offset,
            continues: Some(token.offset),
            timestamp: held.record.timestamp,
            until,
            look_at: until,
            attempts,
            first_error: job.and_then(HeldJob::first_error).cloned(),
            waiting: job.and_then(|job| job.waiting.clone()),
        };

        let (header, is_recalled, other_group) = match (terminal, &held.content) {
            (Terminal::Deferred(until), _) => (new_header(until), false, None),
            (_, Content::NotRun(NotRun::Relay { header, is_recalled }, _)) => {
                let other = Some(&header.group).filter(|group| *group != own_group);
                let header = Delayed { group: own_group.clone(), ..header.clone() };
                (header, *is_recalled, other.cloned())
            }
            // Somebody else put it into the delayed topic; its key decides where it belongs.
            _ => {
                let header =
                    Delayed { partition: ANY_PARTITION, continues: None, ..new_header(now) };
                (header, false, None)
            }
        };

        // An event that says what the job waits for has been published already.
        let event = match terminal {
            Terminal::Deferred(until) if header.waiting.is_none() => {
                Some(self.reporter.waiting_event(&held.subject(), now, attempts, until))
            }
            _ => None,
        };

        let next = match is_recalled {
            true => NextStop::Return,
            false => self.reporter.next_stop(now, header.until),
        };
        let letter = self.reporter.passed_on_letter(&held.record, header, next);
        Passage { letter, event, other_group }
    }

    /// Writes in a task.
    fn spawn_write(
        &mut self,
        token: Token,
        writing: impl Future<Output = Answer> + Send + 'static,
    ) {
        let log = self.jobs.get(&token).map_or_else(tracing::Span::none, HeldRecord::log_span);
        let after_panic = move || Answer::NotWritten(token, None);
        let task = self.spawn_task(writing.instrument(log), after_panic);

        if let Some(held) = self.jobs.get_mut(&token) {
            held.set_writing(WriteState::Task(task));
        }
    }
}
