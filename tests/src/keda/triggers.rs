//! What a trigger makes of what it is told: a value for the HPA, and whether anything is to run at
//! all.

use std::collections::BTreeMap;

/// What was seen of a trigger at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// For the HPA.
    pub value: f64,
    /// For KEDA's scale loop.
    pub active: bool,
}

/// A partition as the consumer group sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub partition: i32,
    /// What the group has committed; none if nothing ever was.
    pub committed: Option<i64>,
    /// The offset of the first record.
    pub earliest: i64,
    /// The offset of the next record.
    pub latest: i64,
}

/// Where a group without a committed offset is taken to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// At the end: a partition without a commit counts as 1.
    Latest,
    /// At the beginning.
    Earliest,
}

/// The settings of a `kafka` or `apache-kafka` trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaSettings {
    /// The topic. Without one, KEDA looks at what the group has committed on, and so at nothing if
    /// it never has.
    pub topic: Option<String>,
    /// Lag for each replica.
    pub lag_threshold: i64,
    /// The lag above which something is to run.
    pub activation_lag_threshold: i64,
    /// See [`Reset`].
    pub offset_reset_policy: Reset,
    /// More replicas than partitions.
    pub allow_idle_consumers: bool,
    /// Not to count the lag of a partition whose commit stands where it stood the last time.
    pub exclude_persistent_lag: bool,
    /// Not to count a partition without a commit.
    pub scale_to_zero_on_invalid_offset: bool,
    /// No more replicas than partitions with lag.
    pub limit_to_partitions_with_lag: bool,
    /// A number of replicas that divides the number of partitions.
    pub ensure_even_distribution_of_partitions: bool,
}

/// A `kafka` trigger: the settings, and the offsets it has seen last.
#[derive(Clone, Debug)]
pub struct Kafka {
    settings: KafkaSettings,
    previous: BTreeMap<i32, i64>,
}

impl Kafka {
    /// A trigger that has seen nothing yet.
    pub fn new(settings: KafkaSettings) -> Self {
        Self { settings, previous: BTreeMap::new() }
    }

    /// The topic, if one is set.
    pub fn topic(&self) -> Option<&str> {
        self.settings.topic.as_deref()
    }

    /// The total lag, which is what the HPA is told, and whether there is enough of it for anything
    /// to run. What does not count for the former because it is persistent does count for the
    /// latter.
    pub fn observe(&mut self, partitions: &[Partition]) -> Observation {
        let (mut total, mut with_persistent, mut count, mut lagging) = (0, 0, 0, 0);
        for partition in partitions {
            if self.settings.topic.is_none() && partition.committed.is_none() {
                continue;
            }
            let (lag, all) = self.lag(partition);
            total += lag;
            with_persistent += all;
            count += 1;
            lagging += i64::from(lag > 0);
        }
        let active = with_persistent > self.settings.activation_lag_threshold;
        Observation { value: self.limited(total, count, lagging) as f64, active }
    }

    /// The lag that counts for the HPA, and all of it.
    fn lag(&mut self, partition: &Partition) -> (i64, i64) {
        let Partition { partition, committed, earliest, latest } = *partition;
        let Some(committed) = committed else {
            let lag = match self.settings.offset_reset_policy {
                _ if self.settings.scale_to_zero_on_invalid_offset => 0,
                Reset::Latest => 1,
                Reset::Earliest => (latest - earliest).max(0),
            };
            return (lag, lag);
        };
        let lag = latest - committed;
        if self.settings.exclude_persistent_lag
            && self.previous.insert(partition, committed) == Some(committed)
        {
            return (0, lag);
        }
        (lag, lag)
    }

    /// Not more than replicas can be of use.
    fn limited(&self, mut total: i64, partitions: i64, lagging: i64) -> i64 {
        let settings = &self.settings;
        let even = settings.ensure_even_distribution_of_partitions;
        if settings.allow_idle_consumers && !settings.limit_to_partitions_with_lag && !even {
            return total;
        }
        let threshold = settings.lag_threshold;
        if even {
            let enough = |replicas: &i64| {
                partitions % replicas == 0 && replicas.saturating_mul(threshold) >= total
            };
            total = (1..=partitions).find(enough).unwrap_or(partitions) * threshold;
        }
        let bound = if settings.limit_to_partitions_with_lag { lagging } else { partitions };
        if total / threshold > bound { bound * threshold } else { total }
    }
}

/// A `prometheus` trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Prometheus {
    /// The query.
    pub query: String,
    /// What one replica is for.
    pub threshold: f64,
    /// The value above which something is to run.
    pub activation_threshold: f64,
    /// Whether no result is 0. Otherwise the trigger fails, and that is not modelled.
    pub ignore_null_values: bool,
}

impl Prometheus {
    /// The value, and whether it is enough for anything to run.
    pub fn observe(&self, result: Option<f64>) -> Observation {
        let result = result.filter(|value| value.is_finite());
        assert!(
            result.is_some() || self.ignore_null_values,
            "the trigger fails: {} has no result",
            self.query
        );
        let value = result.unwrap_or_default();
        Observation { value, active: value > self.activation_threshold }
    }
}
