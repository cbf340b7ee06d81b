//! Shows the facts about a fleet on one screen. Pure.

use super::{
    facts::{Facts, HostedState, KafkaFacts, ServerFacts},
    findings::describe_lag,
};
use crate::dlq::text::shorten;

/// The longest line of names.
const NAMES: usize = 120;

/// Formats the facts as lines of a word and what it is about.
pub(super) fn render_facts(facts: &Facts) -> String {
    let rows = kafka_rows(&facts.kafka).into_iter().chain(server_rows(&facts.server));
    let lines: Vec<_> = rows.map(|(name, text)| format!("{name:8}  {text}")).collect();
    lines.join("\n")
}

fn kafka_rows(kafka: &KafkaFacts) -> Vec<(&'static str, String)> {
    if kafka.problem.is_some() {
        return vec![("brokers", format!("{}  not reachable", kafka.brokers))];
    }

    let topics = kafka.topics.iter().filter(|topic| topic.partitions > 0);
    let topics: Vec<_> =
        topics.map(|topic| format!("{} ({})", topic.name, topic.partitions)).collect();
    let workers = match kafka.workers {
        0 => format!("none in group {}", kafka.group),
        count => format!("{count} in group {}", kafka.group),
    };
    vec![
        ("brokers", kafka.brokers.clone()),
        ("topics", shorten(&none_if_empty(topics.join(", ")), NAMES)),
        ("workers", workers),
        ("jobs", describe_lag(kafka)),
        ("letters", format!("{} dead letters", kafka.dead_letters)),
    ]
}

fn server_rows(server: &ServerFacts) -> Vec<(&'static str, String)> {
    if server.problem.is_some() {
        return vec![("server", format!("{}  not ready", server.url))];
    }

    let hosted = server.hosted.iter().map(|hosted| match hosted.state {
        HostedState::Works => hosted.name.clone(),
        HostedState::Starts => format!("{} (starting)", hosted.name),
        HostedState::Fails { .. } => format!("{} (fails)", hosted.name),
    });
    let tools = match &server.tools_problem {
        Some(_) => "unknown".to_owned(),
        None => format!("{} offered", server.tools),
    };
    vec![
        ("server", format!("{}  ready", server.url)),
        ("tools", tools),
        ("hosts", shorten(&none_if_empty(hosted.collect::<Vec<_>>().join(", ")), NAMES)),
    ]
}

fn none_if_empty(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::{super::findings::tests::healthy, *};

    #[test]
    fn everything_fits_on_a_screen() {
        let mut facts = healthy();
        let text = render_facts(&facts);
        for part in ["jobs (12), jobs.control (12)", "1 in group workers", "7 offered", "db"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.lines().count(), 8, "{text}");

        facts.kafka.problem = Some("away".to_owned());
        facts.server.problem = Some("away".to_owned());
        let text = render_facts(&facts);
        assert_eq!(text, "brokers   kafka:9092  not reachable\nserver    http://a:1  not ready");
    }
}
