//! `docker-compose.yml`, read by the loader of `docker compose` itself.

use std::{fs, path::Path, process::Command};

use fleet_tests::{bins, go};
use serde_json::Value;

use super::{assert_no_problems, list, seconds, text};

/// The file with `variables` filled in, including all profiles; `None` without Go.
pub(crate) fn project(variables: &[(&str, &str)]) -> Option<Value> {
    let path = bins::repository().join("docker-compose.yml");
    Some(load(&go::compose()?, &path, variables).unwrap_or_else(|error| panic!("{error}")))
}

fn load(loader: &Path, file: &Path, variables: &[(&str, &str)]) -> Result<Value, String> {
    let mut command = Command::new(loader);
    // Variables of the shell that runs the tests must not be filled in.
    command.env_clear().envs(variables.iter().copied());
    command.arg(file).current_dir(bins::repository());
    let output = command.output().expect("the loader of compose files");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || !said.is_empty() {
        return Err(said);
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn services(project: &Value) -> impl Iterator<Item = (&String, &Value)> {
    project["services"].as_object().expect("services").iter()
}

#[test]
fn the_file_meets_the_specification_and_misspellings_are_found() {
    let Some(loader) = go::compose() else { return };
    project(&[]).expect("a loader");
    let good = super::file("docker-compose.yml");
    for (from, to) in [
        ("mem_limit: 1g", "memory_limit: 1g"),
        ("condition: service_healthy", "condition: service_well"),
        ("networks: [backend]", "networks: [backstage]"),
        ("${LOG_LEVEL:-info}", "${LOG_LEVEL:-info"),
    ] {
        assert!(good.contains(from), "{from}");
        let path = bins::scratch("compose").join("docker-compose.yml");
        fs::write(&path, good.replacen(from, to, 1)).expect("a wrong file");
        load(&loader, &path, &[]).expect_err(to);
    }
}

/// docker-compose 1.x replaces variables before anything else, doesn't support `:+`, and prints the
/// text that contains it. Seen with 1.29.2.
#[test]
fn docker_compose_1_prints_what_to_install() {
    let file = super::file("docker-compose.yml");
    let unknown: Vec<_> = file.split("${").filter(|text| text.contains(":+")).collect();
    assert!(
        matches!(&unknown[..], [text] if text.contains("install Docker Compose 2.24")),
        "{unknown:?}"
    );

    let Some(project) = project(&[]) else { return };
    assert_eq!(project["services"]["kafka"]["labels"]["mcp-fleet.io/needs"], "");
}

#[test]
fn the_services_are_the_documented_ones() {
    let Some(project) = project(&[]) else { return };
    let profiles: Vec<_> = services(&project)
        .map(|(name, service)| {
            (name.as_str(), list(service, "/profiles").iter().map(|p| p.as_str()).collect())
        })
        .collect();
    let expected: Vec<(&str, Vec<Option<&str>>)> = vec![
        ("grafana", vec![Some("monitoring")]),
        ("kafka", vec![]),
        ("kafka-worker", vec![]),
        ("keys", vec![]),
        ("mcp-fleet", vec![Some("cli")]),
        ("mcp-server", vec![]),
        ("prometheus", vec![Some("monitoring")]),
        ("topics", vec![]),
    ];
    assert_eq!(profiles, expected);

    let worker = &project["services"]["kafka-worker"];
    for (dependency, condition) in
        [("topics", "service_completed_successfully"), ("mcp-server", "service_healthy")]
    {
        assert_eq!(text(worker, &format!("/depends_on/{dependency}/condition")), condition);
    }
    assert_eq!(text(&project, "/services/topics/depends_on/kafka/condition"), "service_healthy");
    for name in ["mcp-server", "kafka-worker", "mcp-fleet", "prometheus"] {
        let condition = text(&project, &format!("/services/{name}/depends_on/keys/condition"));
        assert_eq!(condition, "service_completed_successfully", "{name}");
    }
    assert!(project["services"]["kafka"].get("healthcheck").is_some());
}

#[test]
fn variables_of_the_shell_reach_every_service() {
    let set = [
        ("KAFKA_TOPIC", "other"),
        ("KAFKA_WORKER_REPLICAS", "4"),
        ("MCP_PARTITIONS", "48"),
        ("MCP_CONSUMER_GROUP", "blue"),
    ];
    let Some(project) = project(&set) else { return };
    for name in ["topics", "mcp-server", "kafka-worker", "mcp-fleet"] {
        assert_eq!(
            text(&project, &format!("/services/{name}/environment/KAFKA_TOPIC")),
            "other",
            "{name}"
        );
    }
    for name in ["kafka-worker", "mcp-fleet"] {
        let group = text(&project, &format!("/services/{name}/environment/MCP_CONSUMER_GROUP"));
        assert_eq!(group, "blue", "{name}");
    }
    assert_eq!(text(&project, "/services/kafka-worker/deploy/replicas"), "4");
    assert!(list(&project, "/services/topics/command").contains(&"48".into()));
}

#[test]
fn only_necessary_ports_are_published() {
    let Some(project) = project(&[]) else { return };
    let mut problems = vec![];
    for (name, service) in services(&project) {
        for port in list(service, "/ports") {
            if port["host_ip"] != "127.0.0.1" {
                problems.push(format!("{name} is published to everybody: {port}"));
            }
        }
        let published = !list(service, "/ports").is_empty();
        let public = ["mcp-server", "prometheus", "grafana"].contains(&name.as_str());
        if published != public {
            problems.push(format!("{name} is published, or is not"));
        }
        if service.get("container_name").is_some() {
            problems.push(format!("{name} has a name of its own and can't be scaled"));
        }
    }
    let networks = |name: &str| -> Vec<String> {
        project["services"][name]["networks"]
            .as_object()
            .expect("networks")
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(networks("kafka"), ["backend"]);
    assert_eq!(networks("kafka-worker"), ["backend"]);
    assert_eq!(networks("mcp-server"), ["backend", "frontend"]);
    assert_eq!(project["networks"]["backend"]["internal"], true);
    assert_no_problems(&problems);
}

#[test]
fn containers_have_only_the_rights_that_they_need() {
    let Some(project) = project(&[]) else { return };
    let mut problems = vec![];
    for (name, service) in services(&project) {
        let mut must = |ok: bool, what: &str| {
            if !ok {
                problems.push(format!("{name}: {what}"));
            }
        };
        must(service["cap_drop"] == serde_json::json!(["ALL"]), "capabilities");
        must(
            service["security_opt"] == serde_json::json!(["no-new-privileges:true"]),
            "new privileges",
        );
        must(
            service["read_only"] == true || name == "kafka",
            "a root file system that can be written to",
        );
        must(service.get("mem_limit").is_some(), "no limit of memory");
        must(service.get("privileged").is_none(), "privileged");
        let image = text(service, "/image");
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        must(
            tag.is_some_and(|tag| tag != "latest" && tag.contains('.')),
            "an image without a version",
        );
        let started_again = service["restart"] == "unless-stopped";
        let ends = ["topics", "keys", "mcp-fleet", "grafana"].contains(&name.as_str());
        must(started_again != ends, "restart");
    }

    let password = text(&project, "/services/grafana/environment/GF_SECURITY_ADMIN_PASSWORD");
    assert_eq!(password, "", "a password that everybody knows");
    assert_no_problems(&problems);
}

/// Whoever has a key may use it, so only those who need one have it, and none is in the file.
#[test]
fn keys_are_in_volumes_which_only_their_makers_may_write_to() {
    let Some(project) = project(&[]) else { return };
    let mut problems = vec![];
    for (name, service) in services(&project) {
        for volume in list(service, "/volumes") {
            let source = text(volume, "/source");
            let is_secret = source == "access" || source.ends_with("-key");
            if is_secret && name != "keys" && volume["read_only"] != true {
                problems.push(format!("{name} may write to {source}"));
            }
        }
        let variables = service["environment"].as_object().into_iter().flatten();
        let mut texts = variables.filter_map(|(_, value)| value.as_str());
        if texts.any(|value| value.starts_with("mf_")) {
            problems.push(format!("{name} has a key in its environment"));
        }
    }
    assert_no_problems(&problems);

    let keys = &project["services"]["keys"];
    assert_eq!(keys["network_mode"], "none");
    let server = &project["services"]["mcp-server"]["environment"];
    assert_eq!(server["MCP_ACCESS"], "required");

    // The image has the directories, from which empty volumes take their owner.
    let dockerfile = super::file("Dockerfile.cli");
    for volume in list(keys, "/volumes") {
        let target = text(volume, "/target");
        assert!(dockerfile.contains(&target), "{target}");
    }
    // Prometheus reads its key as a member of the group.
    assert_eq!(project["services"]["prometheus"]["group_add"], serde_json::json!(["65532"]));
    assert!(dockerfile.contains("USER 65532:65532"));
    let path = text(&project, "/services/kafka-worker/environment/MCP_SERVER_TOKEN_FILE");
    assert!(list(keys, "/command").contains(&path.into()));
    let scrape = super::file("monitoring/prometheus/prometheus.yml");
    let made = list(keys, "/command").iter().filter_map(Value::as_str);
    let made: Vec<_> = made.filter(|argument| argument.contains("/metrics/")).collect();
    assert!(scrape.contains(made[0]), "{made:?}");
}

/// Grafana's default password is publicly known.
#[test]
fn grafana_does_not_start_without_a_password() {
    let Some(project) = project(&[]) else { return };
    let entrypoint: Vec<_> =
        list(&project, "/services/grafana/entrypoint").iter().filter_map(Value::as_str).collect();
    let run = |password: &str| {
        let script = entrypoint[2].replace("$$", "$").replace("exec /run.sh", "exec true");
        let mut command = Command::new(entrypoint[0]);
        command.args(["-c", &script]).env("GF_SECURITY_ADMIN_PASSWORD", password);
        command.output().expect("sh").status.success()
    };
    assert!(!run(""));
    assert!(run("something"));
}

#[test]
fn mounted_files_exist() {
    let Some(project) = project(&[]) else { return };
    let mut problems = vec![];
    for (name, service) in services(&project) {
        for volume in list(service, "/volumes") {
            match volume["type"].as_str() {
                Some("bind") if !Path::new(&text(volume, "/source")).exists() => {
                    problems.push(format!("{name}: there is no {}", volume["source"]));
                }
                Some("bind") if volume["read_only"] != true => {
                    problems.push(format!("{name} may write to {}", volume["source"]));
                }
                Some("bind") => {}
                _ if project["volumes"].get(text(volume, "/source")).is_none() => {
                    problems.push(format!("{name}: there is no volume {}", volume["source"]));
                }
                _ => {}
            }
        }
    }

    assert_no_problems(&problems);
}

#[test]
fn health_checks_give_up_after_their_programs_answer() {
    let Some(project) = project(&[]) else { return };
    for name in ["mcp-server", "kafka-worker"] {
        let service = &project["services"][name];
        let program = format!("/usr/local/bin/{name}");
        assert_eq!(
            service["healthcheck"]["test"],
            serde_json::json!(["CMD", program, "--healthcheck"])
        );
        assert!(seconds(&text(service, "/healthcheck/timeout")) >= 2.0);
    }
}
