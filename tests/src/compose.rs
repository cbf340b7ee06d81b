//! `docker-compose.yml` without a container engine: a model of the file ([`Compose`]), and the same
//! processes started from it ([`project`]).
//!
//! The file is read as Compose reads it: YAML's merge keys, then variables, then services. A key
//! that is neither modelled nor known to have no effect here is refused, so that the tests notice
//! changes of the file that they don't cover.

pub mod dockerfile;
mod interpolate;
pub mod project;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub use interpolate::interpolate;
use serde_json::{Map, Value};

/// Keys that only an engine can apply. They confine a process, which also runs without them.
const CONFINEMENT: &[&str] = &[
    "cap_drop",
    "group_add",
    "init",
    "labels",
    "logging",
    "mem_limit",
    "pids_limit",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "user",
];
/// Compose's default for the time that a container has to end.
const GRACE: Duration = Duration::from_secs(10);

/// A Compose file.
#[derive(Clone, Debug, Default)]
pub struct Compose {
    /// The services, by name.
    pub services: BTreeMap<String, Service>,
}

/// A service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// The image, unless it is built.
    pub image: Option<String>,
    /// The Dockerfile, if the image is built.
    pub dockerfile: Option<String>,
    /// In place of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's.
    pub command: Option<Vec<String>>,
    /// Environment in addition to the image's.
    pub environment: BTreeMap<String, String>,
    /// Files with environment, and whether they must exist.
    pub env_files: Vec<(String, bool)>,
    /// The conditions that must hold before the service starts.
    pub depends_on: Vec<(String, Condition)>,
    /// The health check.
    pub healthcheck: Option<Healthcheck>,
    /// How long a container may take to end.
    pub stop_grace_period: Duration,
    /// The number of containers.
    pub replicas: u32,
    /// The sources (volumes, or paths beginning with a dot or slash) and targets of mounts.
    pub volumes: Vec<(String, String)>,
    /// Directories in memory.
    pub tmpfs: Vec<String>,
    /// The profiles in which the service starts. If there are any, it starts only in one of these
    /// or when it is named.
    pub profiles: Vec<String>,
    /// The networks, on which containers reach each other by name.
    pub networks: BTreeSet<String>,
    /// Whether only `tmpfs` and `volumes` can be written to.
    pub read_only: bool,
}

/// A condition that another service must meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has started.
    Started,
    /// Its health check has succeeded.
    Healthy,
    /// It has exited with status 0.
    CompletedSuccessfully,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healthcheck {
    /// `CMD` or `CMD-SHELL`, and the command.
    pub test: Vec<String>,
    /// The time after which a container that is not healthy is considered unhealthy.
    pub deadline: Duration,
}

impl Compose {
    /// Reads a file. `variables` are the shell's and those of `.env`.
    pub fn parse(text: &str, variables: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut document: serde_norway::Value =
            serde_norway::from_str(text).map_err(|error| error.to_string())?;
        document.apply_merge().map_err(|error| error.to_string())?;
        let mut document: Value =
            serde_norway::from_value(document).map_err(|error| error.to_string())?;
        replace(&mut document, variables)?;
        let services = document["services"].as_object().ok_or("no services")?;
        let services = services.iter().map(|(name, value)| {
            let service =
                value.as_object().ok_or("no object").map_err(str::to_owned).and_then(service);
            Ok((name.clone(), service.map_err(|error| format!("service {name}: {error}"))?))
        });
        let compose = Self { services: services.collect::<Result<_, String>>()? };
        compose.names_are_known()?;
        Ok(compose)
    }

    fn names_are_known(&self) -> Result<(), String> {
        for (name, service) in &self.services {
            for (other, condition) in &service.depends_on {
                let other_service = self
                    .services
                    .get(other)
                    .ok_or(format!("{name} depends on {other}, which is none"))?;
                if *condition == Condition::Healthy && other_service.healthcheck.is_none() {
                    return Err(format!(
                        "{name} waits for the health of {other}, which has no check"
                    ));
                }
            }
        }

        Ok(())
    }
}

/// Replaces the variables in every string but, as in Compose, not in keys.
fn replace(value: &mut Value, variables: &BTreeMap<String, String>) -> Result<(), String> {
    match value {
        Value::String(text) => *text = interpolate(text, variables)?,
        Value::Array(values) => {
            values.iter_mut().try_for_each(|value| replace(value, variables))?
        }
        Value::Object(object) => {
            object.values_mut().try_for_each(|value| replace(value, variables))?
        }
        _ => {}
    }
    Ok(())
}

fn service(object: &Map<String, Value>) -> Result<Service, String> {
    let mut service = Service { stop_grace_period: GRACE, replicas: 1, ..Service::default() };
    for (key, value) in object {
        let value = value.clone();
        match key.as_str() {
            "image" => service.image = Some(text(&value)?),
            "build" => service.dockerfile = Some(dockerfile(&value)?),
            "entrypoint" => service.entrypoint = Some(texts(&value)?),
            "command" => service.command = Some(texts(&value)?),
            "environment" => service.environment = environment(&value)?,
            "env_file" => {
                service.env_files = list(&value)?.iter().map(env_file).collect::<Result<_, _>>()?
            }
            "depends_on" => service.depends_on = depends_on(&value)?,
            "healthcheck" => service.healthcheck = Some(healthcheck(&value)?),
            "stop_grace_period" => service.stop_grace_period = duration(&text(&value)?)?,
            "volumes" => {
                service.volumes =
                    texts(&value)?.iter().map(|text| volume(text)).collect::<Result<_, _>>()?
            }
            "tmpfs" => {
                let path = |text: String| text.split(':').next().unwrap_or_default().to_owned();
                service.tmpfs = texts(&value)?.into_iter().map(path).collect();
            }
            "profiles" => service.profiles = texts(&value)?,
            // A container that reaches nothing, in particular none of the services by name.
            "network_mode" if value == "none" => service.networks = ["none".to_owned()].into(),
            "networks" => service.networks = texts(&value)?.into_iter().collect(),
            "deploy" => {
                let replicas = value.get("replicas").map(text).transpose()?;
                service.replicas =
                    replicas.map_or(Ok(1), |text| text.parse()).map_err(|_| "replicas")?;
            }
            "read_only" => service.read_only = value == true,
            known if CONFINEMENT.contains(&known) => {}
            unknown => return Err(format!("{unknown} is not modelled")),
        }
    }

    Ok(service)
}

fn list(value: &Value) -> Result<Vec<Value>, String> {
    value.as_array().cloned().ok_or_else(|| format!("not a list: {value}"))
}

/// A string, or a scalar of another type in YAML that Compose reads as a string.
fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(bool) => Err(format!("{bool} has to be quoted")),
        _ => Err(format!("not a string: {value}")),
    }
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    list(value)?.iter().map(text).collect()
}

fn dockerfile(value: &Value) -> Result<String, String> {
    let here = value["context"] == ".";
    let name = value["dockerfile"].as_str().filter(|_| here);
    name.map(str::to_owned)
        .ok_or_else(|| format!("a build is of a Dockerfile in the repository's root: {value}"))
}

fn environment(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let object = value.as_object().ok_or("environment is not an object")?;
    object.iter().map(|(name, value)| Ok((name.clone(), text(value)?))).collect()
}

fn env_file(value: &Value) -> Result<(String, bool), String> {
    if let Value::String(path) = value {
        return Ok((path.clone(), true));
    }
    Ok((text(&value["path"])?, value["required"] != false))
}

fn depends_on(value: &Value) -> Result<Vec<(String, Condition)>, String> {
    let object = value.as_object().ok_or("depends_on is not an object")?;
    let dependency = |(name, value): (&String, &Value)| {
        let condition = match value["condition"].as_str() {
            Some("service_started") => Condition::Started,
            Some("service_healthy") => Condition::Healthy,
            Some("service_completed_successfully") => Condition::CompletedSuccessfully,
            _ => return Err(format!("condition of {name}: {}", value["condition"])),
        };
        Ok((name.clone(), condition))
    };
    object.iter().map(dependency).collect()
}

/// After the start period, a container is unhealthy after a number of failures; earlier failures
/// don't count.
fn healthcheck(value: &Value) -> Result<Healthcheck, String> {
    let time =
        |key: &str, default| value.get(key).map_or(Ok(default), |value| duration(&text(value)?));
    let second = Duration::from_secs(1);
    let (interval, timeout) = (time("interval", 30 * second)?, time("timeout", 30 * second)?);
    let retries = value
        .get("retries")
        .map_or(Ok(3), |value| text(value)?.parse().map_err(|_| format!("retries {value}")))?;
    time("start_interval", 5 * second)?;
    let deadline = time("start_period", Duration::ZERO)? + (interval + timeout) * retries;
    Ok(Healthcheck { test: texts(&value["test"])?, deadline })
}

fn volume(text: &str) -> Result<(String, String), String> {
    let mut parts = text.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(target), None | Some("ro" | "rw"), None) => {
            Ok((source.to_owned(), target.to_owned()))
        }
        _ => Err(format!("volume {text}")),
    }
}

/// A duration such as `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("duration {text}");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        total += number
            * match &rest[digits..digits + letters] {
                "ms" => Duration::from_millis(1),
                "s" => Duration::from_secs(1),
                "m" => Duration::from_secs(60),
                "h" => Duration::from_secs(3_600),
                _ => return Err(wrong()),
            };
        rest = &rest[digits + letters..];
    }

    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
x-common: &common
  read_only: true
  restart: unless-stopped
services:
  kafka:
    image: apache/kafka:4.2.0
    networks: [backend]
    environment: {KAFKA_NODE_ID: 1, KAFKA_LISTENERS: "PLAINTEXT://:9092"}
    healthcheck: {test: [CMD-SHELL, look], interval: 30s, timeout: 15s, retries: 4, start_period: 1m30s}
  worker:
    <<: *common
    restart: "no"
    build: {context: ., dockerfile: Dockerfile.worker}
    command: [work, --partitions, "${PARTITIONS:-12}"]
    deploy: {replicas: "${REPLICAS:-1}"}
    depends_on: {kafka: {condition: service_healthy}}
    env_file: [{path: .env.worker, required: false}, .env]
    tmpfs: ["/tmp:size=64m"]
    volumes: ["data:/var/lib", "${FILES:-./docs}:/files:ro"]
    stop_grace_period: 45s
"#;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Compose, String> {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Compose::parse(text, &variables.collect())
    }

    #[test]
    fn a_file_is_read_as_compose_reads_it() {
        let compose = parse(FILE, &[("REPLICAS", "3"), ("PARTITIONS", "")]).expect("a file");
        let worker = &compose.services["worker"];
        assert_eq!(worker.replicas, 3);
        assert!(worker.read_only);
        assert_eq!(worker.dockerfile.as_deref(), Some("Dockerfile.worker"));
        assert_eq!(
            worker.command.as_ref().map(|command| command.join(" ")).as_deref(),
            Some("work --partitions 12")
        );
        assert_eq!(worker.depends_on, [("kafka".to_owned(), Condition::Healthy)]);
        assert_eq!(
            worker.env_files,
            [(".env.worker".to_owned(), false), (".env".to_owned(), true)]
        );
        assert_eq!(worker.tmpfs, ["/tmp"]);
        assert_eq!(worker.volumes[1], ("./docs".to_owned(), "/files".to_owned()));
        assert_eq!(worker.stop_grace_period, Duration::from_secs(45));

        let kafka = &compose.services["kafka"];
        assert_eq!(kafka.environment["KAFKA_NODE_ID"], "1");
        assert_eq!(
            kafka.healthcheck.as_ref().map(|check| check.deadline),
            Some(Duration::from_secs(90 + 4 * 45))
        );
        assert_eq!((kafka.stop_grace_period, kafka.read_only), (GRACE, false));
    }

    #[test]
    fn keys_that_are_not_modelled_are_refused() {
        let check = |from: &str, to: &str, why: &str| {
            assert!(FILE.contains(from), "{from}");
            let parsed = parse(&FILE.replace(from, to), &[]).map(drop);
            assert!(parsed.as_ref().is_err_and(|error| error.contains(why)), "{to}: {parsed:?}");
        };
        check("networks: [backend]", "network_mode: host", "service kafka: network_mode");
        check("service_healthy", "service_happy", "service_happy");
        check("{kafka:", "{zookeeper:", "zookeeper");
        check("KAFKA_NODE_ID: 1", "KAFKA_NODE_ID: true", "quoted");
        check("healthcheck:", "labels:", "has no check");
        check("45s", "45 seconds", "duration");
        check("context: .", "context: elsewhere", "root");
        check("${REPLICAS:-1}", "${REPLICAS:?how many}", "how many");
    }
}
