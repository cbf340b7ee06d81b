//! A topic that is read again from its beginning, since the connection to it was lost. Its older
//! records must not count meanwhile: they could be pins from before a decision.

use super::keeping::PinChange;

/// How far the topic has been read, and what of it is read again.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// The highest offset so far.
    highest: Option<i64>,
    /// The changes since the replay began; `None` if there is none.
    held: Option<Vec<PinChange>>,
}

/// What becomes of a change.
#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    /// It is new.
    Apply(PinChange),
    /// A replay has begun with it.
    Begun,
    /// It is part of a replay.
    Held,
}

impl Replay {
    /// Takes a change in the order in which they are read.
    pub(super) fn take(&mut self, offset: i64, change: PinChange) -> Taken {
        let is_again = self.highest.is_some_and(|highest| offset <= highest);
        self.highest = Some(offset);
        match &mut self.held {
            Some(held) => {
                held.push(change);
                Taken::Held
            }
            None if is_again => {
                self.held = Some(vec![change]);
                Taken::Begun
            }
            None => Taken::Apply(change),
        }
    }

    /// Returns whether the topic is being read again.
    pub(super) fn is_running(&self) -> bool {
        self.held.is_some()
    }

    /// Ends a replay at the end of the topic. Returns its changes, to be applied together.
    pub(super) fn end(&mut self) -> Vec<PinChange> {
        self.held.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: i64) -> PinChange {
        PinChange::Removed(number.to_string())
    }

    #[test]
    fn what_is_read_again_counts_only_as_a_whole() {
        let mut replay = Replay::default();
        for offset in [3, 5] {
            assert_eq!(replay.take(offset, change(offset)), Taken::Apply(change(offset)));
        }
        assert!(replay.end().is_empty());

        // The connection is lost twice: the second replay begins during the first.
        let taken = [3, 5, 3, 5, 6].map(|offset| replay.take(offset, change(offset)));
        assert_eq!(taken[0], Taken::Begun);
        assert!(taken[1..].iter().all(|taken| *taken == Taken::Held) && replay.is_running());
        assert_eq!(replay.end(), [3, 5, 3, 5, 6].map(change));

        assert_eq!(replay.take(7, change(7)), Taken::Apply(change(7)));
        // A topic of the same name that is made anew begins at 0.
        assert_eq!(replay.take(0, change(0)), Taken::Begun);
        assert_eq!(replay.end(), [change(0)]);
        assert_eq!(replay.take(1, change(1)), Taken::Apply(change(1)));
    }
}
