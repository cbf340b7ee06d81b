//! What is known beyond the committed offset, and how it fits into a commit's metadata string.
//!
//! Jobs settle out of order, but Kafka remembers one offset per partition. The metadata string of
//! the commit (4096 bytes by the broker's default, `offset.metadata.max.bytes`) carries the rest:
//! which offsets beyond the frontier are not done, and how many attempts their jobs have spent.
//! Losing it costs repeats, never jobs.
//!
//! There are two encodings. *Runs* has the gaps and lengths of what is not done, then the attempts,
//! all as LEB128 numbers; it is small if few jobs are open. *Dense* has four bits per offset, so
//! its size is bounded for every pattern; it is used if runs do not fit. Both are URL-safe base64
//! of `version byte · mode byte · log · base · body`. The log's name (two digests of 8 bytes) ties
//! the string to its log, and the base ties it to its offset, in case the topic is recreated or a
//! tool copies the string elsewhere. A bit of the mode byte says that the partition is stalled.
//! Version 1 is the same without the log's name; it is still read, but no longer written.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::log::LogName;

/// The longest metadata string that is ever committed: the broker's default limit.
pub const MAX_ENCODED_BYTES: usize = 4096;
/// The number of bytes that fit into that before base64.
pub const MAX_RAW_BYTES: usize = MAX_ENCODED_BYTES / 4 * 3;
/// The longest window that always fits in the dense encoding, with room for [`MAX_ESCAPES`] large
/// attempt counts.
pub const DENSE_WINDOW: i64 = 5_000;
/// The most attempt counts of 14 and more, which need extra bytes in the dense encoding.
pub const MAX_ESCAPES: usize = 200;
/// The longest window that is believed. A corrupt string must not make a worker allocate without
/// bound.
const MAX_WINDOW: i64 = 1 << 24;

const VERSION: u8 = 2;
/// The version whose strings do not name their log.
const VERSION_WITHOUT_LOG: u8 = 1;
const MODE_RUNS: u8 = 0;
const MODE_DENSE: u8 = 1;
/// The bit of the mode byte that stands for [`Progress::is_stalled`].
const STALLED: u8 = 0x80;
/// The dense symbol for "the attempts are in the list that follows"; 0 is "done", and n is "not
/// done, n - 1 attempts".
const ESCAPE: u8 = 15;

/// Why a metadata string could not be read. Readers go on without it, at the price of repeats.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgressError {
    /// It is not URL-safe base64.
    #[error("commit metadata is not base64")]
    Base64,
    /// A newer worker has written it, or somebody else.
    #[error("commit metadata has unknown version {0}")]
    Version(u8),
    /// It belongs to another offset than the committed one.
    #[error("commit metadata belongs to offset {0}")]
    Base(u64),
    /// It is too short or too long, or has impossible numbers.
    #[error("commit metadata is corrupt")]
    Corrupt,
}

/// What is known about the offsets from `base` (the committed one) up to `end`. Everything from
/// `end` on is new.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The committed offset.
    pub base: i64,
    /// One past the last offset about which anything is known.
    pub end: i64,
    /// Runs of offsets that are not done, as `(first, one past the last)`, ascending and with gaps
    /// between them. All other offsets below `end` are done.
    pub open: Vec<(i64, i64)>,
    /// The attempts spent, by offset, for jobs that are not done and have spent any; ascending.
    pub attempts: Vec<(i64, u32)>,
    /// The partition is paused until something that is unavailable comes back: the jobs that wait
    /// for it, and those behind them in their keys, fill the partition's share of memory. This is
    /// for people; no worker needs it.
    pub is_stalled: bool,
}

impl Progress {
    /// The progress of which nothing is known beyond `base`.
    #[must_use]
    pub fn none(base: i64) -> Self {
        Self { base, end: base, ..Self::default() }
    }

    /// Whether the record at `offset` is settled already.
    #[must_use]
    pub fn is_done(&self, offset: i64) -> bool {
        if offset >= self.end {
            return false;
        }

        let after = self.open.partition_point(|(first, _)| *first <= offset);
        after.checked_sub(1).and_then(|i| self.open.get(i)).is_none_or(|(_, end)| offset >= *end)
    }

    /// The number of offsets below `offset` that are not done.
    pub(crate) fn open_below(&self, offset: i64) -> i64 {
        let runs =
            self.open.iter().map(|(first, end)| (*end).min(offset).saturating_sub(*first).max(0));
        runs.sum::<i64>() + offset.saturating_sub(self.end).max(0)
    }

    /// The attempts that the job at `offset` has spent.
    #[must_use]
    pub fn attempts(&self, offset: i64) -> u32 {
        self.attempts.binary_search_by_key(&offset, |(at, _)| *at).map_or(0, |i| self.attempts[i].1)
    }

    /// The metadata string for a commit about `log`; `None` if it would be longer than
    /// [`MAX_ENCODED_BYTES`]. The caller keeps windows so small that this does not happen.
    #[must_use]
    pub fn encode(&self, log: LogName) -> Option<String> {
        let is_bare = self.open == [(self.base, self.end)] && self.attempts.is_empty();
        if is_bare {
            return Self { is_stalled: self.is_stalled, ..Self::none(self.base) }.encode(log);
        }

        let runs = self.encode_runs(log);
        let bytes = if runs.len() <= MAX_RAW_BYTES { runs } else { self.encode_dense(log)? };
        (bytes.len() <= MAX_RAW_BYTES).then(|| URL_SAFE_NO_PAD.encode(bytes))
    }

    fn header(&self, log: LogName, mode: u8) -> Vec<u8> {
        let mut bytes = vec![VERSION, if self.is_stalled { mode | STALLED } else { mode }];
        bytes.extend(log.cluster.to_be_bytes());
        bytes.extend(log.topic.to_be_bytes());
        put(&mut bytes, self.base.unsigned_abs());
        bytes
    }

    fn encode_runs(&self, log: LogName) -> Vec<u8> {
        let mut bytes = self.header(log, MODE_RUNS);

        put(&mut bytes, self.open.len() as u64);
        let mut at = self.base;
        for (first, end) in &self.open {
            put(&mut bytes, first.abs_diff(at));
            put(&mut bytes, end.abs_diff(*first));
            at = *end;
        }
        put(&mut bytes, self.end.abs_diff(at));

        put(&mut bytes, self.attempts.len() as u64);
        let mut at = self.base;
        for (offset, attempts) in &self.attempts {
            put(&mut bytes, offset.abs_diff(at));
            put(&mut bytes, u64::from(*attempts));
            at = *offset;
        }

        bytes
    }

    fn encode_dense(&self, log: LogName) -> Option<Vec<u8>> {
        let length = usize::try_from(self.end - self.base).ok()?;
        if length / 2 > MAX_RAW_BYTES {
            return None;
        }

        let mut symbols = vec![0_u8; length];
        let index = |offset: i64| usize::try_from(offset - self.base).ok();
        for (first, end) in &self.open {
            symbols.get_mut(index(*first)?..index(*end)?)?.fill(1);
        }

        let mut escaped = Vec::new();
        for (offset, attempts) in &self.attempts {
            let symbol = u8::try_from(attempts.saturating_add(1)).unwrap_or(ESCAPE).min(ESCAPE);
            *symbols.get_mut(index(*offset)?)? = symbol;
            if symbol == ESCAPE {
                escaped.push(*attempts);
            }
        }

        let mut bytes = self.header(log, MODE_DENSE);
        put(&mut bytes, length as u64);
        bytes
            .extend(symbols.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)));
        for attempts in escaped {
            put(&mut bytes, u64::from(attempts));
        }
        Some(bytes)
    }

    /// Reads the metadata that was committed with the offset `base`, whatever log it is about.
    ///
    /// # Errors
    ///
    /// Returns a [`ProgressError`] if the string can't be read or is about another offset. No input
    /// makes it panic or allocate more than a window's worth.
    pub fn decode(base: i64, metadata: &str) -> Result<Self, ProgressError> {
        if metadata.is_empty() {
            return Ok(Self::none(base));
        }

        let (_, progress) = Self::read(metadata)?;
        if progress.base == base {
            Ok(progress)
        } else {
            Err(ProgressError::Base(progress.base.unsigned_abs()))
        }
    }

    /// Reads a metadata string: the log that it is about, and what it says about that log.
    ///
    /// # Errors
    ///
    /// Returns a [`ProgressError`] if the string can't be read. No input makes it panic or allocate
    /// more than a window's worth.
    pub fn read(metadata: &str) -> Result<(LogName, Self), ProgressError> {
        let bytes = URL_SAFE_NO_PAD.decode(metadata).map_err(|_| ProgressError::Base64)?;
        let mut reader = Reader(&bytes);

        let (version, mode) = (reader.byte()?, reader.byte()?);
        let log = match version {
            VERSION => LogName { cluster: reader.fixed()?, topic: reader.fixed()? },
            VERSION_WITHOUT_LOG => LogName::UNKNOWN,
            _ => return Err(ProgressError::Version(version)),
        };

        let base = i64::try_from(reader.number()?).map_err(|_| ProgressError::Corrupt)?;
        let progress = match mode & !STALLED {
            MODE_RUNS => Self::decode_runs(base, reader),
            MODE_DENSE => Self::decode_dense(base, reader),
            _ => Err(ProgressError::Corrupt),
        };
        Ok((log, Self { is_stalled: mode & STALLED != 0, ..progress? }))
    }

    fn decode_runs(base: i64, mut reader: Reader<'_>) -> Result<Self, ProgressError> {
        let mut progress = Self::none(base);
        let mut at = base;
        for _ in 0..reader.number()? {
            let first = forward(base, at, reader.number()?)?;
            let end = forward(base, first, reader.number()?)?;
            if end == first || (first == at && !progress.open.is_empty()) {
                return Err(ProgressError::Corrupt);
            }
            progress.open.push((first, end));
            at = end;
        }
        progress.end = forward(base, at, reader.number()?)?;

        let mut at = base;
        for index in 0..reader.number()? {
            let offset = forward(base, at, reader.number()?)?;
            let attempts = u32::try_from(reader.number()?).map_err(|_| ProgressError::Corrupt)?;
            if (index > 0 && offset == at)
                || attempts == 0
                || offset >= progress.end
                || progress.is_done(offset)
            {
                return Err(ProgressError::Corrupt);
            }
            progress.attempts.push((offset, attempts));
            at = offset;
        }

        reader.finish(progress)
    }

    fn decode_dense(base: i64, mut reader: Reader<'_>) -> Result<Self, ProgressError> {
        let mut progress = Self::none(base);
        progress.end = forward(base, base, reader.number()?)?;
        let length = usize::try_from(progress.end - base).map_err(|_| ProgressError::Corrupt)?;
        let packed = reader.take(length.div_ceil(2))?;

        for (index, offset) in (base..progress.end).enumerate() {
            let symbol = packed[index / 2] >> (if index % 2 == 0 { 4 } else { 0 }) & 0xf;
            if symbol == 0 {
                continue;
            }

            match progress.open.last_mut() {
                Some((_, end)) if *end == offset => *end += 1,
                _ => progress.open.push((offset, offset + 1)),
            }

            let attempts = match symbol {
                ESCAPE => u32::try_from(reader.number()?).map_err(|_| ProgressError::Corrupt)?,
                symbol => u32::from(symbol) - 1,
            };
            if attempts > 0 {
                progress.attempts.push((offset, attempts));
            }
        }
        reader.finish(progress)
    }
}

/// The offset that lies `by` after `at`, if that is still in a window from `base` on.
fn forward(base: i64, at: i64, by: u64) -> Result<i64, ProgressError> {
    let moved = i64::try_from(by).ok().and_then(|by| at.checked_add(by));
    moved.filter(|to| to - base <= MAX_WINDOW).ok_or(ProgressError::Corrupt)
}

/// Appends an unsigned LEB128 number.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads the bytes of a metadata string from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, ProgressError> {
        let (first, rest) = self.0.split_first().ok_or(ProgressError::Corrupt)?;
        self.0 = rest;
        Ok(*first)
    }

    /// An unsigned LEB128 number.
    fn number(&mut self) -> Result<u64, ProgressError> {
        let mut number = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ProgressError::Corrupt)
    }

    /// Eight bytes, big-endian.
    fn fixed(&mut self) -> Result<u64, ProgressError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(ProgressError::Corrupt)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*bytes))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProgressError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ProgressError::Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Returns `progress` if everything has been read.
    fn finish(self, progress: Progress) -> Result<Progress, ProgressError> {
        if self.0.is_empty() { Ok(progress) } else { Err(ProgressError::Corrupt) }
    }
}
