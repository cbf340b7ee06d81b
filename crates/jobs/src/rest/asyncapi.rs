//! The AsyncAPI document of the topics, made from the contract's schemas and names.
//!
//! It takes the view of an application that uses the fleet: what the application may send and
//! receive.

use fleet_job::{
    control::Control, dead_letter::header, delayed, event::JobEvent, mcp_servers::McpServers,
    pause::Pause, schema, topics::Topics, wire::WireEnvelope,
};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::RegistryTopic;

const ABOUT: &str = "The Kafka topics of a fleet. Producers write jobs; workers write events about them, which any application \
    can read. The names follow the name of the jobs topic. The fleet compresses what it writes with gzip, which every \
    Kafka client can read, unless KAFKA_COMPRESSION says otherwise; producers may use any codec.";
const BINDING: &str = "0.5.0";
/// The name of the schema of registry records.
const HOSTED_SERVER: &str = "HostedServer";
/// The name of the schema of claims.
const CLAIM: &str = "Claim";
/// The name of the schema of audit records.
const AUDIT_RECORD: &str = "AuditRecord";
/// The headers of a trace context.
const TRACE: [(&str, &str); 3] = [
    ("traceparent", "W3C Trace Context; passed on to the tool calls."),
    ("tracestate", "W3C Trace Context."),
    ("baggage", "W3C Baggage; passed on to the tool calls."),
];

/// A topic and the message that it contains.
struct Channel {
    id: &'static str,
    address: String,
    description: &'static str,
    /// The topic's cleanup policy; `None` for the broker's default.
    cleanup: Option<&'static str>,
    message: &'static str,
}

/// Builds the document for topics with these names.
pub(super) fn build_document(topics: &Topics, registry: &RegistryTopic) -> Value {
    let channels = channels(topics, &registry.name);
    let of = |channel: &Channel| (channel.id.to_owned(), describe_channel(channel));
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "mcp-fleet topics",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {
            "host": "{brokers}",
            "protocol": "kafka",
            "description": "The cluster that KAFKA_BROKERS names.",
            "variables": {"brokers": {
                "description": "Brokers as host:port, comma-separated.",
                "default": "localhost:9092",
            }},
        }},
        "channels": channels.iter().map(of).collect::<Map<_, _>>(),
        "operations": operations(),
        "components": {"messages": messages(), "schemas": schemas(&registry.schema)},
    })
}

fn channels(topics: &Topics, registry: &str) -> [Channel; 9] {
    [
        Channel {
            id: "jobs",
            address: topics.jobs.clone(),
            description: "Jobs. Jobs with the same key start one at a time, in order.",
            cleanup: None,
            message: "job",
        },
        Channel {
            id: "events",
            address: topics.events.clone(),
            description: "Events of jobs. The newest record of a job id is the state of the job.",
            cleanup: Some("compact"),
            message: "event",
        },
        Channel {
            id: "dlq",
            address: topics.dlq.clone(),
            description: "Dead letters: the records of failed jobs, and records that are not valid jobs, byte for byte.",
            cleanup: None,
            message: "deadLetter",
        },
        Channel {
            id: "delayed",
            address: topics.delayed.clone(),
            description: "Jobs that wait longer than workers keep them in memory. Only workers should use this topic.",
            cleanup: None,
            message: "delayedJob",
        },
        Channel {
            id: "control",
            address: topics.control.clone(),
            description: "Cancel requests, which all workers read.",
            cleanup: None,
            message: "control",
        },
        Channel {
            id: "pauses",
            address: topics.pauses.clone(),
            description: "Pauses, which all workers obey. Only servers should write to this topic.",
            cleanup: Some("compact"),
            message: "pause",
        },
        Channel {
            id: "claims",
            address: topics.claims.clone(),
            description: "Claims, which decide which server submits a job that several could submit at the same time. Only \
                          servers should use this topic.",
            cleanup: None,
            message: "claim",
        },
        Channel {
            id: "audit",
            address: topics.audit.clone(),
            description: "Audit records of servers: who did what, and what was refused.",
            cleanup: None,
            message: "auditRecord",
        },
        Channel {
            id: "registry",
            address: registry.to_owned(),
            description: "The MCP servers that all replicas of the server host. Only replicas should write to this topic.",
            cleanup: Some("compact"),
            message: "hostedServer",
        },
    ]
}

fn describe_channel(channel: &Channel) -> Value {
    let mut kafka = json!({"topic": channel.address, "bindingVersion": BINDING});
    if let Some(cleanup) = channel.cleanup {
        kafka["topicConfiguration"] = json!({"cleanup.policy": [cleanup]});
    }
    let message = channel.message;
    json!({
        "address": channel.address,
        "description": channel.description,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {message: {"$ref": format!("#/components/messages/{message}")}},
        "bindings": {"kafka": kafka},
    })
}

fn operations() -> Value {
    let operation = |action: &str, channel: &str, message: &str, summary: &str| {
        json!({
            "action": action,
            "channel": {"$ref": format!("#/channels/{channel}")},
            "messages": [{"$ref": format!("#/channels/{channel}/messages/{message}")}],
            "summary": summary,
        })
    };
    json!({
        "submitJob": operation("send", "jobs", "job", "Submit a job."),
        "followJobs": operation("receive", "events", "event", "Follow the states of jobs."),
        "readDeadLetters": operation("receive", "dlq", "deadLetter", "Read the records of failed jobs."),
        "readDelayedJobs": operation("receive", "delayed", "delayedJob", "Read the jobs that wait for their time."),
        "controlJob": operation("send", "control", "control", "Cancel a job."),
        "followPauses": operation("receive", "pauses", "pause", "Follow which jobs are paused."),
        "readClaims": operation("receive", "claims", "claim", "Read which jobs are being submitted."),
        "followAudit": operation("receive", "audit", "auditRecord", "Follow who does what."),
        "followServers": operation("receive", "registry", "hostedServer", "Follow which MCP servers are hosted."),
    })
}

fn messages() -> Value {
    let key = |description: &str| {
        json!({"kafka": {
            "key": {"type": "string", "description": description},
            "bindingVersion": BINDING,
        }})
    };
    let message = |title: &str, payload: &str, headers: Value, key: Value| {
        json!({
            "title": title,
            "contentType": "application/json",
            "payload": {"$ref": format!("#/components/schemas/{payload}")},
            "headers": headers,
            "bindings": key,
        })
    };
    let by_id = || key("The job's id.");
    let own = "The key of the job, if it has one: jobs with the same key start in order.";

    let mut delayed = headers(&TRACE);
    delayed["properties"][delayed::HEADER] = json!({"type": "string", "description": "JSON: the source of the job, when it is due, and the attempts that it has spent."});
    let mut job = message("A job", &schema_name::<WireEnvelope>(), headers(&TRACE), key(own));
    job["examples"] = json!([{"payload": {
        "jobID": "job-123",
        "jobType": "tool-call",
        "payload": {"tool": "file_digest", "arguments": {"path": "README.md"}},
    }}]);
    json!({
        "job": job,
        "event": message("A state of a job", &schema_name::<JobEvent>(), headers(&TRACE[..2]), by_id()),
        // The value is that of the original record, which may be anything.
        "deadLetter": {
            "title": "A dead letter",
            "payload": {"description": "The value of the original record, usually a job."},
            "headers": dead_letter_headers(),
            "bindings": key("The key of the original record."),
        },
        "delayedJob": message("A job that waits", &schema_name::<WireEnvelope>(), delayed, key(own)),
        "control": message("A cancel request", &schema_name::<Control>(), headers(&[]), by_id()),
        "pause": message("A pause", &schema_name::<Pause>(), headers(&[]), key("The id of the pause.")),
        "claim": message("A claim of a job", CLAIM, headers(&[]), by_id()),
        "auditRecord": message("An audit record", AUDIT_RECORD, headers(&[]), key("The principal's id.")),
        "hostedServer": message("A hosted MCP server", HOSTED_SERVER, headers(&[]), key("The server's name.")),
    })
}

fn headers(headers: &[(&str, &str)]) -> Value {
    let properties = headers.iter().map(|(name, description)| {
        ((*name).to_owned(), json!({"type": "string", "description": description}))
    });
    json!({"type": "object", "properties": properties.collect::<Map<_, _>>()})
}

fn dead_letter_headers() -> Value {
    let mut all = headers(&[
        (header::ORIGINAL_TOPIC, "The topic of the original record."),
        (header::ORIGINAL_PARTITION, "The partition of the original record: 4 bytes, big endian."),
        (header::ORIGINAL_OFFSET, "The offset of the original record: 8 bytes, big endian."),
        (
            header::ORIGINAL_TIMESTAMP,
            "The timestamp of the original record in milliseconds: 8 bytes, big endian.",
        ),
        (header::ORIGINAL_CONSUMER_GROUP, "The consumer group that gave up."),
        (header::EXCEPTION_FQCN, "`mcp-fleet.` followed by the kind of the error."),
        (header::EXCEPTION_MESSAGE, "The message of the error."),
        (header::JOB_ID, "The job's id, or topic/partition/offset if no id could be read."),
        (header::ATTEMPTS, "The number of spent attempts, in decimal."),
        (header::FIRST_ERROR, "The error of the first attempt, if it differs."),
        (header::WORKER, "The worker that gave up."),
        (header::TIME, "When the worker gave up, as RFC 3339."),
        (header::VALUE_OMITTED, "How many bytes of the value were left out, in decimal."),
        (header::REPLAY_COUNT, "How often the record has been replayed, in decimal."),
    ]);
    all["required"] =
        json!([header::ORIGINAL_TOPIC, header::ORIGINAL_PARTITION, header::ORIGINAL_OFFSET]);
    all["description"] =
        "The headers of the original record, followed by these. The last header of a name counts."
            .into();
    all
}

/// Returns the contract's schemas by name, and those of the server's own topics.
fn contract(hosted_server: &Schema) -> Vec<(String, Value)> {
    let names = [
        schema_name::<WireEnvelope>(),
        schema_name::<JobEvent>(),
        schema_name::<Control>(),
        schema_name::<Pause>(),
        schema_name::<McpServers>(),
    ];
    let of_files = schema::all().map(|(_, schema)| schema.to_value());
    let own = [
        (HOSTED_SERVER, hosted_server.clone()),
        (CLAIM, crate::claim_schema()),
        (AUDIT_RECORD, fleet_access::audit_schema().1),
    ];
    let own = own.map(|(name, schema)| (name.to_owned(), schema.to_value()));
    names.into_iter().zip(of_files).chain(own).collect()
}

/// Returns the contract's schemas, with their definitions moved to the top level.
fn schemas(hosted_server: &Schema) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, mut schema) in contract(hosted_server) {
        if let Value::Object(object) = &mut schema {
            // The document declares its own dialect.
            object.shift_remove("$schema");
            if let Some(Value::Object(definitions)) = object.shift_remove("$defs") {
                all.extend(definitions);
            }
        }
        all.insert(name, schema);
    }
    all.values_mut().for_each(rewrite_references);
    all.sort_keys();
    all
}

/// Rewrites references to the new location of the definitions.
fn rewrite_references(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(to)) = object.get_mut("$ref") {
                *to = to.replace("#/$defs/", "#/components/schemas/");
            }
            object.values_mut().for_each(rewrite_references);
        }
        Value::Array(array) => array.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}

fn schema_name<T: JsonSchema>() -> String {
    T::schema_name().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(array) => array.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_can_be_resolved_and_the_schemas_are_the_contracts() {
        let hosted_server = schemars::schema_for!(McpServers);
        let registry = RegistryTopic { name: "hosted".to_owned(), schema: hosted_server.clone() };
        let document = build_document(&Topics::of("work"), &registry);
        let mut found = Vec::new();
        references(&document, &mut found);
        for to in found {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
        assert_eq!(document["channels"]["events"]["address"], "work.events");
        assert_eq!(document["channels"]["registry"]["address"], "hosted");
        let schemas = &document["components"]["schemas"];
        for (name, contract) in contract(&hosted_server) {
            let names =
                |of: &Value| of.as_object().map(|of| of.keys().cloned().collect::<Vec<_>>());
            assert_eq!(
                names(&schemas[&name]["properties"]),
                names(&contract["properties"]),
                "{name}"
            );
        }
        // Definitions with the same name are identical in every schema of the contract.
        let mut seen: Map<String, Value> = Map::new();
        for (whole, schema) in contract(&hosted_server) {
            for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
                let before = seen.insert(name.clone(), definition.clone());
                assert!(before.is_none_or(|before| before == *definition), "{name} of {whole}");
            }
        }
    }
}
