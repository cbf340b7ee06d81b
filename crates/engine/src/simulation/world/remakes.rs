//! A topic is deleted and recreated under its workers, which learn of that later.

use super::*;

impl<E: Subject> World<E> {
    /// Somebody deletes a topic and recreates it, and the group's committed offset stays. Jobs that
    /// have not ended are gone with their records, except those that a worker has under way.
    pub(crate) fn remake(&mut self) {
        self.disorder = true;
        let number = self.rng.below(PARTITIONS as u64) as i32;
        self.notice(number);
        let log = &mut self.logs[number as usize];
        let jobs = std::mem::take(&mut log.jobs);
        log.remade += 1;
        log.next = 0;
        for (generation, offset) in self.workers.iter().flat_map(|worker| worker.holds_of(number)) {
            if let Some(job) = jobs.get(&offset) {
                let kept = log.gone.entry((generation, offset));
                kept.or_insert_with(|| job.clone());
            }
        }
        let open = jobs.values().filter(|job| job.terminals.is_empty());
        self.ended.extend(open.map(|job| job.id));
        // The records that the new log has by the time that somebody reads it.
        for _ in 0..self.rng.below(30) {
            self.produce_to(number as usize % JOBS);
        }
        if self.rng.chance(50) {
            self.notice(number);
        }
    }

    /// Whether the owner of a partition does not know yet that its topic was recreated.
    pub(crate) fn is_unnoticed(&self, number: i32) -> bool {
        let log = self.logs[number as usize].name();
        self.owner[number as usize]
            .is_some_and(|owner| self.workers[owner].logs.get(&number) != Some(&log))
    }

    /// The owner of a partition learns that its topic was recreated: running calls get to their
    /// ends, nothing more is committed, and the new log is read from its beginning.
    pub(crate) fn notice(&mut self, number: i32) {
        let Some(worker) = self.owner[number as usize].filter(|_| self.is_unnoticed(number)) else {
            return;
        };
        let partitions = [partition(number)];
        self.feed(worker, Input::Draining(&partitions));
        for _ in 0..self.rng.below(30) {
            if self.rng.chance(50) { self.finish() } else { self.write() }
        }
        let commits = self.workers[worker].engine.release(&partitions);
        self.drain(worker);
        let reads_on = self.fault == Some(Fault::OldFrontierKept);
        let kept = commits.first().filter(|_| reads_on).map(|commit| Progress::none(commit.offset));
        self.assign(worker, number, kept);
    }
}

impl<E: Subject> Worker<E> {
    /// The records of a partition that the worker has read, and those of earlier assignments that
    /// it still runs or writes, because it has not been able to forget them: by generation and
    /// offset.
    fn holds_of(&self, number: i32) -> Vec<(u64, i64)> {
        let token = self.engine.token(partition(number), 0);
        let read = token.into_iter().flat_map(|token| {
            (0..self.position[&number]).map(move |offset| (token.generation, offset))
        });

        let running = self.running.iter().map(|(token, _)| token);
        let writing = self.writing.iter().map(|(token, ..)| token);
        let under_way = running.chain(writing).filter(|token| token.partition.number == number);
        read.chain(under_way.map(|token| (token.generation, token.offset))).collect()
    }
}
