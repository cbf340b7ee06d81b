//! The AsyncAPI document of the topics, made from the contract's schemas and names.
//!
//! It stands from the outside: what an application that uses the fleet may send, and what it may
//! receive.

use fleet_job::{
    control::Control, dead_letter::header, delayed, event::JobEvent, mcp_servers::McpServers,
    schema, topics::Topics, wire::WireEnvelope,
};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::RegistryTopic;

const ABOUT: &str = "The Kafka topics of a fleet. Producers write jobs; workers write what becomes of them; whoever wants to \
    know reads the events. The names follow the name of the jobs topic. What the fleet writes is compressed with gzip \
    unless KAFKA_COMPRESSION says otherwise, so that every Kafka client can read it; what producers write may use any codec.";
const BINDING: &str = "0.5.0";
/// The name of the schema of what stands in the registry.
const HOSTED_SERVER: &str = "HostedServer";
/// The name of the schema of claims.
const CLAIM: &str = "Claim";
/// Headers that carry a trace.
const TRACE: [(&str, &str); 3] = [
    ("traceparent", "W3C Trace Context; goes on into the tools' calls."),
    ("tracestate", "W3C Trace Context."),
    ("baggage", "W3C Baggage; goes on into the tools' calls."),
];

/// A topic, and what stands in it.
struct Channel {
    id: &'static str,
    address: String,
    description: &'static str,
    /// The topic's cleanup policy; the broker's own where there is none.
    cleanup: Option<&'static str>,
    message: &'static str,
}

/// The document for topics of these names.
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

fn channels(topics: &Topics, registry: &str) -> [Channel; 7] {
    [
        Channel {
            id: "jobs",
            address: topics.jobs.clone(),
            description: "Jobs to be done. Jobs with the same key start in order, one at a time.",
            cleanup: None,
            message: "job",
        },
        Channel {
            id: "events",
            address: topics.events.clone(),
            description: "What becomes of jobs: the newest record of a job id is the job's state.",
            cleanup: Some("compact"),
            message: "event",
        },
        Channel {
            id: "dlq",
            address: topics.dlq.clone(),
            description: "Dead letters: jobs that failed for good, and records that are none, byte for byte.",
            cleanup: None,
            message: "deadLetter",
        },
        Channel {
            id: "delayed",
            address: topics.delayed.clone(),
            description: "Jobs that wait too long for a worker's memory. Workers write and read it; nobody else should.",
            cleanup: None,
            message: "delayedJob",
        },
        Channel {
            id: "control",
            address: topics.control.clone(),
            description: "What workers are told about jobs, whoever has them.",
            cleanup: None,
            message: "control",
        },
        Channel {
            id: "claims",
            address: topics.claims.clone(),
            description: "Which server submits a job that several could submit at once. Servers write and read it; nobody else \
                          should.",
            cleanup: None,
            message: "claim",
        },
        Channel {
            id: "registry",
            address: registry.to_owned(),
            description: "The MCP servers that all replicas of the server host. Replicas write and read it.",
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
        "submitJob": operation("send", "jobs", "job", "Have a job done."),
        "followJobs": operation("receive", "events", "event", "Hear what becomes of jobs."),
        "readDeadLetters": operation("receive", "dlq", "deadLetter", "See what has failed for good."),
        "readDelayedJobs": operation("receive", "delayed", "delayedJob", "See what waits for its time."),
        "controlJob": operation("send", "control", "control", "Have a job cancelled."),
        "readClaims": operation("receive", "claims", "claim", "See which jobs are being submitted."),
        "followServers": operation("receive", "registry", "hostedServer", "Hear which MCP servers are hosted."),
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
    let own = "The job's own key, where it has one: jobs of one key start in order.";
    let mut delayed = headers(&TRACE);
    delayed["properties"][delayed::HEADER] = json!({"type": "string", "description": "JSON: where the job came from, when it is due, what it has spent."});
    let mut job = message("A job", &schema_name::<WireEnvelope>(), headers(&TRACE), key(own));
    job["examples"] = json!([{"payload": {
        "jobID": "job-123",
        "jobType": "tool-call",
        "payload": {"tool": "file_digest", "arguments": {"path": "README.md"}},
    }}]);
    json!({
        "job": job,
        "event": message("What has become of a job", &schema_name::<JobEvent>(), headers(&TRACE[..2]), by_id()),
        // Byte for byte what was on the jobs topic, which may be anything.
        "deadLetter": {
            "title": "A dead letter",
            "payload": {"description": "The record's value as it was: mostly a job."},
            "headers": dead_letter_headers(),
            "bindings": key("The record's own key."),
        },
        "delayedJob": message("A job that waits", &schema_name::<WireEnvelope>(), delayed, key(own)),
        "control": message("What is to be done with a job", &schema_name::<Control>(), headers(&[]), by_id()),
        "claim": message("A claim of a job", CLAIM, headers(&[]), by_id()),
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
        (header::ORIGINAL_TOPIC, "The topic that the record stood on."),
        (header::ORIGINAL_PARTITION, "Its partition: 4 bytes, big endian."),
        (header::ORIGINAL_OFFSET, "Its offset: 8 bytes, big endian."),
        (header::ORIGINAL_TIMESTAMP, "Its timestamp in milliseconds: 8 bytes, big endian."),
        (header::ORIGINAL_CONSUMER_GROUP, "The consumer group that gave up."),
        (header::EXCEPTION_FQCN, "`mcp-fleet.` and the error's kind."),
        (header::EXCEPTION_MESSAGE, "The error's message."),
        (header::JOB_ID, "The job's id, or topic/partition/offset where none could be read."),
        (header::ATTEMPTS, "Attempts spent, in decimal."),
        (header::FIRST_ERROR, "The first attempt's error, where it differs."),
        (header::WORKER, "The worker that gave up."),
        (header::TIME, "When, as RFC 3339."),
        (header::VALUE_OMITTED, "How many bytes of value were left out, in decimal."),
        (header::REPLAY_COUNT, "How often the record was replayed, in decimal."),
    ]);
    all["required"] =
        json!([header::ORIGINAL_TOPIC, header::ORIGINAL_PARTITION, header::ORIGINAL_OFFSET]);
    all["description"] =
        "The record's own headers, and these behind them. The last of a name counts.".into();
    all
}

/// The contract's schemas by name, and those of the server's own topics.
fn contract(hosted_server: &Schema) -> Vec<(String, Value)> {
    let names = [
        schema_name::<WireEnvelope>(),
        schema_name::<JobEvent>(),
        schema_name::<Control>(),
        schema_name::<McpServers>(),
    ];
    let of_files = schema::all().map(|(_, schema)| schema.to_value());
    let own = [(HOSTED_SERVER, hosted_server.clone()), (CLAIM, crate::claim_schema())];
    let own = own.map(|(name, schema)| (name.to_owned(), schema.to_value()));
    names.into_iter().zip(of_files).chain(own).collect()
}

/// The contract's schemas, with what they define put side by side.
fn schemas(hosted_server: &Schema) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, mut schema) in contract(hosted_server) {
        if let Value::Object(object) = &mut schema {
            // The document has a dialect of its own.
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

/// Leads references to where the definitions stand now.
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
    fn every_reference_leads_somewhere_and_the_schemas_are_the_contracts() {
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
        // Definitions of one name are the same in every schema of the contract.
        let mut seen: Map<String, Value> = Map::new();
        for (whole, schema) in contract(&hosted_server) {
            for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
                let before = seen.insert(name.clone(), definition.clone());
                assert!(before.is_none_or(|before| before == *definition), "{name} of {whole}");
            }
        }
    }
}
