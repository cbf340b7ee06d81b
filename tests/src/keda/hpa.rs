//! The Horizontal Pod Autoscaler, for external metrics with a target of type `AverageValue`.

use std::time::Duration;

use super::settings::{PolicyKind, Rules, ScaledObject, Select};

/// The tolerated difference between metric and target
/// (`--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;

/// An autoscaler and its memory.
#[derive(Clone, Debug)]
pub struct Hpa {
    min: i32,
    max: i32,
    up: Rules,
    down: Rules,
    recommendations: Vec<(Duration, i32)>,
    /// The number of added or, if negative, removed replicas.
    changes: Vec<(Duration, i32)>,
}

impl Hpa {
    /// The autoscaler that KEDA creates for an object. If the object allows zero replicas, the
    /// autoscaler's minimum is one.
    pub fn new(object: &ScaledObject) -> Self {
        let (up, down) = object.behavior();
        Self {
            min: object.min_replica_count.max(1),
            max: object.max_replica_count,
            up,
            down,
            recommendations: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Records the initial number of replicas as the first recommendation.
    pub fn begin(&mut self, now: Duration, current: i32) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// The wanted number of replicas according to metrics and targets, if there are `current`
    /// replicas (at least one).
    pub fn sync(&mut self, now: Duration, current: i32, metrics: &[(f64, f64)]) -> i32 {
        let desired = if current > self.max {
            self.max
        } else if current < self.min {
            self.min
        } else {
            let wanted = metrics.iter().map(|(usage, target)| proposal(current, *usage, *target));
            let stable = self.stabilized(now, current, wanted.max().unwrap_or(current));
            self.paced(now, current, stable)
        };
        if desired != current {
            self.changes.push((now, desired - current));
        }

        desired
    }

    /// Limits the recommendation to the minimum within the window of scaling up and the maximum
    /// within that of scaling down.
    fn stabilized(&mut self, now: Duration, current: i32, wanted: i32) -> i32 {
        let within = |window: Duration| {
            let recent = self.recommendations.iter().filter(move |(at, _)| *at + window > now);
            recent.map(|(_, wanted)| *wanted)
        };
        let up = within(self.up.window()).chain([wanted]).min().unwrap_or(wanted);
        let down = within(self.down.window()).chain([wanted]).max().unwrap_or(wanted);
        self.recommendations.push((now, wanted));
        let longest = self.up.window().max(self.down.window());
        self.recommendations.retain(|(at, _)| *at + longest >= now);
        current.max(up).min(down)
    }

    /// Limits the change to what the policies allow, and the number to its bounds.
    fn paced(&self, now: Duration, current: i32, desired: i32) -> i32 {
        if desired > current {
            let limit = self.limit(now, current, &self.up, 1).unwrap_or(current);
            desired.min(limit.max(current).min(self.max))
        } else {
            let limit = self.limit(now, current, &self.down, -1).unwrap_or(current);
            desired.max(limit.min(current).max(self.min))
        }
    }

    /// The limit in the direction `sign` according to the policy that allows the most or least
    /// change. `None` if no change is allowed.
    fn limit(&self, now: Duration, current: i32, rules: &Rules, sign: i32) -> Option<i32> {
        let proposals = rules.policies.iter().map(|policy| {
            let recent = self.changes.iter().filter(|(at, _)| *at + policy.period() > now);
            let start = current - recent.map(|(_, change)| change).sum::<i32>();
            match policy.kind {
                PolicyKind::Pods => start + sign * policy.value,
                PolicyKind::Percent => {
                    let reach = f64::from(start) * (1.0 + f64::from(sign * policy.value) / 100.0);
                    // Round up when scaling up and down when scaling down, or one replica could
                    // never become two or zero.
                    (if sign > 0 { reach.ceil() } else { reach.trunc() }) as i32
                }
            }
        });

        match rules.select {
            Select::Disabled => None,
            Select::Max => proposals.max_by_key(|proposal| sign * proposal),
            Select::Min => proposals.min_by_key(|proposal| sign * proposal),
        }
    }
}

/// The number of replicas with which each has the target, or the current number if it is close
/// enough. Computed in thousandths, as in Kubernetes.
fn proposal(current: i32, usage: f64, target: f64) -> i32 {
    let (usage, target) = ((usage * 1000.0).round(), (target * 1000.0).round());
    let ratio = usage / (target * f64::from(current));
    if (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio) {
        current
    } else {
        (usage / target).ceil() as i32
    }
}
