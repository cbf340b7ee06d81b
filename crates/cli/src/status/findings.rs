//! Decides what is wrong with a fleet, and what to do about it. Pure.

use std::time::Duration;

use fleet_codes as codes;
use serde::Serialize;

use super::facts::{Facts, HostedState, KafkaFacts, ServerFacts};
use crate::{dlq::text::format_age, result_view::for_terminal};

/// Something to know about the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) problem: String,
    pub(super) remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    /// Jobs or calls can't do what they should.
    Wrong,
    /// Worth a look.
    Note,
}

/// Returns what is wrong first, and then what is worth a look.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    findings.examine_kafka(&facts.kafka);
    findings.examine_server(&facts.server);
    findings.0.sort_by_key(|finding| finding.level);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn wrong(&mut self, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Wrong, problem.into(), remedy.into());
    }

    fn note(&mut self, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Note, problem.into(), remedy.into());
    }

    fn add(&mut self, level: Level, problem: String, remedy: String) {
        self.0.push(Finding { level, problem, remedy });
    }

    fn examine_kafka(&mut self, kafka: &KafkaFacts) {
        if let Some(problem) = &kafka.problem {
            return self.wrong(
                problem,
                "Start Kafka, or name its brokers with --brokers or KAFKA_BROKERS.",
            );
        }

        let missing = kafka.topics.iter().filter(|topic| topic.partitions == 0);
        let (needed, optional): (Vec<_>, Vec<_>) = missing.partition(|topic| topic.is_needed);
        for topic in needed {
            self.wrong(
                format!("topic {} does not exist [{}]", topic.name, codes::NO_TOPIC),
                "Create it: mcp-fleet topics create.",
            );
        }
        if let [first, ..] = optional.as_slice() {
            let names: Vec<_> = optional.iter().map(|topic| topic.name.as_str()).collect();
            self.note(
                format!("no topic {}", names.join(", ")),
                match first.name.ends_with(".audit") && names.len() == 1 {
                    true => "Servers without an audit log don't need it.",
                    false => "Create them: mcp-fleet topics create.",
                },
            );
        }

        self.examine_workers(kafka);
        if kafka.dead_letters > 0 {
            self.note(
                format!("{} dead letters", kafka.dead_letters),
                "See why: mcp-fleet dlq list. Replay them: mcp-fleet dlq replay --dry-run.",
            );
        }
    }

    fn examine_workers(&mut self, kafka: &KafkaFacts) {
        let Some(lag) = &kafka.lag else { return };
        let workers = kafka.workers;
        let start = "Start kafka-worker with the same KAFKA_BROKERS, KAFKA_TOPIC and \
                     MCP_CONSUMER_GROUP.";
        match (workers, lag.remaining) {
            (0, 0) => self.note(format!("no worker is in group {}", kafka.group), start),
            (0, remaining) => {
                let problem = format!("{remaining} jobs, and no worker in group {}", kafka.group);
                self.wrong(problem, start);
            }
            _ => {}
        }

        if kafka.is_rebalancing {
            self.note(
                format!("group {} is dividing its partitions", kafka.group),
                "Look again in a few seconds.",
            );
        }
        if lag.stalled > 0 {
            self.wrong(
                format!("{} partitions are paused: their jobs wait", lag.stalled),
                "See for what: mcp-fleet jobs list --state queued,retrying.",
            );
        }
        if kafka.unreadable_commits > 0 {
            self.wrong(
                format!("the commits of {} partitions are unreadable", kafka.unreadable_commits),
                "See them: mcp-fleet lag. Only workers of one version and one fleet may share a \
                 group.",
            );
        }

        let partitions = kafka.topics.first().map_or(0, |topic| topic.partitions);
        if workers > partitions && partitions > 0 {
            self.note(
                format!(
                    "{workers} workers share {partitions} partitions; the rest have nothing to do"
                ),
                format!("Grow the topic: mcp-fleet topics create --partitions {workers} --grow."),
            );
        }
    }

    fn examine_server(&mut self, server: &ServerFacts) {
        if let Some(problem) = &server.problem {
            return self
                .wrong(problem, "Start mcp-server, or name it with --server or MCP_SERVER_URL.");
        }
        if let Some(problem) = &server.jobs_problem {
            self.wrong(problem, "Without an answer about jobs, `mcp-fleet jobs` does not work.");
        }
        if let Some(problem) = &server.tools_problem {
            self.wrong(
                problem,
                "Without an answer about tools, jobs that call them may fail, too.",
            );
        }

        for pause in &server.pauses {
            let until = pause.until.map(|until| format!(" until {until}")).unwrap_or_default();
            let by = pause.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            self.note(
                for_terminal(&format!("paused{by}{until}: {} ({})", pause.scope, pause.reason)),
                for_terminal(&format!("Resume: mcp-fleet resume {}.", pause.id)),
            );
        }

        for hosted in &server.hosted {
            match &hosted.state {
                HostedState::Works => {}
                HostedState::Starts => self.note(
                    format!("hosted server {} is starting", hosted.name),
                    "Look again in a moment.",
                ),
                HostedState::Fails { problem, remedy } => {
                    self.wrong(format!("hosted server {}: {problem}", hosted.name), remedy);
                }
            }
        }
    }
}

/// Describes how far the workers have come.
pub(super) fn describe_lag(kafka: &KafkaFacts) -> String {
    let Some(lag) = &kafka.lag else { return "unknown".to_owned() };
    let age = lag.oldest_age_ms.map(|ms| format_age(Duration::from_millis(ms)));
    match lag.remaining {
        0 => "all jobs have ended".to_owned(),
        remaining => {
            let oldest = age.map(|age| format!(", the oldest is {age} old")).unwrap_or_default();
            format!("{remaining} jobs have not ended{oldest}")
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::facts::{HostedFacts, TopicFacts},
        *,
    };
    use fleet_lag::LagTotals;

    pub(in crate::status) fn healthy() -> Facts {
        let topic =
            |name: &str, is_needed| TopicFacts { name: name.to_owned(), partitions: 12, is_needed };
        Facts {
            kafka: KafkaFacts {
                brokers: "kafka:9092".to_owned(),
                topics: vec![topic("jobs", true), topic("jobs.control", false)],
                group: "workers".to_owned(),
                workers: 1,
                lag: Some(LagTotals::default()),
                ..KafkaFacts::default()
            },
            server: ServerFacts {
                url: "http://a:1".to_owned(),
                tools: 7,
                hosted: vec![HostedFacts { name: "db".to_owned(), state: HostedState::Works }],
                ..ServerFacts::default()
            },
        }
    }

    fn check(change: impl FnOnce(&mut Facts), expected: &[(Level, &str)]) {
        let mut facts = healthy();
        change(&mut facts);
        let found = examine(&facts);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (finding, (level, part)) in found.iter().zip(expected) {
            assert_eq!(finding.level, *level, "{found:#?}");
            let text = format!("{} {}", finding.problem, finding.remedy);
            assert!(text.contains(part), "{part}: {found:#?}");
        }
    }

    fn lag(facts: &mut Facts) -> &mut LagTotals {
        facts.kafka.lag.get_or_insert_default()
    }

    #[test]
    fn a_healthy_fleet_has_no_findings() {
        check(|_| {}, &[]);
        check(|facts| lag(facts).remaining = 5, &[]);
    }

    #[test]
    fn what_is_wrong_with_kafka() {
        use Level::{Note, Wrong};
        check(
            |facts| facts.kafka.problem = Some("no answer".to_owned()),
            &[(Wrong, "KAFKA_BROKERS")],
        );
        check(|facts| facts.kafka.topics[0].partitions = 0, &[(Wrong, "topics create")]);
        check(|facts| facts.kafka.topics[1].partitions = 0, &[(Note, "jobs.control")]);
        check(|facts| facts.kafka.dead_letters = 3, &[(Note, "3 dead letters")]);
        check(|facts| facts.kafka.is_rebalancing = true, &[(Note, "dividing")]);
        check(|facts| facts.kafka.unreadable_commits = 1, &[(Wrong, "unreadable")]);
        check(|facts| lag(facts).stalled = 2, &[(Wrong, "2 partitions are paused")]);
        check(|facts| facts.kafka.workers = 0, &[(Note, "kafka-worker")]);
        check(
            |facts| {
                facts.kafka.workers = 0;
                facts.kafka.dead_letters = 1;
                lag(facts).remaining = 4;
            },
            &[(Wrong, "4 jobs, and no worker"), (Note, "dead letters")],
        );
        check(|facts| facts.kafka.workers = 13, &[(Note, "--partitions 13 --grow")]);
    }

    #[test]
    fn what_is_wrong_with_the_server() {
        use Level::{Note, Wrong};
        let fails =
            HostedState::Fails { problem: "it broke".to_owned(), remedy: "mend it".to_owned() };
        check(
            |facts| facts.server.problem = Some("no mcp-server".to_owned()),
            &[(Wrong, "--server")],
        );
        check(|facts| facts.server.jobs_problem = Some("401".to_owned()), &[(Wrong, "401")]);
        check(|facts| facts.server.tools_problem = Some("403".to_owned()), &[(Wrong, "403")]);
        check(|facts| facts.server.hosted[0].state = fails, &[(Wrong, "db: it broke mend it")]);
        check(
            |facts| facts.server.hosted[0].state = HostedState::Starts,
            &[(Note, "db is starting")],
        );
    }

    #[test]
    fn lag_is_described() {
        let mut facts = healthy();
        assert_eq!(describe_lag(&facts.kafka), "all jobs have ended");
        let totals = lag(&mut facts);
        (totals.remaining, totals.oldest_age_ms) = (3, Some(61_000));
        assert_eq!(describe_lag(&facts.kafka), "3 jobs have not ended, the oldest is 1m 1s old");
        facts.kafka.lag = None;
        assert_eq!(describe_lag(&facts.kafka), "unknown");
    }
}
