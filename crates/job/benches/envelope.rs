//! The cost of decoding a job from its record and of encoding its events, by size and form.
//!
//! Run it with `cargo bench -p fleet-job --bench envelope`. The sizes are those of the record's
//! value. Most of a large job is one string among the tool's arguments, such as a document or code;
//! `nested` is the other extreme, the same size in small objects. In `string` the payload is JSON
//! in a string, in `object` it is an object; `structured` and `binary` are CloudEvents. Throughput
//! is in bytes, and the cost should grow no faster than the size.

#![expect(clippy::unwrap_used, reason = "a benchmark reports failures by a panic")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fleet_job::{
    decode::decode,
    event::{JobEvent, JobState, Source, Timings},
    record::{Position, RawRecord},
    time::Timestamp,
};
use serde_json::{Value, json};

const SIZES: [usize; 3] = [300, 10_000, 100_000];
const MAX_BYTES: usize = 1 << 20;

/// A form of a job: converts a payload into a record's value and headers.
type Spelling = fn(Value) -> (Value, Vec<(&'static str, &'static str)>);

/// Makes arguments of about this many bytes.
type Arguments = fn(usize) -> Value;

fn arguments(size: usize) -> Value {
    // A document has line ends and quotes, which JSON escapes.
    json!({"document": "All happy families are \"alike\".\n".repeat(size / 32 + 1)[..size].to_owned()})
}

fn nested(size: usize) -> Value {
    json!({"rows": vec![json!({"id": 7, "name": "row", "tags": ["a", "b"], "ok": true}); size / 50]})
}

fn string(payload: Value) -> (Value, Vec<(&'static str, &'static str)>) {
    object(Value::String(payload.to_string()))
}

fn object(payload: Value) -> (Value, Vec<(&'static str, &'static str)>) {
    let id = "3f0c8a52-7d64-4d0e-9f6b-0d4f7e1c2a90";
    (
        json!({"jobID": id, "jobType": "tool-call", "payload": payload, "tenant": "acme", "priority": 5}),
        Vec::new(),
    )
}

fn structured(payload: Value) -> (Value, Vec<(&'static str, &'static str)>) {
    let event = json!({
        "specversion": "1.0", "id": "job-123", "source": "/orders", "type": "tool-call",
        "datacontenttype": "application/json", "data": payload,
    });
    (event, vec![("content-type", "application/cloudevents+json")])
}

fn binary(payload: Value) -> (Value, Vec<(&'static str, &'static str)>) {
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "job-123"),
        ("ce_source", "/orders"),
        ("ce_type", "tool-call"),
    ];
    (payload, headers.to_vec())
}

/// Creates a record with a value of about `size` bytes.
fn record(spelling: Spelling, arguments: Arguments, size: usize) -> RawRecord {
    let make = |length| {
        let payload =
            json!({"server": "files", "tool": "index_document", "arguments": arguments(length)});
        let (value, headers) = spelling(payload);
        (value.to_string().into_bytes(), headers)
    };

    // The envelope and escapes take part of the size.
    let around = make(0).0.len();
    let ratio = (make(100_000).0.len() - around) as f64 / 100_000.0;
    let (value, headers) = make((size.saturating_sub(around) as f64 / ratio) as usize);

    RawRecord {
        position: Position { topic: "mcp-jobs".to_owned(), partition: 3, offset: 1_234_567 },
        timestamp: Timestamp::from_millis(1_795_248_000_000),
        key: Some(b"customer-42".to_vec()),
        value: Some(value),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())))
            .collect(),
    }
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope decode");
    let shapes = [
        ("string", string as Spelling, arguments as Arguments),
        ("object", object, arguments),
        ("structured", structured, arguments),
        ("binary", binary, arguments),
        ("nested", object, nested),
    ];
    for (name, spelling, arguments) in shapes {
        for size in SIZES {
            let record = record(spelling, arguments, size);
            decode(&record, MAX_BYTES).unwrap();
            group.throughput(Throughput::Bytes(record.value.as_ref().map_or(0, Vec::len) as u64));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| decode(black_box(&record), MAX_BYTES).unwrap());
            });
        }
    }
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("event encode");
    let envelope = decode(&record(object, arguments, 300), MAX_BYTES).unwrap();

    let at = |ms: i64| Timestamp::from_millis(1_795_248_000_000 + ms).unwrap();

    let about = |state| {
        let mut event = JobEvent::about(&envelope, state, at(250));
        event.attempts = 1;
        event.submitted_at = Some(at(0));
        event.source = Some(Source {
            topic: "mcp-jobs".to_owned(),
            topic_id: None,
            partition: 3,
            offset: 1_234_567,
        });
        event.worker = Some("worker-7d9f".to_owned());
        event
    };

    let mut sized = vec![("running", 0, about(JobState::Running))];
    for size in SIZES {
        let mut event = about(JobState::Succeeded);
        event.timings = Some(Timings::new(Some(at(0)), Some(at(5)), at(250)));
        let text = arguments(size)["document"].clone();
        event.result = Some(json!({"content": [{"type": "text", "text": text}], "isError": false}));
        sized.push(("succeeded", size, event));
    }

    for (name, size, event) in sized {
        group.throughput(Throughput::Bytes(event.to_bytes().len() as u64));
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter(|| black_box(&event).to_bytes());
        });
    }
    group.finish();
}

fn configured() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! {
    name = benches;
    config = configured();
    targets = decoding, encoding
}
criterion_main!(benches);
