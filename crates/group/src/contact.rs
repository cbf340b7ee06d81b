//! Whether a member of the consumer group can still count on being one. Pure.
//!
//! A member that was stopped or cut off from its coordinator for long enough may have lost its
//! partitions, and learns of that late: when the coordinator answers again and the poll thread
//! turns. Until then it must not publish anything about its jobs, call their tools or commit,
//! because another member may own them.
//!
//! Membership is *proven* by a commit that the coordinator has accepted, because the coordinator
//! refuses commits of strangers. It *continues* while the coordinator answers anything, for example
//! heartbeats, without a gap: a member is expelled only after a whole session of silence, and a gap
//! is much shorter. An answer after a gap proves nothing, because it may be a refusal.
//!
//! All times are durations since one moment, which the caller chooses.

use std::time::Duration;

/// How long the coordinator may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A longer silence is a gap. This is a third of the session: a record that was handed to the
    /// producer before the gap is written within the other two thirds, or never.
    pub gap: Duration,
    /// The coordinator may take this long to answer a request to join, because it waits for other
    /// members. It expels no member to which it owes such an answer.
    pub join: Duration,
}

impl Patience {
    /// The patience for a session of this length, with members that take up to `drain` to give
    /// partitions back.
    #[must_use]
    pub fn new(session: Duration, drain: Duration) -> Self {
        let gap = session / 3;
        Self { gap, join: drain.max(gap) }
    }
}

/// What the client knows about its connection to the coordinator at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When the sample was taken.
    pub at: Duration,
    /// When anything was last received over the present connection.
    pub received: Option<Duration>,
    /// Whether the connection is up and the coordinator owes the answer to a request to join.
    pub is_joining: bool,
}

/// The contact of one member with its group.
///
/// Every input may arrive late. None may be left out except samples, without which contact has to
/// be proven more often.
#[derive(Debug)]
pub struct Contact {
    patience: Patience,
    state: State,
    /// When the poll thread last turned. Only that thread learns that partitions are lost.
    turned: Duration,
    /// Whether the poll thread waits for the engine, so that its silence means nothing.
    is_excused: bool,
    joining_since: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The member has no partitions, so it can do nothing wrong.
    Vacant,
    /// It was a member at least until this time.
    Unbroken { known: Duration },
    /// There may have been a gap, which was noticed at this time.
    Broken { noticed: Duration },
}

impl Contact {
    /// The contact of a member without partitions.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            state: State::Vacant,
            turned: Duration::ZERO,
            is_excused: false,
            joining_since: None,
        }
    }

    /// Whether there may have been a gap in contact that no accepted commit has ended.
    #[must_use]
    pub fn is_broken(&self, now: Duration) -> bool {
        match self.state {
            State::Vacant => false,
            State::Broken { .. } => true,
            State::Unbroken { known } => {
                now.saturating_sub(known) > self.patience.gap || self.is_silent(now)
            }
        }
    }

    /// For how long nothing has been known about the membership.
    #[must_use]
    pub fn silence(&self, now: Duration) -> Duration {
        match self.state {
            State::Vacant => Duration::ZERO,
            State::Broken { noticed } => now.saturating_sub(noticed),
            State::Unbroken { known } => now.saturating_sub(known),
        }
    }

    /// Whether it is time to prove the membership by a commit: contact is broken, or will be soon.
    #[must_use]
    pub fn wants_proof(&self, now: Duration) -> bool {
        let soon = match self.state {
            State::Unbroken { known } => now.saturating_sub(known) > self.patience.gap * 2 / 3,
            State::Vacant | State::Broken { .. } => false,
        };
        soon || self.is_broken(now)
    }

    /// For how long no proof will be wanted unless something makes the membership doubtful. Zero if
    /// one is wanted already.
    #[must_use]
    pub fn until_proof(&self, now: Duration) -> Duration {
        let known = match self.state {
            State::Vacant => return Duration::MAX,
            State::Broken { .. } => return Duration::ZERO,
            State::Unbroken { known } => known,
        };
        let silent = if self.is_excused { Duration::MAX } else { self.turned + self.patience.gap };

        (known + self.patience.gap * 2 / 3).min(silent).saturating_sub(now)
    }

    /// Whether the poll thread has not turned for so long that it may have missed the loss of
    /// partitions.
    fn is_silent(&self, now: Duration) -> bool {
        !self.is_excused && now.saturating_sub(self.turned) > self.patience.gap
    }

    /// The poll thread turns.
    pub fn turned(&mut self, now: Duration) {
        if self.is_silent(now) {
            self.suspect(now);
        }

        self.turned = now;
    }

    /// The poll thread begins or stops waiting for the engine.
    pub fn excuse(&mut self, is_excused: bool, now: Duration) {
        self.is_excused = is_excused;
        self.turned = now;
    }

    /// The group has assigned partitions to the member. It was a member when it learned that, which
    /// was not before the poll thread's last turn.
    pub fn assigned(&mut self) {
        if self.state == State::Vacant {
            self.state = State::Unbroken { known: self.turned };
        }
    }

    /// The member no longer has partitions.
    pub fn vacated(&mut self) {
        self.state = State::Vacant;
    }

    /// Something makes the membership doubtful.
    pub fn suspect(&mut self, now: Duration) {
        if self.state != State::Vacant {
            self.state = State::Broken { noticed: now };
        }
    }

    /// The client has looked at its connection.
    pub fn sampled(&mut self, sample: Sample) {
        self.joining_since = sample.is_joining.then(|| self.joining_since.unwrap_or(sample.at));
        let waits = self.joining_since.is_some_and(|since| sample.at - since <= self.patience.join);
        let heard = if waits { Some(sample.at) } else { sample.received };

        let (State::Unbroken { known }, Some(heard)) = (self.state, heard) else { return };
        if heard.saturating_sub(known) > self.patience.gap {
            self.suspect(sample.at);
        } else {
            self.state = State::Unbroken { known: known.max(heard) };
        }
    }

    /// The coordinator has accepted a commit that was handed over at `sent`, so the member still
    /// belonged to the group then.
    pub fn accepted(&mut self, sent: Duration) {
        self.state = match self.state {
            State::Unbroken { known } => State::Unbroken { known: known.max(sent) },
            // A commit that was handed over before the gap was noticed may have been accepted
            // before the gap.
            State::Broken { noticed } if sent < noticed => State::Broken { noticed },
            State::Broken { .. } => State::Unbroken { known: sent },
            State::Vacant => State::Vacant,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A member of a group with sessions of 30 s, which has partitions since second 0.
    fn member() -> Contact {
        let mut contact = Contact::new(Patience::new(s(30), s(25)));
        contact.assigned();
        contact
    }

    fn received(at: u64) -> Sample {
        Sample { at: s(at), received: Some(s(at)), is_joining: false }
    }

    fn joining(at: u64) -> Sample {
        Sample { at: s(at), received: Some(s(0)), is_joining: true }
    }

    /// Turns up to `until`, with contact once a second.
    fn live(contact: &mut Contact, from: u64, until: u64) {
        for second in from..=until {
            contact.turned(s(second));
            contact.sampled(received(second));
            assert!(!contact.is_broken(s(second)), "second {second}");
        }
    }

    #[test]
    fn the_time_until_a_proof_is_known() {
        let mut contact = Contact::new(Patience::new(s(30), s(25)));
        assert_eq!(contact.until_proof(s(7)), Duration::MAX, "no partitions");

        let check = |contact: &Contact, now: u64, expected: u64| {
            let (now, expected) = (s(now), s(expected));
            assert_eq!(contact.until_proof(now), expected);
            let moment = Duration::from_millis(1);
            if !expected.is_zero() {
                assert!(!contact.wants_proof(now + expected));
            }
            assert!(contact.wants_proof(now + expected + moment));
        };
        contact.turned(s(7));
        contact.assigned();
        // Two thirds of a gap of 10 s, from the poll thread's last turn.
        assert_eq!(contact.until_proof(s(7)), Duration::from_secs(20) / 3);
        contact.sampled(received(10));
        contact.turned(s(12));
        contact.accepted(s(16));
        check(&contact, 16, 6);
        contact.turned(s(20));
        contact.suspect(s(21));
        check(&contact, 21, 0);
    }

    #[test]
    fn answers_without_a_gap_keep_contact_for_ever() {
        let mut contact = member();
        live(&mut contact, 0, 100);
        contact.turned(s(109));
        assert!(!contact.is_broken(s(110)));
        assert!(
            contact.is_broken(s(111)),
            "nothing was received for more than a third of the session"
        );
    }

    #[test]
    fn neither_a_turn_nor_an_answer_ends_a_gap() {
        let mut contact = member();
        live(&mut contact, 0, 10);
        for second in 50..60 {
            contact.turned(s(second));
            contact.sampled(received(second));
            assert!(
                contact.is_broken(s(second)) && contact.wants_proof(s(second)),
                "second {second}"
            );
        }
        contact.accepted(s(9));
        assert!(contact.is_broken(s(60)), "that commit was handed over before the gap");
        contact.accepted(s(59));
        assert!(!contact.is_broken(s(60)));
        live(&mut contact, 60, 80);
    }

    #[test]
    fn a_sample_that_comes_late_shows_that_there_was_no_gap() {
        let mut contact = member();
        live(&mut contact, 0, 10);
        (11..21).for_each(|second| contact.turned(s(second)));
        assert!(contact.is_broken(s(21)));
        contact.sampled(Sample { at: s(21), received: Some(s(18)), is_joining: false });
        assert!(!contact.is_broken(s(21)));
    }

    #[test]
    fn a_poll_thread_that_stood_still_can_have_missed_a_loss() {
        let mut contact = member();
        live(&mut contact, 0, 10);
        (11..30).for_each(|second| contact.sampled(received(second)));
        assert!(contact.is_broken(s(30)));
        contact.turned(s(30));
        assert!(contact.is_broken(s(30)), "one turn is not enough");

        let mut contact = member();
        contact.excuse(true, s(0));
        (1..30).for_each(|second| contact.sampled(received(second)));
        assert!(!contact.is_broken(s(30)), "it waits for the engine");
        contact.excuse(false, s(30));
        contact.turned(s(31));
        assert!(!contact.is_broken(s(31)));
    }

    #[test]
    fn a_member_that_waits_to_join_stays_one_while_others_may_drain() {
        let mut contact = member();
        for second in 1..=26 {
            contact.turned(s(second));
            contact.sampled(joining(second));
            assert!(!contact.is_broken(s(second)), "second {second}");
        }
        for second in 27..=37 {
            contact.turned(s(second));
            contact.sampled(joining(second));
        }
        assert!(contact.is_broken(s(37)));
    }

    #[test]
    fn a_member_without_partitions_is_never_out_of_contact() {
        let mut contact = member();
        contact.suspect(s(1));
        contact.vacated();
        assert!(!contact.is_broken(s(100)) && !contact.wants_proof(s(100)));
        contact.turned(s(100));
        contact.assigned();
        assert!(!contact.is_broken(s(101)), "it was assigned after the last turn");
    }

    #[test]
    fn an_assignment_that_was_heard_late_has_to_be_proven() {
        let mut contact = Contact::new(Patience::new(s(30), s(25)));
        contact.turned(s(10));
        contact.assigned();
        assert!(contact.is_broken(s(40)), "the process stood still between the two");
    }

    proptest! {
        /// Whatever is heard meanwhile: after a silence longer than a gap, only a commit handed
        /// over after it was noticed makes contact whole again.
        #[test]
        fn only_an_accepted_commit_ends_a_gap(
            inputs in prop::collection::vec((0u8..4, 0u64..10, any::<bool>()), 1..50),
        ) {
            let mut contact = member();
            live(&mut contact, 0, 10);
            let mut now = 60;
            contact.sampled(received(now));
            for (kind, pause, flag) in inputs {
                now += pause;
                match kind {
                    0 => contact.turned(s(now)),
                    1 => contact.sampled(Sample { is_joining: flag, ..received(now) }),
                    2 => contact.assigned(),
                    _ => contact.accepted(s(59 - pause)),
                }
                prop_assert!(contact.is_broken(s(now)));
            }
            contact.turned(s(now));
            contact.accepted(s(now));
            prop_assert!(!contact.is_broken(s(now)));
        }
    }
}
