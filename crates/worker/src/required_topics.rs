//! Waiting for the topics that a worker needs, and making those that it may make.

use std::time::Duration;

use fleet_job::topics::Topics;
use fleet_kafka::{
    KafkaError,
    admin::{self, TopicSpec},
    settings::Settings,
};
use fleet_ops::{errors, http};
use tokio_util::sync::CancellationToken;

/// How soon to look again for a broker or a topic that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a broker may take to answer.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// How many looks lie between two attempts to make what is missing.
const LOOKS_PER_ATTEMPT: u32 = 30;

/// The topics of a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequiredTopics<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) topics: &'a Topics,
    /// Whether topics that are missing are made, but for the jobs topic, whose partitions are for
    /// people to choose.
    pub(crate) may_create: bool,
}

/// What there is.
#[derive(Debug)]
struct FoundTopics {
    /// How many partitions the jobs topic has.
    jobs: i32,
    /// How many the delayed topic has.
    delayed: Option<i32>,
    /// The topics that are not there.
    missing: Vec<String>,
}

impl RequiredTopics<'_> {
    /// Waits until the broker answers and has all topics. Returns how many partitions the delayed
    /// topic has, which a worker can do without, as without the control topic; `None` when the
    /// worker is to stop before that.
    pub(crate) async fn wait_until_ready(
        &self,
        health: &http::Health,
        shutdown: &CancellationToken,
    ) -> Option<Option<i32>> {
        let (mut said, mut looks, mut made) = (String::new(), 0, Vec::new());
        loop {
            let problem = match self.look_up().await {
                Err(problem) => problem,
                Ok(found) if found.missing.is_empty() => return Some(found.delayed),
                Ok(found) => {
                    let may_create =
                        self.may_create && u32::is_multiple_of(looks, LOOKS_PER_ATTEMPT);
                    looks += 1;
                    let refused = if may_create {
                        self.create_missing(&found, &mut made).await
                    } else {
                        None
                    };
                    // What was made is there in a moment.
                    let awaited = made.iter().any(|name| found.missing.contains(name));
                    match self.first_required(&found) {
                        None if !awaited || looks > LOOKS_PER_ATTEMPT => {
                            return Some(found.delayed);
                        }
                        None => "waiting for the topics that were just made".to_owned(),
                        Some(error) => refused.unwrap_or_else(|| errors::chain(&error)),
                    }
                }
            };
            if problem != said {
                tracing::warn!("waiting: {problem}");
                health.set_not_ready(problem.clone());
                said = problem;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    async fn look_up(&self) -> Result<FoundTopics, String> {
        let (settings, topics) = (self.settings.clone(), self.topics.clone());
        let look = tokio::task::spawn_blocking(move || find_topics(&settings, &topics));
        match look.await {
            Ok(found) => found.map_err(|error| errors::chain(&error)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Makes what is missing, with as many replicas as the jobs topic has. What went wrong, if
    /// anything.
    async fn create_missing(&self, found: &FoundTopics, made: &mut Vec<String>) -> Option<String> {
        let (settings, jobs) = (self.settings.clone(), self.topics.jobs.clone());
        let replicas = tokio::task::spawn_blocking(move || {
            admin::replication(&settings, &jobs, METADATA_TIMEOUT)
        });
        let replicas = replicas.await.ok().and_then(Result::ok).unwrap_or(-1);
        let specs = missing_specs(self.topics, found, replicas);

        let created = admin::create_topics(self.settings, &specs).await;
        made.extend(specs.into_iter().map(|spec| spec.name));
        match created {
            Ok(created) => {
                tracing::info!(?created, "made topics that were missing");
                None
            }
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(missing = ?found.missing, error, "missing topics could not be made");
                made.clear();
                Some(format!("{error}; create it with `mcp-fleet topics create`"))
            }
        }
    }

    /// The first topic that is missing and can't be done without.
    fn first_required(&self, found: &FoundTopics) -> Option<KafkaError> {
        let needed = [&self.topics.events, &self.topics.dlq];
        let first = needed.into_iter().find(|name| found.missing.contains(name));
        first.map(|name| KafkaError::NoTopic(name.clone()))
    }
}

fn find_topics(settings: &Settings, topics: &Topics) -> Result<FoundTopics, KafkaError> {
    let mut found = FoundTopics {
        jobs: admin::partitions(settings, &topics.jobs, METADATA_TIMEOUT)?,
        delayed: None,
        missing: Vec::new(),
    };
    for name in [&topics.events, &topics.dlq, &topics.delayed, &topics.control] {
        match admin::partitions(settings, name, METADATA_TIMEOUT) {
            Ok(partitions) if *name == topics.delayed => found.delayed = Some(partitions),
            Ok(_) => {}
            Err(KafkaError::NoTopic(_)) => found.missing.push(name.clone()),
            // A worker that may not see it goes without cancels, which its feed warns of.
            Err(KafkaError::Request { .. }) if *name == topics.control => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// How the topics that are missing are made.
fn missing_specs(topics: &Topics, found: &FoundTopics, replicas: i32) -> Vec<TopicSpec> {
    let mut specs = admin::fleet_topics(topics, found.jobs, replicas);
    specs.retain(|spec| found.missing.contains(&spec.name));
    specs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_made_and_never_the_jobs_topic() {
        let topics = Topics::of("t");
        let found = FoundTopics {
            jobs: 24,
            delayed: None,
            missing: vec!["t.events".into(), "t.delayed".into()],
        };
        let specs = missing_specs(&topics, &found, 3);
        let specs: Vec<_> =
            specs.iter().map(|spec| (&*spec.name, spec.partitions, spec.replication)).collect();
        assert_eq!(specs, [("t.events", 2, 3), ("t.delayed", admin::DELAY_TIERS, 3)]);
    }
}
