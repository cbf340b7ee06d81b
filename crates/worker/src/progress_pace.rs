//! How often a job's progress is published. Pure.

use std::time::{Duration, Instant};

use fleet_job::event::Progress;

/// The longest message that is published, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Lets one notice through per interval: the first at once, and the newest of the others when the
/// interval is over. A notice that is not ahead of all earlier ones is ignored.
#[derive(Debug)]
pub(crate) struct ProgressPace {
    interval: Duration,
    /// When the last notice was let through.
    passed_at: Option<Instant>,
    furthest: f64,
    waiting: Option<Progress>,
}

impl ProgressPace {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, passed_at: None, furthest: f64::NEG_INFINITY, waiting: None }
    }

    /// Takes a notice, and returns the one to publish now, if any.
    pub(crate) fn offer(&mut self, now: Instant, mut progress: Progress) -> Option<Progress> {
        if !progress.progress.is_finite() || progress.progress <= self.furthest {
            return None;
        }
        self.furthest = progress.progress;

        if let Some(message) = &mut progress.message {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        }
        self.waiting = Some(progress);
        self.take_due(now)
    }

    /// When a notice is due, if no newer one arrives before.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.as_ref()?;
        self.passed_at?.checked_add(self.interval)
    }

    /// The notice to publish now, if one is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Progress> {
        if self.passed_at.is_some_and(|at| now.duration_since(at) < self.interval) {
            return None;
        }
        let due = self.waiting.take()?;
        self.passed_at = Some(now);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(progress: f64) -> Progress {
        Progress { progress, total: None, message: None }
    }

    #[test]
    fn one_in_an_interval_and_the_newest_at_its_end() {
        let (mut pace, start) = (ProgressPace::new(SECOND), Instant::now());
        assert_eq!((pace.next_due(), pace.take_due(start)), (None, None));
        assert_eq!(pace.offer(start, at(1.0)), Some(at(1.0)));
        assert_eq!(pace.next_due(), None);

        assert_eq!(pace.offer(start + SECOND / 4, at(2.0)), None);
        assert_eq!(pace.offer(start + SECOND / 2, at(3.0)), None);
        assert_eq!(pace.next_due(), Some(start + SECOND));

        assert_eq!(pace.take_due(start + SECOND / 2), None);
        assert_eq!(pace.take_due(start + SECOND), Some(at(3.0)));
        assert_eq!(pace.take_due(start + 5 * SECOND), None);

        assert_eq!(
            pace.offer(start + 5 * SECOND, at(4.0)),
            Some(at(4.0)),
            "nothing was written for long"
        );
        assert_eq!(pace.offer(start + 5 * SECOND, at(5.0)), None);
    }

    #[test]
    fn only_what_grows_is_news() {
        let (mut pace, start) = (ProgressPace::new(Duration::ZERO), Instant::now());
        assert_eq!(pace.offer(start, at(0.0)), Some(at(0.0)));
        for old in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(pace.offer(start, at(old)), None, "{old}");
        }
        assert_eq!(pace.offer(start, at(0.5)), Some(at(0.5)));

        let mut pace = ProgressPace::new(SECOND);
        pace.offer(start, at(1.0));
        pace.offer(start, at(3.0));
        pace.offer(start, at(2.0));
        assert_eq!(
            pace.take_due(start + SECOND),
            Some(at(3.0)),
            "what is behind it does not replace it"
        );
    }

    #[test]
    fn messages_are_bounded() {
        let long = Progress { message: Some("ä".repeat(1_000)), ..at(1.0) };
        let passed = ProgressPace::new(SECOND).offer(Instant::now(), long).unwrap();
        assert_eq!(passed.message.map(|message| message.len()), Some(MAX_MESSAGE_BYTES));
    }

    proptest::proptest! {
        /// However often there is news: what is written grows, is an interval apart, and the
        /// furthest is written in the end.
        #[test]
        fn the_pace_is_kept(steps in proptest::collection::vec((0_u64..700, -5_i32..50), 1..200)) {
            let (mut pace, mut now) = (ProgressPace::new(SECOND), Instant::now());
            let mut written: Vec<(Instant, f64)> = Vec::new();
            let mut furthest = f64::NEG_INFINITY;

            for (ms, value) in steps {
                let until = now + Duration::from_millis(ms);
                if let Some(next) = pace.next_due().filter(|next| *next <= until) {
                    written.extend(pace.take_due(next).map(|progress| (next, progress.progress)));
                }
                now = until;
                furthest = furthest.max(f64::from(value));
                written.extend(pace.offer(now, at(f64::from(value))).map(|progress| (now, progress.progress)));
            }

            if let Some(next) = pace.next_due() {
                written.extend(pace.take_due(next).map(|progress| (next, progress.progress)));
            }

            for pair in written.windows(2) {
                proptest::prop_assert!(pair[1].0 - pair[0].0 >= SECOND && pair[1].1 > pair[0].1, "{:?}", written);
            }
            proptest::prop_assert_eq!(written.last().map(|last| last.1), Some(furthest));
        }
    }
}
