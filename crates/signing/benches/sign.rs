//! What a signature costs: at the server that accepts a job, at the worker, and at the server that
//! executes its calls.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use fleet_access::{Principal, PrincipalKind, Via};
use fleet_job::{
    decode, meta,
    record::{Position, RawRecord},
    time::Timestamp,
};
use fleet_signing::{
    HEADER, JobProof, PassedJob, PresentedCall, SigningKeys, calls_of, generate_key,
};
use serde_json::{Map, Value, json};

const TOPIC: &str = "mcp-jobs";

fn record(job: &Value) -> RawRecord {
    let position = Position { topic: TOPIC.to_owned(), partition: 0, offset: 0 };
    let value = Some(job.to_string().into_bytes());
    RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() }
}

fn measure(criterion: &mut Criterion) {
    #[expect(clippy::expect_used, reason = "a benchmark has nobody to report to")]
    let keys = SigningKeys::parse(generate_key().expect("randomness").as_bytes()).expect("a key");
    let via = Via::Key { id: "alice".to_owned() };
    let mut alice = Principal::new("keys", "alice", PrincipalKind::Person, via);
    alice.add_roles(["agent".to_owned()]);

    let call = |n: usize| json!({"server": "files", "tool": "file_read", "arguments": {"path": format!("docs/{n}.md")}});
    let jobs = [
        ("one call", json!({"jobID": "j", "jobType": "tool-call", "payload": call(0)})),
        (
            "100 calls",
            json!({"jobID": "j", "jobType": "tool-batch", "payload":
                {"calls": (0..100).map(call).collect::<Vec<_>>()}}),
        ),
    ];
    for (name, job) in jobs {
        let mut group = criterion.benchmark_group(name);
        let mut record = record(&job);
        #[expect(clippy::expect_used, reason = "a benchmark has nobody to report to")]
        let envelope = decode::decode(&record, usize::MAX).expect("a job");
        let value = record.value.clone().unwrap_or_default();

        let sign = || keys.sign_job(TOPIC, &envelope, &value, &alice, None, Timestamp::MIN);
        group.bench_function("sign", |bencher| bencher.iter(|| black_box(sign())));
        record.headers.push((HEADER.to_owned(), sign().map(String::into_bytes)));

        let prove = || JobProof::new(&record, &envelope.work).of_call(0);
        group.bench_function("pass on", |bencher| bencher.iter(|| black_box(prove())));

        let meta = Map::from_iter([(meta::SIGNED_JOB.to_owned(), prove())]);
        let verify = || {
            let passed = PassedJob::of_meta(&meta)?.ok()?;
            let content = calls_of(&envelope.work).next()?;
            keys.verify_call(&passed, &PresentedCall { topic: TOPIC, job_id: "j", content }).ok()
        };
        assert!(verify().is_some());
        group.bench_function("verify", |bencher| bencher.iter(|| black_box(verify())));
        group.finish();
    }
}

criterion_group!(benches, measure);
criterion_main!(benches);
