//! The pauses in force, as the records of the topic make them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{MAX_PAUSES, Pause};
use crate::{envelope::Envelope, glob::Glob, time::Timestamp};

/// How many resumed pauses are remembered, so that their records pause nothing if they are written
/// again.
const MAX_RESUMED: usize = 10_000;

/// The pauses in force, at most [`MAX_PAUSES`].
#[derive(Debug, Default)]
pub struct Pauses {
    active: BTreeMap<String, Entry>,
    resumed: Resumed,
}

/// The ids of the pauses that were resumed last.
#[derive(Debug, Default)]
struct Resumed {
    ids: BTreeSet<String>,
    oldest_first: VecDeque<String>,
}

#[derive(Debug)]
struct Entry {
    pause: Pause,
    tool: Option<Glob>,
}

/// What a record has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseChange {
    /// Nothing: the pause is known, has ended before it was known, or there are too many.
    None,
    /// Jobs are paused that were not, or what is said of a pause has changed.
    Begun,
    /// This pause has ended, or covers other jobs than before.
    Ended(Box<Pause>),
}

impl Pauses {
    /// Takes up a record of the topic, at `now`.
    pub fn take(&mut self, pause: Pause, now: Timestamp) -> PauseChange {
        if pause.resumed_at.is_some() {
            self.resumed.add(&pause.id);
        }
        if !pause.is_active(now) || self.resumed.ids.contains(&pause.id) {
            let ended = self.active.remove(&pause.id);
            return ended
                .map_or(PauseChange::None, |entry| PauseChange::Ended(Box::new(entry.pause)));
        }

        let before = self.get(&pause.id);
        let is_known = before == Some(&pause);
        if is_known || (before.is_none() && self.len() >= MAX_PAUSES) {
            return PauseChange::None;
        }

        let scope = pause.scope.clone();
        let tool = scope.tool.as_deref().map(Glob::new);
        let replaced = self.active.insert(pause.id.clone(), Entry { pause, tool });
        match replaced {
            Some(replaced) if replaced.pause.scope != scope => {
                PauseChange::Ended(Box::new(replaced.pause))
            }
            _ => PauseChange::Begun,
        }
    }

    /// Returns the first pause that covers the job at `now`, if any does.
    pub fn find(&self, job: &Envelope, now: Timestamp) -> Option<&Pause> {
        let active = self.active.values().filter(|entry| entry.pause.is_active(now));
        let mut covering =
            active.filter(|entry| entry.pause.scope.matches(entry.tool.as_ref(), job));
        covering.next().map(|entry| &entry.pause)
    }

    /// Returns when the next pause ends by itself.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.iter().filter_map(|pause| pause.until).min()
    }

    /// Removes and returns the pauses that have ended by themselves.
    pub fn take_ended(&mut self, now: Timestamp) -> Vec<Pause> {
        if self.next_end().is_none_or(|end| end > now) {
            return Vec::new();
        }

        let over = self.iter().filter(|pause| !pause.is_active(now));
        let over: Vec<_> = over.map(|pause| pause.id.clone()).collect();
        over.iter().filter_map(|id| self.active.remove(id)).map(|entry| entry.pause).collect()
    }

    /// Returns the pause with this id.
    pub fn get(&self, id: &str) -> Option<&Pause> {
        self.active.get(id).map(|entry| &entry.pause)
    }

    /// Returns the pauses, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Pause> {
        self.active.values().map(|entry| &entry.pause)
    }

    /// Returns the number of pauses.
    pub fn len(&self) -> usize {
        self.active.len()
    }

    /// Returns whether nothing is paused.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }
}

impl Resumed {
    fn add(&mut self, id: &str) {
        if !self.ids.insert(id.to_owned()) {
            return;
        }

        self.oldest_first.push_back(id.to_owned());
        if self.oldest_first.len() > MAX_RESUMED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumed_pauses_are_remembered_up_to_a_bound() {
        let mut pauses = Pauses::default();
        for number in 0..MAX_RESUMED + 5 {
            let text = format!(
                r#"{{"id": "p{number}", "scope": {{}}, "reason": "r", "since": 0, "resumedAt": 1}}"#
            );
            pauses.take(serde_json::from_str(&text).unwrap(), Timestamp::default());
        }
        assert_eq!(pauses.resumed.ids.len(), MAX_RESUMED);
        assert_eq!(pauses.resumed.oldest_first.len(), MAX_RESUMED);
        assert!(!pauses.resumed.ids.contains("p4") && pauses.resumed.ids.contains("p5"));
    }
}
