//! A real Prometheus with the project's own rules, and `promtool`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{bins, cache, http, node, process::Process, wait};

const START: Duration = Duration::from_secs(60);

/// The directory of rules, dashboards and their tests.
pub fn monitoring() -> PathBuf {
    bins::repository().join("monitoring")
}

/// Whether the programs are installed. If not, prints a warning, or panics if they are required.
pub fn available() -> bool {
    let there =
        ["prometheus", "promtool"].iter().all(|program| cache::works(program, &["--version"]));
    there || node::skip::<()>("prometheus and promtool (2.42 or newer)").is_some()
}

/// Runs `promtool` in the directory of the rules, expects success, and returns its output.
pub fn promtool(arguments: &[&str]) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(monitoring().join("prometheus"));
    let output = command.output().expect("promtool");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// The committed configuration with intervals of a second, and fixed targets in place of discovered
/// ones. Every job must have targets, and all targets must have a job.
pub fn with_targets(config: &str, targets: &BTreeMap<&str, Vec<SocketAddr>>) -> String {
    let mut made = String::new();
    let mut jobs = BTreeSet::new();
    let mut is_discovery = false;
    for line in config.lines() {
        let depth = line.len() - line.trim_start().len();
        let key = line.trim().split(' ').next().unwrap_or_default();
        is_discovery = key == "dns_sd_configs:" || is_discovery && depth > 4;
        match key {
            _ if is_discovery || key.is_empty() || key.starts_with('#') => {}
            // The servers of tests are on loopback, and need no key.
            "authorization:" => {}
            "scrape_interval:" | "scrape_timeout:" | "evaluation_interval:" => {
                made.push_str(&format!("{}{key} 1s\n", " ".repeat(depth)));
            }
            _ => made.push_str(&format!("{line}\n")),
        }
        if let Some(job) = line.trim().strip_prefix("- job_name: ") {
            let of_job = targets.get(job).unwrap_or_else(|| panic!("no targets for the job {job}"));
            let list: Vec<_> = of_job.iter().map(|address| format!("'{address}'")).collect();
            made.push_str(&format!(
                "    static_configs:\n      - targets: [{}]\n",
                list.join(", ")
            ));
            jobs.insert(job);
        }
    }

    assert_eq!(jobs, targets.keys().copied().collect(), "the jobs of the configuration");
    made
}

/// The rules with alerts that wait for only one second. Their windows stay the same.
pub fn hasty(rules: &str) -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        _ => format!("{line}\n"),
    };
    rules.lines().map(line).collect()
}

/// The Prometheus of a test.
#[derive(Debug)]
pub struct Prometheus {
    /// The process.
    pub process: Process,
    address: SocketAddr,
}

/// A series: its labels, and its newest value.
pub type Sample = (BTreeMap<String, String>, f64);

impl Prometheus {
    /// Starts a Prometheus that scrapes `targets` (by job) and evaluates the project's rules every
    /// second.
    pub fn start(directory: &Path, targets: &BTreeMap<&str, Vec<SocketAddr>>) -> Self {
        let directory = directory.join("prometheus");
        fs::create_dir_all(&directory).expect("a directory");
        let from = monitoring().join("prometheus");
        let read = |name: &str| {
            fs::read_to_string(from.join(name)).expect("a file of monitoring/prometheus")
        };
        let config = directory.join("prometheus.yml");
        fs::write(&config, with_targets(&read("prometheus.yml"), targets))
            .expect("the configuration");
        fs::write(directory.join("rules.yml"), hasty(&read("rules.yml"))).expect("the rules");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .current_dir(&directory);
        let mut process = Process::start("prometheus", &directory, command);
        let log = process.log_path().to_path_buf();
        let address = process.wait_until("its address", START, || {
            let log = fs::read_to_string(&log).ok()?;
            let line = log.lines().find(|line| line.contains("Listening on"))?;
            let (_, address) = line.split_once("address=")?;
            address.split_whitespace().next()?.parse().ok()
        });

        Self { process, address }
    }

    /// Queries the API; returns `data`, or the error.
    pub fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let path = format!("/api/v1/{path}?{}", parameters.join("&"));
        let (status, body) = http::get(self.address, &path).map_err(|error| error.to_string())?;
        let mut answer: Value =
            serde_json::from_str(&body).map_err(|error| format!("{status} {error}: {body}"))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(format!("{status} {}", answer["error"])),
        }
    }

    /// The result of an instant query.
    pub fn query(&self, query: &str) -> Result<Vec<Sample>, String> {
        let data = self.get("query", &[("query", query)])?;
        let result = data["result"].as_array().ok_or_else(|| data.to_string())?;
        let sample = |sample: &Value| {
            let value = sample["value"][1].as_str().and_then(|value| value.parse().ok());
            Some((labels(&sample["metric"]), value?))
        };
        result.iter().map(|one| sample(one).ok_or_else(|| one.to_string())).collect()
    }

    /// All series that were scraped or recorded.
    pub fn series(&self) -> Vec<BTreeMap<String, String>> {
        let data = self.get("series", &[("match[]", "{__name__=~\".+\"}")]).expect("all series");
        data.as_array().expect("a list").iter().map(labels).collect()
    }

    /// The rules of all groups.
    pub fn rules(&self) -> Vec<Value> {
        let data = self.get("rules", &[]).expect("the rules");
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        groups
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
            .collect()
    }

    /// The firing alerts, with their labels and annotations.
    pub fn firing(&self) -> Vec<(BTreeMap<String, String>, BTreeMap<String, String>)> {
        let data = self.get("alerts", &[]).expect("the alerts");
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| (labels(&alert["labels"]), labels(&alert["annotations"]))).collect()
    }

    /// Waits until an alert fires; returns all firing alerts of its name.
    pub fn fires(&self, alert: &str) -> Vec<(BTreeMap<String, String>, BTreeMap<String, String>)> {
        wait::poll_until_ok(&format!("{alert} to fire"), wait::LONG, || {
            let (mine, others): (Vec<_>, Vec<_>) =
                self.firing().into_iter().partition(|(labels, _)| labels["alertname"] == alert);
            if mine.is_empty() { Err(others) } else { Ok(mine) }
        })
    }
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let pairs = object.as_object().into_iter().flatten();
    pairs
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// Percent-encodes everything except letters and digits.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_targets_replace_discovery() {
        let config = "global:\n  scrape_interval: 15s\n\nrule_files:\n  - rules.yml\nscrape_configs:\n  - job_name: a\n    \
                      # why\n    dns_sd_configs:\n      - names: ['a']\n        port: 1\n    metrics_path: /metrics\n";
        let targets = BTreeMap::from([("a", vec!["127.0.0.1:7".parse().expect("an address")])]);
        assert_eq!(
            with_targets(config, &targets),
            "global:\n  scrape_interval: 1s\nrule_files:\n  - rules.yml\nscrape_configs:\n  - job_name: a\n    \
             static_configs:\n      - targets: ['127.0.0.1:7']\n    metrics_path: /metrics\n"
        );
    }

    #[test]
    fn only_the_time_of_alerts_is_shortened() {
        let rules = "- alert: A\n  expr: a[15m]\n  for: 15m\n  annotations:\n    description: waits for: 5m\n";
        assert_eq!(hasty(rules), rules.replace("  for: 15m", "  for: 1s"));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("a{b=\"ü\"}"), "a%7Bb%3D%22%C3%BC%22%7D");
    }
}
