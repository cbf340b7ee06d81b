//! The calls that the tool saw: reads the ledger that `fixture.rs` writes, and finds overlaps and
//! repeats.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

/// A mark that the harness itself writes to the ledger: from here on, a worker may be active that
/// has lost its partitions but doesn't know it yet.
pub const ZOMBIES: &str = "zombies";
/// The opposite mark: every active worker is a member of its group again.
pub const SETTLED: &str = "settled";

/// A call that began while another call of its key was running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The ordering key.
    pub key: String,
    /// The job that started.
    pub job: String,
    /// The job of the same key that had not ended.
    pub during: String,
    /// Whether a worker may have been active then without knowing that it had lost its partitions.
    pub zombies: bool,
}

/// The content of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The number of calls, by job and attempt.
    pub calls: HashMap<String, BTreeMap<u32, usize>>,
    /// The jobs of a key in the order of their first start.
    pub order: BTreeMap<String, Vec<String>>,
    /// Calls that began while another call of their key was running.
    pub overlaps: Vec<Overlap>,
    /// The jobs of cancelled calls, in the order of the cancellations.
    pub cancelled: Vec<String>,
}

impl Ledger {
    /// Reads a ledger.
    pub fn read(path: &Path) -> Self {
        let file = BufReader::new(File::open(path).expect("the ledger"));
        Self::of(file.lines().map(|line| line.expect("a line of the ledger")))
    }

    /// Merges the ledger of another tool, which has other jobs and other keys.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.calls.extend(other.calls);
        self.order.extend(other.order);
        self.overlaps.extend(other.overlaps);
        self.cancelled.extend(other.cancelled);
        self
    }

    /// The number of calls that repeat an earlier attempt.
    pub fn repeats(&self) -> usize {
        self.calls.values().flat_map(BTreeMap::values).map(|times| times - 1).sum()
    }

    fn of(lines: impl Iterator<Item = String>) -> Self {
        let mut ledger = Self::default();
        let mut active: HashMap<String, Vec<String>> = HashMap::new();
        let mut zombies = false;
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            match *words {
                ["s", job, attempt, key] => {
                    let attempts = ledger.calls.entry(job.to_owned()).or_default();
                    let first = attempts.is_empty();
                    *attempts.entry(attempt.parse().expect("a number")).or_insert(0) += 1;
                    if key == "-" {
                        continue;
                    }
                    if first {
                        ledger.order.entry(key.to_owned()).or_default().push(job.to_owned());
                    }
                    let open = active.entry(key.to_owned()).or_default();
                    ledger.overlaps.extend(open.iter().map(|during| Overlap {
                        key: key.to_owned(),
                        job: job.to_owned(),
                        during: during.clone(),
                        zombies,
                    }));
                    open.push(job.to_owned());
                }
                ["e", job, _, key] => {
                    if let Some(open) = active.get_mut(key)
                        && let Some(at) = open.iter().position(|other| other == job)
                    {
                        open.remove(at);
                    }
                }
                // The tool ignores the cancellation.
                ["c", job, ..] => ledger.cancelled.push(job.to_owned()),
                // The previous process has died with all its calls.
                ["boot"] => active.clear(),
                [ZOMBIES] => zombies = true,
                [SETTLED] => zombies = false,
                _ => panic!("a strange line in the ledger: {line}"),
            }
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(lines: &[&str]) -> Ledger {
        Ledger::of(lines.iter().map(|line| (*line).to_owned()))
    }

    #[test]
    fn calls_are_counted_by_attempt() {
        let ledger =
            ledger(&["boot", "s a 1 k", "e a 1 k", "s a 2 k", "e a 2 k", "s a 2 k", "s b 1 -"]);
        assert_eq!(ledger.repeats(), 1);
        assert_eq!(ledger.calls["a"], BTreeMap::from([(1, 1), (2, 2)]));
        assert_eq!(ledger.order["k"], ["a"]);
        assert!(ledger.overlaps.is_empty());
    }

    #[test]
    fn a_cancelled_call_goes_on() {
        let ledger = ledger(&["s a 1 k", "c a 1 k", "s b 1 k", "e a 1 k"]);
        assert_eq!((ledger.cancelled, ledger.overlaps.len()), (vec!["a".to_owned()], 1));
    }

    #[test]
    fn overlaps_are_found_and_classified() {
        let overlaps = |lines| ledger(lines).overlaps;
        assert!(overlaps(&["s a 1 k", "e a 1 k", "s b 1 k"]).is_empty());
        assert!(overlaps(&["s a 1 k", "s b 1 l", "s c 1 -", "s d 1 -"]).is_empty());
        assert!(overlaps(&["s a 1 k", "boot", "s b 1 k"]).is_empty());
        let found = overlaps(&["s a 1 k", "s b 1 k", "zombies", "s c 1 k", "settled"]);
        let zombies: Vec<_> = found.iter().map(|overlap| overlap.zombies).collect();
        assert_eq!(zombies, [false, true, true]);
    }
}
