//! `docker-compose.yml` without a container engine: the same processes with the same commands and
//! environment, in the same order (`fleet_tests::compose`), then the commands that its header
//! prints, under load.
//!
//! The work of the engine itself is not tested: building images, resolving names, and isolating
//! processes.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fleet_job::{event::JobState, topics::Topics};
use fleet_tests::{
    Oracle, bins,
    chaos::watch::Watch,
    compose::project::{Project, words},
    http, kafka, process, rest,
    topics::{self, Outgoing, Record},
    wait,
};
use serde_json::json;

/// The number of jobs per batch; the next batch follows once they are written.
const BATCH: usize = 50;
/// The most submitted jobs that have not ended.
const AHEAD: usize = 600;
const KEYS: usize = 100;
/// How long one read of the events waits for some.
const LOOK: Duration = Duration::from_millis(100);
/// The number of workers that remain while the load goes on.
const FEWER: u32 = 2;

#[test]
fn the_compose_file_works_as_printed() {
    if !kafka::available() {
        return;
    }
    let directory = bins::scratch("compose");
    process::remove_at_exit(&directory);
    let printed = commands();
    let begin = Instant::now();
    let mut project =
        Project::new(bins::repository(), &directory, &BTreeMap::new()).expect("docker-compose.yml");
    project.up();
    let came_up = begin.elapsed().as_secs_f64();
    assert_eq!(workers(&project), [1], "--scale is for more than one");
    the_server_answers_to_its_name(&mut project);
    every_service_has_its_own_key(&mut project);
    keys_stay_and_others_can_be_made(&mut project);

    let jobs = project.service("kafka-worker").environment["KAFKA_TOPIC"].clone();
    let brokers = project.address("kafka", 1, 9092).to_string();
    let load = Load::start(&brokers, &jobs);
    let scaled: u32 = printed.scaled("kafka-worker");
    project.scale("kafka-worker", scaled);
    assert_eq!(workers(&project), (1..=scaled).collect::<Vec<_>>());
    every_worker_has_jobs(&mut project);
    let submitted = printed.submits.len();
    for command in &printed.submits {
        let output = project.run("mcp-fleet", command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // The result is on standard output, and what became of the job on standard error.
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?} ended with {}:\n{said}{told}", output.status);
        assert!(told.contains("1 of 1 jobs succeeded"), "{told}");
    }

    the_workers_key_is_replaced(&mut project);
    every_worker_has_jobs(&mut project);

    // Each removed container has to exit with 0 within its grace period, or this fails.
    project.scale("kafka-worker", FEWER);
    assert_eq!(workers(&project), (1..=FEWER).collect::<Vec<_>>());
    every_worker_has_jobs(&mut project);
    let (written, mut watch) = load.stop();

    let on_topic = topics::read(&brokers, &jobs);
    assert_eq!(on_topic.len(), written.len() + submitted, "jobs on the topic");
    wait::poll_until_ok("the end of every job", wait::LONG, || {
        match on_topic.len() - watch.ended(LOOK) {
            0 => Ok(()),
            open => Err(format!("{open} are open")),
        }
    });
    let violations = violations(&mut project);
    assert_eq!(violations, vec![Some(0.0); FEWER as usize], "violations of invariants");

    // Kafka has to stay up for the checks afterwards.
    project.scale("kafka-worker", 0);
    let account = Oracle::new(&jobs, &on_topic).check(&brokers);
    assert_eq!(account.count(JobState::Succeeded), on_topic.len());

    let by: BTreeSet<_> =
        account.states.values().filter_map(|event| event.worker.clone()).collect();
    assert_eq!(by.len(), scaled as usize, "workers that have ended jobs: {by:?}");
    project.down();
    eprintln!(
        "up after {came_up:.0} s; {} jobs while there were 1, {scaled} and {FEWER} workers: every one ended once, every worker \
         within its grace period; {:.0} s in all",
        on_topic.len(),
        begin.elapsed().as_secs_f64()
    );
}

// --- Commands in the file -----------------------------------------------------------------------

/// The commands in the comments at the head of the file.
struct Commands {
    /// The arguments of each `run`, after the name of the service.
    submits: Vec<Vec<String>>,
    ups: Vec<Vec<String>>,
}

impl Commands {
    fn scaled(&self, service: &str) -> u32 {
        let scale = self.ups.iter().find_map(|up| {
            let count = up.iter().find_map(|word| word.strip_prefix(service)?.strip_prefix('='))?;
            count.parse().ok()
        });
        scale.expect("a printed command that scales the workers")
    }
}

fn commands() -> Commands {
    let text = fs::read_to_string(bins::repository().join("docker-compose.yml"))
        .expect("docker-compose.yml");
    let lines = text.lines().take_while(|line| line.starts_with('#'));
    let printed = lines
        .filter_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("docker compose "));
    let printed: Vec<_> = printed.map(words).collect();
    let (ups, runs): (Vec<_>, Vec<_>) = printed.into_iter().partition(|command| command[0] == "up");
    let submits = runs.iter().map(|command| {
        let service =
            command.iter().skip(1).position(|word| !word.starts_with('-')).expect("a service") + 1;
        assert_eq!(command[service], "mcp-fleet", "{command:?}");
        command[service + 1..].to_vec()
    });

    let submits: Vec<_> = submits.filter(|arguments: &Vec<_>| arguments[0] == "submit").collect();
    assert!(!submits.is_empty(), "no submit is printed");
    Commands { submits, ups }
}

// --- Checks -------------------------------------------------------------------------------------

fn workers(project: &Project) -> Vec<u32> {
    project.containers("kafka-worker").map(|(number, _)| number).collect()
}

/// The current values of a metric of all workers.
fn metrics(project: &mut Project, name: &str) -> Vec<Option<f64>> {
    let numbers = workers(project);
    let value = |number| http::metric(project.address("kafka-worker", number, 8081), name);
    numbers.into_iter().map(value).collect()
}

fn violations(project: &mut Project) -> Vec<Option<f64>> {
    metrics(project, "fleet_invariant_violations_total")
}

/// Waits until every worker has ended more jobs than it has now.
fn every_worker_has_jobs(project: &mut Project) {
    let settled = |project: &mut Project| metrics(project, "fleet_jobs_settled_total");
    let before = settled(project);
    wait::poll_until_ok("jobs of every worker", wait::LONG, || {
        let now = settled(project);
        let more = now
            .iter()
            .zip(&before)
            .all(|(now, before)| now.unwrap_or_default() > before.unwrap_or_default());
        if more { Ok(()) } else { Err(format!("{before:?}, {now:?}")) }
    });
}

/// Other services call the server by its service name, which is not a loopback name.
fn the_server_answers_to_its_name(project: &mut Project) {
    let address = project.address("mcp-server", 1, 8080);
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let key = bearer(&project.volume("operator-key").join("key"));
    let ask = |host, headers: &[_]| {
        http::post_as(address, host, "/message", headers, &request).expect("an answer").0
    };
    let headers = [("authorization", key.as_str())];
    assert_eq!(ask("mcp-server:8080", &headers), 200);
    assert_eq!(ask("elsewhere.example", &headers), 403, "a name that is not the server's");
    assert_eq!(ask("mcp-server:8080", &[]), 401, "somebody without a key");
}

/// The header with the key in a file.
fn bearer(path: &Path) -> String {
    let key = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    format!("Bearer {}", key.trim())
}

/// Each key may do what it is for, and only those who mount its volume have it.
fn every_service_has_its_own_key(project: &mut Project) {
    let address = project.address("mcp-server", 1, 8080);
    let status = |volume: &str, path| {
        let key = bearer(&project.volume(volume).join("key"));
        rest::request(address, "GET", path, &[("authorization", &key)], b"").status
    };
    for (volume, metrics) in [("worker-key", 403), ("operator-key", 200), ("metrics-key", 200)] {
        assert_eq!(status(volume, "/jobs"), 200, "{volume}");
        assert_eq!(status(volume, "/metrics"), metrics, "{volume}");
    }
    // Probes have no key.
    for path in ["/health", "/ready"] {
        wait::poll_until(path, wait::LONG, || {
            (rest::get(address, path).status == 200).then_some(())
        });
    }

    let who = [("kafka-worker", "worker"), ("mcp-fleet", "operator"), ("prometheus", "metrics")];
    for (service, own) in who {
        let volumes = &project.service(service).volumes;
        let keys: Vec<_> = volumes.iter().filter(|(name, _)| name.ends_with("-key")).collect();
        let expected = (format!("{own}-key"), format!("/etc/mcp-fleet/keys/{own}"));
        assert_eq!(keys, [&expected], "{service}");
    }
    let sources = |service: &str| -> Vec<_> {
        project.service(service).volumes.iter().map(|(source, _)| source.clone()).collect()
    };
    assert!(!sources("mcp-server").iter().any(|source| source.ends_with("-key")), "the server");
    for service in ["kafka-worker", "mcp-fleet", "prometheus"] {
        assert!(!sources(service).contains(&"access".to_owned()), "{service} has the pepper");
    }
}

/// Runs a command in a container of its own; returns its standard output.
fn run(project: &mut Project, service: &str, arguments: &[String]) -> String {
    let output = project.run(service, arguments);
    assert!(output.status.success(), "{service} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Workers read their key again, so replacing it disturbs none of them. Whatever they call with the
/// old one after its revocation is refused, and its jobs wait.
fn the_workers_key_is_replaced(project: &mut Project) {
    let file = project.volume("worker-key").join("key");
    let before = fs::read_to_string(&file).expect("a key");
    let create = "create worker-2 --subject worker --kind node --role fleet-worker \
                  --out /etc/mcp-fleet/keys/worker/key";
    let said = run(project, "keys", &words(create));
    let key = fs::read_to_string(&file).expect("a key");
    assert!(key.starts_with("mf_worker-2_") && key != before && !said.contains(&key), "{said}");
    run(project, "keys", &words("revoke worker"));

    let address = project.address("mcp-server", 1, 8080);
    let header = format!("Bearer {}", before.trim());
    wait::poll_until("the old key to be refused", wait::LONG, || {
        let old = [("authorization", header.as_str())];
        (rest::request(address, "GET", "/jobs", &old, b"").status == 401).then_some(())
    });
}

/// The next start leaves the keys as they are, and `docker compose run --rm -T keys` manages others.
fn keys_stay_and_others_can_be_made(project: &mut Project) {
    let files = [("access", "keys.toml"), ("access", "keys.toml.pepper")];
    let secrets = ["worker-key", "operator-key", "metrics-key"].map(|volume| (volume, "key"));
    let files: Vec<_> = files
        .iter()
        .chain(&secrets)
        .map(|(volume, name)| project.volume(volume).join(name))
        .collect();
    let read = || files.iter().map(|path| fs::read_to_string(path).expect("a file")).collect();
    let before: Vec<String> = read();
    let modes: Vec<_> = files
        .iter()
        .map(|path| fs::metadata(path).expect("a file").permissions().mode() & 0o777)
        .collect();
    assert_eq!(modes, [0o600, 0o600, 0o640, 0o640, 0o640]);

    let init = project.service("keys").command.clone().expect("a command");
    let said = run(project, "keys", &init);
    assert!(said.contains("key operator exists") && !said.contains("mf_"), "{said}");
    assert_eq!(read(), before, "a second start");

    let create = words("create alice --kind person --role fleet-operator");
    let key = run(project, "keys", &create);
    let header = format!("Bearer {}", key.trim());
    let address = project.address("mcp-server", 1, 8080);
    let ask = || rest::request(address, "GET", "/metrics", &[("authorization", &header)], b"");
    wait::poll_until("the new key to be accepted", wait::LONG, || {
        (ask().status == 200).then_some(())
    });
    let listed = run(project, "keys", &words("list"));
    for id in ["worker", "operator", "metrics", "alice"] {
        assert!(listed.contains(id), "{listed}");
    }
    run(project, "keys", &words("revoke alice"));
    wait::poll_until("the key to be refused", wait::LONG, || (ask().status == 401).then_some(()));

    let jobs = run(project, "mcp-fleet", &words("jobs list --json"));
    assert!(!jobs.contains("mf_"), "{jobs}");
}

// --- Load ---------------------------------------------------------------------------------------

/// A continuous load of jobs.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Record>, Watch)>,
}

impl Load {
    fn start(brokers: &str, jobs: &str) -> Self {
        let events = Topics::of(jobs).events;
        let mut watch = Watch::new(brokers, &events, topics::partitions(brokers, &events));
        let stop = Arc::new(AtomicBool::new(false));
        let (brokers, jobs, stopped) = (brokers.to_owned(), jobs.to_owned(), Arc::clone(&stop));
        let submit = move || {
            let mut written: Vec<Record> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if written.len() > watch.ended(LOOK) + AHEAD {
                    continue;
                }
                let record = |n: usize| {
                    let job = json!({"jobID": format!("load-{n}"), "jobType": "tool-call",
                        "payload": {"tool": "file_list", "arguments": {"path": "."}}});
                    Outgoing::value(job.to_string()).key(format!("{}", n % KEYS))
                };
                let next = written.len()..written.len() + BATCH;
                written.extend(topics::produce(&brokers, &jobs, next.map(record).collect()));
            }
            (written, watch)
        };

        Self { stop, thread: thread::spawn(submit) }
    }

    fn stop(self) -> (Vec<Record>, Watch) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load")
    }
}
