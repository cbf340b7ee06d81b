//! An envelope is found inside the layers that serializers and connectors put around it. If there
//! is none, the error names the layers.
#![expect(clippy::unwrap_used, reason = "a test reports failures by a panic")]

use std::io::Write as _;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE},
};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use fleet_job::{
    decode::{decode, decode_counted},
    envelope::Envelope,
    outcome::{ErrorKind, JobError},
    record::{Position, RawRecord},
};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn record(value: Vec<u8>) -> RawRecord {
    let position = Position { topic: "mcp-jobs".into(), partition: 0, offset: 7 };
    RawRecord { position, timestamp: None, key: None, value: Some(value), headers: Vec::new() }
}

fn envelope() -> Value {
    json!({"jobID": "j", "jobType": "tool-call", "payload": {"tool": "t", "arguments": {"n": 1}}})
}

fn read(value: Vec<u8>) -> Result<Envelope, JobError> {
    decode(&record(value), MIB).map_err(|refusal| refusal.error)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Base64 in lines, as in mail.
fn base64_lines(bytes: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(bytes);
    text.as_bytes().chunks(20).flat_map(|line| [line, b"\r\n"].concat()).collect()
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A JSON string that contains `value`.
fn quoted(value: &Value) -> Value {
    Value::String(value.to_string())
}

fn behind(header: &[u8], bytes: &[u8]) -> Vec<u8> {
    [header, bytes].concat()
}

fn utf16(value: &Value, mark: [u8; 2], bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    behind(&mark, &unmarked_utf16(value, bytes))
}

fn unmarked_utf16(value: &Value, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    value.to_string().encode_utf16().flat_map(bytes).collect()
}

fn utf32(value: &Value, bytes: fn(u32) -> [u8; 4]) -> Vec<u8> {
    value.to_string().chars().map(u32::from).flat_map(bytes).collect()
}

/// Wraps `inner` in every known way.
fn wrapped(inner: &Value) -> Vec<(&'static str, Vec<u8>)> {
    let plain = text(inner);
    let debezium = json!({"before": null, "after": inner, "source": {"table": "jobs"}, "op": "c"});
    let notification =
        json!({"Type": "Notification", "TopicArn": "arn:x", "Message": inner.to_string()});

    // Base64 of this contains the two characters in which its alphabets differ.
    let mut marked = inner.clone();
    marked["pad"] = json!("\u{ff}\u{fe}??>>~~");

    let printed = json!({"topic": "t", "partition": 0, "offset": 3, "key": "k", "payload": inner.to_string()});
    vec![
        ("Confluent", behind(&[0, 0, 0, 0, 7], &plain)),
        ("Apicurio", behind(&[0, 0, 0, 0, 0, 0, 0, 0, 7], &plain)),
        ("Glue", behind(&[3; 18], &plain)),
        ("Connect", text(&json!({"schema": {"type": "struct"}, "payload": inner}))),
        ("Connect", text(&json!({"schema": {"type": "string"}, "payload": quoted(inner)}))),
        ("Connect", text(&json!({"schema": null, "payload": inner}))),
        ("Debezium", text(&debezium)),
        ("Debezium", text(&json!({"schema": {}, "payload": debezium}))),
        ("Debezium", text(&json!({"op": "c", "after": quoted(inner)}))),
        ("Maxwell", text(&json!({"database": "d", "table": "t", "type": "insert", "data": inner}))),
        ("SNS", text(&notification)),
        ("EventBridge", text(&json!({"detail-type": "job", "detail": inner}))),
        ("printed", text(&printed)),
        ("JSON string", text(&quoted(inner))),
        ("JSON string", text(&quoted(&quoted(inner)))),
        ("base64", text(&json!(STANDARD.encode(&plain)))),
        ("gzip", gzip(&plain)),
        ("gzip", gzip(&gzip(&plain))),
        ("gzip", gzip(&behind(&[0, 0, 0, 0, 7], &text(&quoted(inner))))),
        ("UTF-16", utf16(inner, [0xff, 0xfe], u16::to_le_bytes)),
        ("UTF-16", utf16(inner, [0xfe, 0xff], u16::to_be_bytes)),
        ("UTF-16", unmarked_utf16(inner, u16::to_le_bytes)),
        ("UTF-16", unmarked_utf16(inner, u16::to_be_bytes)),
        ("UTF-32", utf32(inner, u32::to_le_bytes)),
        ("UTF-32", utf32(inner, u32::to_be_bytes)),
        ("UTF-32", behind(&[0xff, 0xfe, 0, 0], &utf32(inner, u32::to_le_bytes))),
        ("UTF-32", behind(&[0, 0, 0xfe, 0xff], &utf32(inner, u32::to_be_bytes))),
        ("zlib", zlib(&plain)),
        ("Glue", behind(&[3, 5], &behind(&[7; 16], &zlib(&plain)))),
        ("base64", STANDARD.encode(&plain).into_bytes()),
        ("base64", STANDARD_NO_PAD.encode(&plain).into_bytes()),
        ("base64", URL_SAFE.encode(text(&marked)).into_bytes()),
        ("base64", base64_lines(&plain)),
        ("gzip", STANDARD.encode(gzip(&plain)).into_bytes()),
        ("array", text(&json!([inner]))),
        ("Canal", text(&json!({"database": "d", "table": "t", "data": [inner]}))),
        ("Event Grid", text(&json!([{"id": "1", "eventType": "x", "data": inner}]))),
        ("Pub/Sub", text(&json!({"message": {"data": STANDARD.encode(&plain)}}))),
        ("SQS", text(&json!({"Records": [{"body": inner.to_string()}]}))),
        ("Kinesis", text(&json!({"Records": [{"kinesis": {"data": STANDARD.encode(&plain)}}]}))),
        ("SNS", text(&json!({"Records": [{"Sns": {"Message": inner.to_string()}}]}))),
        ("REST Proxy", text(&json!({"records": [{"value": inner}]}))),
    ]
}

#[test]
fn an_envelope_is_found_inside_every_wrapping() {
    let expected = read(text(&envelope())).unwrap();
    for (name, value) in wrapped(&envelope()) {
        let mut envelope = read(value).unwrap_or_else(|error| panic!("{name}: {error}"));
        envelope.extra.remove("pad");
        assert_eq!(envelope, expected, "{name}");
    }

    assert_eq!(read(behind(&text(&envelope()), b"\0\0\0")), Ok(expected.clone()));
    assert_eq!(read(behind(b"\xef\xbb\xbf", &text(&envelope()))), Ok(expected.clone()));
    assert_eq!(read(behind(b"\xef\xbb\xbf", &gzip(&text(&envelope())))), Ok(expected.clone()));

    // A payload that was encoded twice.
    let mut twice = envelope();
    twice["payload"] = quoted(&quoted(&envelope()["payload"]));
    assert_eq!(read(text(&twice)), Ok(expected));
}

#[test]
fn an_error_names_a_wrapping_without_an_envelope() {
    for (name, value) in wrapped(&json!({"order": 7})) {
        let refusal = read(value).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::InvalidEnvelope, "{name}: {refusal}");
        assert!(refusal.message.contains(name), "{name}: {refusal}");
        assert!(refusal.message.contains("`jobID`"), "{name}: {refusal}");
    }

    for (name, value) in [
        ("Confluent", behind(&[0, 0, 0, 0, 7], b"\x06abc\x02")),
        ("Avro", behind(&[0, 0, 0, 0, 7], b"\x06abc\x02")),
        ("zstd", behind(b"\x28\xb5\x2f\xfd", b"xyz")),
        ("snappy", behind(b"\x82SNAPPY\0", b"xyz")),
        ("Java", behind(b"\xac\xed\x00\x05", b"xyz")),
        ("gzip", behind(b"\x1f\x8b", b"xyz")),
        ("zlib", behind(b"\x78\x9c", b"xyz")),
        ("bzip2", behind(b"BZh9", b"xyz")),
        ("MessagePack", behind(b"\x83\xa5", b"jobID\xa1x")),
        ("CBOR", behind(b"\xa3\x65", b"jobID\x61x")),
        ("Avro", behind(b"Obj\x01", b"\x04\x14avro.codec")),
        ("pickle", behind(b"\x80\x04", b"\x95xyz")),
        ("zstd", STANDARD.encode(behind(b"\x28\xb5\x2f\xfd", &[7; 20])).into_bytes()),
        ("2 values", text(&json!([envelope(), envelope()]))),
        ("2 values", text(&json!({"Records": [{"body": "1"}, {"body": "2"}]}))),
        ("2 values", text(&json!({"database": "d", "table": "t", "data": [envelope(), {}]}))),
        ("Debezium", text(&json!({"before": envelope(), "after": null, "op": "d"}))),
        ("`message`", text(&json!({"message": envelope(), "level": "info"}))),
        ("`message`", text(&json!({"message": envelope().to_string()}))),
    ] {
        let refusal = read(value).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::InvalidEnvelope, "{name}: {refusal}");
        assert!(refusal.message.contains(name), "{name}: {refusal}");
    }
}

/// Members of an envelope are not mistaken for a wrapping.
#[test]
fn an_envelope_is_not_unwrapped() {
    let mut outer = envelope();
    outer["schema"] = json!({"type": "struct"});
    outer["op"] = json!("c");
    outer["after"] = json!({"jobID": "other"});
    let read = read(text(&outer)).unwrap();
    assert_eq!(read.job_id, "j");
    assert_eq!(read.extra["after"], json!({"jobID": "other"}));
}

#[test]
fn decompression_is_bounded_and_counted() {
    let mut large = envelope();
    large["pad"] = json!("x".repeat(MIB / 2));
    let plain = text(&large);
    let (_, unpacked) = decode_counted(&record(gzip(&plain)), MIB).unwrap();
    assert_eq!(unpacked, plain.len());
    assert_eq!(decode_counted(&record(plain), MIB).unwrap().1, 0);

    large["pad"] = json!("x".repeat(2 * MIB));
    for value in [gzip(&text(&large)), gzip(&gzip(&text(&large)))] {
        let refusal = read(value).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::TooLarge, "{refusal}");
    }

    // More layers than are supported.
    let mut nested = envelope();
    for _ in 0..20 {
        nested = json!({"schema": {}, "payload": nested});
    }
    let refusal = read(text(&nested)).unwrap_err();
    assert!(refusal.message.contains("layers"), "{refusal}");
}

#[test]
fn invalid_bytes_are_still_undecodable() {
    for bytes in [
        &b""[..],
        b"\xff\xfe",
        b"\xff\xfe\0{",
        b"{",
        b"[]",
        b"7",
        b"\"text\"",
        b"{}{}",
        b"\0",
        b"\x03ab",
    ] {
        let refusal = read(bytes.to_vec()).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::Undecodable, "{bytes:?}: {refusal}");
    }
}
