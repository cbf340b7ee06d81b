//! The guarantees of the contract: written values are read back, any bytes give a job or a typed
//! error, and every error names the field.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test reports failures by a panic")]

use std::num::NonZeroU32;

use fleet_job::{
    decode::{DecodeError, decode, from_json},
    envelope::{Envelope, ToolBatch, ToolCall, Work},
    outcome::ErrorKind,
    record::{Header, Position, RawRecord},
    time::Timestamp,
};
use proptest::{collection::vec, option, prelude::*};
use serde_json::{Map, Value, json};

const MIB: usize = 1 << 20;

fn record(value: &[u8], headers: &[(&str, &str)]) -> RawRecord {
    RawRecord {
        position: Position { topic: "mcp-jobs".into(), partition: 0, offset: 7 },
        timestamp: None,
        key: None,
        value: Some(value.to_vec()),
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Some(value.as_bytes().to_vec())) as Header)
            .collect(),
    }
}

fn refused(value: &Value) -> DecodeError {
    decode(&record(value.to_string().as_bytes(), &[]), MIB)
        .expect_err("the envelope must be refused")
}

/// Checks that a good `tool-call` with `patch` applied is refused with a message that contains all
/// `words`.
fn check_refused(patch: Value, words: &[&str]) {
    let mut envelope = json!({"jobID": "j", "jobType": "tool-call", "payload": {"tool": "t"}});
    let fields = envelope.as_object_mut().unwrap();
    fields.extend(patch.as_object().unwrap().clone());

    let refusal = refused(&envelope);
    assert_eq!(refusal.error.kind, ErrorKind::InvalidEnvelope, "{patch}");
    for word in words {
        assert!(
            refusal.error.message.contains(word),
            "{patch}: {} lacks {word}",
            refusal.error.message
        );
    }
}

#[test]
fn the_seed_envelope_is_accepted_unchanged() {
    let text = r#"{"jobID":"job-123","jobType":"server-init","payload":"{\"mcpServers\":{\"MariaDB_Server\":{\"command\":\"uv\",\"args\":[\"--directory\",\"path/to/server\",\"run\",\"server.py\"],\"envFile\":\"path/to/.env\"}}}"}"#;
    let envelope = decode(&record(text.as_bytes(), &[]), MIB).unwrap();
    assert_eq!(envelope.job_id, "job-123");
    let Work::ServerInit(payload) = envelope.work else { panic!("{:?}", envelope.work) };
    assert_eq!(payload["mcpServers"]["MariaDB_Server"]["args"][2], "run");
}

#[test]
fn an_error_suggests_the_right_spelling_of_a_field() {
    for (envelope, hint) in [
        (json!({"jobId": "j", "jobType": "tool-call"}), "write `jobID` instead of `jobId`"),
        (json!({"job_id": "j", "job_type": "tool-call"}), "write `jobID` instead of `job_id`"),
        (json!({"job_id": "j", "job_type": "tool-call"}), "write `jobType` instead of `job_type`"),
        (json!({"jobID": "j", "jobtype": "tool-call"}), "write `jobType` instead of `jobtype`"),
        (json!({"jobID": "j", "jobType": "tool-call", "Payload": {}}), "write `payload` instead"),
        (
            json!({"jobId": "j", "jobType": "tool-call", "not_before": 1}),
            "write `notBefore` instead",
        ),
    ] {
        let message = refused(&envelope).error.message;
        assert!(message.contains(hint), "{envelope}: {message}");
    }

    // A valid envelope may have fields with such names.
    let extra = json!({"jobID": "j", "jobId": "k", "not_before": 1, "jobType": "tool-call",
        "payload": {"tool": "t"}});
    let envelope = decode(&record(extra.to_string().as_bytes(), &[]), MIB).unwrap();
    assert_eq!(envelope.extra["not_before"], 1);
}

#[test]
fn errors_name_the_field_and_the_bound() {
    check_refused(json!({"jobID": ""}), &["`jobID`", "empty"]);
    check_refused(json!({"jobID": "x".repeat(257)}), &["`jobID`", "256"]);
    check_refused(json!({"jobID": "a\nb"}), &["`jobID`", "control"]);
    check_refused(json!({"jobID": 5}), &["`jobID`", "string"]);
    check_refused(json!({"jobType": "nonsense"}), &["`jobType`", "nonsense", "tool-call"]);
    check_refused(json!({"payload": null}), &["`payload`", "missing"]);
    check_refused(json!({"payload": []}), &["`payload`", "array"]);
    check_refused(json!({"payload": "{"}), &["`payload`", "does not contain valid JSON"]);
    check_refused(json!({"payload": {"tool": 7}}), &["`payload.tool`", "string"]);
    check_refused(json!({"payload": {"tool": ""}}), &["`payload.tool`", "empty"]);
    check_refused(json!({"payload": {"tool": "t", "arguments": []}}), &["`payload.arguments`"]);
    check_refused(json!({"payload": {}}), &["payload", "tool"]);
    check_refused(json!({"priority": 10}), &["`priority`", "0 to 9"]);
    check_refused(json!({"priority": "high"}), &["`priority`"]);
    check_refused(json!({"maxAttempts": 0}), &["`maxAttempts`", "1 to 100"]);
    check_refused(json!({"timeoutMs": -1}), &["`timeoutMs`", "-1 is not a whole number"]);
    check_refused(json!({"maxAttempts": 1.5}), &["`maxAttempts`", "1.5 is not a whole number"]);
    check_refused(json!({"deadline": "soon"}), &["`deadline`", "RFC 3339"]);

    check_refused(
        json!({"notBefore": 1_795_248_002_000_i64, "deadline": 1_795_248_001_000_i64}),
        &["`notBefore`", "`deadline`"],
    );

    for field in ["deadline", "notBefore"] {
        for wrong in [json!(1_795_248_000), json!(0), json!(-1), json!("1970-01-21T18:40:48Z")] {
            check_refused(json!({field: wrong}), &[&format!("`{field}`"), "write milliseconds"]);
        }
    }

    check_refused(json!({"replyTo": "a b"}), &["`replyTo`", "topic name"]);
    check_refused(json!({"metadata": 1}), &["`metadata`"]);
    check_refused(json!({"metadata": {"a": "x".repeat(64 * 1024)}}), &["`metadata`", "65536"]);

    check_refused(
        json!({"jobType": "tool-batch", "payload": {"calls": []}}),
        &["`payload.calls`", "10000"],
    );
    check_refused(
        json!({"jobType": "tool-batch", "payload": {"calls": [{"tool": "t"}, {"tool": 1}]}}),
        &["`payload.calls[1].tool`"],
    );
    check_refused(
        json!({"jobType": "tool-batch", "payload": {"calls": [{"tool": "t"}], "parallel": 0}}),
        &["`payload.parallel`"],
    );
    check_refused(
        json!({"jobType": "tool-batch", "payload": {"calls": [{"tool": "t"}], "parallel": 5_000_000_000_u64}}),
        &["`payload.parallel`", "5000000000"],
    );
    check_refused(
        json!({"jobType": "server-init", "payload": {"mcpServers": {}}}),
        &["mcpServers"],
    );
    check_refused(json!({"jobType": "server-init", "payload": {"x": {}}}), &["mcpServers"]);
}

/// Numbers of producers and tools keep their spelling; only exponents are normalized, to `e+2`.
#[test]
fn numbers_keep_their_spelling() {
    let numbers = "[1e+400,12345678901234567890123,18446744073709551616,1.0,1,1.10,1e+2,-0,0.1000000000000000055,0.00001]";
    for written in [numbers.to_owned(), numbers.replace("e+", "E")] {
        let call = format!(r#"{{"tool":"t","own":{written},"arguments":{{"n":{written}}}}}"#);
        let batch = format!(r#"{{"own":{written},"calls":[{call}]}}"#);
        for (kind, payload, count) in [("tool-call", call, 4), ("tool-batch", batch, 5)] {
            for payload in [payload.clone(), json!(payload).to_string()] {
                let text = format!(
                    r#"{{"jobID":"j","jobType":"{kind}","payload":{payload},"ours":{written},"metadata":{{"n":{written}}}}}"#
                );
                let envelope = decode(&record(text.as_bytes(), &[]), MIB).unwrap();
                let found = envelope.to_json().to_string();
                assert_eq!(found.matches(numbers).count(), count, "{found}");
                assert_eq!(from_json(found.as_bytes()).unwrap(), envelope);
            }
        }
    }
}

#[test]
fn unknown_members_keep_their_order() {
    let text = r#"{"jobID":"j","jobType":"tool-call","payload":{"z":1,"tool":"t","a":{"y":1,"b":2},"arguments":{"z":1,"y":{"d":1,"c":2}}},"zz":1,"metadata":{"z":1,"a":2},"aa":{"z":1,"a":2}}"#;
    let found = decode(&record(text.as_bytes(), &[]), MIB).unwrap().to_json().to_string();
    for part in [
        r#""z":1,"a":{"y":1,"b":2}"#,
        r#""arguments":{"z":1,"y":{"d":1,"c":2}}"#,
        r#""metadata":{"z":1,"a":2}"#,
        r#""zz":1,"aa":{"z":1,"a":2}"#,
    ] {
        assert!(found.contains(part), "{found} lacks {part}");
    }
}

/// Events are also read where serde buffers them.
#[test]
fn events_are_read_in_flattened_types() {
    #[derive(serde::Deserialize, serde::Serialize)]
    struct View {
        #[serde(flatten)]
        event: fleet_job::event::JobEvent,
    }
    let text = r#"{"jobID":"j","state":"running","time":1795248002000,"attempts":1,"progress":{"progress":0.50,"total":2.5},"result":{"n":[1.10,1e+400,-0]}}"#;
    let view: View = serde_json::from_str(text).unwrap();
    let progress = view.event.progress.as_ref().unwrap();
    assert_eq!((progress.progress, progress.total), (0.5, Some(2.5)));
    assert!(json!(view).to_string().contains(r#""n":[1.10,1e+400,-0]"#));
}

#[test]
fn an_error_has_the_job_id_if_it_is_readable() {
    let refusal = refused(&json!({"jobID": "known", "jobType": "nonsense"}));
    assert_eq!(refusal.job_id.as_deref(), Some("known"));
    let refusal = refused(&json!({"jobID": ["x"], "jobType": "tool-call"}));
    assert_eq!(refusal.job_id, None);
}

#[test]
fn bytes_that_are_not_an_object_are_undecodable() {
    for bytes in [&b""[..], b"\xff\xfe", b"{", b"[]", b"null", b"7", b"\"text\"", b"{}{}"] {
        let refusal = decode(&record(bytes, &[]), MIB).expect_err("must be refused");
        assert_eq!(refusal.error.kind, ErrorKind::Undecodable, "{bytes:?}");
    }

    let deep = "[".repeat(100_000);
    let refusal = decode(&record(deep.as_bytes(), &[]), MIB).expect_err("must be refused");
    assert_eq!(refusal.error.kind, ErrorKind::Undecodable);

    let tombstone = RawRecord { value: None, ..record(b"", &[]) };
    assert_eq!(decode(&tombstone, MIB).unwrap_err().error.kind, ErrorKind::Undecodable);
}

#[test]
fn two_mebibytes_are_refused_before_they_are_parsed() {
    let refusal = decode(&record(&vec![b' '; 2 * MIB], &[]), MIB).unwrap_err();
    assert_eq!(refusal.error.kind, ErrorKind::TooLarge);
    assert!(refusal.error.message.contains("MCP_MAX_JOB_BYTES"), "{}", refusal.error.message);
}

#[test]
fn unknown_fields_are_kept_at_every_level() {
    let text = json!({"jobID": "j", "jobType": "tool-call", "x": {"y": 1},
                      "payload": {"tool": "t", "hint": [1, 2]}});
    let envelope = from_json(text.to_string().as_bytes()).unwrap();
    assert_eq!(envelope.extra["x"]["y"], 1);
    let written = envelope.to_json();
    assert_eq!(written["payload"]["hint"], json!([1, 2]));
    assert_eq!(written["x"], text["x"]);
}

#[test]
fn null_means_absent() {
    let text = json!({"jobID": "j", "jobType": "tool-call", "priority": null, "metadata": null, "deadline": null,
                      "payload": {"tool": "t", "server": null, "arguments": null}});
    let envelope = from_json(text.to_string().as_bytes()).unwrap();
    assert_eq!(envelope, Envelope::new("j", tool_call("t")));
}

fn tool_call(tool: &str) -> Work {
    Work::ToolCall(ToolCall {
        server: None,
        tool: tool.into(),
        arguments: Map::new(),
        task: None,
        extra: Map::new(),
    })
}

#[test]
fn cloud_events_are_the_same_envelope() {
    let payload = json!({"tool": "t"});
    let expected = Envelope {
        priority: Some(7),
        max_attempts: NonZeroU32::new(2),
        tenant: Some("acme".into()),
        extra: Map::from_iter([
            ("specversion".to_owned(), json!("1.0")),
            ("source".to_owned(), json!("/test")),
        ]),
        ..Envelope::new("ce-1", tool_call("t"))
    };
    let binary = record(
        payload.to_string().as_bytes(),
        &[
            ("ce_specversion", "1.0"),
            ("ce_id", "ce-1"),
            ("ce_type", "io.mcp-fleet.tool-call"),
            ("ce_source", "/test"),
            ("ce_priority", "7"),
            ("ce_maxattempts", "2"),
            ("ce_tenant", "acme"),
            ("content-type", "application/json"),
        ],
    );
    assert_eq!(decode(&binary, MIB).unwrap(), expected);

    let structured = json!({"specversion": "1.0", "id": "ce-1", "type": "tool-call", "source": "/test",
                            "priority": 7, "maxattempts": 2, "tenant": "acme", "data": payload});
    let by_header = record(
        structured.to_string().as_bytes(),
        &[("content-type", "application/cloudevents+json; charset=UTF-8")],
    );
    assert_eq!(decode(&by_header, MIB).unwrap(), expected);
    assert_eq!(from_json(structured.to_string().as_bytes()).unwrap(), expected);
    let by_shape = record(structured.to_string().as_bytes(), &[]);
    assert_eq!(decode(&by_shape, MIB).unwrap(), expected);
}

#[test]
fn the_committed_schemas_match_the_types() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas");
    for (name, schema) in fleet_job::schema::all() {
        let path = directory.join(name);
        let expected = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, &expected).unwrap();
        }

        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "schemas/{name} is outdated: run UPDATE_SCHEMAS=1 cargo test -p fleet-job"
        );
    }
}

#[test]
fn the_envelope_schema_accepts_what_the_parser_accepts() {
    let schema = serde_json::to_value(&fleet_job::schema::all()[0].1).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let good = json!({"jobID": "j", "jobType": "tool-call", "payload": "{\"tool\":\"t\"}", "deadline": 1_795_248_000_000_i64});
    assert!(validator.is_valid(&good));

    for bad in [
        json!({"jobType": "tool-call"}),
        json!({"jobID": "j", "jobType": "nonsense", "payload": {}}),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}

// --- Properties ---------------------------------------------------------------------------------

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            json_map(inner).prop_map(Value::from)
        ]
    })
}

/// A map whose keys start with `x`, unlike all fields of the contract.
fn json_map(values: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    vec(("x[a-z]{0,5}", values), 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

fn call() -> impl Strategy<Value = ToolCall> {
    (option::of("[a-z]{1,8}"), "\\PC{1,12}", json_map(json_value()), json_map(json_value()))
        .prop_map(|(server, tool, arguments, extra)| ToolCall {
            server,
            tool,
            arguments,
            task: None,
            extra,
        })
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![
        call().prop_map(Work::ToolCall),
        (vec(call(), 1..4), option::of(1_u32..=64), json_map(json_value())).prop_map(
            |(calls, parallel, extra)| Work::ToolBatch(ToolBatch { calls, parallel, extra })
        ),
        (vec("[a-z]{1,8}", 1..4), json_map(json_value())).prop_map(|(names, mut payload)| {
            let servers: Map<_, _> =
                names.into_iter().map(|name| (name, json!({"command": "c"}))).collect();
            payload.insert("mcpServers".to_owned(), Value::Object(servers));
            Work::ServerInit(payload)
        }),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let times = (
        option::of(946_684_800_000_i64..1_000_000_000_000),
        option::of(1_000_000_000_000_i64..2_000_000_000_000),
    );
    let names =
        (option::of("\\PC{1,20}"), option::of("[a-zA-Z0-9_-]{1,20}"), option::of("\\PC{1,20}"));
    let bounds = (option::of(0_u8..=9), option::of(1_u64..=86_400_000), option::of(1_u32..=100));
    ("\\PC{1,40}", work(), times, names, bounds, json_map(json_value()), json_map(json_value()))
        .prop_map(
            |(
                job_id,
                work,
                (start, end),
                (key, reply_to, tenant),
                (priority, timeout_ms, attempts),
                metadata,
                extra,
            )| {
                Envelope {
                    priority,
                    not_before: start.and_then(Timestamp::from_millis),
                    deadline: end.and_then(Timestamp::from_millis),
                    timeout_ms,
                    max_attempts: attempts.and_then(NonZeroU32::new),
                    idempotency_key: key,
                    reply_to,
                    tenant,
                    metadata,
                    extra,
                    ..Envelope::new(job_id, work)
                }
            },
        )
}

proptest! {
    #[test]
    fn a_written_envelope_is_read_back(envelope in envelope()) {
        let written = envelope.to_json();
        prop_assert_eq!(&decode(&record(written.to_string().as_bytes(), &[]), MIB).unwrap(), &envelope);

        let mut with_text = written;
        with_text["payload"] = with_text["payload"].to_string().into();
        prop_assert_eq!(&decode(&record(with_text.to_string().as_bytes(), &[]), MIB).unwrap(), &envelope);
    }

    #[test]
    fn any_bytes_give_a_job_or_a_typed_error(bytes in vec(any::<u8>(), 0..200)) {
        if let Err(refusal) = decode(&record(&bytes, &[]), MIB) {
            prop_assert!(!refusal.error.message.is_empty());
        }
    }

    #[test]
    fn any_object_gives_a_job_or_a_typed_error(
        kind in prop_oneof![Just("server-init"), Just("tool-call"), Just("tool-batch"), Just("x")],
        payload in json_value(),
        patch in json_map(json_value()),
        fields in vec((prop_oneof![Just("priority"), Just("deadline"), Just("metadata"), Just("replyTo")],
                       json_value()), 0..3),
    ) {
        let mut object = patch;
        object.insert("jobID".into(), "j".into());
        object.insert("jobType".into(), kind.into());
        object.insert("payload".into(), payload);
        object.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        if let Err(refusal) = decode(&record(Value::Object(object).to_string().as_bytes(), &[]), MIB) {
            prop_assert_eq!(refusal.error.kind, ErrorKind::InvalidEnvelope);
            prop_assert_eq!(refusal.job_id.as_deref(), Some("j"));
        }
    }
}
