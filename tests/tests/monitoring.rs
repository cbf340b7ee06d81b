//! Rules, dashboards and runbook are consistent, and a real Prometheus that scrapes a real fleet
//! finds everything that they refer to.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    process::Command,
};

use fleet_job::topics::Topics;
use fleet_tests::{
    Env, Fleet, bins, cache,
    dashboards::{self, Panel},
    fleet::{Gate, ServerOptions, now},
    http, is_set, loud,
    mcp::Mcp,
    prometheus::{self, Prometheus},
    promql::{self, Selector},
    topics::{self, Outgoing},
    wait,
};
use serde_json::{Value, json};

/// Made by Prometheus itself.
const SYNTHETIC: [&str; 2] = ["up", "ALERTS"];
/// Labels that only exist in Kubernetes.
const OF_KUBERNETES: [&str; 2] = ["namespace", "pod"];

/// Labels whose values come from elsewhere, or are not listed in a metric's description.
const OF_ANY_VALUE: [&str; 6] = [
    "instance",
    "invariant",
    "kind",
    "partition",
    "http_request_method",
    "http_response_status_code",
];

/// Metrics that appear only with failures or operations that don't occur here. docs/metrics.md,
/// which is generated from the code, shows that they exist with these labels and values.
const NOT_HERE: [(&str, &str); 8] = [
    ("fleet_tls_reloads_total", "there are no TLS files"),
    ("fleet_write_failures_total", "Kafka takes everything"),
    ("mcp_server_access_reloads_total", "there are no files about access"),
    ("mcp_server_audit_gaps_total", "callers are not told apart, so nothing is recorded"),
    ("mcp_server_hosted_breaker_changes_total", "the hosted server answers every call"),
    ("mcp_server_hosted_calls_turned_away_total", "there is room for every call"),
    ("mcp_server_ledger_database_errors_total", "the ledger is not in PostgreSQL"),
    ("mcp_server_policy_reloads_total", "there is no policy file"),
];

/// The number of slow jobs per batch.
const SLOW: usize = 2_000;

fn read(path: &str) -> String {
    fs::read_to_string(bins::repository().join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn promtool_accepts_configuration_rules_and_their_tests() {
    if !prometheus::available() {
        return;
    }
    prometheus::promtool(&["check", "rules", "rules.yml"]);
    // The file of the key is in the container only.
    prometheus::promtool(&["check", "config", "--syntax-only", "prometheus.yml"]);
    let files: Vec<_> = rule_tests().into_iter().map(|(path, _)| path).collect();
    let arguments: Vec<&str> =
        ["test", "rules"].into_iter().chain(files.iter().map(String::as_str)).collect();
    assert_eq!(prometheus::promtool(&arguments).matches("SUCCESS").count(), files.len());
}

/// The tests of rules: path below monitoring/prometheus, and text.
fn rule_tests() -> Vec<(String, String)> {
    let directory = prometheus::monitoring().join("prometheus/tests");
    let files = fs::read_dir(directory).expect("the tests of the rules");
    let mut names: Vec<_> = files.map(|file| file.expect("a file").file_name()).collect();
    names.sort();
    let path = |name: std::ffi::OsString| format!("tests/{}", name.to_string_lossy());
    names
        .into_iter()
        .map(path)
        .map(|path| (path.clone(), read(&format!("monitoring/prometheus/{path}"))))
        .collect()
}

/// The alerts, by name, each with its lines.
fn alerts() -> BTreeMap<String, String> {
    let rules = read("monitoring/prometheus/rules.yml");
    let blocks = rules.split("- alert: ").skip(1);
    let alerts = blocks.map(|block| {
        let (name, rest) = block.split_once('\n').expect("the lines of an alert");
        (name.to_owned(), rest.to_owned())
    });
    alerts.collect()
}

#[test]
fn every_alert_is_described_and_tested_firing_and_silent() {
    let tests: String = rule_tests().into_iter().map(|(_, text)| text).collect();
    let alerts = alerts();
    assert!(alerts.len() > 20, "{alerts:?}");
    for (alert, lines) in alerts {
        let severities = ["critical", "warning", "info"];
        assert!(
            severities.iter().any(|name| lines.contains(&format!("severity: {name}\n"))),
            "{alert}: severity"
        );
        for needed in ["expr: ", "summary: ", "description: "] {
            assert!(lines.contains(needed), "{alert} has no {needed}");
        }
        let url = format!("runbook_url: docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(lines.contains(&url), "{alert}: {url}");
        let check = format!("alertname: {alert}\n");
        let checks = tests.split(&check).skip(1);
        let (quiet, fires): (Vec<_>, Vec<_>) =
            checks.partition(|check| check.trim_start().starts_with("exp_alerts: []"));
        assert!(
            !quiet.is_empty() && !fires.is_empty(),
            "{alert}: {} quiet, {} fire",
            quiet.len(),
            fires.len()
        );
    }
}

#[test]
fn the_runbook_has_exactly_one_section_for_each_alert() {
    let runbook = read("docs/runbook.md");
    let sections: BTreeMap<&str, &str> =
        runbook.split("\n### ").skip(1).filter_map(|s| s.split_once('\n')).collect();
    let alerts: BTreeSet<_> = alerts().into_keys().collect();
    assert_eq!(sections.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), alerts);

    for (name, text) in sections {
        for part in
            ["**Meaning:**", "**Impact:**", "**Diagnosis:**", "**Remedy:**", "**Safe to ignore**"]
        {
            assert!(text.contains(part), "{name} has no {part}");
        }
    }

    let anchors: BTreeSet<_> = alerts.iter().map(|name| name.to_lowercase()).collect();
    for (file, dashboard) in dashboards::all() {
        for panel in dashboards::panels(&file, &dashboard) {
            for link in panel.json["links"].as_array().into_iter().flatten() {
                let anchor = link["url"].as_str().and_then(|url| url.strip_prefix("${runbook}#"));
                assert!(
                    anchor.is_some_and(|anchor| anchors.contains(anchor)),
                    "{}: {link}",
                    panel.name
                );
            }
        }
    }
}

/// `UPDATE_DOCS=1` writes the file.
#[test]
fn kubernetes_gets_the_same_rules() {
    const HEAD: &str = "\
# The groups of monitoring/prometheus/rules.yml for the Prometheus operator; the comments are in that file.
# Written by UPDATE_DOCS=1 cargo test -p fleet-tests --test it monitoring; a test fails when the two differ.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mcp-fleet
  labels:
    app.kubernetes.io/part-of: mcp-fleet
spec:
";
    let rules = read("monitoring/prometheus/rules.yml");
    let (_, groups) = rules.split_once("\ngroups:\n").expect("groups");
    let lines = groups.lines().filter(|line| !line.trim_start().starts_with('#'));
    let indented =
        lines.map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    let expected = format!("{HEAD}  groups:\n{}", indented.collect::<String>());
    let path = "k8s/components/monitoring/prometheus-rule.yaml";
    if is_set("UPDATE_DOCS") {
        let path = bins::repository().join(path);
        fs::create_dir_all(path.parent().expect("its directory")).expect("its directory");
        fs::write(path, &expected).expect("the file");
    }

    assert!(
        read(path) == expected,
        "{path} differs from rules.yml: run UPDATE_DOCS=1 cargo test -p fleet-tests --test it monitoring"
    );
}

#[test]
fn dashboards_equal_the_output_of_their_script() {
    if !cache::works("python3", &["--version"]) {
        assert!(
            !is_set("FLEET_REQUIRE_TOOLS"),
            "FLEET_REQUIRE_TOOLS is set, but there is no python3"
        );
        return loud("python3 not found: whether the dashboards are up to date is NOT TESTED");
    }
    let script = prometheus::monitoring().join("grafana/dashboards.py");
    cache::run(Command::new("python3").arg(script).arg("--check"));
}

#[test]
fn every_panel_has_a_unit_and_a_description() {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards::all() {
        assert!(uids.insert(dashboard["uid"].to_string()), "{file}: the uid is taken");
        let mut ids = BTreeSet::new();
        for panel in dashboards::panels(&file, &dashboard) {
            let (name, json) = (&panel.name, &panel.json);
            assert!(ids.insert(json["id"].to_string()), "{name}: the id is taken");
            assert!(json["fieldConfig"]["defaults"]["unit"].is_string(), "{name} has no unit");
            assert!(
                json["description"].as_str().is_some_and(|text| text.len() > 20),
                "{name} has no description"
            );
            assert_eq!(json["datasource"]["uid"], "${datasource}", "{name}");
            assert!(!panel.queries.is_empty(), "{name} asks for nothing");
        }
        assert!(ids.len() > 15, "{file}: {ids:?}");
    }

    assert_eq!(uids.len(), 3);
}

/// The fleet while Prometheus scrapes it: jobs with every kind of end, and jobs that run until the
/// gate is open.
fn busy<'e>(env: &'e Env) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, "monitoring", 4);
    fleet.create_control_topic();
    topics::create(&env.brokers, &[(&Topics::of(&*fleet.topic).delayed, 6)]);
    fleet.server_env = fleet.with_jobs(ServerOptions::default()).env;
    fleet.server_env.push(("MCP_LEGACY_SESSIONS".to_owned(), "true".to_owned()));
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, true);
    fleet.worker_env("MCP_MAX_PARK", "1s");
    fleet.worker_env("MCP_CALL_TIMEOUT", "120s");
    fleet.start_worker();
    fleet.start_worker();
    fleet
}

fn work(id: &str, arguments: &Value) -> Value {
    json!({"jobID": id, "jobType": "tool-call", "payload": {"server": "chaos", "tool": "work", "arguments": arguments}})
}

/// Jobs that run long enough for a worker to join meanwhile.
fn slow(batch: usize) -> Vec<Outgoing> {
    let job = |n| work(&format!("slow {batch} {n}"), &json!({"ms": 100}));
    (0..SLOW).map(|n| Outgoing::value(job(n).to_string())).collect()
}

/// Submits all jobs, and returns once all but the held ones have ended.
fn all_ends(fleet: &mut Fleet<'_>) -> Gate {
    let in_a_while = now().plus(std::time::Duration::from_secs(3)).to_string();
    let until = fleet.directory.join("never");
    let mut twice = work("dies of its attempts", &json!({"failures": 100}));
    twice["maxAttempts"] = json!(2);
    let mut late = work("comes too late", &json!({}));
    late["deadline"] = json!("2026-01-01T00:00:00Z");
    let mut later = work("waits on the delayed topic", &json!({}));
    later["notBefore"] = json!(in_a_while);
    let calls: Vec<_> = (0..3)
        .map(|n| json!({"server": "chaos", "tool": "work", "arguments": {"ms": n}}))
        .collect();
    let batch = json!({"jobID": "batch", "jobType": "tool-batch", "payload": {"calls": calls}});
    let jobs = [
        work("succeeds", &json!({"ms": 5})),
        work("succeeds at the second time", &json!({"failures": 1})),
        twice,
        work("is given up at once", &json!({"final": true})),
        late,
        later,
        batch,
        work("is cancelled", &json!({"until": until})),
    ];
    fleet.submit(jobs.iter().map(|job| Outgoing::value(job.to_string())).collect());
    fleet.submit(vec![Outgoing::value("this is not a job")]);
    wait::poll_until("the job to be under way that is to be cancelled", wait::LONG, || {
        fleet
            .workers
            .iter()
            .any(|worker| http::metric(worker.address, "fleet_jobs_in_flight") >= Some(1.0))
            .then_some(())
    });
    fleet.cancel("is cancelled", None);
    fleet.wait_for_all();
    let client = Mcp::new(fleet.server.as_ref().expect("the server").address);
    let job = json!({"server": "chaos", "tool": "work", "arguments": {"ms": 1}});
    let submitted = client.call("job_submit", &json!({"jobs": [job]}));
    let id = &submitted["jobs"][0]["jobID"];
    wait::poll_until("the end of the job that was submitted over MCP", wait::LONG, || {
        let job = client.call("job_wait", &json!({"jobID": id, "timeoutMs": 5_000}));
        (job["state"] == "succeeded").then_some(())
    });
    fleet.submit_held(4)
}

/// Opens a session, as clients of older protocol revisions do.
fn open_a_session(server: SocketAddr) {
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"}});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
    let (status, answer) = http::post(server, "/mcp", &request).expect("an answer");
    assert_eq!(status, 200, "{answer}");
}

/// The metrics in docs/metrics.md: their labels and descriptions.
fn documented() -> BTreeMap<String, (Vec<String>, String)> {
    let path = bins::repository().join("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap_or_default();
    let row = |line: &str| {
        let cells: Vec<_> = line.split(" | ").collect();
        let name = cells.first()?.strip_prefix("| `")?.strip_suffix('`')?;
        let labels = cells
            .get(3)?
            .split(", ")
            .map(|label| label.trim_matches(['`', ' ']).to_owned())
            .collect();
        Some((name.to_owned(), (labels, (*cells.get(4)?).to_owned())))
    };

    text.lines().filter_map(row).collect()
}

/// A selector, and where it occurs.
type UsedSelector = (String, Selector);
/// The place of a grouping, its label, and the metrics of the query.
type Grouping = (String, String, Vec<String>);

/// All selectors in rules, dashboards and tests of rules; and all labels of groupings, with the
/// metrics of their queries.
fn references(rules: &[Value], panels: &[Panel]) -> (Vec<UsedSelector>, Vec<Grouping>) {
    let mut queries: Vec<(String, String)> = Vec::new();
    for rule in rules {
        queries
            .push((rule["name"].to_string(), rule["query"].as_str().expect("a query").to_owned()));
    }
    for panel in panels {
        queries.extend(panel.queries.iter().map(|query| (panel.name.clone(), query.clone())));
    }
    for (path, text) in rule_tests() {
        let series = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- series: '")?.strip_suffix('\''));
        queries.extend(series.map(|series| (path.clone(), series.to_owned())));
    }

    for (file, dashboard) in dashboards::all() {
        queries.extend(
            dashboards::annotations(&dashboard).into_iter().map(|query| (file.clone(), query)),
        );
        for (query, label) in dashboards::variables(&dashboard) {
            queries.push((file.clone(), format!("sum by ({label}) ({query})")));
        }
    }

    let (mut selectors, mut groupings) = (Vec::new(), Vec::new());
    for (place, query) in queries {
        let uses = promql::uses(&query).unwrap_or_else(|error| panic!("{place}: {error}"));
        let metrics: Vec<_> =
            uses.selectors.iter().map(|selector| selector.metric.clone()).collect();
        groupings
            .extend(uses.grouping.into_iter().map(|label| (place.clone(), label, metrics.clone())));
        selectors.extend(uses.selectors.into_iter().map(|selector| (place.clone(), selector)));
    }

    (selectors, groupings)
}

/// The references to metrics, labels and values that don't exist.
fn missing(prometheus: &Prometheus, rules: &[Value], panels: &[Panel]) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for mut series in prometheus.series() {
        let of_metric = seen.entry(series.remove("__name__").expect("a name")).or_default();
        for (label, value) in series {
            of_metric.entry(label).or_default().insert(value);
        }
    }
    let documented = documented();
    let in_documents = |metric: &str| {
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
        documented.get(metric).or_else(|| documented.get(base?))
    };
    let known = |metric: &str| {
        let elsewhere =
            NOT_HERE.iter().any(|(name, _)| *name == metric) && in_documents(metric).is_some();
        elsewhere || SYNTHETIC.contains(&metric) || seen.contains_key(metric)
    };
    let has_label = |metric: &str, label: &str| {
        OF_KUBERNETES.contains(&label)
            || ["job", "instance"].contains(&label)
            || metric == "ALERTS"
            || seen.get(metric).is_some_and(|labels| labels.contains_key(label))
            || in_documents(metric)
                .is_some_and(|(labels, _)| labels.iter().any(|name| name == label))
    };
    let has_value = |metric: &str, label: &str, value: &str| {
        OF_KUBERNETES.contains(&label)
            || OF_ANY_VALUE.contains(&label)
            || label == "job" && ["mcp-server", "kafka-worker"].contains(&value)
            || metric == "ALERTS"
            || seen
                .get(metric)
                .and_then(|labels| labels.get(label))
                .is_some_and(|values| values.contains(value))
            || in_documents(metric).is_some_and(|(_, help)| {
                help.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_')
                    .any(|word| word == value)
            })
    };
    let (selectors, groupings) = references(rules, panels);
    assert!(selectors.len() > 150, "{} selectors", selectors.len());

    let mut missing = BTreeSet::new();
    for (place, Selector { metric, matchers }) in selectors {
        if !known(&metric) {
            missing.insert(format!("metric {metric} ({place})"));
            continue;
        }
        for (label, operator, value) in matchers {
            if !has_label(&metric, &label) {
                missing.insert(format!("label {metric}{{{label}}} ({place})"));
            }
            // Patterns are checked if they are lists.
            let is_list = value.chars().all(|c| c.is_alphanumeric() || "_-|/".contains(c));
            for value in value.split('|').filter(|value| is_list && !value.is_empty()) {
                if !has_value(&metric, &label, value) {
                    missing
                        .insert(format!("value {metric}{{{label}{operator}{value:?}}} ({place})"));
                }
            }
        }
    }
    for (place, label, metrics) in groupings {
        if label != "le" && !metrics.iter().any(|metric| has_label(metric, &label)) {
            missing.insert(format!("label {label} of {metrics:?} ({place})"));
        }
    }
    missing
}

#[test]
fn a_real_prometheus_finds_all_references_of_rules_and_dashboards() {
    if !prometheus::available() {
        return;
    }
    let Some(env) = Env::apache_kafka() else { return };
    let mut fleet = busy(env);
    let server = fleet.server.as_ref().expect("the server").address;
    let workers: Vec<_> = fleet.workers.iter().map(|worker| worker.address).collect();
    let targets = BTreeMap::from([("mcp-server", vec![server]), ("kafka-worker", workers)]);
    let prometheus = Prometheus::start(&fleet.directory, &targets);
    let gate = all_ends(&mut fleet);
    open_a_session(server);

    wait::poll_until_ok("all targets to be up", wait::LONG, || {
        let up = prometheus.query("up == 1")?;
        if up.len() == 3 { Ok(()) } else { Err(format!("{up:?}")) }
    });
    let rules = wait::poll_until_ok("every rule to be evaluated", wait::LONG, || {
        let rules = prometheus.rules();
        let bad: Vec<_> = rules.iter().filter(|rule| rule["health"] != "ok").cloned().collect();
        if bad.is_empty() { Ok(rules) } else { Err(bad) }
    });
    let named: BTreeSet<_> = rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
    assert!(alerts().keys().all(|alert| named.contains(&**alert)), "{named:?}");

    let panels: Vec<Panel> = dashboards::all()
        .iter()
        .flat_map(|(file, dashboard)| dashboards::panels(file, dashboard))
        .collect();
    wait::poll_until_ok("everything that is spoken of", wait::LONG, || {
        let missing = missing(&prometheus, &rules, &panels);
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    });

    // The rate of settled jobs is above zero while jobs are being settled.
    let mut ticks = 0;
    wait::poll_until_ok("data for every panel", wait::LONG, || {
        ticks += 1;
        fleet.submit_job(&work(&format!("tick {ticks}"), &json!({})));
        let empty: BTreeSet<_> =
            panels.iter().filter_map(|panel| without_data(&prometheus, panel)).collect();
        if empty.is_empty() { Ok(()) } else { Err(empty) }
    });

    // The counters appear with the first dead letter.
    let arrived = prometheus.fires("FleetDeadLettersArrive");
    let texts: BTreeSet<_> =
        arrived.iter().map(|(_, annotations)| &*annotations["description"]).collect();
    let expected = [("2", "tool"), ("1", "undecodable")].map(|(count, kind)| {
        format!("{count} dead letters of kind {kind} were written in the last 15 minutes.")
    });
    assert_eq!(texts, expected.iter().map(String::as_str).collect());

    // The third one fires because it has no delay here, and the workers have just joined.
    let expected = ["FleetDeadLettersArrive", "FleetDeadLettersWait", "FleetRebalanceStorm"];
    let firing: BTreeSet<_> =
        prometheus.firing().into_iter().map(|(labels, _)| labels["alertname"].clone()).collect();
    assert!(firing.iter().all(|alert| expected.contains(&&**alert)), "{firing:?}");

    // Partitions move while they have lag, and their earlier owner doesn't report it forever.
    gate.open();
    fleet.submit(slow(0));
    fleet.start_worker();
    let lag = |query: &str| {
        let samples = prometheus.query(query)?;
        samples.first().map(|sample| sample.1).ok_or_else(|| "no sample".to_owned())
    };
    let mut batches = 1;
    wait::poll_until_ok("lag, at some time", wait::LONG, || {
        // Keep the lag until Prometheus has seen it.
        if fleet.uncommitted() < SLOW / 2 {
            fleet.submit(slow(batches));
            batches += 1;
        }
        let most = lag("max_over_time(namespace:fleet_consumer_lag:sum[10m])");
        most.and_then(|lag| if lag > 100.0 { Ok(()) } else { Err(lag.to_string()) })
    });
    fleet.wait_for_all();
    wait::poll_until_ok("the lag to be worked off", wait::LONG, || {
        let now = lag("namespace:fleet_consumer_lag:sum");
        now.and_then(|lag| if lag == 0.0 { Ok(()) } else { Err(lag.to_string()) })
    });
    for worker in &mut fleet.workers {
        worker.process.kill();
    }
    prometheus.fires("FleetNoWorker");
    prometheus.fires("FleetTargetDown");
}

/// The first job of every partition is running, so there is nothing to commit.
#[test]
fn lag_counts_jobs_of_partitions_without_a_commit() {
    let Some(env) = Env::apache_kafka() else { return };
    let mut fleet = Fleet::new(env, "lag", 4);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, true);
    let gate = fleet.submit_held(6);
    fleet.start_worker();
    let worker = fleet.workers[0].address;
    wait::poll_until_ok("lag", wait::LONG, || match http::metric(worker, "fleet_consumer_lag") {
        Some(6.0) => Ok(()),
        other => Err(other),
    });
    gate.open();
    fleet.wait_for_all();
}

/// A panel that fails or shows nothing, unless it shows something that doesn't occur here.
fn without_data(prometheus: &Prometheus, panel: &Panel) -> Option<String> {
    let answers: Result<Vec<_>, _> =
        panel.queries.iter().map(|query| prometheus.query(query)).collect();
    match answers {
        Err(error) => panic!("{}: {error}", panel.name),
        Ok(answers) if answers.iter().any(Vec::is_empty) => {
            let uses = panel.queries.iter().filter_map(|query| promql::uses(query).ok());
            let mut metrics = uses.flat_map(|uses| uses.selectors).map(|selector| selector.metric);
            let is_expected =
                metrics.any(|metric| NOT_HERE.iter().any(|(name, _)| *name == metric));
            (!is_expected).then(|| format!("{}: {:?}", panel.name, panel.queries))
        }
        Ok(_) => None,
    }
}
