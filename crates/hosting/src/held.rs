//! Answers of a child that are held for a while, since a better one to the same request may follow.
//! Does no IO.
//!
//! A log on standard output may quote an answer: the one that follows, or a text of a third party
//! that looks like one. So an answer inside other text is held for [`HOLD`], whatever other lines
//! come, and any answer by itself replaces it. An unreadable answer by itself may be a line of a log,
//! too. It is held until the next line, and for [`HOLD`] at most.
//!
//! What is held is bounded by the number of open requests, not by what the child writes: one answer
//! of each kind for each request, and [`MAX_NAMELESS`] that name none.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use fleet_wire::{Id, Reply, Unreadable};
use tokio::time::Instant;

/// How long an answer is held.
pub(super) const HOLD: Duration = Duration::from_secs(1);
/// The most answers without an id that are kept until their request is known.
pub(super) const MAX_NAMELESS: usize = 16;

/// The held answers of one connection.
#[derive(Debug, Default)]
pub(super) struct HeldAnswers {
    /// Answers inside other text.
    quoted: BTreeMap<Id, Reply>,
    /// When these are passed on, in order. Some may have been replaced since.
    due: VecDeque<(Instant, Id)>,
    /// The unreadable answers of the last text.
    unreadable: Option<UnreadableAnswers>,
}

/// Unreadable answers of one text.
#[derive(Debug)]
pub(super) struct UnreadableAnswers {
    /// Those that name their requests.
    pub(super) named: BTreeMap<Id, Unreadable>,
    /// Those that name none.
    pub(super) nameless: Vec<Unreadable>,
    /// The requests that the nameless ones may answer.
    pub(super) suspects: BTreeSet<Id>,
    until: Instant,
}

impl HeldAnswers {
    /// Holds an answer inside other text. An earlier one to the same request stays, unless only the
    /// later one is readable.
    pub(super) fn hold_quoted(&mut self, id: Id, reply: Reply, now: Instant) {
        let unreadable = self.unreadable.as_ref();
        if unreadable.is_some_and(|answers| answers.named.contains_key(&id)) {
            return;
        }
        let is_readable = !matches!(reply, Reply::Unreadable(_));
        match self.quoted.get_mut(&id) {
            None => {
                self.due.push_back((now + HOLD, id.clone()));
                self.quoted.insert(id, reply);
            }
            Some(held @ Reply::Unreadable(_)) if is_readable => *held = reply,
            Some(_) => {}
        }
    }

    /// Holds an unreadable answer by itself, in place of one inside other text. The first one of a
    /// text stays.
    pub(super) fn hold_unreadable(&mut self, id: Id, problem: Unreadable, now: Instant) {
        self.quoted.remove(&id);
        self.unreadable_mut(now).named.entry(id).or_insert(problem);
    }

    /// Holds an unreadable answer that names no request, unless there are enough of them.
    pub(super) fn hold_nameless(
        &mut self,
        problem: Unreadable,
        suspects: impl FnOnce() -> BTreeSet<Id>,
        now: Instant,
    ) {
        let answers = self.unreadable_mut(now);
        // Within a text, no request is added.
        if answers.nameless.is_empty() {
            answers.suspects = suspects();
        }
        if answers.nameless.len() < MAX_NAMELESS {
            answers.nameless.push(problem);
        }
    }

    /// Drops the answer inside other text to a request that is over.
    pub(super) fn drop_quoted(&mut self, id: &Id) {
        self.quoted.remove(id);
        while self.due.pop_front_if(|(_, id)| !self.quoted.contains_key(id)).is_some() {}
    }

    /// Returns when the next answer is to be passed on.
    pub(super) fn release_at(&self) -> Option<Instant> {
        let unreadable = self.unreadable.as_ref().map(|answers| answers.until);
        let quoted = self.due.front().map(|(due, _)| *due);
        unreadable.into_iter().chain(quoted).min()
    }

    /// Takes the unreadable answers of the last text, since another one has come.
    pub(super) fn take_unreadable(&mut self) -> Option<UnreadableAnswers> {
        self.unreadable.take()
    }

    /// Takes the unreadable answers if they are due at `now`, or if there is no `now`.
    pub(super) fn take_due_unreadable(
        &mut self,
        now: Option<Instant>,
    ) -> Option<UnreadableAnswers> {
        self.unreadable.take_if(|answers| now.is_none_or(|now| answers.until <= now))
    }

    /// Takes the answers inside other text that are due at `now`, or all if there is no `now`.
    pub(super) fn take_due_quoted(&mut self, now: Option<Instant>) -> Vec<(Id, Reply)> {
        let mut taken = Vec::new();
        while let Some((_, id)) =
            self.due.pop_front_if(|(due, _)| now.is_none_or(|now| *due <= now))
        {
            taken.extend(self.quoted.remove_entry(&id));
        }
        taken
    }

    fn unreadable_mut(&mut self, now: Instant) -> &mut UnreadableAnswers {
        self.unreadable.get_or_insert_with(|| UnreadableAnswers {
            named: BTreeMap::new(),
            nameless: Vec::new(),
            suspects: BTreeSet::new(),
            until: now + HOLD,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    const SEVEN: Id = Id::Number(7);

    fn problem(why: &str) -> Unreadable {
        Unreadable { why: why.to_owned(), cut: false }
    }

    #[test]
    fn an_answer_inside_other_text_is_held_for_its_time() {
        let (mut held, start) = (HeldAnswers::default(), Instant::now());
        held.hold_quoted(SEVEN, Reply::Result(Map::new()), start);
        // Later ones don't prolong the time.
        held.hold_quoted(SEVEN, Reply::Unreadable(problem("late")), start + HOLD / 2);
        assert_eq!(held.release_at(), Some(start + HOLD));
        assert_eq!(held.take_due_quoted(Some(start + HOLD / 2)), []);
        let due = held.take_due_quoted(Some(start + HOLD));
        assert_eq!(due, [(SEVEN, Reply::Result(Map::new()))]);
        assert_eq!(held.release_at(), None);
    }

    #[test]
    fn a_better_answer_replaces_a_held_one() {
        let (mut held, now) = (HeldAnswers::default(), Instant::now());
        held.hold_quoted(SEVEN, Reply::Unreadable(problem("quoted")), now);
        held.hold_quoted(SEVEN, Reply::Result(Map::new()), now);
        assert_eq!(held.quoted[&SEVEN], Reply::Result(Map::new()));

        held.hold_unreadable(SEVEN, problem("by itself"), now);
        held.hold_quoted(SEVEN, Reply::Result(Map::new()), now);
        assert!(held.take_due_quoted(None).is_empty());
        let named = held.take_due_unreadable(None).unwrap().named;
        assert_eq!(named, [(SEVEN, problem("by itself"))].into());
    }

    #[test]
    fn what_is_held_is_bounded() {
        let (mut held, now) = (HeldAnswers::default(), Instant::now());
        let mut counted = 0;
        for _ in 0..1000 {
            let mut suspects = || {
                counted += 1;
                BTreeSet::from([SEVEN])
            };
            held.hold_nameless(problem("x"), &mut suspects, now);
            held.hold_unreadable(SEVEN, problem("x"), now);
            held.hold_quoted(Id::Number(8), Reply::Unreadable(problem("x")), now);
        }
        assert_eq!((counted, held.due.len(), held.quoted.len()), (1, 1, 1));
        let answers = held.take_unreadable().unwrap();
        assert_eq!((answers.named.len(), answers.nameless.len()), (1, MAX_NAMELESS));
    }
}
