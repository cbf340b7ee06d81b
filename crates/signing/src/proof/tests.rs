//! Tests of proofs: what a signature covers, and what breaks it.

use fleet_access::{Principal, PrincipalKind, Via};
use fleet_job::{decode, envelope::Envelope, record::Position, time::Timestamp};
use serde_json::Map;

use super::*;
use crate::keys::generate_key;

const TOPIC: &str = "mcp-jobs";

fn keys() -> SigningKeys {
    SigningKeys::parse(generate_key().unwrap().as_bytes()).unwrap()
}

fn alice() -> Principal {
    Principal::new("keys", "alice", PrincipalKind::Person, Via::Key { id: "a".to_owned() })
}

/// A record with a job, signed with these keys.
fn signed(keys: &SigningKeys, job: &Value) -> (RawRecord, Envelope) {
    let position = Position { topic: TOPIC.to_owned(), partition: 0, offset: 0 };
    let value = Some(job.to_string().into_bytes());
    let mut record = RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() };
    let envelope = decode::decode(&record, usize::MAX).unwrap();
    let value = record.value.as_deref().unwrap();
    let signature = keys.sign_job(TOPIC, &envelope, value, &alice(), None, Timestamp::MIN);
    record.headers.push((HEADER.to_owned(), signature.map(String::into_bytes)));
    (record, envelope)
}

/// Verifies each call of a job as the server gets it from a worker that has this record.
fn verify_calls(
    keys: &SigningKeys,
    record: &RawRecord,
    envelope: &Envelope,
) -> Vec<Result<JobClaims, SignatureFault>> {
    let proof = JobProof::new(record, &envelope.work);
    let calls = calls_of(&envelope.work).enumerate().map(|(index, content)| {
        let meta = Map::from_iter([(meta::SIGNED_JOB.to_owned(), proof.of_call(index))]);
        let passed = PassedJob::of_meta(&meta).unwrap().unwrap();
        let call = PresentedCall { topic: TOPIC, job_id: &envelope.job_id, content };
        keys.verify_call(&passed, &call)
    });
    calls.collect()
}

fn batch(count: usize) -> Value {
    let calls: Vec<_> =
        (0..count).map(|n| json!({"server": "s", "tool": "t", "arguments": {"n": n}})).collect();
    json!({"jobID": "j", "jobType": "tool-batch", "payload": {"calls": calls}})
}

#[test]
fn every_call_of_every_kind_of_job_is_shown_to_be_signed() {
    let keys = keys();
    let jobs = [
        json!({"jobID": "j", "jobType": "tool-call", "payload": {"tool": "t", "arguments": {"a": 1.50}}}),
        json!({"jobID": "j", "jobType": "tool-call", "payload": {"tool": "t", "task": {
            "inputResponses": {"x": {"action": "accept"}}, "requestState": "s"}}}),
        json!({"jobID": "j", "jobType": "server-init", "payload": {"mcpServers": {
            "a": {"command": "x"}, "b": {"url": "http://b"}}}}),
        batch(1),
        batch(100),
    ];
    for job in jobs {
        let (record, envelope) = signed(&keys, &job);
        let verified = verify_calls(&keys, &record, &envelope);
        assert!(!verified.is_empty());
        for claims in verified {
            assert_eq!(claims.unwrap().principal.into_principal(), alice(), "{job}");
        }
    }
}

#[test]
fn a_changed_record_or_job_id_is_refused() {
    let keys = keys();
    let job = |id: &str, n: u8| json!({"jobID": id, "jobType": "tool-call", "payload": {"tool": "t", "arguments": {"n": n}}});
    let (record, _) = signed(&keys, &job("j", 1));
    let refused = |job: &Value| {
        let value = Some(job.to_string().into_bytes());
        let changed = RawRecord { value, ..record.clone() };
        let envelope = decode::decode(&changed, usize::MAX).unwrap();
        verify_calls(&keys, &changed, &envelope).remove(0).unwrap_err()
    };
    assert_eq!(keys.verify_record(TOPIC, &record).unwrap().job_id, "j");
    assert_eq!(keys.verify_record("other", &record), Err(SignatureFault::OtherTopic));
    let cut = RawRecord { value: None, ..record.clone() };
    assert_eq!(keys.verify_record(TOPIC, &cut), Err(SignatureFault::OtherRecord));

    assert_eq!(refused(&job("k", 1)), SignatureFault::OtherJob);
    assert_eq!(refused(&job("j", 2)), SignatureFault::OtherRecord);
    let mut owned = job("j", 1);
    owned["owner"] = json!("somebody else");
    assert_eq!(refused(&owned), SignatureFault::OtherRecord);
}

#[test]
fn a_signature_is_good_for_its_own_calls_alone() {
    let keys = keys();
    let (record, envelope) = signed(&keys, &batch(5));
    let proof = JobProof::new(&record, &envelope.work);
    let verify = |passed: Value, content: CallContent<'_>, topic: &str| {
        let passed = PassedJob::deserialize(passed).unwrap();
        keys.verify_call(&passed, &PresentedCall { topic, job_id: "j", content }).map(drop)
    };
    let call = |index: usize| calls_of(&envelope.work).nth(index).unwrap();

    assert_eq!(verify(proof.of_call(3), call(3), TOPIC), Ok(()));
    assert_eq!(verify(proof.of_call(3), call(2), TOPIC), Err(SignatureFault::OtherCall));
    assert_eq!(verify(proof.of_call(3), call(3), "other"), Err(SignatureFault::OtherTopic));

    let other = CallContent { tool: "drop".into(), ..call(3) };
    assert_eq!(verify(proof.of_call(3), other, TOPIC), Err(SignatureFault::OtherCall));
    let answered = CallContent { request_state: Some("s".into()), ..call(3) };
    assert_eq!(verify(proof.of_call(3), answered, TOPIC), Err(SignatureFault::OtherCall));

    let mut long = proof.of_call(3);
    long["path"] = "A".repeat(4_000).into();
    assert_eq!(verify(long, call(3), TOPIC), Err(SignatureFault::Malformed));
    assert_eq!(verify(json!({}), call(3), TOPIC), Err(SignatureFault::Missing));
}

#[test]
fn a_decision_is_good_for_its_own_calls_alone() {
    let keys = keys();
    let (mut record, envelope) = signed(&keys, &batch(2));
    let approve = |keys: &SigningKeys, record: &RawRecord, envelope: &Envelope| {
        let value = record.value.as_deref().unwrap();
        let by = Principal::local();
        let text = keys.sign_approval(TOPIC, envelope, value, &by, None, Timestamp::MIN);
        (approval::HEADER.to_owned(), text.map(String::into_bytes))
    };
    let check = |record: &RawRecord, job_id: &str, content: CallContent<'_>| {
        let member = JobProof::new(record, &envelope.work).of_call(1);
        let call = PresentedCall { topic: TOPIC, job_id, content };
        keys.approval_of(&PassedJob::deserialize(member).unwrap(), &call)
    };
    let call = |index: usize| calls_of(&envelope.work).nth(index).unwrap();
    assert_eq!(check(&record, "j", call(1)), Ok(None));

    // Also of a job that nobody has signed.
    let own = approve(&keys, &record, &envelope);
    let unsigned = RawRecord { headers: vec![own.clone()], ..record.clone() };
    record.headers.push(own);
    for record in [&record, &unsigned] {
        let claims = check(record, "j", call(1)).unwrap().unwrap();
        assert!(claims.is_by_another_than(alice().id()));
        assert!(!claims.is_by_another_than(Principal::local().id()));
        let other = CallContent { tool: "drop".into(), ..call(1) };
        assert_eq!(check(record, "j", other), Err(SignatureFault::OtherCall));
        assert_eq!(check(record, "k", call(1)), Err(SignatureFault::OtherJob));
    }

    // The decision about another record, or by another fleet.
    let (other, other_job) = signed(&keys, &batch(3));
    *record.headers.last_mut().unwrap() = approve(&keys, &other, &other_job);
    assert_eq!(check(&record, "j", call(1)), Err(SignatureFault::OtherRecord));
    *record.headers.last_mut().unwrap() = approve(&self::keys(), &record, &envelope);
    assert_eq!(check(&record, "j", call(1)), Err(SignatureFault::UnknownKey));
}

#[test]
fn keys_of_another_fleet_are_unknown() {
    let (record, envelope) = signed(&keys(), &batch(1));
    let refused = verify_calls(&keys(), &record, &envelope).remove(0).unwrap_err();
    assert_eq!(refused, SignatureFault::UnknownKey);
    assert!(refused.is_retryable());
}

#[test]
fn an_unsigned_job_says_so() {
    let (record, envelope) = signed(&keys(), &batch(2));
    let record = RawRecord { headers: Vec::new(), ..record };
    let member = JobProof::new(&record, &envelope.work).of_call(1);
    let meta = Map::from_iter([(meta::SIGNED_JOB.to_owned(), member)]);
    assert!(!PassedJob::of_meta(&meta).unwrap().unwrap().is_signed());

    assert!(PassedJob::of_meta(&Map::new()).is_none());
    let odd = Map::from_iter([(meta::SIGNED_JOB.to_owned(), json!("x"))]);
    assert_eq!(PassedJob::of_meta(&odd), Some(Err(SignatureFault::Malformed)));
}
