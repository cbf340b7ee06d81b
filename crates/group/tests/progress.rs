//! The commit metadata: what is written is read back, it always fits, and no string breaks the
//! reader.

use fleet_group::{MAX_ENCODED_BYTES, Progress, ProgressError, log::LogName};
use proptest::{collection::vec, prelude::*};

const LOG: LogName = LogName { cluster: 0x0102_0304_0506_0708, topic: 0xF1F2_F3F4_F5F6_F7F8 };

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
fn a_commit_with_nothing_to_add_names_its_log() {
    let text = Progress::none(7).encode(LOG).unwrap();
    assert!(text.len() <= 32, "{text}");
    assert_eq!(Progress::read(&text), Ok((LOG, Progress::none(7))));
    assert_eq!(Progress::decode(7, "").unwrap(), Progress::none(7));
    let open_from_the_base = Progress { end: 9, open: vec![(7, 9)], ..Progress::none(7) };
    assert_eq!(
        open_from_the_base.encode(LOG).unwrap(),
        text,
        "what is open from the base on need not be said"
    );
}

#[test]
fn a_version_from_the_future_is_named() {
    // "Aw" is the byte 3.
    assert_eq!(Progress::decode(0, "AwA"), Err(ProgressError::Version(3)));
    assert_eq!(Progress::decode(0, "!"), Err(ProgressError::Base64));
}

/// The bytes as workers of a group write them for each other while a rollout lasts. They may not
/// change under their number: another form is another version (docs/upgrading.md).
#[test]
fn the_bytes_of_a_version_stay_as_they_are() {
    let alternating: Vec<u32> = [1, 0, 2].into_iter().cycle().take(3_000).collect();
    let read = |base: i64, symbols: &[u32], log: LogName, text: &str| {
        assert_eq!(Progress::read(text), Ok((log, progress(base, symbols))), "{text}");
    };
    // Version 1 is only read. Runs: offset 100, two runs of open offsets, one of them with an
    // attempt spent.
    read(100, &[1, 0, 2, 0], LogName::UNKNOWN, "AQBkAgABAQEBAQIB");
    read(1 << 40, &[1, 1, 0, 0, 0, 3], LogName::UNKNOWN, "AQCAgICAgCACAAIDAQABBQI");
    // Dense: where runs would not fit.
    let dense = format!("AQEHuBcQ{}IQI", "IQIQ".repeat(499));
    read(7, &alternating, LogName::UNKNOWN, &dense);
    // Version 2 is written.
    let check = |base: i64, symbols: &[u32], start: &str, length: usize| {
        let text = progress(base, symbols).encode(LOG).unwrap();
        assert_eq!((&text[..start.len()], text.len()), (start, length));
        read(base, symbols, LOG, &text);
    };
    check(100, &[1, 0, 2, 0], "AgABAgMEBQYHCPHy8_T19vf4ZAIAAQEBAQECAQ", 38);
    check(7, &alternating, "AgEBAgMEBQYHCPHy8_T19vf4B7gXECECECECECEC", 2028);
    // A stalled partition differs in a bit of the second byte, and in nothing else.
    for (stalled, symbols, start) in [
        ("AoABAgMEBQYHCPHy8_T19vf4ZAIAAQEBAQECAQ", &[1, 0, 2, 0][..], 100),
        ("AoABAgMEBQYHCPHy8_T19vf4ZAAAAA", &[1], 100),
    ] {
        let wanted = Progress { is_stalled: true, ..progress(start, symbols) };
        assert_eq!(wanted.encode(LOG).unwrap(), stalled);
        assert!(Progress::read(stalled).unwrap().1.is_stalled);
    }
}

#[test]
fn metadata_is_tied_to_its_offset() {
    let text = progress(100, &[1, 0, 1]).encode(LOG).unwrap();
    assert_eq!(Progress::decode(101, &text), Err(ProgressError::Base(100)));
}

#[test]
fn the_worst_patterns_of_a_full_window_fit() {
    for pattern in [&[1, 0][..], &[2, 0], &[1, 0, 0], &[14, 1, 0], &[2, 2, 1]] {
        let symbols: Vec<u32> = pattern.iter().copied().cycle().take(5_000).collect();
        let wanted = progress(1 << 40, &symbols);
        let text = wanted.encode(LOG).expect("a window of 5000 always fits");
        assert!(text.len() <= MAX_ENCODED_BYTES, "{pattern:?}: {}", text.len());
        assert_eq!(Progress::decode(1 << 40, &text).unwrap(), wanted);
    }
}

#[test]
fn progress_that_does_not_fit_is_refused_and_not_cut() {
    let symbols: Vec<u32> = [1, 0].into_iter().cycle().take(50_000).collect();
    assert_eq!(progress(0, &symbols).encode(LOG), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        base in 0_i64..1_000_000_000,
        symbols in vec(prop_oneof![4 => Just(0_u32), 4 => Just(1), 2 => 2_u32..40, 1 => 1_000_u32..100_000], 0..600),
    ) {
        let wanted = progress(base, &symbols);
        let text = wanted.encode(LOG).unwrap();
        prop_assert!(text.len() <= MAX_ENCODED_BYTES);
        let read = Progress::decode(base, &text).unwrap();
        for (offset, symbol) in (base..).zip(&symbols) {
            prop_assert_eq!(read.is_done(offset), *symbol == 0, "offset {}", offset - base);
            prop_assert_eq!(read.attempts(offset), symbol.saturating_sub(1));
        }
        prop_assert!(!read.is_done(base + symbols.len() as i64), "what lies beyond is new");
    }

    #[test]
    fn no_string_breaks_the_reader(text in "(A[QgwQ])?[A-Za-z0-9_-]{0,80}") {
        if let Ok((_, progress)) = Progress::read(&text) {
            prop_assert!(progress.end - progress.base <= 1 << 24);
        }
    }
}
