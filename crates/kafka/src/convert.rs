//! Conversion between librdkafka's messages and the records of `fleet-job`.

use fleet_job::{
    record::{Header, Position, RawRecord},
    time::Timestamp,
};
use rdkafka::{
    Message, Offset,
    message::{BorrowedMessage, Headers, OwnedHeaders},
};

/// Copies everything in `message`.
pub(crate) fn to_record(message: &BorrowedMessage<'_>) -> RawRecord {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect::<Vec<Header>>()
    });
    RawRecord {
        position: Position {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
        },
        timestamp: message.timestamp().to_millis().map(Timestamp::from_millis_clamped),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}

pub(crate) fn to_headers(headers: &[Header]) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, value)| {
        all.insert(rdkafka::message::Header { key, value: value.as_deref() })
    })
}

/// A time in the place of an offset, for searches by time. Kafka gives negative numbers other
/// meanings, and no record is older than 1970.
pub(crate) fn time_to_offset(time: Timestamp) -> Offset {
    Offset::Offset(time.as_millis().max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_is_the_beginning() {
        let of = |millis| time_to_offset(Timestamp::from_millis_clamped(millis));
        assert_eq!((of(-62_135_596_799_999), of(0)), (Offset::Offset(0), Offset::Offset(0)));
        assert_eq!(of(1_795_885_400_765), Offset::Offset(1_795_885_400_765));
    }
}
