//! Counts dead letters by reason and time, and collects the newest.

use std::{cmp::Reverse, collections::BTreeMap};

use fleet_job::time::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::letter::Letter;

/// The dead letters of one reason.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Dead letters of one reason")]
pub struct Bucket {
    /// The kind of error.
    pub kind: String,
    /// The tool, or the start of the message.
    pub about: String,
    /// The number of letters.
    pub count: usize,
    /// How many of them have been replayed.
    pub replayed: usize,
    /// When the first of the jobs died.
    pub oldest: Option<Timestamp>,
    /// When the last of the jobs died.
    pub newest: Option<Timestamp>,
    /// The number of letters over time, without times in which no job died. All reasons have
    /// slots of the same width.
    pub slots: Vec<Slot>,
}

/// The letters of jobs that died within some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// The beginning of the time.
    pub start: Timestamp,
    /// The end of the time, which is not part of it.
    pub end: Timestamp,
    /// The number of letters.
    pub letters: usize,
}

/// The result of a scan of the topic, in memory that does not grow with the topic.
#[derive(Debug)]
pub struct Histogram {
    buckets: BTreeMap<(String, String), Counted>,
    newest: Vec<(Letter, bool)>,
    keep: usize,
    /// The width of the slots, in milliseconds.
    width: i64,
    /// The first and the last slot in use.
    span: Option<(i64, i64)>,
}

#[derive(Debug)]
struct Counted {
    bucket: Bucket,
    /// The number of letters by slot.
    slots: BTreeMap<i64, usize>,
}

/// If there are more reasons than this, the rest fall into one bucket per kind.
pub const MAX_BUCKETS: usize = 500;
/// The subject of that bucket.
pub const OTHERS: &str = "(others)";
/// The most slots between the first and the last letter.
const MAX_SLOTS: i64 = 48;
/// The least width of a slot, in milliseconds.
const LEAST_SLOT_MS: i64 = 60_000;

impl Histogram {
    /// Creates a histogram that keeps the newest `keep` letters.
    pub fn new(keep: usize) -> Self {
        Self {
            buckets: BTreeMap::new(),
            newest: Vec::new(),
            keep,
            width: LEAST_SLOT_MS,
            span: None,
        }
    }

    /// Adds a letter, which has been replayed or has not.
    pub fn add(&mut self, letter: Letter, replayed: bool) {
        let mut key = (letter.kind.clone(), letter.about());
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&key) {
            key.1 = OTHERS.to_owned();
        }
        let slot = letter.time.map(|time| self.slot_of(time));

        let counted = self.buckets.entry(key).or_insert_with_key(|(kind, about)| Counted {
            bucket: Bucket {
                kind: kind.clone(),
                about: about.clone(),
                count: 0,
                replayed: 0,
                oldest: letter.time,
                newest: letter.time,
                slots: Vec::new(),
            },
            slots: BTreeMap::new(),
        });

        let bucket = &mut counted.bucket;
        bucket.count += 1;
        bucket.replayed += usize::from(replayed);
        bucket.oldest = bucket.oldest.min(letter.time);
        bucket.newest = bucket.newest.max(letter.time);
        if let Some(slot) = slot {
            *counted.slots.entry(slot).or_default() += 1;
        }

        self.newest.push((letter, replayed));
        if self.newest.len() > self.keep.saturating_mul(2) {
            self.shrink();
        }
    }

    /// Returns the slot of a time, after widening all slots if there would be too many.
    fn slot_of(&mut self, time: Timestamp) -> i64 {
        loop {
            let slot = time.as_millis().div_euclid(self.width);
            let (first, last) = self.span.unwrap_or((slot, slot));
            let (first, last) = (first.min(slot), last.max(slot));
            if last - first < MAX_SLOTS {
                self.span = Some((first, last));
                return slot;
            }
            self.widen();
        }
    }

    /// Makes slots twice as wide.
    fn widen(&mut self) {
        self.width *= 2;
        self.span = self.span.map(|(first, last)| (first.div_euclid(2), last.div_euclid(2)));
        for counted in self.buckets.values_mut() {
            let mut wider = BTreeMap::new();
            for (slot, letters) in &counted.slots {
                *wider.entry(slot.div_euclid(2)).or_default() += letters;
            }
            counted.slots = wider;
        }
    }

    fn shrink(&mut self) {
        self.newest.sort_by_key(|(letter, _)| Reverse((letter.time, letter.partition_offset())));
        self.newest.truncate(self.keep);
    }

    /// Returns the buckets, largest first, and the newest letters, newest first.
    pub fn finish(mut self) -> (Vec<Bucket>, Vec<(Letter, bool)>) {
        self.shrink();
        let width = self.width;
        let bucket = |Counted { bucket, slots }| Bucket {
            slots: slots.into_iter().map(|(slot, letters)| slot_at(slot, width, letters)).collect(),
            ..bucket
        };
        let mut buckets: Vec<_> = self.buckets.into_values().map(bucket).collect();
        buckets.sort_by_key(|bucket| Reverse(bucket.count));
        (buckets, self.newest)
    }
}

fn slot_at(slot: i64, width: i64, letters: usize) -> Slot {
    let start = slot.saturating_mul(width);
    Slot {
        start: Timestamp::from_millis_clamped(start),
        end: Timestamp::from_millis_clamped(start.saturating_add(width)),
        letters,
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::*;
    use crate::testing::letter;

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
    fn letters_are_counted_over_time_in_few_slots() {
        let slots = |seconds: &[i64]| {
            let mut histogram = Histogram::new(0);
            for second in seconds {
                histogram.add(letter(*second, "j", ErrorKind::Tool, 0), false);
            }
            histogram.add(letter(seconds[0], "k", ErrorKind::Http, 0), false);
            let (buckets, _) = histogram.finish();
            let of = |bucket: &Bucket| -> Vec<_> {
                let slots = bucket.slots.iter();
                let ms = slots.map(|slot| {
                    let width = slot.end.as_millis() - slot.start.as_millis();
                    (slot.start.as_millis() / 1000, width / 1000, slot.letters)
                });
                ms.collect()
            };
            (of(&buckets[0]), of(&buckets[1]))
        };
        let minute = LEAST_SLOT_MS / 1000;
        let (tool, http) = slots(&[60, 119, 120, 200]);
        assert_eq!(tool, [(60, minute, 2), (120, minute, 1), (180, minute, 1)]);
        assert_eq!(http, [(60, minute, 1)]);

        // All groups have slots of the same width, which grows with the time that they span.
        let (tool, http) = slots(&[0, 1_000_000, 100_000_000]);
        let width = tool[0].1;
        assert!(tool.iter().chain(&http).all(|slot| slot.1 == width && slot.0 % width == 0));
        assert!(width > minute && 100_000_000 / width < MAX_SLOTS, "{width}");
        assert_eq!(tool.iter().map(|slot| slot.2).sum::<usize>(), 3);
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
