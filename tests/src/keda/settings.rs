//! A `ScaledObject` in YAML, with KEDA's defaults. Settings that the simulation doesn't model are
//! refused.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::triggers::{KafkaSettings, Prometheus, Reset};

/// The part of a `ScaledObject` that affects decisions.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScaledObject {
    /// The object to scale.
    pub scale_target_ref: Target,
    #[serde(default = "default_polling_interval")]
    polling_interval: u64,
    #[serde(default = "default_cooldown_period")]
    cooldown_period: u64,
    #[serde(default)]
    initial_cooldown_period: u64,
    /// The number of replicas when idle.
    pub idle_replica_count: Option<i32>,
    /// The minimum, which may be zero.
    #[serde(default)]
    pub min_replica_count: i32,
    /// The maximum.
    #[serde(default = "default_max_replica_count")]
    pub max_replica_count: i32,
    advanced: Option<Advanced>,
    /// The triggers.
    pub triggers: Vec<Trigger>,
    /// The number of replicas while a trigger fails. In the simulation, no trigger fails.
    #[serde(default)]
    pub fallback: serde_json::Value,
}

/// A Deployment, by default.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its name.
    pub name: String,
}

fn default_polling_interval() -> u64 {
    30
}

fn default_cooldown_period() -> u64 {
    300
}

fn default_max_replica_count() -> i32 {
    100
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Advanced {
    /// Restores the number of replicas when the object is deleted.
    #[serde(default, rename = "restoreToOriginalReplicaCount")]
    _restore: bool,
    horizontal_pod_autoscaler_config: HpaConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HpaConfig {
    #[serde(default, rename = "name")]
    _name: Option<String>,
    behavior: Behavior,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Behavior {
    #[serde(default)]
    scale_up: PartialRules,
    #[serde(default)]
    scale_down: PartialRules,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PartialRules {
    stabilization_window_seconds: Option<u64>,
    select_policy: Option<Select>,
    policies: Option<Vec<Policy>>,
}

impl PartialRules {
    fn or(self, window: u64, policies: Vec<Policy>) -> Rules {
        Rules {
            stabilization_window_seconds: self.stabilization_window_seconds.unwrap_or(window),
            select: self.select_policy.unwrap_or(Select::Max),
            policies: self.policies.unwrap_or(policies),
        }
    }
}

/// How fast the number of replicas may change in one direction.
#[derive(Clone, Debug)]
pub struct Rules {
    stabilization_window_seconds: u64,
    /// Which policy counts.
    pub select: Select,
    /// The policies.
    pub policies: Vec<Policy>,
}

impl Rules {
    /// How long the most cautious recommendation counts.
    pub fn window(&self) -> Duration {
        Duration::from_secs(self.stabilization_window_seconds)
    }
}

/// Which of several policies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Select {
    /// The policy that allows the most change.
    Max,
    /// The policy that allows the least change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// The allowed change within a period.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// The unit of the value.
    #[serde(rename = "type")]
    pub kind: PolicyKind,
    /// The amount.
    pub value: i32,
    period_seconds: u64,
}

impl Policy {
    /// The time.
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period_seconds)
    }
}

/// The unit of a policy's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PolicyKind {
    /// Replicas.
    Pods,
    /// Percent of the current replicas.
    Percent,
}

/// A trigger.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "RawTrigger")]
pub struct Trigger {
    /// Its settings.
    pub metadata: Metadata,
    /// Whether the HPA uses the observation of the scale loop.
    pub use_cached_metrics: bool,
}

impl Trigger {
    /// The target for each replica.
    pub fn threshold(&self) -> f64 {
        match &self.metadata {
            Metadata::Kafka(kafka) => kafka.lag_threshold as f64,
            Metadata::Prometheus(prometheus) => prometheus.threshold,
        }
    }
}

/// The settings of a trigger, by its type.
#[derive(Clone, Debug)]
pub enum Metadata {
    /// `kafka` and `apache-kafka`.
    Kafka(KafkaSettings),
    /// `prometheus`.
    Prometheus(Prometheus),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawTrigger {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(default, rename = "authenticationRef")]
    _authentication: serde_json::Value,
    #[serde(default = "average_value")]
    metric_type: String,
    #[serde(default)]
    use_cached_metrics: bool,
    metadata: BTreeMap<String, String>,
}

fn average_value() -> String {
    "AverageValue".to_owned()
}

/// The metadata of a trigger, all of which must be consumed.
struct Values(BTreeMap<String, String>);

impl Values {
    fn take<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.0.remove(name) else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| format!("{name}: {text:?} is not understood"))
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        Ok(self.take(name)?.unwrap_or_default())
    }

    fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.0.remove(*name)));
    }

    fn nothing_is_left(&self) -> Result<(), String> {
        let left: Vec<_> = self.0.keys().cloned().collect();
        if left.is_empty() { Ok(()) } else { Err(format!("not modelled: {}", left.join(", "))) }
    }
}

impl TryFrom<RawTrigger> for Trigger {
    type Error = String;

    fn try_from(raw: RawTrigger) -> Result<Self, String> {
        if raw.metric_type != average_value() {
            return Err(format!("metricType {} is not modelled", raw.metric_type));
        }
        let mut values = Values(raw.metadata);
        let metadata = match raw.kind.as_str() {
            "kafka" | "apache-kafka" => Metadata::Kafka(kafka(&mut values, &raw.kind)?),
            "prometheus" => Metadata::Prometheus(prometheus(&mut values)?),
            other => return Err(format!("triggers of type {other} are not modelled")),
        };
        values.nothing_is_left()?;
        Ok(Self { metadata, use_cached_metrics: raw.use_cached_metrics })
    }
}

fn kafka(values: &mut Values, kind: &str) -> Result<KafkaSettings, String> {
    // The test sets the broker and the name of the group.
    values.ignore(&[
        "bootstrapServers",
        "bootstrapServersFromEnv",
        "consumerGroup",
        "consumerGroupFromEnv",
    ]);

    values.ignore(&["version", "tls", "sasl", "unsafeSsl", "fullMetadata"]);
    // A reference like that of a shell: the value is in the environment of the scaled container.
    let of_env = values.take::<String>("topicFromEnv")?.map(|name| format!("${name}"));
    let policy: Option<String> = values.take("offsetResetPolicy")?;
    let settings = KafkaSettings {
        topic: values.take("topic")?.or(of_env),
        lag_threshold: values.take("lagThreshold")?.unwrap_or(10),
        activation_lag_threshold: values.take("activationLagThreshold")?.unwrap_or(0),
        offset_reset_policy: match policy.as_deref() {
            None | Some("latest") => Reset::Latest,
            Some("earliest") => Reset::Earliest,
            Some(other) => return Err(format!("offsetResetPolicy: {other}")),
        },
        allow_idle_consumers: values.flag("allowIdleConsumers")?,
        exclude_persistent_lag: values.flag("excludePersistentLag")?,
        scale_to_zero_on_invalid_offset: values.flag("scaleToZeroOnInvalidOffset")?,
        limit_to_partitions_with_lag: values.flag("limitToPartitionsWithLag")?,
        ensure_even_distribution_of_partitions: values
            .flag("ensureEvenDistributionOfPartitions")?,
    };

    let limited = settings.limit_to_partitions_with_lag;
    let wrong = [
        (settings.lag_threshold <= 0, "lagThreshold must be positive"),
        (settings.activation_lag_threshold < 0, "activationLagThreshold must not be negative"),
        (
            settings.allow_idle_consumers && limited,
            "allowIdleConsumers excludes limitToPartitionsWithLag",
        ),
        (settings.topic.is_none() && limited, "limitToPartitionsWithLag needs a topic"),
        (
            settings.topic.is_none() && kind == "apache-kafka",
            "apache-kafka without a topic is not modelled",
        ),
    ];
    let wrong = wrong.iter().find(|(is_wrong, _)| *is_wrong);
    wrong.map_or(Ok(settings), |(_, why)| Err((*why).to_owned()))
}

fn prometheus(values: &mut Values) -> Result<Prometheus, String> {
    values.ignore(&["serverAddress", "namespace", "authModes", "unsafeSsl", "timeout"]);
    Ok(Prometheus {
        query: values.take("query")?.ok_or("a prometheus trigger has a query")?,
        threshold: values.take("threshold")?.ok_or("a prometheus trigger has a threshold")?,
        activation_threshold: values.take("activationThreshold")?.unwrap_or_default(),
        ignore_null_values: values.take("ignoreNullValues")?.unwrap_or(true),
    })
}

impl ScaledObject {
    /// Parses the `ScaledObject` among the YAML documents of a file. Returns an error if there is
    /// none, or if a setting is not modelled.
    pub fn parse(text: &str) -> Result<Self, String> {
        for document in serde_norway::Deserializer::from_str(text) {
            let mut document =
                serde_json::Value::deserialize(document).map_err(|error| error.to_string())?;
            if document["kind"] == "ScaledObject" {
                let object: Self = serde_json::from_value(document["spec"].take())
                    .map_err(|error| error.to_string())?;
                // Without any `behavior`, the HPA uses older rules.
                return if object.advanced.is_some() {
                    Ok(object)
                } else {
                    Err("no behavior".to_owned())
                };
            }
        }
        Err("no ScaledObject".to_owned())
    }

    /// How often KEDA polls.
    pub fn polling_interval(&self) -> Duration {
        Duration::from_secs(self.polling_interval)
    }

    /// How long replicas are kept after the last activity.
    pub fn cooldown_period(&self) -> Duration {
        Duration::from_secs(self.cooldown_period)
    }

    /// How long replicas are kept after the creation of the object, if there is no activity.
    pub fn initial_cooldown_period(&self) -> Duration {
        Duration::from_secs(self.initial_cooldown_period)
    }

    /// The rules for scaling up and down, with the defaults of Kubernetes.
    pub fn behavior(&self) -> (Rules, Rules) {
        let behavior = self.advanced.as_ref().map(|advanced| {
            let behavior = advanced.horizontal_pod_autoscaler_config.behavior.clone();
            (behavior.scale_up, behavior.scale_down)
        });
        let (up, down) = behavior.unwrap_or_default();
        let percent = Policy { kind: PolicyKind::Percent, value: 100, period_seconds: 15 };
        let pods = Policy { kind: PolicyKind::Pods, value: 4, period_seconds: 15 };
        (up.or(0, vec![pods, percent]), down.or(300, vec![percent]))
    }

    /// Whether KEDA's loop has nothing to decide and the HPA polls often enough for both.
    pub fn takes_what_the_hpa_saw(&self) -> bool {
        let always_some = self.min_replica_count > 0 && self.idle_replica_count.is_none();
        always_some && !self.triggers.iter().any(|trigger| trigger.use_cached_metrics)
    }

    /// The settings of its `kafka` triggers.
    pub fn kafka_mut(&mut self) -> impl Iterator<Item = &mut KafkaSettings> {
        self.triggers.iter_mut().filter_map(|trigger| match &mut trigger.metadata {
            Metadata::Kafka(settings) => Some(settings),
            Metadata::Prometheus(_) => None,
        })
    }

    /// The settings of its `prometheus` triggers.
    pub fn prometheus_mut(&mut self) -> impl Iterator<Item = &mut Prometheus> {
        self.triggers.iter_mut().filter_map(|trigger| match &mut trigger.metadata {
            Metadata::Prometheus(settings) => Some(settings),
            Metadata::Kafka(_) => None,
        })
    }
}
