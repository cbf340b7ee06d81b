//! Checks and decodes what a producer sends, before the storage engine acknowledges it.
//!
//! The engine stores single records, each with its batch's attributes, and encodes them again for
//! every fetch. It cannot write snappy, it writes lz4 in a form that Kafka's Java client rejects,
//! it decodes byte by byte, and it trusts whatever a batch claims: a wrong length makes it panic,
//! and a wrong number of records or timestamp makes a partition unreadable. So this module verifies
//! everything that the engine relies on, and hands every batch on uncompressed.

use std::io::Read;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use tansu_sans_io::{BatchAttribute, Compression, ErrorCode, record::deflated::Batch};

use super::MAX_REQUEST;

/// The maximum decoded size of all batches of a request.
pub(super) const MAX_DECODED: usize = 64 * 1024 * 1024;
/// The maximum decoded size of a record: what fits into an uncompressed request, and so into the
/// response to a fetch.
const MAX_RECORD: usize = MAX_REQUEST;
/// More records than fit into a request, even tiny ones. The engine reserves memory for as many
/// records as a batch claims to have.
const MAX_RECORDS: u32 = 1 << 20;
/// The version of the only batch format that is served.
pub(super) const MAGIC: i8 = 2;
/// The size of a batch without its records and without its base offset and length.
pub(super) const FIXED_LENGTH: usize = 49;
/// The timestamp of a record that has none.
const NO_TIMESTAMP: i64 = -1;
/// A larger uncompressed batch is checked on a thread that may block.
const QUICK: usize = 64 * 1024;
/// The start of snappy-java's framing: a magic number, which is followed by two version numbers
/// that have never changed.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;

/// Returns whether [`make_servable`] takes so little time that it need not run on a thread of its
/// own. Even a small batch can be large once it is decoded.
pub(super) fn is_quick(batch: &Batch) -> bool {
    let compression = Compression::try_from(batch.attributes);
    batch.record_data.len() <= QUICK && matches!(compression, Ok(Compression::None) | Err(_))
}

/// Checks that the engine can serve `batch`, and decodes it. Its decoded size is taken from
/// `budget`.
///
/// # Errors
///
/// Returns what Kafka tells the producer of such a batch.
pub(super) fn make_servable(batch: &mut Batch, budget: &mut usize) -> Result<(), ErrorCode> {
    if batch.magic != MAGIC {
        return Err(ErrorCode::InvalidRecord);
    }
    if checksum(batch) != batch.crc {
        return Err(ErrorCode::CorruptMessage);
    }

    let attributes = BatchAttribute::try_from(batch.attributes)
        .map_err(|_| ErrorCode::UnsupportedCompressionType)?;
    if attributes.control {
        return Err(ErrorCode::InvalidRecord);
    }
    if attributes.transaction {
        return Err(ErrorCode::InvalidTxnState);
    }
    if batch.record_count > MAX_RECORDS {
        return Err(ErrorCode::MessageTooLarge);
    }

    let plain = decode(&attributes.compression, &batch.record_data, *budget)?;
    if batch.base_timestamp == NO_TIMESTAMP {
        // The engine stores a negative timestamp and then cannot fetch the record.
        batch.base_timestamp = 0;
    }
    check_records(batch, &plain)?;

    *budget -= plain.len();
    let length = i32::try_from(FIXED_LENGTH + plain.len());
    batch.batch_length = length.map_err(|_| ErrorCode::MessageTooLarge)?;
    // Neither compressed, nor with a timestamp that belongs to all records.
    batch.attributes = 0;
    batch.record_data = plain;
    batch.crc = checksum(batch);
    Ok(())
}

/// Returns the CRC-32C of everything that follows it in the batch.
pub(super) fn checksum(batch: &Batch) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&batch.attributes.to_be_bytes());
    digest.update(&batch.last_offset_delta.to_be_bytes());
    digest.update(&batch.base_timestamp.to_be_bytes());
    digest.update(&batch.max_timestamp.to_be_bytes());
    digest.update(&batch.producer_id.to_be_bytes());
    digest.update(&batch.producer_epoch.to_be_bytes());
    digest.update(&batch.base_sequence.to_be_bytes());
    digest.update(&batch.record_count.to_be_bytes());
    digest.update(&batch.record_data);

    // The digest is as wide as the widest algorithm; this one has 32 bits.
    digest.finalize() as u32
}

/// Decodes the records of a batch into at most `limit` bytes.
fn decode(compression: &Compression, data: &Bytes, limit: usize) -> Result<Bytes, ErrorCode> {
    let corrupt = |_| ErrorCode::CorruptMessage;
    match compression {
        Compression::None if data.len() > limit => Err(ErrorCode::MessageTooLarge),
        Compression::None => Ok(data.clone()),
        Compression::Gzip => read_bounded(flate2::bufread::MultiGzDecoder::new(&data[..]), limit),
        Compression::Snappy => decode_snappy(data, limit),
        Compression::Lz4 => {
            let mut decoder = lz4::Decoder::new(&data[..]).map_err(corrupt)?;
            let plain = read_bounded(&mut decoder, limit)?;
            // The decoder takes the end of its input for the end of the frame.
            decoder.finish().1.map_err(corrupt)?;
            Ok(plain)
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(&data[..]).map_err(corrupt)?;
            read_bounded(decoder, limit)
        }
    }
}

/// Reads to the end, but no more than `limit` bytes.
fn read_bounded(reader: impl Read, limit: usize) -> Result<Bytes, ErrorCode> {
    let mut plain = Vec::new();
    let read = reader.take(limit as u64 + 1).read_to_end(&mut plain);
    read.map_err(|_| ErrorCode::CorruptMessage)?;

    if plain.len() > limit { Err(ErrorCode::MessageTooLarge) } else { Ok(plain.into()) }
}

/// Decodes one raw snappy block (librdkafka, Go), or a sequence of blocks in snappy-java's framing
/// (Java, Python, Node).
fn decode_snappy(data: &[u8], limit: usize) -> Result<Bytes, ErrorCode> {
    let mut decoded = Vec::new();
    if !data.starts_with(XERIAL_MAGIC) {
        decode_block(data, &mut decoded, limit)?;
        return Ok(decoded.into());
    }

    let corrupt = ErrorCode::CorruptMessage;
    let mut rest = data.get(XERIAL_HEADER..).ok_or(corrupt)?;
    while !rest.is_empty() {
        let (length, blocks) = rest.split_first_chunk::<4>().ok_or(corrupt)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| corrupt)?;
        let (block, after) = blocks.split_at_checked(length).ok_or(corrupt)?;
        decode_block(block, &mut decoded, limit)?;
        rest = after;
    }
    Ok(decoded.into())
}

fn decode_block(block: &[u8], decoded: &mut Vec<u8>, limit: usize) -> Result<(), ErrorCode> {
    let corrupt = |_| ErrorCode::CorruptMessage;
    let length = snap::raw::decompress_len(block).map_err(corrupt)?;
    if length > limit.saturating_sub(decoded.len()) {
        return Err(ErrorCode::MessageTooLarge);
    }

    decoded.extend(snap::raw::Decoder::new().decompress_vec(block).map_err(corrupt)?);
    Ok(())
}

/// Checks that `plain` has exactly the records that the batch claims to have.
fn check_records(batch: &Batch, plain: &[u8]) -> Result<(), ErrorCode> {
    let count = i32::try_from(batch.record_count).map_err(|_| ErrorCode::MessageTooLarge)?;
    // The engine numbers the records, but moves the end of the partition by the last delta.
    if count == 0 || batch.last_offset_delta != count - 1 {
        return Err(ErrorCode::InvalidRecord);
    }

    let mut rest = plain;
    for index in 0..count {
        let length = read_length(&mut rest).ok_or(ErrorCode::CorruptMessage)?;
        if length > MAX_RECORD {
            return Err(ErrorCode::MessageTooLarge);
        }
        let record = take(&mut rest, length).ok_or(ErrorCode::CorruptMessage)?;
        let (timestamp, offset) = read_record(record).ok_or(ErrorCode::CorruptMessage)?;

        if offset != i64::from(index) {
            return Err(ErrorCode::InvalidRecord);
        }
        if batch.base_timestamp.checked_add(timestamp).is_none_or(i64::is_negative) {
            return Err(ErrorCode::InvalidTimestamp);
        }
    }

    if rest.is_empty() { Ok(()) } else { Err(ErrorCode::InvalidRecord) }
}

/// Returns the timestamp and the offset of a record, relative to those of its batch, or `None` if
/// the record is malformed.
fn read_record(mut record: &[u8]) -> Option<(i64, i64)> {
    let _attributes = take(&mut record, 1)?;
    let timestamp = read_varint(&mut record, i64::BITS)?;
    let offset = read_varint(&mut record, i32::BITS)?;

    let _key = take_nullable(&mut record)?;
    let _value = take_nullable(&mut record)?;

    for _ in 0..read_length(&mut record)? {
        let length = read_length(&mut record)?;
        let _name = take(&mut record, length)?;
        let _value = take_nullable(&mut record)?;
    }

    record.is_empty().then_some((timestamp, offset))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

/// Takes a text that has a length in front of it; the length of a missing one is -1.
fn take_nullable<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    match read_varint(rest, i32::BITS)? {
        -1 => Some(&[]),
        length => take(rest, usize::try_from(length).ok()?),
    }
}

fn read_length(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(read_varint(rest, i32::BITS)?).ok()
}

/// Reads a signed number of at most `bits` bits, seven in each byte.
fn read_varint(rest: &mut &[u8], bits: u32) -> Option<i64> {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let (byte, after) = rest.split_first()?;
        *rest = after;

        let part = u64::from(byte & 0x7f);
        if shift >= bits || part > (u64::MAX >> (u64::BITS - bits)) >> shift {
            return None;
        }
        value |= part << shift;

        if byte & 0x80 == 0 {
            let magnitude = (value >> 1).cast_signed();
            return Some(if value & 1 == 0 { magnitude } else { !magnitude });
        }
        shift += 7;
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
pub(super) mod tests;
