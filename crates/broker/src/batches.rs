//! Checks that the storage engine can serve what a producer sends, before the engine acknowledges
//! it.
//!
//! The engine stores each record with its batch's codec and compresses it again for every fetch. It
//! cannot write snappy, and a fetch that reads one such record fails for all requested partitions.
//! It can read snappy from librdkafka, but in the framing of Java and Python clients only batches
//! of a single block. It writes lz4 in blocks that depend on each other, which Kafka's Java client
//! rejects. This module therefore decodes both and stores the records uncompressed. A batch that
//! cannot be decoded is rejected, whatever its codec.

use bytes::Bytes;
use tansu_sans_io::{
    BatchAttribute, Compression, ErrorCode,
    record::{Record, deflated::Batch, inflated},
};

/// The maximum decoded size of a snappy batch.
const MAX_DECODED: usize = 64 * 1024 * 1024;
/// More records than fit into a request, even tiny ones. The engine reserves memory for as many
/// records as a batch claims to have.
const MAX_RECORDS: u32 = 1 << 20;
/// The start of snappy-java's framing: a magic number, which is followed by two version numbers
/// that have never changed.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;

/// Checks that the engine can serve `batch`, and rewrites the batch if it could not otherwise.
pub(super) fn make_servable(batch: &mut Batch) -> Result<(), ErrorCode> {
    let attributes = BatchAttribute::try_from(batch.attributes)
        .map_err(|_| ErrorCode::UnsupportedCompressionType)?;
    if batch.record_count > MAX_RECORDS {
        return Err(ErrorCode::MessageTooLarge);
    }

    if attributes.compression == Compression::Snappy {
        let decoded = decode_snappy(&batch.record_data).ok_or(ErrorCode::CorruptMessage)?;
        let shift = |length: i32| {
            let grown = i64::from(length) + decoded.len() as i64 - batch.record_data.len() as i64;
            i32::try_from(grown).ok()
        };
        batch.batch_length = shift(batch.batch_length).ok_or(ErrorCode::MessageTooLarge)?;
        batch.attributes = attributes.compression(Compression::None).into();
        batch.record_data = decoded;
    } else if attributes.compression == Compression::Lz4 {
        let mut plain =
            inflated::Batch::try_from(&*batch).map_err(|_| ErrorCode::CorruptMessage)?;
        plain.attributes = attributes.compression(Compression::None).into();
        *batch = Batch::try_from(plain).map_err(|_| ErrorCode::CorruptMessage)?;
    }

    // The engine would also fail here, and with it the whole request, whose other partitions may be
    // fine.
    match Vec::<Record>::try_from(&*batch) {
        Ok(_) => Ok(()),
        Err(_) => Err(ErrorCode::CorruptMessage),
    }
}

/// Decodes one raw snappy block (librdkafka, Go), or a sequence of blocks in snappy-java's framing
/// (Java, Python, Node).
fn decode_snappy(data: &[u8]) -> Option<Bytes> {
    let mut decoded = Vec::new();
    if !data.starts_with(XERIAL_MAGIC) {
        decode_block(data, &mut decoded)?;
        return Some(decoded.into());
    }

    let mut rest = data.get(XERIAL_HEADER..)?;
    while !rest.is_empty() {
        let (length, blocks) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (block, after) = blocks.split_at_checked(length)?;
        decode_block(block, &mut decoded)?;
        rest = after;
    }
    Some(decoded.into())
}

fn decode_block(block: &[u8], decoded: &mut Vec<u8>) -> Option<()> {
    let length = snap::raw::decompress_len(block).ok()?;
    if length > MAX_DECODED - decoded.len().min(MAX_DECODED) {
        return None;
    }
    decoded.extend(snap::raw::Decoder::new().decompress_vec(block).ok()?);
    Some(())
}

#[cfg(test)]
pub(super) mod tests {
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

    /// A batch of two records with `compression`, encoded by `encode`.
    pub(in super::super) fn batch(
        compression: Compression,
        encode: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Batch {
        let record =
            |value: &'static [u8]| Record::builder().value(Some(Bytes::from_static(value)));
        let plain = inflated::Batch::builder()
            .record(record(b"one"))
            .record(record(b"two"))
            .build()
            .unwrap();
        let mut batch = Batch::try_from(plain).unwrap();
        let encoded = encode(&batch.record_data);
        batch.batch_length +=
            i32::try_from(encoded.len()).unwrap() - i32::try_from(batch.record_data.len()).unwrap();
        batch.attributes = BatchAttribute::default().compression(compression).into();
        batch.record_data = encoded.into();
        batch
    }

    #[test]
    fn snappy_is_kept_uncompressed() {
        let plain = batch(Compression::None, <[u8]>::to_vec);
        let halves = |data: &[u8]| {
            let (first, second) = data.split_at(data.len() / 2);
            xerial(&[first, second])
        };
        for encode in [&raw as &dyn Fn(&[u8]) -> Vec<u8>, &|data| xerial(&[data]), &halves] {
            let mut batch = batch(Compression::Snappy, encode);
            assert_eq!(make_servable(&mut batch), Ok(()));
            assert_eq!((batch.attributes, &batch.record_data), (0, &plain.record_data));
            assert_eq!(batch.batch_length, plain.batch_length);
        }
    }

    #[test]
    fn lz4_is_kept_uncompressed() {
        let plain = batch(Compression::None, <[u8]>::to_vec);
        let mut packed = inflated::Batch::try_from(&plain).unwrap();
        packed.attributes = BatchAttribute::default().compression(Compression::Lz4).into();
        let mut batch = Batch::try_from(packed).unwrap();
        assert_ne!(batch.record_data, plain.record_data);

        assert_eq!(make_servable(&mut batch), Ok(()));
        assert_eq!((batch.attributes, &batch.record_data), (0, &plain.record_data));
        assert_eq!(batch.batch_length, plain.batch_length);
    }

    #[test]
    fn undecodable_batches_are_rejected() {
        let cut = |data: &[u8]| data[..data.len() - 1].to_vec();
        for compression in [
            Compression::None,
            Compression::Gzip,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zstd,
        ] {
            let mut batch = batch(compression.clone(), cut);
            assert_eq!(
                make_servable(&mut batch),
                Err(ErrorCode::CorruptMessage),
                "{compression:?}"
            );
        }
        // A length prefix that nothing could hold.
        let mut huge = batch(Compression::Snappy, |_| vec![0xff, 0xff, 0xff, 0xff, 0x0f, 0]);
        assert_eq!(make_servable(&mut huge), Err(ErrorCode::CorruptMessage));

        let mut many = batch(Compression::None, <[u8]>::to_vec);
        many.record_count = u32::MAX;
        assert_eq!(make_servable(&mut many), Err(ErrorCode::MessageTooLarge));

        let mut unknown = batch(Compression::None, <[u8]>::to_vec);
        unknown.attributes = 7;
        assert_eq!(make_servable(&mut unknown), Err(ErrorCode::UnsupportedCompressionType));
    }
}
