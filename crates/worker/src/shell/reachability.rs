//! Whether Kafka and the MCP server can be reached, as far as that decides whether the worker is ready.

use std::time::{Duration, Instant};

use fleet_engine::BreakerState;
use fleet_kafka::consumer::Reach;

use super::{JOBS, Shell};
use crate::readiness::Obstacle;

/// How long no broker may be in reach before that is taken for an outage, and not for a connection
/// that is made anew.
const BROKER_PATIENCE: Duration = Duration::from_secs(4);
/// How long the group may take to agree on who has which partition.
const GROUP_PATIENCE: Duration = Duration::from_secs(10);

/// Since when what Kafka should have in reach is not.
#[derive(Debug, Default)]
pub(super) struct Unreachable {
    broker: Option<Instant>,
    group: Option<Instant>,
}

impl Shell {
    /// The MCP server takes calls again.
    pub(super) fn track_breaker(&mut self) {
        if self.readiness.has(Obstacle::NoServer) && self.engine.breaker() == BreakerState::Closed {
            tracing::info!("the MCP server answers again");
            self.clear_obstacle(Obstacle::NoServer);
        }
    }

    /// What librdkafka says is in reach.
    pub(super) fn track_reach(&mut self, topic: u16, reach: Reach) {
        // Without its share of the delayed topic a worker does all that new jobs need.
        if topic != JOBS {
            return;
        }
        let now = Instant::now();
        let lasts = |since: &mut Option<Instant>, is_there: bool, patience: Duration| {
            if is_there {
                *since = None;
                return false;
            }
            now.duration_since(*since.get_or_insert(now)) >= patience
        };
        let no_broker = lasts(&mut self.unreachable.broker, reach.broker, BROKER_PATIENCE);
        let no_group = lasts(&mut self.unreachable.group, reach.group, GROUP_PATIENCE);
        if no_broker {
            self.set_obstacle(Obstacle::NoBroker, "no Kafka broker is in reach");
        } else if reach.broker {
            self.clear_obstacle(Obstacle::NoBroker);
        }
        if no_group {
            self.set_obstacle(
                Obstacle::NoGroup,
                "the consumer group has not agreed on who has which partition",
            );
        } else if reach.group && reach.broker {
            self.clear_obstacle(Obstacle::NoGroup);
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
