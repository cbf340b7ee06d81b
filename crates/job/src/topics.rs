//! The names of the topics that belong together, and what Kafka allows as a topic's name.

/// The topic that producers write to unless they are told otherwise.
pub const DEFAULT_JOBS_TOPIC: &str = "mcp-jobs";

/// The topic of hosted servers that replicas share, unless a fleet has another one.
pub const DEFAULT_REGISTRY_TOPIC: &str = "mcp-servers";

/// The topics of one fleet, all derived from the name of its jobs topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Envelopes, from producers.
    pub jobs: String,
    /// Job states, keyed by job id and compacted.
    pub events: String,
    /// Dead letters: what could not be decoded or failed for good.
    pub dlq: String,
    /// Jobs that have to wait too long to be held in memory. A fleet can do without.
    pub delayed: String,
    /// What workers are told about jobs, whoever has them: cancel. A fleet can do without.
    pub control: String,
    /// Which server submits a job that several could submit at the same moment. Only servers read
    /// and write it.
    pub claims: String,
}

impl Topics {
    /// The topics that go with the jobs topic `jobs`.
    pub fn of(jobs: impl Into<String>) -> Self {
        let jobs = jobs.into();
        let of = |what| format!("{jobs}.{what}");
        Self {
            events: of("events"),
            dlq: of("dlq"),
            delayed: of("delayed"),
            control: of("control"),
            claims: of("claims"),
            jobs,
        }
    }

    /// Whether `name` belongs to the fleet, to its registry or to Kafka itself, so that no job may
    /// have it as `replyTo`. The registry's default name is reserved too, since others of the fleet
    /// may use that although `registry` is another one.
    pub fn is_reserved(&self, registry: &str, name: &str) -> bool {
        self.contains(name)
            || name == registry
            || name == DEFAULT_REGISTRY_TOPIC
            || name.starts_with("__")
    }

    /// Whether `name` is one of the fleet's own topics: the jobs topic, or one whose name begins
    /// with that and a dot.
    pub fn contains(&self, name: &str) -> bool {
        name.strip_prefix(self.jobs.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl Default for Topics {
    fn default() -> Self {
        Self::of(DEFAULT_JOBS_TOPIC)
    }
}

/// Whether Kafka takes `name` as a topic's name: 1 to 249 of `a-z A-Z 0-9 . _ -`, and not `.` or
/// `..`.
pub fn is_valid_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Reads the name of a topic, as a flag takes it.
///
/// # Errors
/// What is wrong with the name, and what it may be.
pub fn parse_name(name: &str) -> Result<String, String> {
    if is_valid_name(name) {
        return Ok(name.to_owned());
    }
    Err("not a topic name that Kafka allows: 1 to 249 letters, digits, `.`, `_` and `-`, and neither `.` nor `..`".to_owned())
}

/// Reads the name of a jobs topic, from which the names of the fleet's other topics follow.
///
/// # Errors
/// As [`parse_name`], and if the names of the other topics would be too long.
pub fn parse_jobs_topic(name: &str) -> Result<String, String> {
    let name = parse_name(name)?;
    if !is_valid_name(&Topics::of(&*name).delayed) {
        return Err("too long: the names of the fleet's other topics, such as `….delayed`, may have 249 bytes".to_owned());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_kafka_does() {
        for good in ["mcp-jobs", "a", "A.b_c-9"] {
            assert_eq!(parse_jobs_topic(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", "bad/name", "bad name", "ü"] {
            assert!(parse_jobs_topic(bad).unwrap_err().contains("letters, digits"), "{bad}");
        }
        assert!(parse_name(&"a".repeat(249)).is_ok());
        assert!(parse_jobs_topic(&"a".repeat(249)).unwrap_err().contains("too long"));
    }

    #[test]
    fn names_follow_the_jobs_topic() {
        let topics = Topics::default();
        assert_eq!(topics.events, "mcp-jobs.events");
        assert_eq!(topics.dlq, "mcp-jobs.dlq");
        assert!(
            topics.contains("mcp-jobs.dlq")
                && topics.contains("mcp-jobs.delayed")
                && topics.contains("mcp-jobs.pool.berlin")
                && !topics.contains("mcp-jobs-of-others")
                && !topics.contains("replies")
        );
    }

    #[test]
    fn kafkas_rule_for_names() {
        for good in ["a", "mcp-jobs.events", "A_1"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(250)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
