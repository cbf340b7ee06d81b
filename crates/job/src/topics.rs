//! The names of a fleet's topics, and the names that Kafka allows.

/// The default topic for jobs.
pub const DEFAULT_JOBS_TOPIC: &str = "mcp-jobs";

/// The default topic of the registry, which replicas use to share hosted servers.
pub const DEFAULT_REGISTRY_TOPIC: &str = "mcp-servers";

/// The topics of one fleet, whose names are derived from the name of the jobs topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Envelopes, written by producers.
    pub jobs: String,
    /// Job events, keyed by job id and compacted.
    pub events: String,
    /// Dead letters: records that could not be decoded and jobs that failed for good.
    pub dlq: String,
    /// Jobs that have to wait too long to be held in memory. Optional.
    pub delayed: String,
    /// Requests that concern jobs wherever they are, such as cancellations. Optional.
    pub control: String,
    /// Pauses: jobs that must not start until people resume them. Compacted. Optional.
    pub pauses: String,
    /// Claims that decide which server submits a job when several try at the same moment. Only
    /// servers use this topic.
    pub claims: String,
    /// Audit records of servers: who did what, and what was refused. Optional.
    pub audit: String,
}

impl Topics {
    /// Returns the topics that belong to this jobs topic.
    pub fn of(jobs: impl Into<String>) -> Self {
        let jobs = jobs.into();
        let of = |what| format!("{jobs}.{what}");
        Self {
            events: of("events"),
            dlq: of("dlq"),
            delayed: of("delayed"),
            control: of("control"),
            pauses: of("pauses"),
            claims: of("claims"),
            audit: of("audit"),
            jobs,
        }
    }

    /// Returns whether the fleet, its registry or Kafka itself uses the topic `name`, so that no
    /// job may use it as `replyTo`. The default name of the registry is also reserved, since other
    /// servers of the fleet may use it even if `registry` differs.
    pub fn is_reserved(&self, registry: &str, name: &str) -> bool {
        let is_of = |registry: &str| name == registry || name == pins_topic(registry);
        self.contains(name)
            || is_of(registry)
            || is_of(DEFAULT_REGISTRY_TOPIC)
            || name.starts_with("__")
    }

    /// Returns whether `name` is one of the fleet's own topics: the jobs topic, or a topic whose
    /// name is that of the jobs topic followed by a dot.
    pub fn contains(&self, name: &str) -> bool {
        name.strip_prefix(self.jobs.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Returns the topic of the pins of hosted servers' tools, beside that of the registry.
pub fn pins_topic(registry: &str) -> String {
    format!("{registry}.pins")
}

impl Default for Topics {
    fn default() -> Self {
        Self::of(DEFAULT_JOBS_TOPIC)
    }
}

/// Returns whether Kafka accepts `name` as the name of a topic: 1 to 249 of `a-z A-Z 0-9 . _ -`,
/// but not `.` or `..`.
pub fn is_valid_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Parses the name of a topic for a flag.
///
/// # Errors
///
/// Returns what is wrong with the name.
pub fn parse_name(name: &str) -> Result<String, String> {
    if is_valid_name(name) {
        return Ok(name.to_owned());
    }
    Err("not a valid Kafka topic name; expected 1 to 249 letters, digits, `.`, `_` and `-`, but not `.` or `..`"
        .to_owned())
}

/// Parses the name of a jobs topic, from which the names of the fleet's other topics are derived.
///
/// # Errors
///
/// Returns the errors of [`parse_name`], and an error if a derived name would be too long.
pub fn parse_jobs_topic(name: &str) -> Result<String, String> {
    let name = parse_name(name)?;
    if !is_valid_name(&Topics::of(&*name).delayed) {
        return Err(
            "too long: derived names, such as `….delayed`, may have at most 249 characters"
                .to_owned(),
        );
    }

    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_are_refused_with_what_is_allowed() {
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
    fn derived_names_start_with_the_jobs_topic() {
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
    fn names_are_checked_by_kafkas_rules() {
        for good in ["a", "mcp-jobs.events", "A_1"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(250)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
