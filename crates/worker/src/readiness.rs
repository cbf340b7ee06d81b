//! Whether this worker is ready, and if not, why not. Pure: several parts of the shell report
//! obstacles here, and one of them informs the endpoint.
//!
//! A worker is ready if it could start a job that is written now: Kafka can be reached, the jobs
//! topic exists, the group has assigned partitions (or has none left for this worker), the MCP
//! server accepts calls, and Kafka accepts what the worker writes.

/// What keeps a worker from being ready, most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// The worker is stopping.
    Draining,
    /// No broker can be reached.
    NoBroker,
    /// The jobs topic does not exist.
    NoTopic,
    /// The group has not assigned partitions yet.
    NoGroup,
    /// The MCP server is unavailable, or refuses the worker.
    NoServer,
    /// Kafka does not accept the ends of jobs.
    WritesFail,
    /// Partitions can't be read further.
    Unreadable,
}

/// Everything that keeps the worker from being ready now, each with a sentence for people.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    obstacles: std::collections::BTreeMap<Obstacle, String>,
}

impl Readiness {
    /// A worker that waits for its first assignment.
    pub(crate) fn joining() -> Self {
        let mut readiness = Self::default();
        readiness.set(Obstacle::NoGroup, "waiting for the consumer group to assign partitions");
        readiness
    }

    /// Adds an obstacle. If it is there already, its first reason stays.
    pub(crate) fn set(&mut self, obstacle: Obstacle, why: impl Into<String>) {
        self.obstacles.entry(obstacle).or_insert_with(|| why.into());
    }

    /// Removes an obstacle. Returns `true` if it was there.
    pub(crate) fn clear(&mut self, obstacle: Obstacle) -> bool {
        self.obstacles.remove(&obstacle).is_some()
    }

    /// Whether an obstacle is there.
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
        readiness.set(Obstacle::NoTopic, "topic");
        assert_eq!(readiness.reason(), Some("topic"), "the group has nothing to assign without it");
        assert!(readiness.clear(Obstacle::NoTopic));
        assert!(readiness.clear(Obstacle::NoGroup) && readiness.has(Obstacle::WritesFail));
        assert_eq!(readiness.reason(), Some("writes"));

        assert!(readiness.clear(Obstacle::WritesFail));
        assert_eq!(readiness.reason(), None);
    }
}
