//! Notifications of extensions, which are forwarded from hosted servers to clients.
//!
//! Only the server and its clients know what they mean, so they can't be shortened or merged. They
//! are bounded in size, number and rate; notifications beyond the bounds are dropped.

use std::{collections::BTreeSet, time::Instant};

use serde_json::Value;

/// The largest notification, in bytes of JSON.
const MAX_BYTES: usize = 64 * 1024;
/// The most notifications that wait to be forwarded.
const MAX_WAITING: usize = 100;
/// How many notifications a server may send per second on average. Bursts may be as large as
/// [`MAX_WAITING`].
const PER_SECOND: f64 = 50.0;
/// How many reasons for dropping notifications are logged.
const MAX_LOGGED: usize = 16;

/// A notification whose method rmcp does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The method.
    pub method: String,
    /// The parameters.
    pub params: Option<Value>,
}

/// Why a notification was dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DropReason {
    /// The notification is too large.
    #[error("the notification is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// There are too many notifications.
    #[error("the server sends more than {PER_SECOND} notifications of extensions per second")]
    TooMany,
    /// The method does not belong to an extension that only this server declares.
    #[error("`{0}` does not belong to an extension that only this server declares")]
    Undeclared(String),
}

/// Receives the notifications of one server.
#[derive(Debug)]
pub(super) struct Intake {
    waiting: Vec<Notice>,
    /// How many notifications may come now.
    allowance: f64,
    counted_at: Option<Instant>,
    /// The reasons that have been logged.
    logged: BTreeSet<DropReason>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            allowance: MAX_WAITING as f64,
            counted_at: None,
            logged: BTreeSet::new(),
        }
    }
}

impl Intake {
    /// Keeps a notification until it is taken.
    ///
    /// # Errors
    ///
    /// Returns the reason if the notification is dropped.
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

    /// Takes the waiting notifications.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.waiting)
    }

    /// Returns whether to log this reason. Each is logged once.
    pub(super) fn should_log(&mut self, dropped: &DropReason) -> bool {
        self.logged.len() < MAX_LOGGED && self.logged.insert(dropped.clone())
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
    fn large_notifications_are_dropped_and_each_reason_is_logged_once() {
        let mut intake = Intake::default();
        let dropped = intake.add(notice(&"x".repeat(MAX_BYTES)), Instant::now()).unwrap_err();
        assert_eq!(dropped, DropReason::TooLarge);
        assert!(intake.add(notice("x"), Instant::now()).is_ok());
        assert!(intake.should_log(&dropped) && !intake.should_log(&dropped));

        let undeclared = |n: usize| DropReason::Undeclared(n.to_string());
        let logged = (0..100).filter(|n| intake.should_log(&undeclared(*n))).count();
        assert_eq!(logged, MAX_LOGGED - 1);
    }
}
