//! Conversion between librdkafka's messages and the records of `fleet-job`.

use fleet_job::{
    record::{Header, Position, RawRecord},
    time::Timestamp,
};
use rdkafka::{
    Message,
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
