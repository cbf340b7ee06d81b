//! Settings in several places: Compose, Kubernetes, the Dockerfiles and the defaults in
//! docs/configuration.md must agree.

use super::{
    assert_no_problems, compose, documents,
    environment::{program, table},
    file,
    kubernetes::renders,
    list, seconds, text,
};

/// The time after a worker's drain for flushing its last events and leaving the group.
const AFTER_DRAIN: f64 = 10.0;

#[test]
fn images_have_the_version_of_the_workspace() {
    let version = env!("CARGO_PKG_VERSION");
    let mut problems = vec![];
    if let Some(project) = compose::project(&[]) {
        for (name, service) in project["services"].as_object().expect("services") {
            let image = text(service, "/image");
            if let Some(program) = program(&image)
                && image != format!("{program}:{version}")
            {
                problems.push(format!("compose: {name} is {image}"));
            }
        }
        for (service, dockerfile) in [
            ("mcp-server", "server"),
            ("kafka-worker", "worker"),
            ("topics", "cli"),
            ("keys", "cli"),
            ("mcp-fleet", "cli"),
        ] {
            let built = text(&project, &format!("/services/{service}/build/dockerfile"));
            assert_eq!(built, format!("Dockerfile.{dockerfile}"), "{service}");
        }
    }
    for render in renders() {
        for (kind, name, image) in [
            ("Deployment", "mcp-server", "mcp-server"),
            ("Deployment", "kafka-worker", "kafka-worker"),
            ("Job", "mcp-fleet-topics", "mcp-fleet"),
            ("Job", "mcp-fleet-keys", "mcp-fleet"),
        ] {
            let found = text(&render.get(kind, name).containers()[0], "/image");
            if found != format!("{image}:{version}") {
                problems.push(format!("{}: {name} is {found}", render.name));
            }
        }
    }
    for name in ["server", "worker", "cli"] {
        let dockerfile = file(&format!("Dockerfile.{name}"));
        if !dockerfile.contains(&format!("ARG VERSION={version}\n")) {
            problems.push(format!("Dockerfile.{name} has another version"));
        }
    }
    assert_no_problems(&problems);
}

#[test]
fn kafka_has_the_tested_version() {
    let pom = file("tests/kafka/pom.xml");
    let version = pom
        .split_once("<kafka.version>")
        .and_then(|(_, rest)| rest.split_once('<'))
        .expect("a version")
        .0;
    let expected = format!("apache/kafka:{version}");
    if let Some(project) = compose::project(&[]) {
        assert_eq!(text(&project, "/services/kafka/image"), expected);
    }
    for render in renders() {
        if let Some(kafka) = render.find("StatefulSet", "kafka") {
            assert_eq!(text(&kafka.containers()[0], "/image"), expected);
        }
    }
}

#[test]
fn ports_are_the_defaults_everywhere() {
    for (name, readme, dockerfile) in
        [("mcp-server", "server", "server"), ("kafka-worker", "worker", "worker")]
    {
        let port = table(readme)["PORT"].clone();
        let dockerfile = file(&format!("Dockerfile.{dockerfile}"));
        assert!(dockerfile.contains(&format!("EXPOSE {port}\n")), "{name}");
        assert!(dockerfile.contains(&format!(" PORT={port} ")), "{name}");
        if let Some(project) = compose::project(&[]) {
            assert_eq!(text(&project, &format!("/services/{name}/environment/PORT")), port);
            for published in list(&project, &format!("/services/{name}/ports")) {
                assert_eq!(text(published, "/target"), port);
                assert_eq!(text(published, "/published"), port);
            }
        }
        for render in renders() {
            let deployment = render.get("Deployment", name);
            assert_eq!(
                text(&deployment.containers()[0], "/ports/0/containerPort"),
                port,
                "{}",
                render.name
            );
            assert_eq!(deployment.variable(render, "PORT"), Some(port.clone()), "{}", render.name);
        }
    }
    let port = &table("server")["PORT"];
    let url = format!("http://mcp-server:{port}");
    if let Some(project) = compose::project(&[]) {
        assert_eq!(text(&project, "/services/kafka-worker/environment/MCP_SERVER_URL"), url);
        assert_eq!(text(&project, "/services/mcp-fleet/environment/MCP_SERVER_URL"), url);
        assert_eq!(
            text(&project, "/services/mcp-server/environment/MCP_ALLOWED_HOSTS"),
            "mcp-server"
        );
    }
    for render in renders() {
        let worker = render.get("Deployment", "kafka-worker");
        assert_eq!(worker.variable(render, "MCP_SERVER_URL"), Some(url.clone()));
        let service = render.get("Service", "mcp-server");
        assert_eq!(text(&service.0, "/spec/ports/0/port"), *port);
        let hosts = render
            .get("Deployment", "mcp-server")
            .variable(render, "MCP_ALLOWED_HOSTS")
            .expect("hosts");
        assert!(hosts.split(',').any(|host| host == service.name()), "{}: {hosts}", render.name);
        let namespace = service.0.pointer("/metadata/namespace").and_then(|name| name.as_str());
        for host in hosts.split(',').filter(|host| host.contains('.')) {
            assert_eq!(host.split('.').nth(1), namespace, "{}: {host}", render.name);
        }
    }
}

#[test]
fn processes_are_not_killed_while_draining() {
    let worker_default = table("worker")["MCP_DRAIN_TIMEOUT"].clone();
    let server_default = table("server")["MCP_DRAIN_TIMEOUT_MS"].clone();
    let server_drain = |set: Option<String>| {
        let text = set.unwrap_or_else(|| server_default.clone());
        text.parse::<f64>().expect("milliseconds") / 1000.0
    };
    let worker_drain =
        |set: Option<String>| seconds(&set.unwrap_or_else(|| worker_default.clone()));
    if let Some(project) = compose::project(&[]) {
        let services = &project["services"];
        let grace = |name: &str| seconds(&text(&services[name], "/stop_grace_period"));
        let set = |name: &str, variable: &str| {
            services[name]["environment"]
                .get(variable)
                .map(|value| value.as_str().expect("text").to_owned())
        };
        let drain = worker_drain(set("kafka-worker", "MCP_DRAIN_TIMEOUT"));
        assert!(grace("kafka-worker") >= drain + AFTER_DRAIN, "{drain}");
        let drain = server_drain(set("mcp-server", "MCP_DRAIN_TIMEOUT_MS"));
        assert!(grace("mcp-server") >= drain + AFTER_DRAIN, "{drain}");
    }
    for render in renders() {
        let grace = |name: &str| {
            let object = render.get("Deployment", name);
            let grace = text(&object.0, "/spec/template/spec/terminationGracePeriodSeconds");
            let sleep = object.containers()[0].pointer("/lifecycle/preStop/sleep/seconds");
            let sleep = sleep.and_then(|sleep| sleep.as_f64()).unwrap_or_default();
            grace.parse::<f64>().expect("seconds") - sleep
        };
        let set =
            |name: &str, variable: &str| render.get("Deployment", name).variable(render, variable);
        let drain = worker_drain(set("kafka-worker", "MCP_DRAIN_TIMEOUT"));
        assert!(grace("kafka-worker") >= drain + AFTER_DRAIN, "{}: {drain}", render.name);
        let drain = server_drain(set("mcp-server", "MCP_DRAIN_TIMEOUT_MS"));
        assert!(grace("mcp-server") >= drain + AFTER_DRAIN, "{}: {drain}", render.name);
    }
}

#[test]
fn topics_groups_and_partitions_are_the_same() {
    let (topic, group) = (&table("worker")["KAFKA_TOPIC"], &table("worker")["MCP_CONSUMER_GROUP"]);
    assert_eq!(topic, &table("server")["KAFKA_TOPIC"]);
    let source = file("crates/cli/src/topics.rs");
    let default = source
        .split_once("const PARTITIONS: i32 = ")
        .and_then(|(_, rest)| rest.split_once(';'))
        .expect("a default")
        .0;
    let partitions = |args: &[serde_json::Value]| {
        let at = args.iter().position(|arg| arg == "--partitions").expect("--partitions");
        args[at + 1].as_str().expect("a number").to_owned()
    };
    if let Some(project) = compose::project(&[]) {
        let services = &project["services"];
        for name in ["topics", "mcp-server", "kafka-worker", "mcp-fleet"] {
            assert_eq!(text(&services[name], "/environment/KAFKA_TOPIC"), *topic, "{name}");
            assert_eq!(text(&services[name], "/environment/KAFKA_BROKERS"), "kafka:9092", "{name}");
        }
        assert_eq!(text(&services["kafka-worker"], "/environment/MCP_CONSUMER_GROUP"), *group);
        assert_eq!(partitions(list(&services["topics"], "/command")), default);
    }
    for render in renders() {
        let job = render.get("Job", "mcp-fleet-topics");
        assert_eq!(partitions(list(&job.containers()[0], "/args")), default, "{}", render.name);
        for object in
            [job, render.get("Deployment", "mcp-server"), render.get("Deployment", "kafka-worker")]
        {
            assert_eq!(
                object.variable(render, "KAFKA_TOPIC").as_ref(),
                Some(topic),
                "{}",
                render.name
            );
        }
        let worker = render.get("Deployment", "kafka-worker");
        assert_eq!(
            worker.variable(render, "MCP_CONSUMER_GROUP").as_ref(),
            Some(group),
            "{}",
            render.name
        );
    }
}

#[test]
fn probes_use_existing_endpoints() {
    let source = file("crates/ops/src/http.rs");
    for render in renders() {
        for name in ["mcp-server", "kafka-worker"] {
            let container = &render.get("Deployment", name).containers()[0];
            for (probe, path) in [
                ("startupProbe", "/health"),
                ("livenessProbe", "/health"),
                ("readinessProbe", "/ready"),
            ] {
                assert_eq!(
                    text(container, &format!("/{probe}/httpGet/path")),
                    path,
                    "{}: {name}",
                    render.name
                );
                assert!(source.contains(&format!(".route(\"{path}\"")), "{path}");
            }
        }
        for (kind, endpoints) in
            [("ServiceMonitor", "/spec/endpoints"), ("PodMonitor", "/spec/podMetricsEndpoints")]
        {
            for endpoint in render.of_kind(kind).flat_map(|monitor| list(&monitor.0, endpoints)) {
                assert_eq!(text(endpoint, "/path"), "/metrics");
            }
        }
    }
    assert!(source.contains(".route(\"/metrics\""));
}

#[test]
fn settings_in_compose_and_kubernetes_agree() {
    let Some(project) = compose::project(&[]) else { return };
    let Some(base) = renders().iter().find(|render| render.name == "base") else { return };
    // These differ: a path in Compose's mount, the log level, which only Compose can change from
    // outside, and what jobs of producers may do, since only Compose's own containers reach its
    // broker.
    let different = ["MCP_FILES_ROOTS", "MCP_DATA_DIR", "MCP_UNSIGNED_JOBS"];
    let mut problems = vec![];
    for name in ["mcp-server", "kafka-worker"] {
        let deployment = base.get("Deployment", name);
        for (variable, value) in
            project["services"][name]["environment"].as_object().expect("an environment")
        {
            let there = deployment.variable(base, variable);
            if !different.contains(&variable.as_str()) && there.as_deref() != value.as_str() {
                problems
                    .push(format!("{name}: {variable} is {value} in compose and {there:?} in k8s"));
            }
        }
    }
    assert_no_problems(&problems);
}

#[test]
fn commands_in_the_documentation_match_the_files() {
    let deployment = file("docs/deployment.md");
    let header = file("docker-compose.yml");
    let commands = header.lines().filter_map(|line| line.strip_prefix("#   docker compose "));
    let commands: Vec<_> = commands.collect();
    assert_eq!(commands.len(), 3);

    for command in commands {
        assert!(deployment.contains(&format!("docker compose {command}")), "{command}");
    }
    for secret in documents(&file("k8s/secret.example.yaml")) {
        for key in secret["stringData"].as_object().expect("stringData").keys() {
            assert!(deployment.contains(key.as_str()), "docs/deployment.md does not mention {key}");
        }
    }
}
