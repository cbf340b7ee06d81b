//! Counts dead letters by reason and collects the newest. Pure.

use std::{cmp::Reverse, collections::BTreeMap};

use fleet_job::time::Timestamp;
use serde::Serialize;

use super::letter::Letter;

/// The dead letters of one reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bucket {
    pub(super) kind: String,
    /// The tool, or the start of the message.
    pub(super) about: String,
    pub(super) count: usize,
    /// How many of them have been replayed.
    pub(super) replayed: usize,
    pub(super) oldest: Option<Timestamp>,
    pub(super) newest: Option<Timestamp>,
}

/// The result of a scan of the topic, in memory that does not grow with the topic.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: BTreeMap<(String, String), Bucket>,
    newest: Vec<(Letter, bool)>,
    keep: usize,
}

/// If there are more reasons than this, the rest fall into one bucket per kind.
const MAX_BUCKETS: usize = 500;
/// The subject of that bucket.
const OTHERS: &str = "(others)";

impl Histogram {
    /// Creates a histogram that keeps the newest `keep` letters.
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Adds a letter, which has been replayed or has not.
    pub(super) fn add(&mut self, letter: Letter, replayed: bool) {
        let mut key = (letter.kind.clone(), letter.about());
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&key) {
            key.1 = OTHERS.to_owned();
        }

        let bucket = self.buckets.entry(key).or_insert_with_key(|(kind, about)| Bucket {
            kind: kind.clone(),
            about: about.clone(),
            count: 0,
            replayed: 0,
            oldest: letter.time,
            newest: letter.time,
        });

        bucket.count += 1;
        bucket.replayed += usize::from(replayed);
        bucket.oldest = bucket.oldest.min(letter.time);
        bucket.newest = bucket.newest.max(letter.time);

        self.newest.push((letter, replayed));
        if self.newest.len() > self.keep.saturating_mul(2) {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        self.newest.sort_by_key(|(letter, _)| Reverse((letter.time, letter.partition_offset())));
        self.newest.truncate(self.keep);
    }

    /// Returns the buckets, largest first, and the newest letters, newest first.
    pub(super) fn finish(mut self) -> (Vec<Bucket>, Vec<(Letter, bool)>) {
        self.shrink();
        let mut buckets: Vec<_> = self.buckets.into_values().collect();
        buckets.sort_by_key(|bucket| Reverse(bucket.count));
        (buckets, self.newest)
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::{super::letter::tests::letter, *};

    #[test]
    fn counts_ages_and_the_newest() {
        let mut histogram = Histogram::new(2);
        for offset in [4, 1, 9, 3, 2] {
            histogram.add(letter(offset, "j", ErrorKind::Tool, 0), offset == 9);
        }
        histogram.add(letter(8, "k", ErrorKind::Http, 0), false);
        let (buckets, newest) = histogram.finish();
        let shown: Vec<_> =
            buckets.iter().map(|b| (&*b.kind, &*b.about, b.count, b.replayed)).collect();
        assert_eq!(shown, [("tool", "s__t", 5, 1), ("http", "s__t", 1, 0)]);
        assert_eq!(buckets[0].oldest, Timestamp::from_millis(1000));
        assert_eq!(buckets[0].newest, Timestamp::from_millis(9000));
        assert_eq!(
            newest.iter().map(|(letter, _)| letter.partition_offset().1).collect::<Vec<_>>(),
            [9, 8]
        );
    }

    #[test]
    fn many_reasons_take_bounded_memory() {
        let mut histogram = Histogram::new(0);
        for n in 0..2 * MAX_BUCKETS {
            let mut letter = letter(1, "j", ErrorKind::Tool, 0);
            letter.what = Some(format!("tool-{n}"));
            histogram.add(letter, false);
        }
        let (buckets, newest) = histogram.finish();
        assert_eq!((buckets.len(), newest.len()), (MAX_BUCKETS + 1, 0));
        assert_eq!((&*buckets[0].about, buckets[0].count), (OTHERS, MAX_BUCKETS));
    }
}
