//! Cancel requests: the loop remembers what was requested.

use std::time::Duration;

use fleet_job::{
    control::{Cancelled, Control},
    time::Timestamp,
};

/// How many requests are remembered. Beyond that, the oldest are forgotten.
const MAX_REMEMBERED: usize = 100_000;
/// How long a request is remembered: as long as a job can wait in the delayed topic, and as the
/// control topic keeps its records.
const REMEMBERED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// The cancel requests that this worker remembers.
#[derive(Debug)]
pub(crate) struct CancelRequests(Cancelled);

impl CancelRequests {
    pub(crate) fn new() -> Self {
        Self(Cancelled::new(MAX_REMEMBERED))
    }

    /// Takes up a request. Returns `false` if it was known: a topic that is opened again is read
    /// from its beginning.
    pub(crate) fn add(&mut self, now: Timestamp, control: Control) -> bool {
        let is_news = !self.0.contains(&control);
        self.0.add(control);

        let oldest = now
            .as_millis()
            .saturating_sub(i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX));
        self.0.forget_before(Timestamp::from_millis_clamped(oldest));
        is_news
    }

    /// The request for the job with this id whose record was written at `written`, and which belongs
    /// to `owner`, or to nobody.
    pub(crate) fn get(
        &self,
        job_id: &str,
        written: Option<Timestamp>,
        owner: Option<&str>,
    ) -> Option<&Control> {
        self.0.get(job_id, written, owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_anew_is_no_news_and_the_old_is_forgotten() {
        let at = Timestamp::from_millis_clamped;
        let month = i64::try_from(REMEMBERED_FOR.as_millis()).unwrap();
        let mut requests = CancelRequests::new();

        let control = Control::cancel("j", None, at(1_000), None);
        assert!(requests.add(at(2_000), control.clone()));
        assert!(!requests.add(at(2_000), control));

        assert!(requests.add(at(3_000), Control::cancel("j", None, at(2_500), None)));
        assert!(
            requests.get("j", Some(at(2_500)), None).is_some()
                && requests.get("j", Some(at(2_501)), None).is_none()
        );

        requests.add(at(2_501 + month), Control::cancel("k", None, at(2_501 + month), None));
        assert!(requests.get("j", None, None).is_none() && requests.get("k", None, None).is_some());
    }
}
