//! Compares the simulation with the documented behaviour of KEDA and Kubernetes, and checks
//! properties that hold for any load.

use proptest::prelude::*;

use super::{
    triggers::{KafkaSettings, Reset},
    *,
};

const OBJECT: &str = r#"
apiVersion: v1
kind: Secret
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: kafka-worker
spec:
  scaleTargetRef:
    name: kafka-worker
  pollingInterval: 15
  cooldownPeriod: 300
  minReplicaCount: 0
  maxReplicaCount: 5
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleUp:
          policies:
            - {type: Pods, value: 2, periodSeconds: 30}
        scaleDown:
          stabilizationWindowSeconds: 120
          policies:
            - {type: Percent, value: 50, periodSeconds: 60}
  triggers:
    - type: kafka
      useCachedMetrics: true
      metadata:
        bootstrapServers: kafka:9092
        consumerGroup: mcp-workers
        topic: mcp-jobs
        lagThreshold: "100"
        offsetResetPolicy: earliest
        excludePersistentLag: "true"
    - type: prometheus
      metadata:
        serverAddress: http://prometheus:9090
        query: open
        threshold: "50"
"#;

fn object() -> ScaledObject {
    ScaledObject::parse(OBJECT).expect("an object")
}

fn kafka() -> KafkaSettings {
    KafkaSettings {
        topic: Some("mcp-jobs".to_owned()),
        lag_threshold: 100,
        activation_lag_threshold: 0,
        offset_reset_policy: Reset::Earliest,
        allow_idle_consumers: false,
        exclude_persistent_lag: false,
        scale_to_zero_on_invalid_offset: false,
        limit_to_partitions_with_lag: false,
        ensure_even_distribution_of_partitions: false,
    }
}

fn partitions(of_each: &[(Option<i64>, i64, i64)]) -> Vec<Partition> {
    let partition =
        |(partition, (committed, earliest, latest)): (i32, &(Option<i64>, i64, i64))| Partition {
            partition,
            committed: *committed,
            earliest: *earliest,
            latest: *latest,
        };
    (0..).zip(of_each).map(partition).collect()
}

/// A group that has the same lag in each of four partitions, and a query that returns `open`.
#[derive(Clone, Default)]
struct Load {
    lag: i64,
    committed: i64,
    open: f64,
}

impl Source for Load {
    fn partitions(&mut self, _topic: Option<&str>) -> Vec<Partition> {
        partitions(&[(Some(self.committed), 0, self.committed + self.lag); 4])
    }

    fn query(&mut self, _query: &str) -> Option<f64> {
        Some(self.open)
    }
}

fn check_lag(
    settings: KafkaSettings,
    of_each: &[(Option<i64>, i64, i64)],
    value: f64,
    active: bool,
) {
    let seen = Kafka::new(settings.clone()).observe(&partitions(of_each));
    assert_eq!(seen, Observation { value, active }, "{settings:?}, {of_each:?}");
}

#[test]
fn lag_is_uncommitted_records_limited_to_useful_replicas() {
    check_lag(kafka(), &[(Some(10), 0, 60), (Some(5), 0, 5)], 50.0, true);
    check_lag(kafka(), &[(Some(0), 0, 1_000), (Some(0), 0, 0)], 200.0, true);
    // Whole multiples of the threshold are compared with the number of partitions.
    check_lag(kafka(), &[(Some(0), 0, 299), (Some(0), 0, 0)], 299.0, true);
    let settings = KafkaSettings { allow_idle_consumers: true, ..kafka() };
    check_lag(settings, &[(Some(0), 0, 1_000), (Some(0), 0, 0)], 1_000.0, true);
    let settings = KafkaSettings { limit_to_partitions_with_lag: true, ..kafka() };
    check_lag(settings, &[(Some(0), 0, 1_000), (Some(0), 0, 0)], 100.0, true);
    let settings = KafkaSettings { ensure_even_distribution_of_partitions: true, ..kafka() };
    check_lag(settings.clone(), &[(Some(0), 0, 60); 4], 400.0, true);
    check_lag(settings, &[(Some(0), 0, 20); 4], 100.0, true);
    let settings = KafkaSettings { activation_lag_threshold: 50, ..kafka() };
    check_lag(settings, &[(Some(0), 0, 50)], 50.0, false);
}

#[test]
fn some_settings_do_not_see_a_group_without_commits() {
    let never = [(None, 20, 60), (None, 0, 60)];
    check_lag(kafka(), &never, 100.0, true);
    check_lag(KafkaSettings { offset_reset_policy: Reset::Latest, ..kafka() }, &never, 2.0, true);
    check_lag(KafkaSettings { topic: None, ..kafka() }, &never, 0.0, false);
    check_lag(
        KafkaSettings { scale_to_zero_on_invalid_offset: true, ..kafka() },
        &never,
        0.0,
        false,
    );
}

#[test]
fn persistent_lag_keeps_one_replica_but_asks_for_no_more() {
    let mut trigger = Kafka::new(KafkaSettings { exclude_persistent_lag: true, ..kafka() });
    let mut check = |committed, value, active| {
        let seen =
            trigger.observe(&partitions(&[(Some(committed), 0, 1_000), (Some(1_000), 0, 1_000)]));
        assert_eq!(seen, Observation { value, active }, "committed {committed}");
    };
    check(900, 100.0, true);
    check(900, 0.0, true);
    check(901, 99.0, true);
    check(901, 0.0, true);
    check(1_000, 0.0, false);
}

#[test]
fn settings_that_are_not_modelled_are_refused() {
    let check = |from: &str, to: &str, why: &str| {
        assert!(OBJECT.contains(from), "{from}");
        let parsed = ScaledObject::parse(&OBJECT.replace(from, to)).map(drop);
        assert!(parsed.as_ref().is_err_and(|error| error.contains(why)), "{to}: {parsed:?}");
    };
    check("topic: mcp-jobs", "partitionLimitation: 1-3", "partitionLimitation");
    check("\"100\"", "100", "expected a string");
    check("\"100\"", "\"0\"", "positive");
    check("  pollingInterval: 15", "  pollInterval: 15", "pollInterval");
    check("type: kafka", "type: cron", "cron");
    check("useCachedMetrics: true", "metricType: Value", "Value");
    check("kind: ScaledObject", "kind: ScaledJob", "no ScaledObject");
}

/// Plays `load` for `seconds`; returns the changes of the number of replicas: when, by which
/// controller, and to which number.
fn play(
    controller: &mut Controller,
    from: u64,
    seconds: u64,
    replicas: &mut i32,
    load: &mut Load,
) -> Vec<(u64, By, i32)> {
    let mut changes = Vec::new();
    for second in from..from + seconds {
        while let Some(decision) = controller.turn(Duration::from_secs(second), *replicas, load) {
            if decision.replicas != *replicas {
                *replicas = decision.replicas;
                changes.push((second, decision.by, *replicas));
            }
        }
        // Commits continue as long as there is lag.
        load.committed += i64::from(load.lag > 0);
    }

    changes
}

#[test]
fn up_as_fast_as_the_policies_allow_and_down_after_the_window_and_the_cooldown() {
    let (mut controller, mut replicas) = (Controller::new(object()), 0);
    let mut load = Load { lag: 5_000, ..Load::default() };
    let up = play(&mut controller, 0, 300, &mut replicas, &mut load);

    // KEDA adds one replica; the HPA adds two every half minute, up to one per partition.
    assert_eq!(up, [(0, By::Keda, 1), (8, By::Hpa, 3), (38, By::Hpa, 4)]);
    load.lag = 0;
    let down = play(&mut controller, 300, 700, &mut replicas, &mut load);

    // The HPA's last recommendation of 4 is at 293, from the observation of KEDA's loop at 285; its
    // window ends 120 s later. Half of the replicas go in a minute. KEDA was last active at 285,
    // too.
    assert_eq!(down, [(413, By::Hpa, 2), (473, By::Hpa, 1), (600, By::Keda, 0)]);
}

#[test]
fn the_greater_trigger_counts_and_a_tenth_does_not() {
    let (mut controller, mut replicas) = (Controller::new(object()), 0);
    let mut load = Load { lag: 1, open: 109.0, ..Load::default() };
    let changes = play(&mut controller, 0, 60, &mut replicas, &mut load);
    assert_eq!(changes.last().map(|change| change.2), Some(3));

    // The ratio to the target of three replicas is 1.1.
    load.open = 165.0;
    assert_eq!(play(&mut controller, 60, 60, &mut replicas, &mut load), []);
    load.open = 166.0;
    assert_eq!(
        play(&mut controller, 120, 60, &mut replicas, &mut load).last().map(|change| change.2),
        Some(4)
    );
}

#[test]
fn two_polling_controllers_see_false_persistent_lag_unless_one_uses_the_others_observation() {
    // Commits come every 20 s, the scale loop polls every 15 s, and the HPA 8 s later: if both poll
    // the trigger, one of them sees the same offset as the other.
    let most = |cached: bool| {
        let text = OBJECT.replace("useCachedMetrics: true", &format!("useCachedMetrics: {cached}"));
        let text = text.replace("pollingInterval: 15", "pollingInterval: 30");
        let mut controller = Controller::new(ScaledObject::parse(&text).expect("an object"));
        let mut load = Load { lag: 5_000, ..Load::default() };
        let (mut low, mut high) = (i64::MAX, 0);
        for second in 0..600 {
            load.committed = second / 20;
            while let Some(decision) =
                controller.turn(Duration::from_secs(second.unsigned_abs()), 4, &mut load)
            {
                if decision.by == By::Hpa && second > 60 {
                    let value = decision.seen[0].value as i64;
                    (low, high) = (low.min(value), high.max(value));
                }
            }
        }
        (low, high)
    };

    assert_eq!(most(true), (400, 400));
    assert_eq!(most(false), (0, 400));
}

#[test]
fn with_at_least_one_replica_the_hpa_polls_for_both() {
    let text = OBJECT
        .replace("useCachedMetrics: true", "name: lag")
        .replace("minReplicaCount: 0", "minReplicaCount: 1");
    let mut controller = Controller::new(ScaledObject::parse(&text).expect("an object"));
    let (mut replicas, mut load) = (1, Load { lag: 5_000, ..Load::default() });

    // The offsets move between two polls of the HPA, but not between its poll and the next one of
    // the scale loop.
    for second in 0..300_u64 {
        load.committed = i64::try_from(second / 15).expect("a small number");
        while let Some(decision) = controller.turn(Duration::from_secs(second), replicas, &mut load)
        {
            replicas = decision.replicas;
            let excluded = decision.by == By::Hpa && second > 15 && decision.seen[0].value == 0.0;
            assert!(!excluded, "at {second}");
        }
    }
    assert_eq!(replicas, 4);
}

proptest! {
    /// For any load: never above the maximum, never above the number of partitions because of lag,
    /// no step down by the HPA below its recommendations within the window, and none to zero within
    /// the cooldown.
    #[test]
    fn bounds_windows_and_cooldown_hold(loads in prop::collection::vec((0_i64..2_000, 0.0..400.0_f64, any::<bool>()), 1..80)) {
        let object = object();
        let (_, down) = object.behavior();
        let (window, cooldown, max) = (down.window(), object.cooldown_period(), object.max_replica_count);
        let mut controller = Controller::new(object);
        let (mut replicas, mut load) = (0, Load::default());
        let (mut wanted, mut active) = (Vec::new(), None);
        for (second, (lag, open, commits)) in (0..).step_by(10).zip(loads) {
            let now = Duration::from_secs(second);
            load = Load { lag, open: if open < 200.0 { 0.0 } else { open }, committed: load.committed + i64::from(commits) };
            while let Some(decision) = controller.turn(now, replicas, &mut load) {
                let before = std::mem::replace(&mut replicas, decision.replicas);
                prop_assert!((0..=max).contains(&replicas));
                match decision.by {
                    By::Keda => {
                        if decision.seen.iter().any(|seen| seen.active) {
                            active = Some(now);
                            prop_assert!(replicas > 0);
                        } else if replicas < before {
                            prop_assert!(active.is_none_or(|active| active + cooldown < now));
                        }
                    }
                    By::Hpa if before == 0 => prop_assert_eq!(replicas, 0),
                    By::Hpa => {
                        // The wanted number, computed in a different way than in the
                        // autoscaler.
                        let targets = [100.0, 50.0];
                        prop_assert!(decision.seen[0].value / 100.0 < 5.0);
                        let wants = decision.seen.iter().zip(targets).map(|(seen, target)| {
                            let each = seen.value / f64::from(before);
                            let near = (target * 0.9 - 0.001..=target * 1.1 + 0.001).contains(&each);
                            if near { before } else { (seen.value / target).ceil() as i32 }
                        }).max().unwrap_or_default();
                        wanted.push((now, wants));
                        let recent = wanted.iter().filter(|(at, _)| *at + window > now);
                        let most = recent.map(|(_, wants)| *wants).max().unwrap_or_default();
                        if replicas < before {
                            prop_assert!(replicas >= most.max(1), "{} → {} while {} were wanted", before, replicas, most);
                        } else if replicas > before {
                            prop_assert!(replicas <= wants && replicas - before <= 2);
                        }
                    }
                }
            }
        }
    }

    /// A constant load leads to a stable number of replicas without going up and down.
    #[test]
    fn a_steady_load_causes_no_flapping(lag in 0_i64..3_000, open in 0.0..400.0_f64) {
        let (mut controller, mut replicas) = (Controller::new(object()), 0);
        let changes = play(&mut controller, 0, 3_600, &mut replicas, &mut Load { lag, open, committed: 0 });
        let settled: Vec<_> = changes.iter().map(|change| change.2).collect();
        prop_assert!(settled.is_sorted(), "{:?}", changes);
    }
}
