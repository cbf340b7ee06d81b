//! A Compose project whose containers are processes of this machine.
//!
//! The following stands in for a container engine; everything else is as in the file and the
//! Dockerfiles.
//!
//! - **Program:** the image's entry point is our binary of that name; `apache/kafka` is the
//!   harness's Kafka, set up by the very program that the image sets it up with.
//! - **Environment:** the image's, the env files' and the service's, and nothing of the test's own.
//! - **Network:** every container has ports of its own, so that five workers can all have 8081;
//!   here each of them stands for a free port on loopback. A name with a port in a value
//!   (`kafka:9092`) becomes the address that it would be resolved to, if the two services share a
//!   network; if they don't, the test fails, as the name would. `PORT` is the container's own.
//! - **Files:** volumes and `tmpfs` are directories of the test, and a value that is a path below
//!   one of them is the path there. The working directory is empty and has to stay so.
//! - **Stopping:** `SIGTERM`, and a failure of the test after `stop_grace_period`, when an engine
//!   would kill the container.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{Compose, Condition, Service, dockerfile::Image};
use crate::{bins, kafka, process::Process, topics};

/// The longest time for a one-shot service to end, or for a service to become healthy.
const ONE_SHOT: Duration = Duration::from_secs(120);

/// The name of a container: its service, and its number, starting at 1.
type Name = (String, u32);

/// A running container.
#[derive(Debug)]
pub struct Container {
    /// Its process.
    pub process: Process,
    env: BTreeMap<String, String>,
}

/// A project.
#[derive(Debug)]
pub struct Project {
    compose: Compose,
    /// The directory of the file.
    root: PathBuf,
    /// The directory of volumes and logs.
    directory: PathBuf,
    ports: BTreeMap<(Name, u16), u16>,
    running: BTreeMap<Name, Container>,
    completed: BTreeSet<String>,
}

impl Project {
    /// Creates the project of `docker-compose.yml` in `root`, with the variables of the shell.
    pub fn new(
        root: &Path,
        directory: &Path,
        variables: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let text = fs::read_to_string(root.join("docker-compose.yml"))
            .map_err(|error| error.to_string())?;
        for inner in ["empty", "volumes", "logs"] {
            fs::create_dir_all(directory.join(inner)).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            compose: Compose::parse(&text, variables)?,
            root: root.to_owned(),
            directory: directory.to_owned(),
            ports: BTreeMap::new(),
            running: BTreeMap::new(),
            completed: BTreeSet::new(),
        })
    }

    /// A service's entry in the file.
    pub fn service(&self, name: &str) -> &Service {
        self.compose.services.get(name).unwrap_or_else(|| panic!("no service {name}"))
    }

    // --- Commands of `docker compose` ------------------------------------------------------------

    /// `up --wait`: starts all services without a profile, each once its dependencies meet their
    /// conditions.
    pub fn up(&mut self) {
        let services = &self.compose.services;
        let names: Vec<_> =
            services.iter().filter(|(_, service)| service.profiles.is_empty()).collect();
        let names: Vec<_> = names.into_iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            self.start(&name);
            let one_shot = services_waited_for(&self.compose, Condition::CompletedSuccessfully)
                .contains(&name);
            self.wait_for(
                &name,
                if one_shot { Condition::CompletedSuccessfully } else { Condition::Healthy },
            );
        }
    }

    /// `up --scale SERVICE=COUNT`. Scaling down stops the newest containers.
    pub fn scale(&mut self, service: &str, count: u32) {
        let gone: Vec<_> =
            self.names(service).into_iter().filter(|(_, number)| *number > count).collect();
        self.stop(&gone);
        for number in 1..=count {
            self.start_container(service, number);
        }
        self.wait_for(service, Condition::Healthy);
    }

    /// `run --rm SERVICE ARGUMENTS…`: runs an additional container to its end.
    pub fn run(&mut self, service: &str, arguments: &[String]) -> Output {
        self.start_dependencies(service);
        let (mut command, _) = self.command(&(service.to_owned(), 0), Some(arguments));
        command.output().unwrap_or_else(|error| panic!("{service}: {error}"))
    }

    /// `down`: stops all services, dependents first.
    pub fn down(&mut self) {
        while !self.running.is_empty() {
            let needed: BTreeSet<_> =
                self.running.keys().flat_map(|(service, _)| self.dependencies(service)).collect();
            let free = self.running.keys().filter(|(service, _)| !needed.contains(service));
            let free: Vec<_> = free.cloned().collect();
            assert!(!free.is_empty(), "services depend on each other: {needed:?}");
            self.stop(&free);
        }
        let left: Vec<_> =
            fs::read_dir(self.directory.join("empty")).expect("the working directory").collect();
        assert!(left.is_empty(), "a container has written to its working directory: {left:?}");
    }

    // --- Queries of tests ------------------------------------------------------------------------

    /// The containers of a service, by number.
    pub fn containers(&self, service: &str) -> impl Iterator<Item = (u32, &Container)> {
        let of_service = self.running.iter().filter(move |((name, _), _)| name == service);
        of_service.map(|((_, number), container)| (*number, container))
    }

    /// The address of a container's `port`.
    pub fn address(&mut self, service: &str, number: u32, port: u16) -> SocketAddr {
        let port = self.port(&(service.to_owned(), number), port);
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The directory that stands for a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.directory.join("volumes").join(name)
    }

    // --- Containers -----------------------------------------------------------------------------

    fn names(&self, service: &str) -> Vec<Name> {
        self.running.keys().filter(|(name, _)| name == service).cloned().collect()
    }

    fn dependencies(&self, service: &str) -> Vec<String> {
        self.service(service).depends_on.iter().map(|(name, _)| name.clone()).collect()
    }

    fn start_dependencies(&mut self, service: &str) {
        for (dependency, condition) in self.service(service).depends_on.clone() {
            self.start(&dependency);
            self.wait_for(&dependency, condition);
        }
    }

    /// Starts a service's dependencies and its containers, unless they are already running.
    fn start(&mut self, service: &str) {
        self.start_dependencies(service);
        if !self.completed.contains(service) {
            for number in 1..=self.service(service).replicas {
                self.start_container(service, number);
            }
        }
    }

    fn start_container(&mut self, service: &str, number: u32) {
        let name = (service.to_owned(), number);
        if !self.running.contains_key(&name) {
            let (command, env) = self.command(&name, None);
            let process = Process::start(
                &format!("{service}-{number}"),
                &self.directory.join("logs"),
                command,
            );
            self.running.insert(name, Container { process, env });
        }
    }

    fn wait_for(&mut self, service: &str, condition: Condition) {
        if condition == Condition::CompletedSuccessfully
            && self.completed.insert(service.to_owned())
        {
            for name in self.names(service) {
                let mut container = self.running.remove(&name).expect("the container");
                let status = container.process.wait(ONE_SHOT);
                assert!(
                    status.success(),
                    "{name:?} has ended with {status}:\n{}",
                    container.process.log()
                );
            }
        }
        if condition == Condition::Healthy {
            for name in self.names(service) {
                self.wait_for_health(&name);
            }
        }
    }

    /// Waits until the health check succeeds.
    fn wait_for_health(&mut self, name: &Name) {
        let Some(check) = self.service(&name.0).healthcheck.clone() else { return };
        let test = check.test.iter().map(|part| self.mapped(name, part)).collect::<Vec<_>>();
        let container = self.running.get_mut(name).expect("the container");
        let env = container.env.clone();
        let look = || is_healthy(&test, &env).then_some(());
        container.process.wait_until("the health check", check.deadline, look);
    }

    /// Asks all of them to stop, and waits for each no longer than its grace period.
    fn stop(&mut self, names: &[Name]) {
        let gone: Vec<_> =
            names.iter().filter_map(|name| Some((name, self.running.remove(name)?))).collect();
        gone.iter().for_each(|(_, container)| container.process.signal(Signal::SIGTERM));
        for (name, mut container) in gone {
            let service = self.service(&name.0);
            let status = container.process.wait(service.stop_grace_period);
            assert!(
                ended_well(service, status),
                "{name:?} has ended with {status}:\n{}",
                container.process.log()
            );
        }
    }

    // --- Commands -------------------------------------------------------------------------------

    /// The command of a container, with its environment.
    fn command(
        &mut self,
        name: &Name,
        arguments: Option<&[String]>,
    ) -> (Command, BTreeMap<String, String>) {
        let service = self.service(&name.0).clone();
        let image = service.dockerfile.as_ref().map_or_else(Image::default, |dockerfile| {
            let text = fs::read_to_string(self.root.join(dockerfile)).expect("a Dockerfile");
            Image::parse(&text).unwrap_or_else(|error| panic!("{dockerfile}: {error}"))
        });
        let mut env = image.env;
        env.insert("HOSTNAME".to_owned(), format!("{}-{}", name.0, name.1));
        for (path, required) in &service.env_files {
            match fs::read_to_string(self.root.join(path)) {
                Ok(text) => env.extend(variables(&text)),
                Err(error) => assert!(!required, "{path}: {error}"),
            }
        }

        env.extend(service.environment.clone());
        let env: BTreeMap<_, _> = env
            .into_iter()
            .map(|(key, value)| (key.clone(), self.value(name, &key, &value)))
            .collect();
        let mut command = match &service.image {
            Some(image) if service.dockerfile.is_none() => self.kafka(image, name, &env),
            _ => {
                let entrypoint = service.entrypoint.clone().unwrap_or(image.entrypoint);
                let rest = arguments
                    .map(<[String]>::to_vec)
                    .or(service.command.clone())
                    .unwrap_or(image.command);
                let mut command = Command::new(bins::bin(program(&entrypoint[0])));
                command
                    .args(entrypoint[1..].iter().chain(&rest).map(|part| self.mapped(name, part)));
                command
            }
        };

        command
            .env_clear()
            .envs(&env)
            .envs(image_path(&service))
            .current_dir(self.directory.join("empty"));
        if service.tmpfs.iter().any(|path| path == "/tmp") {
            command.env("TMPDIR", self.inside(name, "/tmp").expect("a directory for /tmp"));
        }

        (command, env)
    }

    /// The command of Kafka, set up as in the image.
    fn kafka(&self, image: &str, name: &Name, env: &BTreeMap<String, String>) -> Command {
        assert_eq!(
            image,
            format!("apache/kafka:{}", kafka::version()),
            "the harness's Kafka is another one"
        );
        let config = self.directory.join(format!("{}-{}", name.0, name.1));
        kafka::set_up_as_image(&config, env);
        let heap = env.get("KAFKA_HEAP_OPTS").map(String::as_str).unwrap_or_default();
        let mut command = kafka::java_with(heap, "kafka.Kafka", &[]);
        command.arg(config.join("server.properties"));
        command
    }

    fn value(&mut self, name: &Name, key: &str, value: &str) -> String {
        match key {
            "PORT" => self.port(name, value.parse().expect("PORT is a port")).to_string(),
            "MCP_HOST" if value == "0.0.0.0" => "127.0.0.1".to_owned(),
            _ => self.mapped(name, value),
        }
    }

    /// A value with its paths and addresses replaced by those of this machine.
    fn mapped(&mut self, name: &Name, value: &str) -> String {
        if let Some(path) = self.inside(name, value) {
            return path.display().to_string();
        }

        let known: BTreeSet<_> = self.compose.services.keys().cloned().collect();
        let own = ["", "localhost", "127.0.0.1", "0.0.0.0"];
        addresses(value, |host, port| {
            let whose = if known.contains(host) {
                assert!(
                    self.reaches(&name.0, host),
                    "{} can't reach {host}: no common network",
                    name.0
                );
                (host.to_owned(), 1)
            } else if own.contains(&host) {
                name.clone()
            } else {
                return None;
            };
            Some(format!("127.0.0.1:{}", self.port(&whose, port)))
        })
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let (from, to) = (&self.service(from).networks, &self.service(to).networks);
        (from.is_empty() && to.is_empty()) || !from.is_disjoint(to)
    }

    fn port(&mut self, name: &Name, port: u16) -> u16 {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("its number").port()
        };
        *self.ports.entry((name.clone(), port)).or_insert_with(free)
    }

    /// The path on this machine for a path inside a container, if it is on a volume or in memory.
    fn inside(&self, name: &Name, path: &str) -> Option<PathBuf> {
        let service = self.service(&name.0);
        let volumes = service.volumes.iter().map(|(source, target)| {
            let there = if source.starts_with(['.', '/']) {
                self.root.join(source)
            } else {
                self.directory.join("volumes").join(source)
            };
            (there, target)
        });

        let own = self.directory.join("volumes").join(format!("{}-{}", name.0, name.1));
        let tmpfs =
            service.tmpfs.iter().map(|target| (own.join(target.trim_start_matches('/')), target));
        let (there, rest) = volumes.chain(tmpfs).find_map(|(there, target)| {
            let rest = Path::new(path).strip_prefix(target).ok()?;
            Some((there, rest.to_owned()))
        })?;
        if !there.exists() {
            fs::create_dir_all(&there).expect("a directory for a volume");
        }

        let there = there.canonicalize().expect("the path of a volume");
        Some(if rest.as_os_str().is_empty() { there } else { there.join(rest) })
    }
}

fn services_waited_for(compose: &Compose, condition: Condition) -> BTreeSet<String> {
    let all = compose.services.values().flat_map(|service| &service.depends_on);
    all.filter(|(_, of)| *of == condition).map(|(name, _)| name.clone()).collect()
}

/// Whether a service has stopped in order. Our binaries exit with 0; a JVM exits with 128 plus the
/// number of the signal.
fn ended_well(service: &Service, status: ExitStatus) -> bool {
    status.success()
        || (service.dockerfile.is_none() && status.code() == Some(128 + Signal::SIGTERM as i32))
}

/// The `PATH` for Java: that of this process, in place of the image's.
fn image_path(service: &Service) -> Option<(&'static str, OsString)> {
    let is_ours = service.dockerfile.is_some();
    (!is_ours).then(|| ("PATH", env::var_os("PATH").unwrap_or_default()))
}

fn program(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Runs a health check.
fn is_healthy(test: &[String], env: &BTreeMap<String, String>) -> bool {
    match test {
        [kind, path, arguments @ ..] if kind == "CMD" => {
            let output = Command::new(bins::bin(program(path)))
                .args(arguments)
                .env_clear()
                .envs(env)
                .output();
            output.is_ok_and(|output| output.status.success())
        }
        // The script that the image uses is not among the harness's jars. It asks what every client
        // asks first.
        [kind, script]
            if kind == "CMD-SHELL" && script.contains("/kafka-broker-api-versions.sh ") =>
        {
            let after = script.split_once("--bootstrap-server ").expect("whom it asks").1;
            topics::nodes(after.split_whitespace().next().unwrap_or_default()).is_ok()
        }
        _ => panic!("this health check is not understood: {test:?}"),
    }
}

/// The lines of an env file.
fn variables(text: &str) -> BTreeMap<String, String> {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| {
            (name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned())
        })
        .collect()
}

/// Replaces every `host:port` in `text` for which `other` returns another one. The host may be
/// empty only after two slashes.
fn addresses(text: &str, mut other: impl FnMut(&str, u16) -> Option<String>) -> String {
    let (mut result, mut done) = (String::new(), 0);
    for (colon, _) in text.match_indices(':') {
        let digits = text[colon + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let end = colon + 1 + digits;
        let ends = text[end..].bytes().next().is_none_or(|byte| !byte.is_ascii_alphanumeric());
        let Some(port) = text[colon + 1..end].parse::<u16>().ok().filter(|_| ends) else {
            continue;
        };
        let before = &text[done..colon];
        let of_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
        let length = before.bytes().rev().take_while(of_host).count();
        let host = &before[before.len() - length..];
        if host.is_empty() && !before.ends_with("//") {
            continue;
        }
        if let Some(other) = other(host, port) {
            result.push_str(&before[..before.len() - length]);
            result.push_str(&other);
            done = end;
        }
    }

    result.push_str(&text[done..]);
    result
}

/// Splits a line as a shell does.
pub fn words(line: &str) -> Vec<String> {
    let script = format!("set -- {line}\nprintf '%s\\n' \"$@\"");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
    assert!(output.status.success(), "a shell does not understand {line:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_replaced() {
        let check = |text: &str, expected: &str| {
            let replaced = addresses(text, |host, port| match host {
                "" | "localhost" => Some(format!("own:{}", port + 1)),
                "kafka" => Some(format!("there:{}", port + 2)),
                _ => None,
            });
            assert_eq!(replaced, expected, "{text}");
        };

        check("kafka:9092", "there:9094");
        check("kafka:9092,kafka:9093", "there:9094,there:9095");
        check("PLAINTEXT://:9092,CONTROLLER://:9093", "PLAINTEXT://own:9093,CONTROLLER://own:9094");
        check("1@localhost:9093", "1@own:9094");
        check("http://kafka:80/path?at=10:30", "http://there:82/path?at=10:30");
        check("PLAINTEXT:PLAINTEXT,:80", "PLAINTEXT:PLAINTEXT,:80");
        check("my-kafka:1 kafka:99999 kafka:1a", "my-kafka:1 kafka:99999 kafka:1a");
    }

    #[test]
    fn lines_are_split_as_a_shell_does() {
        let expected = ["run", "--rm", "a", r#"{"path":"."}"#, "--wait"];
        assert_eq!(words(r#"run --rm a '{"path":"."}' --wait"#), expected);
    }

    #[test]
    fn env_files_are_read() {
        let read = variables("# none\nA=1\n B = \"two words\" \n\nC=x=y\n");
        let expected = [("A", "1"), ("B", "two words"), ("C", "x=y")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}
