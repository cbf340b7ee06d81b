//! A state machine of what KEDA and the Horizontal Pod Autoscaler would do: metrics and the time go
//! in, a number of replicas comes out.
//!
//! Two controllers change the same number. KEDA's scale loop asks the triggers every
//! `pollingInterval` and decides between none and some: 0 → 1 when a trigger is active, and back to
//! 0 when none has been for `cooldownPeriod`. The HPA, which KEDA makes, asks them every 15 seconds
//! ([`SYNC`]) and decides how many, from 1 on; see [`hpa`]. Each asking is an observation of its
//! own, and a trigger that leaves out persistent lag remembers the offsets of the one before: with
//! both controllers asking, two observations can be so close together that nothing was committed in
//! between. `useCachedMetrics` has the HPA take what the scale loop has seen; and where KEDA has
//! nothing to decide, because there is always a replica, its loop takes what the HPA has seen.
//!
//! Modelled on KEDA 2.21 and Kubernetes 1.34. A setting that is not modelled is refused
//! ([`settings`]), so that nobody takes the answer for that of another controller. Nothing here
//! reads a clock or asks a broker; that is for the test.

pub mod hpa;
pub mod live;
pub mod query;
pub mod settings;
pub mod triggers;

use std::time::Duration;

use hpa::Hpa;
use settings::{Metadata, ScaledObject};
use triggers::{Kafka, Observation, Partition, Prometheus};

/// How often the HPA evaluates its metrics (`--horizontal-pod-autoscaler-sync-period`).
pub const SYNC: Duration = Duration::from_secs(15);

/// The source of the triggers' metrics.
pub trait Source {
    /// The partitions of a topic as the consumer group sees them; without a topic, the partitions
    /// of all topics of the group.
    fn partitions(&mut self, topic: Option<&str>) -> Vec<Partition>;
    /// The result of the query of a `prometheus` trigger; `None` if it is empty.
    fn query(&mut self, query: &str) -> Option<f64>;
}

/// A trigger and its memory.
#[derive(Clone, Debug)]
struct Trigger {
    kind: TriggerKind,
    /// The HPA's target for the average of all replicas.
    threshold: f64,
    /// Whether the HPA uses the observation of the scale loop.
    cached: bool,
    /// The observation of one controller, for the other one to use.
    last: Option<Observation>,
}

#[derive(Clone, Debug)]
enum TriggerKind {
    Kafka(Kafka),
    Prometheus(Prometheus),
}

impl Trigger {
    fn observe(&mut self, source: &mut impl Source) -> Observation {
        match &mut self.kind {
            TriggerKind::Kafka(kafka) => {
                let partitions = source.partitions(kafka.topic());
                kafka.observe(&partitions)
            }
            TriggerKind::Prometheus(prometheus) => {
                prometheus.observe(source.query(&prometheus.query))
            }
        }
    }
}

/// Both controllers of one `ScaledObject`.
#[derive(Clone, Debug)]
pub struct Controller {
    object: ScaledObject,
    triggers: Vec<Trigger>,
    hpa: Hpa,
    last_active: Option<Duration>,
    next_poll: Duration,
    next_sync: Duration,
}

/// The result of an evaluation of the triggers.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The wanted number of replicas.
    pub replicas: i32,
    /// The observation of each trigger.
    pub seen: Vec<Observation>,
    /// The controller that has evaluated the triggers.
    pub by: By,
}

/// One of the two controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// KEDA's scale loop.
    Keda,
    /// The Horizontal Pod Autoscaler.
    Hpa,
}

impl Controller {
    /// Creates the controllers of an object that was created at time zero.
    pub fn new(object: ScaledObject) -> Self {
        let triggers = object.triggers.iter().map(|trigger| Trigger {
            kind: match &trigger.metadata {
                Metadata::Kafka(settings) => TriggerKind::Kafka(Kafka::new(settings.clone())),
                Metadata::Prometheus(settings) => TriggerKind::Prometheus(settings.clone()),
            },
            threshold: trigger.threshold(),
            cached: trigger.use_cached_metrics,
            last: None,
        });

        Self {
            triggers: triggers.collect(),
            hpa: Hpa::new(&object),
            object,
            last_active: None,
            next_poll: Duration::ZERO,
            // Each controller has its own schedule, so they don't begin at the same time.
            next_sync: SYNC / 2,
        }
    }

    /// The time of the next evaluation by either controller.
    pub fn next(&self) -> Duration {
        self.next_poll.min(self.next_sync)
    }

    /// Lets the controller evaluate whose turn it is, if there is one. Missed turns are not made up
    /// for.
    pub fn turn(
        &mut self,
        now: Duration,
        replicas: i32,
        source: &mut impl Source,
    ) -> Option<Decision> {
        if now < self.next() {
            return None;
        }
        if self.next_poll <= self.next_sync {
            self.next_poll = now + self.object.polling_interval();
            return Some(self.poll(now, replicas, source));
        }
        self.next_sync = now + SYNC;
        Some(self.sync(now, replicas, source))
    }

    /// KEDA's scale loop.
    fn poll(&mut self, now: Duration, replicas: i32, source: &mut impl Source) -> Decision {
        let mut seen = Vec::new();
        let takes = replicas > 0 && self.object.takes_what_the_hpa_saw();
        for trigger in &mut self.triggers {
            let observation = match trigger.last {
                Some(last) if takes => last,
                _ => trigger.observe(source),
            };
            if trigger.cached {
                trigger.last = Some(observation);
            }
            seen.push(observation);
        }

        let active = seen.iter().any(|observation| observation.active);
        let replicas = self.activate(now, replicas, active);
        Decision { replicas, seen, by: By::Keda }
    }

    fn activate(&mut self, now: Duration, replicas: i32, active: bool) -> i32 {
        let (min, idle) = (self.object.min_replica_count, self.object.idle_replica_count);
        if active {
            self.last_active = Some(now);
            let asleep = replicas == 0 || (idle.is_some() && replicas < min);
            return if asleep { min.max(1) } else { replicas };
        }

        let may_rest = idle.map_or(min == 0 && replicas > 0, |idle| replicas > idle);
        if may_rest {
            let rested = match self.last_active {
                Some(last) => last + self.object.cooldown_period() < now,
                None => self.object.initial_cooldown_period() < now,
            };
            return if rested { idle.unwrap_or(min) } else { replicas };
        }

        if idle.is_none() { replicas.max(min) } else { replicas }
    }

    /// The Horizontal Pod Autoscaler, which does nothing while there are no replicas.
    fn sync(&mut self, now: Duration, replicas: i32, source: &mut impl Source) -> Decision {
        self.hpa.begin(now, replicas);
        if replicas == 0 {
            return Decision { replicas, seen: Vec::new(), by: By::Hpa };
        }

        let mut seen = Vec::new();
        let given = self.object.takes_what_the_hpa_saw();
        for trigger in &mut self.triggers {
            let observation = match trigger.last {
                Some(last) if trigger.cached => last,
                _ => trigger.observe(source),
            };
            if given {
                trigger.last = Some(observation);
            }
            seen.push(observation);
        }

        let targets = self.triggers.iter().map(|trigger| trigger.threshold);
        let metrics: Vec<_> =
            seen.iter().map(|observation| observation.value).zip(targets).collect();
        let replicas = self.hpa.sync(now, replicas, &metrics);
        Decision { replicas, seen, by: By::Hpa }
    }
}

#[cfg(test)]
mod tests;
