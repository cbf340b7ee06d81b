//! Carrying out commands, and the oracles for I1 and I3 to I7 that check every one of them. The one
//! for I8 is in `fairness`.

use super::*;

impl<E: Subject> World<E> {
    pub(crate) fn drain(&mut self, worker: usize) {
        while let Some(command) = self.next_command(worker) {
            self.tell_command(worker, &command);
            match command {
                // It was decided before the partition was taken away, and not carried out.
                Command::Start(token, _)
                | Command::Settle(token, ..)
                | Command::Retrying(token, ..)
                    if self.workers[worker].engine.token(token.partition, token.offset)
                        != Some(token) => {}
                Command::Start(token, _)
                | Command::Settle(token, ..)
                | Command::Retrying(token, ..)
                    if self.workers[worker].gone.contains(&token.partition.number) =>
                {
                    broken(format!(
                        "a worker that was out of reach acts on {token:?}: {command:?}"
                    ));
                }
                Command::Start(token, attempt) => match self.pause_of(token) {
                    Some(pause) => self.refuse_start(worker, token, attempt, pause),
                    None => self.started(worker, token, attempt),
                },
                Command::Settle(token, terminal, attempts) => {
                    self.workers[worker].writing.push((token, terminal, attempts));
                    if self.fault == Some(Fault::SettleBeforeWritten) {
                        let now = self.time();
                        self.workers[worker].engine.handle(now, Input::Written(token));
                    }
                }
                Command::Commit(commit) => self.workers[worker].commits.push(commit),
                Command::Forget(token) => {
                    // The outcome of a call that has ended may still be on its way to the engine.
                    let worker = &mut self.workers[worker];
                    let late = worker.running.iter().filter(|(running, _)| *running == token);
                    worker.late.extend(late);
                    worker.running.retain(|(running, _)| *running != token);
                    worker.writing.retain(|(writing, ..)| *writing != token);
                }
                // A command that is carried out late can be about an assignment that has ended.
                Command::Pause(partition, generation) | Command::Resume(partition, generation)
                    if self.workers[worker]
                        .engine
                        .token(partition, 0)
                        .map(|token| token.generation)
                        != Some(generation) => {}
                Command::Pause(partition, _) => {
                    self.workers[worker].paused.insert(partition.number);
                }
                Command::Resume(partition, _) => {
                    self.workers[worker].paused.remove(&partition.number);
                }
                // The call is cancelled when its end is drawn next.
                Command::Abort(_) => {}
                Command::Probe => self.workers[worker].probing = true,
                Command::LogReset(partition) => broken(format!("{partition:?} was not reset")),
                Command::Retrying(token, attempts, _) => {
                    ensure!(
                        attempts < MAX_ATTEMPTS,
                        "I6: {token:?} is to be tried again after {attempts} attempts"
                    );
                    let word = self.word(token, JobState::Retrying);
                    self.events.write(word, None);
                }
                Command::Violation(invariant, token) => {
                    broken(format!("{} is violated at {token:?}", invariant.name()))
                }
            }
        }
    }

    /// The next command that a worker may carry out, as its shell takes it.
    fn next_command(&mut self, worker: usize) -> Option<Command> {
        let now = self.time();
        if self.dozes == Some(worker) {
            return None;
        }
        let is_out_of_contact = self.is_out_of_contact(worker);
        let worker = &mut self.workers[worker];
        if is_out_of_contact {
            worker.has_old_commands = true;
            return None;
        }
        if std::mem::take(&mut worker.has_old_commands) {
            worker.passed.clear();
            worker.engine.handle(now, Input::ContactRegained);
        }
        worker.engine.poll()
    }

    fn started(&mut self, worker: usize, token: Token, attempt: u32) {
        self.check_start(worker, token, attempt);
        let word = self.word(token, JobState::Running);
        self.events.write(word, None);

        let now = self.now;
        let job = self.job(token);
        job.seems_to_run |= job.terminals.iter().any(|terminal| terminal.is_final());
        let hosted = job.hosted.filter(|_| job.is_known);
        self.workers[worker].running.push((token, attempt));
        self.check_limits(worker, token);

        let asked = hosted.and_then(|server| self.workers[worker].held_until.get(&server).copied());
        ensure!(
            asked.is_none_or(|until| until <= now),
            "I7: {token:?} asks server {hosted:?} before the time that it gave"
        );
    }

    /// Checks that the engine may begin this attempt.
    pub(super) fn check_start(&mut self, worker: usize, token: Token, attempt: u32) {
        let number = token.partition.number;
        ensure!(attempt <= MAX_ATTEMPTS, "I6: attempt {attempt} of {token:?}");
        ensure!(number as usize != DELAYED, "{token:?} runs in the delayed topic");
        if !self.is_unnoticed(number) {
            self.check_ownership(worker, token, attempt);
        }

        let (now, disorder) = (self.now, self.disorder);
        let job = self.job(token);
        ensure!(
            attempt == job.ended + 1 || disorder,
            "I6: attempt {attempt} of {token:?} after {} have ended",
            job.ended
        );
        ensure!(job.deadline.is_none_or(|d| d > now), "{token:?} starts after its deadline");
        ensure!(job.not_before.is_none_or(|d| d <= now), "{token:?} starts too early");
        ensure!(job.script != Script::NoJob, "what is no job must not start");
        ensure!(job.cancelled != Some(token.generation), "{token:?} starts after it was cancelled");
        self.check_fair_share(worker, token);
    }

    /// Checks what holds for the worker to which the group has assigned the partition.
    fn check_ownership(&mut self, worker: usize, token: Token, attempt: u32) {
        let number = token.partition.number;
        let owner = self.owner[number as usize];
        ensure!(
            owner == Some(worker),
            "{token:?} starts in a worker that does not have its partition"
        );
        // Every attempt before this one is committed, where the broker keeps metadata (I6).
        if attempt > 1 && !self.drops_metadata {
            let (offset, metadata) =
                self.logs[number as usize].committed.clone().unwrap_or_default();
            let durable = Progress::decode(offset, &metadata)
                .map_or(0, |progress| progress.attempts(token.offset));
            let durable = durable.max(self.job(token).spent);
            ensure!(
                durable + 1 >= attempt,
                "I6: attempt {attempt} of {token:?} starts, and {durable} are durable"
            );
        }
        let job = self.job(token);
        ensure!(!job.must_not_repeat, "I4: {token:?} runs again");
        let Some(key) = job.key else { return };
        let log = &self.logs[number as usize];
        for (offset, job) in log.jobs.range(..token.offset).filter(|(_, job)| job.key == Some(key))
        {
            ensure!(
                !job.terminals.is_empty(),
                "I5: {token:?} starts before offset {offset} of its key is settled,"
            );
        }
        let same = self.workers[worker].running.iter().any(|(running, _)| {
            running.partition == token.partition && log.jobs[&running.offset].key == Some(key)
        });
        ensure!(!same, "I5: two jobs of one key at once");
    }

    fn check_limits(&mut self, worker: usize, token: Token) {
        let limits = self.job(token).limits;
        for limit in limits.iter().flatten() {
            let under = self.running_under(worker, limit.group);
            ensure!(under <= limit.max as usize, "{under} jobs run under {limit:?}");
        }
    }

    /// How many jobs of a worker run under a limit.
    pub(super) fn running_under(&self, worker: usize, group: u64) -> usize {
        let running = self.workers[worker].running.iter();
        let under = running.filter(|(token, _)| {
            let limits = self.known_job(*token).map(|job| job.limits).unwrap_or_default();
            limits.iter().flatten().any(|limit| limit.group == group)
        });
        under.count()
    }

    /// The job of a token, also if its topic was recreated meanwhile.
    pub(super) fn known_job(&self, token: Token) -> Option<&Job> {
        let log = &self.logs[token.partition.number as usize];
        let gone = log.gone.get(&(token.generation, token.offset));
        gone.or_else(|| log.jobs.get(&token.offset))
    }

    pub(crate) fn commit(&mut self, commit: &FinalCommit) {
        let drops = self.drops_metadata;
        let log = &mut self.logs[commit.partition.number as usize];
        let (about, _) = Progress::read(&commit.metadata).unwrap();
        if about != log.name() {
            log.committed = Some((commit.offset, commit.metadata.clone()));
            return;
        }
        for (offset, job) in log.jobs.range(..commit.offset) {
            ensure!(!job.terminals.is_empty(), "I1: offset {offset} is committed and not settled");
        }
        let metadata = if drops { String::new() } else { commit.metadata.clone() };
        log.committed = Some((commit.offset, metadata));
        // Whoever reads the partition after a crash or a handover must respect the commit.
        for (_, job) in log.jobs.range_mut(..commit.offset) {
            job.must_not_repeat = true;
        }
        if !drops {
            let progress = Progress::decode(commit.offset, &commit.metadata).unwrap();
            for (offset, job) in log.jobs.range_mut(commit.offset..progress.end) {
                if progress.is_done(*offset) {
                    ensure!(!job.terminals.is_empty(), "I1: {offset} is marked done and is not,");
                    job.must_not_repeat = true;
                }
            }
        }
    }

    /// Checks that a record ends, or goes on as another record, in the order of its key (I5).
    fn check_order_of_ends(&self, token: Token, terminal: Terminal) {
        let log = &self.logs[token.partition.number as usize];
        // Records of a topic that was recreated have no order any more.
        let is_gone = self.is_unnoticed(token.partition.number)
            || log.gone.contains_key(&(token.generation, token.offset));
        let Some(job) = log.jobs.get(&token.offset).filter(|_| !is_gone) else { return };
        let Some(key) = job.key.filter(|_| job.relay.is_none()) else { return };
        if let Terminal::Deferred(until) = terminal {
            // A job for later leaves its key's order; one that only waits for a server does not.
            ensure!(
                job.not_before == Some(until.as_millis()),
                "I5: {token:?} has a key and is deferred for an outage"
            );
            return;
        }
        // A cancel takes effect at once.
        if terminal == Terminal::Cancelled {
            return;
        }
        for (offset, _) in log.jobs.range(..token.offset).filter(|(_, job)| job.key == Some(key)) {
            ensure!(
                !log.jobs[offset].terminals.is_empty(),
                "I5: {token:?} ends as {terminal:?} before offset {offset} of its key"
            );
        }
    }

    /// Checks that, while hosted server 0 is away and some jobs are paused, every job has ended that
    /// neither needs that server nor is paused nor is behind such a job in its key, and so have such
    /// jobs with a deadline (I7).
    pub(crate) fn check_others_went_on(&self, read: &[(usize, i64)], before: i64) {
        for (number, read) in read {
            let mut held_up: BTreeSet<u64> = BTreeSet::new();
            for (offset, job) in self.logs[*number].jobs.range(..*read) {
                let is_behind = job.key.is_some_and(|key| held_up.contains(&key));
                let is_over = !job.terminals.is_empty();
                let has_deadline = job.deadline.is_some_and(|at| at <= before);
                let waits = job.hosted == Some(0) || self.is_paused(job);
                let may_wait = waits && !has_deadline;
                ensure!(
                    is_over || is_behind || may_wait,
                    "I7: offset {offset} of partition {number} waits for a server that it does not need: {job:?}"
                );
                // A job that has ended before can be under way again.
                if !is_over || (self.disorder && waits) {
                    held_up.extend(job.key);
                }
            }
        }
    }

    pub(crate) fn check_terminal(&mut self, worker: usize, token: Token, terminal: Terminal) {
        let now = self.now;
        if !self.workers[worker].gone.contains(&token.partition.number) {
            self.check_order_of_ends(token, terminal);
        }
        let job = self.job(token);
        if let (Terminal::Deferred(until), Some(deadline)) = (terminal, job.deadline) {
            ensure!(until.as_millis() <= deadline, "{token:?} is deferred past its deadline");
        }
        let meant = match job.script {
            _ if job.relay.is_some() => {
                ensure!(
                    job.relay.is_some_and(|(at, _)| at <= now),
                    "{token:?} is passed on too early"
                );
                Terminal::Relayed
            }
            _ if terminal == Terminal::Cancelled && job.cancelled.is_some() => Terminal::Cancelled,
            _ if terminal == Terminal::Expired && job.deadline.is_some() => Terminal::Expired,
            Script::NoJob => Terminal::Rejected,
            _ if matches!(terminal, Terminal::Deferred(_)) => terminal,
            Script::Permanent | Script::FailsForEver => Terminal::Failed,
            // A lost call can spend the attempt that would have succeeded.
            Script::FailsThenSucceeds(_) if terminal == Terminal::Failed => {
                ensure!(
                    job.ended >= MAX_ATTEMPTS,
                    "I6: {token:?} gives up after {} attempts",
                    job.ended
                );
                Terminal::Failed
            }
            Script::FailsThenSucceeds(_) => Terminal::Succeeded,
        };
        ensure!(terminal == meant, "{token:?} ends as {terminal:?} and not as {meant:?}");
    }

    /// Checks what must hold when every job has ended.
    pub(crate) fn check_end(&mut self) {
        self.events.check_what_compaction_leaves();
        let lost: Vec<_> = (0..self.produced).filter(|id| !self.ended.contains(id)).collect();
        ensure!(lost.is_empty(), "I3: jobs {lost:?} have come to no end");
        for job in self.logs.iter().flat_map(|log| log.jobs.values()) {
            ensure!(
                job.terminals.len() == 1 || self.disorder,
                "I4: a repeat in good order: {job:?}"
            );
            let failed = job.terminals.contains(&Terminal::Failed);
            if job.script == Script::FailsForEver && failed && !self.disorder {
                ensure!(
                    job.ended == MAX_ATTEMPTS,
                    "I6: attempts are not exactly {MAX_ATTEMPTS}: {job:?}"
                );
            }
        }
    }
}
