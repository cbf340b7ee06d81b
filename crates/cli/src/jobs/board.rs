//! The jobs that `jobs watch` shows: the newest ones in their current state. Pure.

use std::collections::{BTreeMap, HashMap};

use fleet_job::{event::JobState, filter::JobFilter, time::Timestamp, view::JobView};

use super::filter::STATES;

/// Orders jobs by submission; newer jobs have greater keys.
type SubmissionKey = (Timestamp, String);

/// The newest jobs that match a filter.
#[derive(Debug)]
pub(super) struct Board {
    filter: JobFilter,
    capacity: usize,
    jobs: BTreeMap<SubmissionKey, JobView>,
    places: HashMap<String, SubmissionKey>,
}

impl Board {
    pub(super) fn new(filter: JobFilter, capacity: usize) -> Self {
        Self { filter, capacity, jobs: BTreeMap::new(), places: HashMap::new() }
    }

    /// Updates the board with the current state of a job. Returns whether the job matches the
    /// filter and has changed.
    ///
    /// Updates arrive in log order, so the last one is the current state. Its timestamp does not
    /// matter, since clocks differ.
    pub(super) fn update(&mut self, job: &JobView) -> bool {
        let job = job.clone().without_result();
        let job_id = job.event.job_id.clone();
        let before = self.places.remove(&job_id).and_then(|place| self.jobs.remove(&place));

        if !self.filter.matches(&job.event) {
            return false;
        }

        let news = before.as_ref() != Some(&job);
        let submitted = job.event.submitted_at.unwrap_or(job.event.time);
        let place = (submitted, job_id.clone());
        self.places.insert(job_id, place.clone());
        self.jobs.insert(place, job);

        if self.jobs.len() > self.capacity
            && let Some(((_, oldest), _)) = self.jobs.pop_first()
        {
            self.places.remove(&oldest);
        }

        news
    }

    /// Starts over with these jobs and returns those that have changed.
    pub(super) fn restart<'a>(&mut self, jobs: &'a [JobView]) -> Vec<&'a JobView> {
        let mut before = std::mem::take(&mut self.jobs);
        let places = std::mem::take(&mut self.places);
        let old =
            |job: &JobView| places.get(&job.event.job_id).and_then(|place| before.remove(place));
        let mut old: HashMap<String, JobView> =
            jobs.iter().filter_map(old).map(|job| (job.event.job_id.clone(), job)).collect();

        jobs.iter()
            .filter(|job| {
                let known = old.remove(&job.event.job_id);
                self.update(job) && known != Some((*job).clone().without_result())
            })
            .collect()
    }

    /// Returns up to `count` jobs, newest first.
    pub(super) fn newest(&self, count: usize) -> impl Iterator<Item = &JobView> {
        self.jobs.values().rev().take(count)
    }

    /// Summarises how many jobs there are, by state.
    pub(super) fn counts(&self) -> String {
        let count =
            |state: JobState| self.jobs.values().filter(|job| job.event.state == state).count();
        let states =
            STATES.into_iter().map(|state| (state, count(state))).filter(|(_, count)| *count > 0);

        let states: Vec<_> =
            states.map(|(state, count)| format!("{count} {}", state.as_str())).collect();

        match self.jobs.len() {
            0 => "no matching jobs".to_owned(),
            all if all >= self.capacity => format!("of the newest {all}: {}", states.join(", ")),
            1 => format!("1 job: {}", states.join(", ")),
            all => format!("{all} jobs: {}", states.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::render::tests::job, *};

    fn ids(board: &Board) -> Vec<&str> {
        board.newest(10).map(|job| job.event.job_id.as_str()).collect()
    }

    #[test]
    fn the_newest_jobs_stay_and_are_counted() {
        let mut board = Board::new(JobFilter::default(), 3);
        assert_eq!(board.counts(), "no matching jobs");
        for (id, ms) in [("a", 1), ("c", 3), ("b", 2)] {
            assert!(board.update(&job(id, JobState::Queued, ms)));
        }
        assert_eq!(ids(&board), ["c", "b", "a"]);
        assert!(board.update(&job("b", JobState::Running, 2)));
        assert!(!board.update(&job("b", JobState::Running, 2)), "that state was known");
        assert_eq!(board.counts(), "of the newest 3: 2 queued, 1 running");
        board.update(&job("d", JobState::Failed, 4));
        assert_eq!(ids(&board), ["d", "c", "b"]);
    }

    #[test]
    fn jobs_that_no_longer_match_leave_the_board() {
        let filter = JobFilter { states: vec![JobState::Running], ..JobFilter::default() };
        let mut board = Board::new(filter, 10);
        assert!(!board.update(&job("a", JobState::Queued, 1)));
        assert!(board.update(&job("a", JobState::Running, 1)));
        assert_eq!(board.counts(), "1 job: 1 running");
        assert!(!board.update(&job("a", JobState::Succeeded, 1)));
        assert!(ids(&board).is_empty());
    }

    #[test]
    fn after_a_gap_only_what_is_different_is_news() {
        let mut board = Board::new(JobFilter::default(), 10);
        let before = [job("a", JobState::Running, 1), job("b", JobState::Running, 2)];
        assert_eq!(board.restart(&before).len(), 2);
        let after =
            [job("c", JobState::Queued, 3), job("b", JobState::Failed, 2), before[0].clone()];
        let news: Vec<_> =
            board.restart(&after).into_iter().map(|job| job.event.job_id.as_str()).collect();
        assert_eq!(news, ["c", "b"]);
        assert_eq!(ids(&board), ["c", "b", "a"]);
    }
}
