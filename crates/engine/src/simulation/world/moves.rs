//! The moves of a schedule: what producers, the broker, the server and the clock do next.

use super::*;

/// What happens next in a schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Move {
    /// Somebody submits a job.
    Produce,
    /// The broker hands a record to a worker.
    Deliver,
    /// A call ends, or a probe is answered.
    Finish,
    /// The broker answers a write.
    Write,
    /// The broker answers a commit.
    AnswerCommit,
    /// Time passes.
    Pass,
    /// Somebody cancels a job.
    Cancel,
    /// The server, its room for calls, or a hosted server goes away or comes back.
    ToggleServer,
    /// Somebody pauses jobs, or resumes them.
    TogglePause,
    /// The broker goes away or comes back.
    ToggleBroker,
    /// A worker joins the group.
    Join,
    /// A worker stops gracefully.
    Leave,
    /// A worker dies.
    Crash,
    /// A worker stops for so long that the group expels it.
    Freeze,
    /// A worker learns what it has lost.
    Thaw,
    /// A topic is deleted and made again.
    Remake,
    /// A worker learns that a topic was made again.
    Notice,
    /// A worker stops for a while and stays a member.
    Doze,
    /// Some milliseconds pass, and all workers look at the clock.
    Tick,
}

impl<E: Subject> World<E> {
    /// Makes one move, which `seed` alone decides: if other moves of a schedule are left out, this
    /// one stays what it is.
    pub(crate) fn step(&mut self, seed: u64) {
        self.rng = Rng::new(seed);
        self.rng.next();
        let next = self.draw_move();
        self.tell_move(next);
        self.make_move(next);
    }

    fn draw_move(&mut self) -> Move {
        match self.rng.below(100) {
            0..=14 => Move::Produce,
            15..=44 => Move::Deliver,
            45..=63 => Move::Finish,
            64..=78 => Move::Write,
            79..=86 => Move::AnswerCommit,
            87..=88 => Move::Pass,
            89 => Move::Cancel,
            90 => Move::ToggleServer,
            91 => Move::ToggleBroker,
            92 if self.workers.len() < 3 => Move::Join,
            93 if self.workers.len() > 1 => Move::Leave,
            94 if self.crashes => Move::Crash,
            95 if self.crashes => Move::Freeze,
            96 => Move::Thaw,
            97 if self.remakes => Move::Remake,
            98 if self.remakes => Move::Notice,
            98 if self.pauses_jobs => Move::TogglePause,
            99 => Move::Doze,
            _ => Move::Tick,
        }
    }

    fn make_move(&mut self, next: Move) {
        match next {
            Move::Produce => self.produce(),
            Move::Deliver => self.deliver(),
            Move::Finish => self.finish(),
            Move::Write => self.write(),
            Move::AnswerCommit => self.answer_commit(),
            Move::Pass => {
                let time = self.rng.below(500) as i64;
                self.pass(time, None);
            }
            Move::Cancel => self.cancel(),
            Move::ToggleServer => match self.rng.below(4) {
                0 => self.server_up = !self.server_up,
                1 => self.toggle(Need::Room),
                _ => {
                    let hosted = self.rng.below(HOSTED);
                    self.toggle(Need::Hosted(hosted));
                }
            },
            Move::TogglePause => self.toggle_pause(),
            Move::ToggleBroker => self.broker_up = !self.broker_up,
            Move::Join => self.join(),
            Move::Leave => self.leave(),
            Move::Crash => self.crash(),
            Move::Freeze => self.freeze(),
            Move::Thaw => self.thaw(),
            Move::Remake => self.remake(),
            Move::Notice => {
                let number = self.rng.below(PARTITIONS as u64) as i32;
                self.notice(number);
            }
            Move::Doze => self.doze(),
            Move::Tick => self.tick(),
        }
    }

    /// Something goes away, or comes back.
    fn toggle(&mut self, need: Need) {
        if !self.away.remove(&need) {
            self.away.insert(need);
        }
    }

    fn produce(&mut self) {
        let number = self.rng.below(JOBS as u64) as usize;
        self.produce_to(number);
    }

    pub(crate) fn produce_to(&mut self, number: usize) {
        let key = if self.rng.chance(70) { Some(self.rng.below(4)) } else { None };
        let script = match self.rng.below(20) {
            0 => Script::FailsForEver,
            1 => Script::Permanent,
            2 => Script::NoJob,
            3..=6 => Script::FailsThenSucceeds(1 + self.rng.below(3) as u32),
            _ => Script::FailsThenSucceeds(0),
        };
        let limit = |group, max| Some(Limit { group, max });
        let tool = if self.rng.chance(30) { limit(1, 2) } else { None };
        let tenant = if self.rng.chance(30) { limit(10 + self.rng.below(2), 1) } else { None };
        let job = Job {
            id: self.produced,
            relay: None,
            spent: 0,
            passed_on: false,
            limits: [tool, tenant],
            hosted: if self.rng.chance(50) { Some(self.rng.below(HOSTED)) } else { None },
            is_known: self.rng.chance(80),
            held_since: None,
            cancelled: None,
            key,
            script,
            deadline: self.time_within(20, 3000),
            not_before: self.time_within(15, 2500),
            ended: 0,
            terminals: Vec::new(),
            seems_to_run: false,
            must_not_repeat: false,
        };
        self.produced += 1;
        self.append(number, job);
    }

    /// Writes a record, sometimes behind a hole.
    fn append(&mut self, number: usize, job: Job) {
        let hole = if self.rng.chance(15) { self.rng.below(4) as i64 } else { 0 };
        let log = &mut self.logs[number];
        let offset = log.next + hole;
        log.next = offset + 1;
        log.jobs.insert(offset, job);
    }

    /// Writes the same job as a new record, because it leaves memory, or returns to where it was.
    fn pass_on(&mut self, token: Token, until: i64, attempts: u32) {
        let (now, from) = (self.now, token.partition.number as usize);
        let job = self.job(token).clone();
        let held = job.relay.is_none() && job.not_before.is_none_or(|at| at <= now);
        let origin = job.relay.map_or(from, |(_, origin)| origin);
        let far = until > now + MAX_PARK;
        let relay = far.then_some(((now + TIER).min(until), origin));
        let record = Job {
            relay,
            spent: attempts.max(job.spent),
            passed_on: true,
            not_before: Some(until),
            held_since: if held { job.held_since.or(Some(now)) } else { job.held_since },
            cancelled: None,
            terminals: Vec::new(),
            seems_to_run: false,
            must_not_repeat: false,
            ..job
        };
        self.append(if far { DELAYED } else { origin }, record);
    }

    /// The event that a job has entered a state.
    pub(crate) fn word(&mut self, token: Token, state: JobState) -> Word {
        self.words += 1;
        Word::new(self.job(token).id, state, self.words)
    }

    /// Somebody cancels a job that its worker has read: one that is in memory, or one that has just
    /// ended.
    fn cancel(&mut self) {
        let number = self.rng.below(JOBS as u64) as usize;
        let Some(worker) = self.owner[number].filter(|worker| !self.is_out_of_contact(*worker))
        else {
            return;
        };
        let position = self.workers[worker].position[&(number as i32)];
        let read = self.logs[number].jobs.range(..position);
        let (has_ended, open): (Vec<_>, Vec<_>) = read
            .filter(|(_, job)| job.terminals.iter().all(|terminal| terminal.is_final()))
            .map(|(offset, job)| (!job.terminals.is_empty(), *offset))
            .partition(|(has_ended, _)| *has_ended);
        let those = if self.rng.chance(30) { has_ended } else { open };
        if those.is_empty() {
            return;
        }
        let (_, offset) = those[self.rng.below(those.len() as u64) as usize];
        let Some(token) = self.workers[worker].engine.token(partition(number as i32), offset)
        else {
            return;
        };
        self.job(token).cancelled = Some(token.generation);
        self.feed(worker, Input::Cancel(token));
    }

    /// With this probability in percent, a time within the next milliseconds.
    fn time_within(&mut self, percent: u64, ms: u64) -> Option<i64> {
        let at = self.now + self.rng.below(ms) as i64;
        self.rng.chance(percent).then_some(at)
    }

    pub(crate) fn deliver(&mut self) {
        let number = self.rng.below(PARTITIONS as u64) as i32;
        let Some(worker) = self.owner[number as usize].filter(|_| self.broker_up) else { return };
        if self.workers[worker].paused.contains(&number) || self.is_out_of_contact(worker) {
            return;
        }
        let position = self.workers[worker].position[&number];
        // Reading beyond the end starts over at the beginning, which shows that the topic is new.
        if position > self.logs[number as usize].next {
            return self.notice(number);
        }
        let log = &self.logs[number as usize];
        let Some((offset, job)) = log.jobs.range(position..).next() else {
            return self.reach_end(worker, number);
        };
        // A worker that has read the cancel request before the job knows that it must not start.
        let cancelled = job.cancelled.is_some();
        let admission = match (job.relay, job.script) {
            (Some((at, _)), _) => Admission::Relay(Timestamp::from_millis(at).unwrap()),
            (None, Script::NoJob) => Admission::Reject { key: job.key },
            _ => {
                let spec = JobSpec {
                    key: job.key,
                    tenant: tenant_of(job.id),
                    spent: job.spent,
                    limits: job.limits,
                    returned: job.spent > 0 || job.passed_on,
                    keeps_progress: job.id % 4 == 0,
                    hosted: job.hosted.filter(|_| job.is_known),
                    held_since: job.held_since.map(|n| Timestamp::from_millis(n).unwrap()),
                    priority: (offset % 5) as u8,
                    not_before: job.not_before.map(|n| Timestamp::from_millis(n).unwrap()),
                    deadline: job.deadline.map(|n| Timestamp::from_millis(n).unwrap()),
                    max_attempts: MAX_ATTEMPTS,
                };
                if cancelled { Admission::Cancelled(spec) } else { Admission::Job(spec) }
            }
        };
        let offset = *offset;
        let taken_for = self.workers[worker].logs[&number].topic;
        let known = match self.fault {
            Some(Fault::SettledInAnyLog) => self.workers[worker]
                .settled
                .iter()
                .any(|(of, _, at)| (*of, *at) == (number, offset)),
            _ => self.workers[worker].settled.contains(&(number, taken_for, offset)),
        };
        let has_ended = job.terminals.iter().any(|terminal| terminal.is_final());
        let admission = match known && self.rng.chance(70) {
            true if has_ended => Admission::Ended,
            true => Admission::Settled,
            false => admission,
        };
        self.workers[worker].position.insert(number, offset + 1);
        let token =
            self.workers[worker].engine.token(partition(number), offset).filter(|_| cancelled);
        if let Some(token) = token {
            self.job(token).cancelled = Some(token.generation);
        }
        self.feed(
            worker,
            Input::Record { partition: partition(number), offset, bytes: 10, admission },
        );
    }

    /// Everything has been delivered. The log may end in offsets without records.
    fn reach_end(&mut self, worker: usize, number: i32) {
        let log = &mut self.logs[number as usize];
        if self.rng.chance(20) {
            log.next += self.rng.below(3) as i64;
        }
        let end = log.next;
        self.workers[worker].position.insert(number, end);
        self.feed(worker, Input::End(partition(number), end));
    }

    pub(crate) fn write(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        if self.is_out_of_contact(worker) {
            return;
        }
        if self.workers[worker].writing.is_empty() {
            return;
        }
        let index = self.rng.below(self.workers[worker].writing.len() as u64) as usize;
        let (token, terminal, attempts) = self.workers[worker].writing.swap_remove(index);
        if !self.broker_up || self.rng.chance(5) {
            if self.fault == Some(Fault::WriteFailureIgnored) {
                return self.feed(worker, Input::Written(token));
            }
            return self.feed(worker, Input::WriteFailed(token));
        }
        if matches!(terminal, Terminal::Deferred(_)) && self.rng.chance(10) {
            return self.feed(worker, Input::NotDeferred(token));
        }
        // The partition was given away while the write was under way, and nobody will hear that it
        // has succeeded: the next owner repeats what was in flight.
        self.disorder |=
            self.workers[worker].engine.token(token.partition, token.offset) != Some(token);
        if terminal == Terminal::Again {
            self.job(token).seems_to_run = false;
            let id = self.job(token).id;
            let again = self.workers[worker].ends.get(&id).cloned();
            again.into_iter().for_each(|end| self.events.write(end, None));
            return self.feed(worker, Input::Written(token));
        }
        self.check_terminal(worker, token, terminal);
        match terminal {
            Terminal::Deferred(until) => self.pass_on(token, until.as_millis(), attempts),
            Terminal::Relayed if self.fault == Some(Fault::RelaysDropped) => {}
            Terminal::Relayed => {
                let until = self.job(token).not_before.unwrap_or_default();
                self.pass_on(token, until, 0);
            }
            _ => {
                let id = self.job(token).id;
                self.ended.insert(id);
                let word = self.word(token, state_of(terminal));
                self.workers[worker].ends.insert(id, word.clone());
                self.events.write(word, None);
            }
        }
        self.job(token).terminals.push(terminal);
        self.job(token).seems_to_run = false;
        self.remember_settled(worker, token);
        self.feed(worker, Input::Written(token));
    }

    /// The worker knows from now on that this record is settled. It knows the record by the log from
    /// which it was read; after the topic was recreated, that is one which nobody reads again.
    fn remember_settled(&mut self, worker: usize, token: Token) {
        let number = token.partition.number;
        let is_gone =
            self.logs[number as usize].gone.contains_key(&(token.generation, token.offset));

        let taken_for = if is_gone { 0 } else { self.workers[worker].logs[&number].topic };
        self.workers[worker].settled.insert((number, taken_for, token.offset));
    }

    pub(crate) fn answer_commit(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        if self.is_out_of_contact(worker) {
            return;
        }
        if self.workers[worker].commits.is_empty() {
            return;
        }
        let commit = self.workers[worker].commits.remove(0);
        // The broker refuses a commit for a partition that has moved, because it is of another
        // generation.
        let ours = self.owner[commit.partition.number as usize] == Some(worker)
            && self.workers[worker].engine.token(commit.partition, 0).map(|token| token.generation)
                == Some(commit.generation);
        let ours = ours || self.fault == Some(Fault::CommitAfterRevoke);
        let ok = ours && self.broker_up && !self.rng.chance(5);
        if ok {
            self.commit(&commit);
        }
        let FinalCommit { partition, generation, .. } = commit;
        self.feed(worker, Input::Committed { partition, generation, ok });
    }

    pub(crate) fn tick(&mut self) {
        let time = 1 + self.rng.below(60) as i64;
        self.pass(time, None);
        if self.rng.chance(20) {
            self.events.arrive();
        }
        if self.rng.chance(20) {
            self.events.restate();
        }
        for worker in 0..self.workers.len() {
            if !self.is_out_of_contact(worker) {
                self.feed(worker, Input::Tick);
            }
        }
    }
}

/// The state that a terminal event reports for an end.
fn state_of(terminal: Terminal) -> JobState {
    match terminal {
        Terminal::Failed | Terminal::Rejected => JobState::Failed,
        Terminal::Expired => JobState::Expired,
        Terminal::Cancelled => JobState::Cancelled,
        _ => JobState::Succeeded,
    }
}
