//! Finds produce requests whose batches the codec cannot even take apart: old message formats, and
//! lengths that lead nowhere. The codec fails on the whole request, and the producer would be
//! disconnected without a reason and try again. This module removes such batches, so that each
//! partition gets its own answer.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use tansu_sans_io::{ApiKey as _, ErrorCode, ProduceRequest};

use super::{
    batches::{FIXED_LENGTH, MAGIC},
    producers::Refused,
};

/// The size of a frame's length.
const PREFIX: usize = 4;
/// From this version of the request on, batches have the current format.
const FIRST_OF_CURRENT_FORMAT: i16 = 3;
/// From this version on, lengths are of variable size, and fields can be added.
const FIRST_FLEXIBLE: i16 = 9;
const NEWEST: i16 = 11;
/// Where the format's version stands in a batch of any format.
const MAGIC_AT: usize = 16;
/// The size of the base offset and of the length, which the length does not include.
const BATCH_PREFIX: usize = 12;

/// Takes the batches out of a produce request that the codec would fail on, and returns which
/// partitions are refused for it. Returns any other request as it is.
pub(super) fn screen(request: Bytes) -> (Bytes, Refused) {
    let Some(fields) = find_records(&request) else { return (request, Vec::new()) };
    let refused: Vec<_> = fields
        .into_iter()
        .filter_map(|field| Some((judge(&request[field.records.clone()], field.version)?, field)))
        .collect();
    if refused.is_empty() {
        return (request, Vec::new());
    }

    let mut kept = BytesMut::with_capacity(request.len());
    let mut end = 0;
    for (_, field) in &refused {
        kept.extend_from_slice(&request[end..field.whole.start]);
        kept.extend_from_slice(if field.version >= FIRST_FLEXIBLE { &[1] } else { &[0; 4] });
        end = field.whole.end;
    }
    kept.extend_from_slice(&request[end..]);

    // The request has become shorter, so its length fits.
    let length = u32::try_from(kept.len() - PREFIX).unwrap_or(u32::MAX);
    kept[..PREFIX].copy_from_slice(&length.to_be_bytes());

    let refused = refused.into_iter().map(|(error, field)| (field.topic, field.partition, error));
    (kept.freeze(), refused.collect())
}

/// Returns why the codec could not decode these records, or `None` if it can.
fn judge(records: &[u8], version: i16) -> Option<ErrorCode> {
    if version < FIRST_OF_CURRENT_FORMAT {
        return Some(ErrorCode::UnsupportedForMessageFormat);
    }
    if records.is_empty() {
        return Some(ErrorCode::InvalidRecord);
    }

    let Some(magic) = records.get(MAGIC_AT) else { return Some(ErrorCode::CorruptMessage) };
    if magic.cast_signed() != MAGIC {
        return Some(ErrorCode::InvalidRecord);
    }

    let length = records.get(8..BATCH_PREFIX).and_then(|length| {
        let length = i32::from_be_bytes(length.try_into().ok()?);
        usize::try_from(length).ok().filter(|length| *length >= FIXED_LENGTH)
    });
    match length {
        Some(length) if BATCH_PREFIX + length == records.len() => None,
        // Kafka takes exactly one batch as well.
        Some(length) if BATCH_PREFIX + length < records.len() => Some(ErrorCode::InvalidRecord),
        _ => Some(ErrorCode::CorruptMessage),
    }
}

/// The records for one partition.
struct Field {
    version: i16,
    topic: String,
    partition: i32,
    /// Where the records are in the request, with and without their length.
    whole: Range<usize>,
    records: Range<usize>,
}

/// Returns the records of a produce request, or `None` if it is another or a malformed one.
fn find_records(request: &[u8]) -> Option<Vec<Field>> {
    let mut cursor = Cursor { request, at: PREFIX, flexible: false };
    let (key, version) = (cursor.i16()?, cursor.i16()?);
    if key != ProduceRequest::KEY || version > NEWEST {
        return None;
    }
    let _correlation_id = cursor.take(4)?;
    let _client_id = cursor.string()?;

    cursor.flexible = version >= FIRST_FLEXIBLE;
    cursor.skip_tags()?;
    if version >= FIRST_OF_CURRENT_FORMAT {
        let _transactional_id = cursor.string()?;
    }
    let _acks_and_timeout = cursor.take(6)?;

    let mut fields = Vec::new();
    for _ in 0..cursor.array()? {
        let topic = String::from_utf8(request[cursor.string()?].to_vec()).ok()?;
        for _ in 0..cursor.array()? {
            let partition = cursor.i32()?;
            let start = cursor.at;
            let length = cursor.array()?;
            let records = cursor.take(length)?;

            let whole = start..cursor.at;
            fields.push(Field { version, topic: topic.clone(), partition, whole, records });
            cursor.skip_tags()?;
        }
        cursor.skip_tags()?;
    }
    Some(fields)
}

/// A place in a request. Every method returns `None` if the request ends before.
struct Cursor<'a> {
    request: &'a [u8],
    at: usize,
    flexible: bool,
}

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.request.len())?;
        let taken = self.at..end;
        self.at = end;
        Some(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let range = self.take(N)?;
        self.request[range].try_into().ok()
    }

    fn i16(&mut self) -> Option<i16> {
        self.bytes().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.bytes().map(i32::from_be_bytes)
    }

    fn unsigned_varint(&mut self) -> Option<usize> {
        let mut value = 0_u64;
        for shift in (0..u32::BITS).step_by(7) {
            let [byte] = self.bytes()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).ok();
            }
        }
        None
    }

    /// A text; a missing one is empty.
    fn string(&mut self) -> Option<Range<usize>> {
        let length = if self.flexible {
            self.unsigned_varint()?.saturating_sub(1)
        } else {
            usize::try_from(self.i16()?.max(0)).ok()?
        };
        self.take(length)
    }

    /// The length of an array or of records; that of a missing one is zero.
    fn array(&mut self) -> Option<usize> {
        if self.flexible {
            return Some(self.unsigned_varint()?.saturating_sub(1));
        }
        usize::try_from(self.i32()?.max(0)).ok()
    }

    fn skip_tags(&mut self) -> Option<()> {
        if !self.flexible {
            return Some(());
        }
        for _ in 0..self.unsigned_varint()? {
            let _tag = self.unsigned_varint()?;
            let length = self.unsigned_varint()?;
            self.take(length)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use tansu_sans_io::{
        Compression, Frame, Header,
        produce_request::{PartitionProduceData, TopicProduceData},
        record::deflated,
    };

    use super::*;
    use crate::batches::tests::batch;

    /// A request with one batch for each of two partitions.
    fn request(version: i16) -> Bytes {
        let partition = |index| {
            let batch = batch(Compression::None, <[u8]>::to_vec);
            let records = deflated::Frame { batches: vec![batch] };
            PartitionProduceData::default().index(index).records(Some(records))
        };
        let topic = TopicProduceData::default()
            .name("topic".to_owned())
            .partition_data(Some(vec![partition(0), partition(1)]));
        let header = Header::Request {
            api_key: ProduceRequest::KEY,
            api_version: version,
            correlation_id: 1,
            client_id: Some("test".to_owned()),
        };
        let body = ProduceRequest::default().acks(-1).topic_data(Some(vec![topic]));
        Frame::request(header, body.into()).unwrap()
    }

    /// The request with the second partition's batch altered.
    fn altered(version: i16, alter: impl FnOnce(&mut [u8])) -> Bytes {
        let mut request = request(version).to_vec();
        let fields = find_records(&request).unwrap();
        alter(&mut request[fields[1].records.clone()]);
        request.into()
    }

    fn check(request: Bytes, expected: ErrorCode) {
        let (kept, refused) = screen(request);
        assert_eq!(refused, [("topic".to_owned(), 1, expected)]);

        let decoded = Frame::request_from_bytes(kept).unwrap();
        let body = ProduceRequest::try_from(decoded.body).unwrap();
        let partitions = body.topic_data.unwrap().remove(0).partition_data.unwrap();
        let batches = partitions.iter().map(|data| data.records.as_ref().map(|f| f.batches.len()));
        assert_eq!(batches.collect::<Vec<_>>(), [Some(1), None]);
    }

    #[test]
    fn good_requests_are_left_alone() {
        for version in FIRST_OF_CURRENT_FORMAT..=NEWEST {
            let request = request(version);
            assert_eq!(screen(request.clone()), (request, Vec::new()), "{version}");
        }
    }

    #[test]
    fn only_the_malformed_batch_is_taken_out() {
        for version in FIRST_OF_CURRENT_FORMAT..=NEWEST {
            for old in [0, 1] {
                let request = altered(version, |batch| batch[MAGIC_AT] = old);
                check(request, ErrorCode::InvalidRecord);
            }
            for length in [-1, 0, 48, i32::MAX] {
                let request = altered(version, |batch| {
                    batch[8..BATCH_PREFIX].copy_from_slice(&length.to_be_bytes());
                });
                check(request, ErrorCode::CorruptMessage);
            }
            let two = altered(version, |batch| {
                let length = i32::try_from(FIXED_LENGTH).unwrap();
                batch[8..BATCH_PREFIX].copy_from_slice(&length.to_be_bytes());
            });
            check(two, ErrorCode::InvalidRecord);
        }
    }

    #[test]
    fn message_sets_are_refused() {
        for version in 0..FIRST_OF_CURRENT_FORMAT {
            let (_, refused) = screen(request(version));
            let expected = ErrorCode::UnsupportedForMessageFormat;
            let all = [0, 1].map(|partition| ("topic".to_owned(), partition, expected));
            assert_eq!(refused, all, "{version}");
        }
    }

    #[test]
    fn what_is_no_whole_request_is_left_to_the_codec() {
        let request = request(NEWEST);
        for end in 0..request.len() {
            let cut = request.slice(..end);
            assert_eq!(screen(cut.clone()), (cut, Vec::new()), "{end}");
        }
    }
}
