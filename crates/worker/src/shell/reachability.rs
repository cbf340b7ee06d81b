//! Whether Kafka and the MCP server can be reached, and what that means for the worker's readiness.

use std::time::{Duration, Instant};

use fleet_engine::BreakerState;
use fleet_kafka::consumer::Reach;

use super::{JOBS, Shell, TOPICS};
use crate::readiness::Obstacle;

/// How long brokers may be out of reach before that is an outage and not just a reconnect.
const BROKER_PATIENCE: Duration = Duration::from_secs(4);
/// How long the group may take to agree on an assignment.
const GROUP_PATIENCE: Duration = Duration::from_secs(10);

/// Since when brokers and the group have been out of reach.
#[derive(Debug, Default)]
pub(super) struct Unreachable {
    broker: Option<Instant>,
    group: Option<Instant>,
}

impl Shell {
    /// Takes note when the MCP server accepts calls again.
    pub(super) fn track_breaker(&mut self) {
        if self.readiness.has(Obstacle::NoServer) && self.engine.breaker() == BreakerState::Closed {
            tracing::info!("the MCP server answers again");
            self.clear_obstacle(Obstacle::NoServer);
        }
    }

    /// Takes note of what librdkafka can reach.
    pub(super) fn track_reach(&mut self, topic: u16, reach: Reach) {
        // New jobs don't need this worker's share of the delayed topic.
        if topic != JOBS {
            return;
        }

        let now = Instant::now();
        let is_overdue = |since: &mut Option<Instant>, is_reached: bool, patience: Duration| {
            if is_reached {
                *since = None;
                return false;
            }
            now.duration_since(*since.get_or_insert(now)) >= patience
        };
        let no_broker = is_overdue(&mut self.unreachable.broker, reach.broker, BROKER_PATIENCE);
        let no_group = is_overdue(&mut self.unreachable.group, reach.group, GROUP_PATIENCE);

        if no_broker {
            self.set_obstacle(Obstacle::NoBroker, "no Kafka broker can be reached");
        } else if reach.broker {
            self.clear_obstacle(Obstacle::NoBroker);
        }

        if no_group {
            self.set_obstacle(
                Obstacle::NoGroup,
                "the consumer group has not agreed on an assignment",
            );
        } else if reach.group && reach.broker {
            self.clear_obstacle(Obstacle::NoGroup);
        }
    }

    /// Takes note of a topic that was deleted, or exists again.
    pub(super) fn track_topic(&mut self, number: u16, exists: bool) {
        let topic = TOPICS.get(usize::from(number)).copied().unwrap_or_default();
        if exists {
            tracing::info!(topic, "the topic exists again");
        } else {
            tracing::warn!(topic, "the topic does not exist any more; waiting until it does");
        }

        // New jobs don't need the delayed topic.
        match (number, exists) {
            (JOBS, true) => self.clear_obstacle(Obstacle::NoTopic),
            (JOBS, false) => {
                self.set_obstacle(Obstacle::NoTopic, "the jobs topic does not exist any more");
            }
            _ => {}
        }
    }

    pub(super) fn set_obstacle(&mut self, obstacle: Obstacle, why: impl Into<String>) {
        self.readiness.set(obstacle, why);
        self.publish_readiness();
    }

    pub(super) fn clear_obstacle(&mut self, obstacle: Obstacle) {
        if self.readiness.clear(obstacle) {
            self.publish_readiness();
        }
    }

    pub(super) fn publish_readiness(&self) {
        match self.readiness.reason() {
            None => self.health.set_ready(),
            Some(reason) => self.health.set_not_ready(reason),
        }
    }
}
