//! Workers join, leave and die, lose their partitions without learning of it, and get new ones.

use super::*;

impl<E: Subject> World<E> {
    pub(crate) fn join(&mut self) {
        let seed = self.rng.next();
        let mut contact = Contact::new(Patience::new(ms(SESSION), Duration::ZERO));
        contact.turned(ms(self.now));
        self.workers.push(Worker {
            engine: engine(seed, self.fault),
            contact,
            position: HashMap::new(),
            paused: BTreeSet::new(),
            running: Vec::new(),
            writing: Vec::new(),
            late: Vec::new(),
            commits: Vec::new(),
            probing: false,
            held_until: BTreeMap::new(),
            has_old_commands: false,
            settled: BTreeSet::new(),
            ends: HashMap::new(),
            logs: HashMap::new(),
            gone: Vec::new(),
            passed: BTreeMap::new(),
            told: None,
        });
        self.rebalance();
    }

    /// A worker stops gracefully: it gives all its partitions back first.
    pub(crate) fn leave(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        for number in 0..PARTITIONS {
            if self.owner[number as usize] == Some(worker) {
                self.revoke(worker, number);
            }
        }
        self.remove(worker);
    }

    /// A worker dies: its partitions move, and it commits nothing.
    pub(crate) fn crash(&mut self) {
        self.disorder = true;
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.hold_back_what_runs(worker);
        self.remove(worker);
        if self.workers.is_empty() {
            self.join();
        }
    }

    /// Freezes a worker until the group has given its partitions to others. When it continues, it
    /// does not know that yet.
    pub(crate) fn freeze(&mut self) {
        self.disorder = true;
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.hold_back_what_runs(worker);
        self.pass(SESSION, Some(worker));
        for number in 0..PARTITIONS {
            if self.owner[number as usize] == Some(worker) {
                self.owner[number as usize] = None;
                self.workers[worker].gone.push(number);
            }
        }
        self.rebalance();
        // Awake again, it gets an answer from the coordinator, which is a refusal.
        self.breathe(worker);
    }

    /// The events that a worker has handed over about its running jobs are still on their way when
    /// it stops.
    fn hold_back_what_runs(&mut self, worker: usize) {
        let running: Vec<_> =
            self.workers[worker].running.iter().map(|(token, _)| *token).collect();
        for token in running {
            let word = self.word(token, JobState::Running);
            self.events.hold_back(word);
        }
    }

    /// Stops a worker before it carries out its engine's commands. It continues after a gap in
    /// contact, still a member.
    pub(crate) fn doze(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.dozes = Some(worker);
        for _ in 0..self.rng.below(10) {
            match self.rng.below(3) {
                0 => self.deliver(),
                1 => self.finish(),
                _ => self.write(),
            }
        }
        let gap = SESSION / 3;
        let time = gap + 1 + self.rng.below(gap.unsigned_abs()) as i64;
        self.pass(time, Some(worker));
        self.dozes = None;
        self.breathe(worker);
    }

    /// A worker that was frozen learns what it has lost.
    pub(crate) fn thaw(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.hear(worker);
    }

    pub(crate) fn hear(&mut self, worker: usize) {
        let gone: Vec<_> =
            std::mem::take(&mut self.workers[worker].gone).into_iter().map(partition).collect();
        if !gone.is_empty() {
            self.note_vacancy(worker);
            self.feed(worker, Input::Lost(&gone));
        }
    }

    fn remove(&mut self, worker: usize) {
        self.workers.remove(worker);
        for owner in &mut self.owner {
            *owner = match *owner {
                Some(number) if number == worker => None,
                Some(number) if number > worker => Some(number - 1),
                other => other,
            };
        }
        if !self.workers.is_empty() {
            self.rebalance();
        }
    }

    /// Moves some partitions, and gives away those without an owner.
    fn rebalance(&mut self) {
        for number in 0..PARTITIONS {
            let to = self.rng.below(self.workers.len() as u64) as usize;
            match self.owner[number as usize] {
                Some(from) if from == to => continue,
                Some(from) if self.rng.chance(50) => self.revoke(from, number),
                Some(_) => continue,
                None => {}
            }
            // It joins again only after it has learned what it has lost.
            self.hear(to);
            self.owner[number as usize] = Some(to);
            let log = &self.logs[number as usize];
            let committed =
                log.committed.as_ref().map(|(offset, metadata)| (*offset, metadata.as_str()));
            let name =
                if self.fault == Some(Fault::LogIgnored) { LogName::UNKNOWN } else { log.name() };
            let found = Found { log: name, committed, first: Some(0), end: Some(log.next) };
            let progress = log::start(found).progress;
            self.assign(to, number, progress);
        }
    }

    pub(crate) fn assign(&mut self, worker: usize, number: i32, progress: Option<Progress>) {
        let log = self.logs[number as usize].name();
        let start = progress.as_ref().map_or(0, |progress| progress.base);
        self.workers[worker].position.insert(number, start);
        self.workers[worker].paused.remove(&number);
        self.workers[worker].logs.insert(number, log);
        self.workers[worker].contact.turned(ms(self.now));
        self.workers[worker].contact.assigned();
        self.generations += 1;
        let generation = self.generations;
        self.feed(
            worker,
            Input::Assigned { partition: partition(number), generation, log, progress },
        );
    }

    fn revoke(&mut self, worker: usize, number: i32) {
        let partitions = [partition(number)];
        if self.rng.chance(10) {
            self.disorder = true;
            self.feed(worker, Input::Lost(&partitions));
        } else {
            self.feed(worker, Input::Draining(&partitions));
            // Some running calls get to their ends within the drain.
            for _ in 0..self.rng.below(30) {
                if self.rng.chance(50) { self.finish() } else { self.write() }
            }
            let commits = self.workers[worker].engine.release(&partitions);
            self.drain(worker);
            if self.broker_up {
                commits.iter().for_each(|commit| self.commit(commit));
            } else {
                self.disorder = true;
            }
        }
        self.owner[number as usize] = None;
        self.note_vacancy(worker);
    }
}
