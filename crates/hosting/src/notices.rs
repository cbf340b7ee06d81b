//! Notifications of extensions, from a hosted server on their way to clients.
//!
//! What they mean is known to the server and its clients alone, so nothing can be left out of them
//! without harm but whole notifications. They are bounded in size, in number and per second; what
//! is beyond is dropped.

use std::{collections::BTreeSet, time::Instant};

use serde_json::Value;

/// The largest parameters, as JSON.
const MAX_BYTES: usize = 64 * 1024;
/// How many wait until somebody looks.
const MAX_WAITING: usize = 100;
/// How many a server may send per second, on average; as many as may wait can come at once.
const PER_SECOND: f64 = 50.0;
/// How many methods the log names that are not passed on.
const MAX_NAMED: usize = 16;

/// A notification of a method that is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its method.
    pub method: String,
    /// Its parameters.
    pub params: Option<Value>,
}

/// Why a notification is not passed on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DropReason {
    /// It is too large.
    #[error("its parameters have more than {MAX_BYTES} bytes")]
    TooLarge,
    /// There are too many.
    #[error("the server sends more than {PER_SECOND} notifications of extensions per second")]
    TooMany,
    /// Its method does not belong to an extension that only this server declares.
    #[error("`{0}` does not belong to an extension that only this server declares")]
    Undeclared(String),
}

/// Takes in what one server sends.
#[derive(Debug)]
pub(super) struct Intake {
    waiting: Vec<Notice>,
    /// How many may come now.
    allowance: f64,
    counted_at: Option<Instant>,
    /// What the log has been told of.
    named: BTreeSet<DropReason>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            allowance: MAX_WAITING as f64,
            counted_at: None,
            named: BTreeSet::new(),
        }
    }
}

impl Intake {
    /// Keeps a notification until it is taken.
    ///
    /// # Errors
    ///
    /// Returns an error if it is dropped.
    pub(super) fn add(&mut self, notice: Notice, now: Instant) -> Result<(), DropReason> {
        let elapsed =
            self.counted_at.map_or(0.0, |then| now.saturating_duration_since(then).as_secs_f64());
        self.counted_at = Some(now);
        self.allowance = (self.allowance + elapsed * PER_SECOND).min(MAX_WAITING as f64);
        if self.allowance < 1.0 || self.waiting.len() >= MAX_WAITING {
            return Err(DropReason::TooMany);
        }
        self.allowance -= 1.0;

        if notice_bytes(&notice) > MAX_BYTES {
            return Err(DropReason::TooLarge);
        }
        self.waiting.push(notice);
        Ok(())
    }

    /// Takes what waits.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether the log is to say this, which it does once.
    pub(super) fn should_log(&mut self, dropped: &DropReason) -> bool {
        self.named.len() < MAX_NAMED && self.named.insert(dropped.clone())
    }
}

fn notice_bytes(notice: &Notice) -> usize {
    let params = notice.params.as_ref().map_or(0, |params| params.to_string().len());
    notice.method.len() + params
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn notice(text: &str) -> Notice {
        Notice { method: "notifications/x".to_owned(), params: Some(json!(text)) }
    }

    #[test]
    fn a_flood_is_bounded_in_number_and_per_second() {
        let (mut intake, start) = (Intake::default(), Instant::now());
        let mut taken = 0;
        for millis in 0..4_000 {
            let now = start + Duration::from_millis(millis);
            _ = intake.add(notice("x"), now);
            taken += intake.take().len();
        }
        assert!((290..=300).contains(&taken), "{taken}");

        let later = start + Duration::from_secs(60);
        let added = (0..1_000).filter(|_| intake.add(notice("x"), later).is_ok()).count();
        assert_eq!((added, intake.take().len()), (MAX_WAITING, MAX_WAITING));
    }

    #[test]
    fn what_is_too_large_is_dropped_and_the_log_is_told_once() {
        let mut intake = Intake::default();
        let dropped = intake.add(notice(&"x".repeat(MAX_BYTES)), Instant::now()).unwrap_err();
        assert_eq!(dropped, DropReason::TooLarge);
        assert!(intake.add(notice("x"), Instant::now()).is_ok());
        assert!(intake.should_log(&dropped) && !intake.should_log(&dropped));

        let undeclared = |n: usize| DropReason::Undeclared(n.to_string());
        let named = (0..100).filter(|n| intake.should_log(&undeclared(*n))).count();
        assert_eq!(named, MAX_NAMED - 1);
    }
}
