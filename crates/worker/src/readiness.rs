//! Whether this worker is ready, and if not, why. Pure: whoever learns something says so here, and
//! one place tells the endpoint.
//!
//! Ready means that a job which is written now could be started here: Kafka is in reach, the group
//! has given this worker its partitions (or has none left for it), the MCP server takes calls, and
//! Kafka takes what the worker writes.

/// What keeps a worker from being ready, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// It is about to end.
    Draining,
    /// No broker is in reach.
    NoBroker,
    /// The group has not said yet which partitions are its.
    NoGroup,
    /// The MCP server is away, or refuses it.
    NoServer,
    /// Kafka does not take the ends of jobs.
    WritesFail,
    /// Partitions can't be read on.
    Unreadable,
}

/// All that keeps a worker from being ready now, each with a sentence for people.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    obstacles: std::collections::BTreeMap<Obstacle, String>,
}

impl Readiness {
    /// A worker that waits for its group.
    pub(crate) fn joining() -> Self {
        let mut readiness = Self::default();
        readiness.set(Obstacle::NoGroup, "waiting for the consumer group to assign partitions");
        readiness
    }

    /// This keeps the worker from being ready from now on. What was said of it first stands.
    pub(crate) fn set(&mut self, obstacle: Obstacle, why: impl Into<String>) {
        self.obstacles.entry(obstacle).or_insert_with(|| why.into());
    }

    /// This does not any more; `true` if it did.
    pub(crate) fn clear(&mut self, obstacle: Obstacle) -> bool {
        self.obstacles.remove(&obstacle).is_some()
    }

    /// Whether this keeps the worker from being ready.
    pub(crate) fn has(&self, obstacle: Obstacle) -> bool {
        self.obstacles.contains_key(&obstacle)
    }

    /// Why the worker is not ready; `None` if it is.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.obstacles.values().next().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_ready_when_nothing_keeps_it_from_being_so() {
        let mut readiness = Readiness::joining();
        assert!(readiness.reason().unwrap().contains("consumer group"));
        readiness.set(Obstacle::WritesFail, "writes");
        readiness.set(Obstacle::NoBroker, "broker");
        readiness.set(Obstacle::NoBroker, "again");
        assert_eq!(readiness.reason(), Some("broker"), "the most important, as it was first said");
        assert!(readiness.clear(Obstacle::NoBroker) && !readiness.clear(Obstacle::NoBroker));
        assert!(readiness.clear(Obstacle::NoGroup) && readiness.has(Obstacle::WritesFail));
        assert_eq!(readiness.reason(), Some("writes"));
        assert!(readiness.clear(Obstacle::WritesFail));
        assert_eq!(readiness.reason(), None);
    }
}
