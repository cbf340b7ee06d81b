//! Tests what is decoded, what is refused, and that no batch decodes into more than its limit.

use std::io::Write as _;

use tansu_sans_io::record::{Record, inflated};

use super::*;

pub(in super::super) fn raw(data: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(data).unwrap()
}

fn xerial(blocks: &[&[u8]]) -> Vec<u8> {
    let mut framed = [XERIAL_MAGIC, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
    for block in blocks {
        let block = raw(block);
        framed.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
        framed.extend(block);
    }
    framed
}

fn two_blocks(data: &[u8]) -> Vec<u8> {
    let (first, second) = data.split_at(data.len() / 2);
    xerial(&[first, second])
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(in super::super) fn lz4(data: &[u8]) -> Vec<u8> {
    let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).unwrap();
    encoder.write_all(data).unwrap();
    let (encoded, done) = encoder.finish();
    done.unwrap();
    encoded
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

type Encode = fn(&[u8]) -> Vec<u8>;

const CODECS: [(Compression, Encode); 6] = [
    (Compression::None, <[u8]>::to_vec),
    (Compression::Gzip, gzip),
    (Compression::Snappy, raw),
    (Compression::Snappy, two_blocks),
    (Compression::Lz4, lz4),
    (Compression::Zstd, zstd),
];

/// A batch of `values` with `compression`, encoded by `encode`.
pub(in super::super) fn batch_of(
    values: &[Bytes],
    compression: Compression,
    encode: impl Fn(&[u8]) -> Vec<u8>,
) -> Batch {
    let mut builder =
        inflated::Batch::builder().last_offset_delta(i32::try_from(values.len()).unwrap() - 1);
    for (delta, value) in (0..).zip(values) {
        builder = builder.record(Record::builder().offset_delta(delta).value(Some(value.clone())));
    }
    let mut batch = Batch::try_from(builder.build().unwrap()).unwrap();

    batch.record_data = encode(&batch.record_data).into();
    batch.attributes = BatchAttribute::default().compression(compression).into();
    (batch.base_timestamp, batch.max_timestamp) = (1_000, 1_000);
    seal(batch)
}

/// A batch of two records.
pub(in super::super) fn batch(
    compression: Compression,
    encode: impl Fn(&[u8]) -> Vec<u8>,
) -> Batch {
    batch_of(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")], compression, encode)
}

/// Corrects the length and the checksum of a batch.
fn seal(mut batch: Batch) -> Batch {
    batch.batch_length = i32::try_from(FIXED_LENGTH + batch.record_data.len()).unwrap();
    batch.crc = checksum(&batch);
    batch
}

fn check(batch: &mut Batch) -> Result<(), ErrorCode> {
    let mut budget = MAX_DECODED;
    make_servable(batch, &mut budget)
}

#[test]
fn every_codec_is_kept_uncompressed() {
    let plain = batch(Compression::None, <[u8]>::to_vec);
    for (compression, encode) in CODECS {
        let mut batch = batch(compression.clone(), encode);
        let mut budget = 1000;
        assert_eq!(make_servable(&mut batch, &mut budget), Ok(()), "{compression:?}");
        assert_eq!(batch, plain, "{compression:?}");
        assert_eq!(budget, 1000 - plain.record_data.len(), "{compression:?}");
    }
}

/// Java's gzip, zstd and snappy streams may consist of several parts.
#[test]
fn several_members_are_one_batch() {
    let halves = |data: &[u8], encode: Encode| {
        let (first, second) = data.split_at(data.len() / 2);
        [encode(first), encode(second)].concat()
    };
    for (compression, encode) in [(Compression::Gzip, gzip as Encode), (Compression::Zstd, zstd)] {
        let mut batch = batch(compression.clone(), |data| halves(data, encode));
        assert_eq!(check(&mut batch), Ok(()), "{compression:?}");
    }
}

#[test]
fn what_cannot_be_decoded_is_refused() {
    for (compression, encode) in CODECS {
        let cut = |data: &[u8]| {
            let whole = encode(data);
            whole[..whole.len() - 1].to_vec()
        };
        let mut short = batch(compression.clone(), cut);
        assert_eq!(check(&mut short), Err(ErrorCode::CorruptMessage), "{compression:?}");

        let mut altered = batch(compression.clone(), encode);
        altered.crc ^= 1;
        assert_eq!(check(&mut altered), Err(ErrorCode::CorruptMessage), "{compression:?}");
    }

    let mut unknown = batch(Compression::None, <[u8]>::to_vec);
    unknown.attributes = 7;
    assert_eq!(check(&mut seal(unknown)), Err(ErrorCode::UnsupportedCompressionType));
}

/// Eight MiB of zeros are some kilobytes in a request.
#[test]
fn no_batch_is_decoded_beyond_its_limit() {
    let values = vec![Bytes::from(vec![0; MAX_RECORD / 8]); 16];
    let size = values.len() * values[0].len();
    for (compression, encode) in CODECS {
        let batch = batch_of(&values, compression.clone(), encode);

        let mut budget = size;
        let outcome = make_servable(&mut batch.clone(), &mut budget);
        assert_eq!(outcome, Err(ErrorCode::MessageTooLarge), "{compression:?}");
        assert_eq!(budget, size, "{compression:?}");

        let mut budget = 2 * size;
        assert_eq!(make_servable(&mut batch.clone(), &mut budget), Ok(()), "{compression:?}");
        let again = make_servable(&mut batch.clone(), &mut budget);
        assert_eq!(again, Err(ErrorCode::MessageTooLarge), "{compression:?}");
    }

    // A length prefix that nothing could hold.
    let mut huge = batch(Compression::Snappy, |_| vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0]);
    assert_eq!(check(&mut huge), Err(ErrorCode::MessageTooLarge));
}

/// A fetch finds at most 5 MiB, so a larger record would block its partition for good.
#[test]
fn a_record_that_no_fetch_could_return_is_refused() {
    for (compression, encode) in CODECS {
        let value = Bytes::from(vec![0; MAX_RECORD + 1]);
        let mut batch = batch_of(&[value], compression.clone(), encode);
        assert_eq!(check(&mut batch), Err(ErrorCode::MessageTooLarge), "{compression:?}");
    }
}

#[test]
fn a_batch_that_contradicts_its_records_is_refused() {
    type Contradiction = fn(&mut Batch);

    let altered = |alter: fn(&mut Batch)| {
        let mut batch = batch(Compression::None, <[u8]>::to_vec);
        alter(&mut batch);
        check(&mut seal(batch))
    };
    let contradictions: [(Contradiction, ErrorCode); 9] = [
        (|batch| batch.record_count = u32::MAX, ErrorCode::MessageTooLarge),
        (|batch| batch.record_count = 0, ErrorCode::InvalidRecord),
        (|batch| batch.last_offset_delta = 5, ErrorCode::InvalidRecord),
        (|batch| (batch.record_count, batch.last_offset_delta) = (1, 0), ErrorCode::InvalidRecord),
        (|batch| (batch.record_count, batch.last_offset_delta) = (3, 2), ErrorCode::CorruptMessage),
        (|batch| batch.base_timestamp = -5, ErrorCode::InvalidTimestamp),
        (|batch| batch.attributes |= 0x20, ErrorCode::InvalidRecord),
        (|batch| batch.attributes |= 0x10, ErrorCode::InvalidTxnState),
        (|batch| batch.magic = 1, ErrorCode::InvalidRecord),
    ];
    for (number, (alter, expected)) in contradictions.into_iter().enumerate() {
        assert_eq!(altered(alter), Err(expected), "{number}");
    }
}

/// The engine panics on lengths that lead out of the record.
#[test]
fn malformed_records_are_refused() {
    let plain = batch(Compression::None, <[u8]>::to_vec);
    // A record is its length, attributes, two deltas, a key, a value and headers.
    let good = [vec![18, 0, 0, 0, 1, 6], b"one".to_vec(), vec![0]].concat();
    let malformed: [(usize, u8); 7] = [
        (0, 17), // a negative length of the record
        (0, 20), // one byte more than there is
        (4, 3),  // a negative length of the key
        (4, 40), // a key that is longer than its record
        (5, 8),  // a value that takes the headers
        (9, 1),  // a negative number of headers
        (9, 2),  // a header that is not there
    ];
    let with = |data: Vec<u8>| {
        let mut batch = Batch { record_count: 1, last_offset_delta: 0, ..plain.clone() };
        batch.record_data = data.into();
        check(&mut seal(batch))
    };

    assert_eq!(with(good.clone()), Ok(()));
    for (at, byte) in malformed {
        let mut data = good.clone();
        data[at] = byte;
        assert_eq!(with(data), Err(ErrorCode::CorruptMessage), "{byte} at {at}");
    }
    for end in 0..good.len() {
        assert_eq!(with(good[..end].to_vec()), Err(ErrorCode::CorruptMessage), "cut at {end}");
    }
}

#[test]
fn a_record_without_a_timestamp_is_kept() {
    let mut batch = batch(Compression::None, <[u8]>::to_vec);
    batch.base_timestamp = NO_TIMESTAMP;
    let mut batch = seal(batch);
    assert_eq!(check(&mut batch), Ok(()));
    assert_eq!((batch.base_timestamp, batch.crc), (0, checksum(&batch)));
}

#[test]
fn numbers_are_read_up_to_their_limits() {
    let cases: [(&[u8], u32, Option<i64>); 9] = [
        (&[0], 32, Some(0)),
        (&[1], 32, Some(-1)),
        (&[0x80, 0], 32, Some(0)),
        (&[0xfe, 0xff, 0xff, 0xff, 0x0f], 32, Some(i64::from(i32::MAX))),
        (&[0xff, 0xff, 0xff, 0xff, 0x0f], 32, Some(i64::from(i32::MIN))),
        (&[0xff, 0xff, 0xff, 0xff, 0x1f], 32, None),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 0], 32, None),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 64, Some(i64::MIN)),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], 64, None),
    ];
    for (bytes, bits, expected) in cases {
        assert_eq!(read_varint(&mut &bytes[..], bits), expected, "{bytes:?}");
    }
}
