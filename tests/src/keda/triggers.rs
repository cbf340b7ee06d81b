//! The observations of triggers: a value for the HPA, and whether anything should run at all.

use std::collections::BTreeMap;

/// The observation of a trigger at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// The value for the HPA.
    pub value: f64,
    /// The activity for KEDA's scale loop.
    pub active: bool,
}

/// A partition as the consumer group sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub partition: i32,
    /// The committed offset; `None` if there is no commit.
    pub committed: Option<i64>,
    /// The offset of the first record.
    pub earliest: i64,
    /// The offset of the next record.
    pub latest: i64,
}

/// Where a group without a committed offset is assumed to begin.
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
    /// The topic. Without one, KEDA uses the topics on which the group has commits, so it sees
    /// nothing if there are none.
    pub topic: Option<String>,
    /// The lag per replica.
    pub lag_threshold: i64,
    /// The lag above which something should run.
    pub activation_lag_threshold: i64,
    /// See [`Reset`].
    pub offset_reset_policy: Reset,
    /// Whether to allow more replicas than partitions.
    pub allow_idle_consumers: bool,
    /// Whether to ignore the lag of a partition whose commit has not moved since the last time.
    pub exclude_persistent_lag: bool,
    /// Whether to ignore a partition without a commit.
    pub scale_to_zero_on_invalid_offset: bool,
    /// Whether to limit the replicas to the number of partitions with lag.
    pub limit_to_partitions_with_lag: bool,
    /// Whether to use only numbers of replicas that divide the number of partitions.
    pub ensure_even_distribution_of_partitions: bool,
}

/// A `kafka` trigger: its settings, and the last observed offsets.
#[derive(Clone, Debug)]
pub struct Kafka {
    settings: KafkaSettings,
    previous: BTreeMap<i32, i64>,
}

impl Kafka {
    /// Creates a trigger without observations.
    pub fn new(settings: KafkaSettings) -> Self {
        Self { settings, previous: BTreeMap::new() }
    }

    /// The topic, if one is set.
    pub fn topic(&self) -> Option<&str> {
        self.settings.topic.as_deref()
    }

    /// The total lag for the HPA, and whether there is enough lag for anything to run. Persistent
    /// lag counts only for the latter.
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

    /// The lag that counts for the HPA, and the whole lag.
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

    /// Limits the lag to the number of replicas that can be useful.
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
    /// The target per replica.
    pub threshold: f64,
    /// The value above which something should run.
    pub activation_threshold: f64,
    /// Whether a missing result counts as 0. Otherwise the trigger fails, which is not modelled.
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
