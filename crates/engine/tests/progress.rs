//! The commit metadata: what is written is read back, it always fits, and no string breaks the reader.

use fleet_engine::{MAX_ENCODED_BYTES, Progress, ProgressError};
use proptest::{collection::vec, prelude::*};

/// A window from offset symbols: 0 is done, n is open with n - 1 attempts.
fn progress(base: i64, symbols: &[u32]) -> Progress {
    let mut progress = Progress::none(base);
    for (offset, symbol) in (base..).zip(symbols) {
        progress.end = offset + 1;
        if *symbol == 0 {
            continue;
        }
        match progress.open.last_mut() {
            Some((_, end)) if *end == offset => *end += 1,
            _ => progress.open.push((offset, offset + 1)),
        }
        if *symbol > 1 {
            progress.attempts.push((offset, symbol - 1));
        }
    }
    progress
}

#[test]
fn nothing_to_say_takes_no_bytes() {
    assert_eq!(Progress::none(7).encode().unwrap(), "");
    assert_eq!(Progress::decode(7, "").unwrap(), Progress::none(7));
}

#[test]
fn a_version_from_the_future_is_named() {
    // "Ag" is the byte 2.
    assert_eq!(Progress::decode(0, "AgA"), Err(ProgressError::Version(2)));
    assert_eq!(Progress::decode(0, "!"), Err(ProgressError::Base64));
}

/// The bytes of version 1, as workers of a group write them for each other while a rollout lasts. They may not change
/// under that number: another form is another version (docs/upgrading.md).
#[test]
fn the_bytes_of_version_1_stay_as_they_are() {
    let check = |base: i64, symbols: &[u32], text: &str| {
        let wanted = progress(base, symbols);
        assert_eq!(wanted.encode().unwrap(), text);
        assert_eq!(Progress::decode(base, text).unwrap(), wanted);
    };
    // Version 1, runs: offset 100, two runs of open offsets, one of them with an attempt spent.
    check(100, &[1, 0, 2, 0], "AQBkAgABAQEBAQIB");
    check(1 << 40, &[1, 1, 0, 0, 0, 3], "AQCAgICAgCACAAIDAQABBQI");
    // Version 1, dense: where runs would not fit.
    let alternating: Vec<u32> = [1, 0, 2].into_iter().cycle().take(3_000).collect();
    let text = progress(7, &alternating).encode().unwrap();
    assert_eq!((text.len(), &text[..24]), (2007, "AQEHuBcQIQIQIQIQIQIQIQIQ"));
    assert_eq!(Progress::decode(7, &text).unwrap(), progress(7, &alternating));
}

#[test]
fn metadata_is_tied_to_its_offset() {
    let text = progress(100, &[1, 0, 1]).encode().unwrap();
    assert_eq!(Progress::decode(101, &text), Err(ProgressError::Base(100)));
}

#[test]
fn the_worst_patterns_of_a_full_window_fit() {
    for pattern in [&[1, 0][..], &[2, 0], &[1, 0, 0], &[14, 1, 0], &[2, 2, 1]] {
        let symbols: Vec<u32> = pattern.iter().copied().cycle().take(5_000).collect();
        let wanted = progress(1 << 40, &symbols);
        let text = wanted.encode().expect("a window of 5000 always fits");
        assert!(text.len() <= MAX_ENCODED_BYTES, "{pattern:?}: {}", text.len());
        assert_eq!(Progress::decode(1 << 40, &text).unwrap(), wanted);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_not_cut() {
    let symbols: Vec<u32> = [1, 0].into_iter().cycle().take(50_000).collect();
    assert_eq!(progress(0, &symbols).encode(), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        base in 0_i64..1_000_000_000,
        symbols in vec(prop_oneof![4 => Just(0_u32), 4 => Just(1), 2 => 2_u32..40, 1 => 1_000_u32..100_000], 0..600),
    ) {
        let wanted = progress(base, &symbols);
        let text = wanted.encode().unwrap();
        prop_assert!(text.len() <= MAX_ENCODED_BYTES);
        let read = Progress::decode(base, &text).unwrap();
        for (offset, symbol) in (base..).zip(&symbols) {
            prop_assert_eq!(read.is_done(offset), *symbol == 0, "offset {}", offset - base);
            prop_assert_eq!(read.attempts(offset), symbol.saturating_sub(1));
        }
        prop_assert!(!read.is_done(base + symbols.len() as i64), "what lies beyond is new");
    }

    #[test]
    fn no_string_breaks_the_reader(text in "[A-Za-z0-9_-]{0,80}", base in any::<i64>()) {
        if let Ok(progress) = Progress::decode(base, &text) {
            prop_assert!(progress.end - base <= 1 << 24);
        }
    }
}
