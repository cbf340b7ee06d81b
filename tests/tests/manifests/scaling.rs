//! The scaling of workers and servers: KEDA's ScaledObject and the HorizontalPodAutoscaler.

use serde_json::Value;

use super::{
    file,
    kubernetes::{Render, renders},
    list,
    objects::Object,
    text,
};

/// The keys of triggers that KEDA 2.21 reads. It silently ignores other keys, and the definition of
/// its objects allows them.
const KEYS: [(&str, &[&str]); 2] = [
    (
        "kafka",
        &[
            "bootstrapServers",
            "consumerGroup",
            "topic",
            "partitionLimitation",
            "lagThreshold",
            "activationLagThreshold",
            "offsetResetPolicy",
            "allowIdleConsumers",
            "excludePersistentLag",
            "scaleToZeroOnInvalidOffset",
            "limitToPartitionsWithLag",
            "ensureEvenDistributionOfPartitions",
            "fullMetadata",
            "version",
            "tls",
            "unsafeSsl",
            "sasl",
            "saslTokenProvider",
            "awsRegion",
        ],
    ),
    (
        "prometheus",
        &[
            "serverAddress",
            "query",
            "queryParameters",
            "threshold",
            "activationThreshold",
            "namespace",
            "customHeaders",
            "ignoreNullValues",
            "unsafeSsl",
            "awsRegion",
            "timeout",
            "identityOwner",
        ],
    ),
];
/// The keys whose values KEDA can take from the container's environment.
const FROM_ENV: [&str; 3] = ["bootstrapServers", "consumerGroup", "topic"];

fn number(value: &Value, pointer: &str) -> f64 {
    text(value, pointer).parse().unwrap_or_else(|error| panic!("{pointer}: {error}"))
}

/// Every ScaledObject, with the object that it scales.
fn scaled() -> impl Iterator<Item = (&'static Render, &'static Object, &'static Object)> {
    renders().iter().flat_map(|render| {
        render.of_kind("ScaledObject").map(move |scaled| {
            (
                render,
                scaled,
                render.get("Deployment", &text(&scaled.0, "/spec/scaleTargetRef/name")),
            )
        })
    })
}

fn trigger<'o>(scaled: &'o Object, name: &str) -> &'o Value {
    let triggers = list(&scaled.0, "/spec/triggers");
    triggers
        .iter()
        .find(|trigger| trigger["name"] == name)
        .unwrap_or_else(|| panic!("no trigger {name}"))
}

#[test]
fn scaled_objects_have_no_other_replica_count() {
    for (render, _, deployment) in scaled() {
        assert!(deployment.0["spec"].get("replicas").is_none(), "{}", render.name);
    }
    for render in renders() {
        for scaler in render.of_kind("HorizontalPodAutoscaler") {
            let deployment =
                render.get("Deployment", &text(&scaler.0, "/spec/scaleTargetRef/name"));
            assert!(deployment.0["spec"].get("replicas").is_none(), "{}", render.name);
            for resource in ["cpu", "memory"] {
                let requested = &deployment.containers()[0]["resources"]["requests"];
                assert!(
                    requested.get(resource).is_some(),
                    "utilization of {resource} is a share of the request"
                );
                let metrics = list(&scaler.0, "/spec/metrics");
                assert!(
                    metrics.iter().any(|metric| metric["resource"]["name"] == resource),
                    "{resource}"
                );
            }
        }
    }
}

/// Scaling down stops the next replica only after the previous one has certainly ended.
#[test]
fn scaling_down_never_beats_the_drain() {
    let check = |render: &Render, deployment: &Object, down: &Value| {
        let grace = number(&deployment.0, "/spec/template/spec/terminationGracePeriodSeconds");
        let policies = list(down, "/policies");
        assert!(!policies.is_empty(), "{}", render.name);
        for policy in policies {
            assert_eq!(policy["type"], "Pods", "{}", render.name);
            assert_eq!(policy["value"], 1, "{}", render.name);
            assert!(number(policy, "/periodSeconds") > grace, "{}: {grace}", render.name);
        }
        assert!(number(down, "/stabilizationWindowSeconds") >= 2.0 * grace, "{}", render.name);
    };
    for (render, scaled, deployment) in scaled() {
        check(
            render,
            deployment,
            &scaled.0["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"],
        );
    }
    for render in renders() {
        for scaler in render.of_kind("HorizontalPodAutoscaler") {
            check(
                render,
                render.get("Deployment", "mcp-server"),
                &scaler.0["spec"]["behavior"]["scaleDown"],
            );
        }
    }
}

#[test]
fn kafka_triggers_ask_for_the_workers_topic_and_group() {
    for (render, scaled, deployment) in scaled() {
        let container = &deployment.containers()[0];
        assert_eq!(scaled.0["spec"]["scaleTargetRef"]["envSourceContainerName"], container["name"]);
        for name in ["jobs", "delayed"] {
            let metadata = trigger(scaled, name)["metadata"].as_object().expect("metadata");
            for (key, variable) in metadata.iter().filter(|(key, _)| key.ends_with("FromEnv")) {
                let variable = variable.as_str().expect("a name");
                assert!(
                    deployment.variable(render, variable).is_some(),
                    "{}: {key}: {variable}",
                    render.name
                );
            }
            assert_eq!(metadata["bootstrapServersFromEnv"], "KAFKA_BROKERS");
            assert_eq!(metadata["consumerGroupFromEnv"], "MCP_CONSUMER_GROUP");
            // Kafka 4 rejects clients with a protocol version of 2.0 or older, and KEDA's default
            // is 1.0.
            let version = metadata["version"].as_str().expect("a version");
            let parts: Vec<u32> =
                version.split('.').map(|part| part.parse().expect("a number")).collect();
            assert!(parts >= vec![2, 1, 0], "{version}");
            // The workers read a partition without a commit in the same way.
            assert_eq!(metadata["offsetResetPolicy"], "earliest");
            assert!(
                file("crates/kafka/src/settings.rs")
                    .contains(r#"config.set("auto.offset.reset", "earliest")"#)
            );
            // A fleet that is scaled to zero must notice its first job.
            assert_eq!(metadata["scaleToZeroOnInvalidOffset"], "false");
            assert_eq!(metadata["activationLagThreshold"], "0");
            let authentication = text(trigger(scaled, name), "/authenticationRef/name");
            render.get("TriggerAuthentication", &authentication);
        }
        let jobs = &trigger(scaled, "jobs")["metadata"];
        assert_eq!(jobs["topicFromEnv"], "KAFKA_TOPIC");
        assert_eq!(jobs["excludePersistentLag"], "true");
        assert_eq!(jobs["limitToPartitionsWithLag"], "true");
        // KEDA refuses this combination.
        assert_eq!(jobs["allowIdleConsumers"], "false");
        let topic = deployment.variable(render, "KAFKA_TOPIC").expect("a topic");
        assert_eq!(trigger(scaled, "delayed")["metadata"]["topic"], format!("{topic}.delayed"));
        assert!(file("crates/job/src/topics.rs").contains(r#"delayed: of("delayed")"#));
    }
}

#[test]
fn keda_knows_every_key_of_the_triggers() {
    for (render, scaled, _) in scaled() {
        for trigger in list(&scaled.0, "/spec/triggers") {
            let (_, known) =
                KEYS.iter().find(|(name, _)| trigger["type"] == *name).expect("a sort of trigger");
            for (key, value) in trigger["metadata"].as_object().expect("metadata") {
                let (name, from_env) =
                    key.strip_suffix("FromEnv").map_or((key.as_str(), false), |name| (name, true));
                assert!(known.contains(&name), "{}: {key}", render.name);
                assert!(!from_env || FROM_ENV.contains(&name), "{}: {key}", render.name);
                assert!(value.is_string(), "{}: {key} is not a string", render.name);
            }
        }
    }
}

#[test]
fn numbers_match_the_capacity_of_a_worker() {
    for (render, scaled, deployment) in scaled() {
        let spec = &scaled.0["spec"];
        let job = render.get("Job", "mcp-fleet-topics");
        let args = list(&job.containers()[0], "/args");
        let partitions = args.iter().position(|arg| arg == "--partitions").map(|at| &args[at + 1]);
        assert_eq!(partitions, Some(&text(spec, "/maxReplicaCount").into()), "{}", render.name);

        let slots: f64 = deployment
            .variable(render, "MCP_MAX_IN_FLIGHT")
            .expect("slots")
            .parse()
            .expect("a number");
        let runnable = &trigger(scaled, "runnable")["metadata"];
        for threshold in [
            number(trigger(scaled, "jobs"), "/metadata/lagThreshold"),
            number(runnable, "/threshold"),
        ] {
            assert!(threshold >= slots, "a worker would not be full before there is another");
        }
        // The trigger that only keeps one worker must not ask for two, however many delayed
        // jobs there are.
        assert!(number(trigger(scaled, "delayed"), "/metadata/lagThreshold") >= 1e9);
        let at_zero = number(spec, "/minReplicaCount") == 0.0;
        assert_eq!(runnable["ignoreNullValues"], at_zero.to_string(), "{}", render.name);
    }
}

/// A fleet in another namespace must not be counted.
#[test]
fn the_query_selects_the_fleet_of_its_namespace() {
    let overlays = |name: &str| !name.contains("dev");
    for (render, scaled, deployment) in scaled().filter(|(render, ..)| overlays(&render.name)) {
        let query = text(trigger(scaled, "runnable"), "/metadata/query");
        let namespace = text(&deployment.0, "/metadata/namespace");
        let metrics = query.matches("fleet_").count();
        assert_eq!(
            query.matches(&format!("namespace=\"{namespace}\"")).count(),
            metrics,
            "{}",
            render.name
        );
        assert_eq!(query.matches('(').count(), query.matches(')').count(), "{query}");
    }
}
