//! Waiting for the topics that a worker needs, and creating those that it may create.

use std::time::Duration;

use fleet_job::topics::Topics;
use fleet_kafka::{
    KafkaError,
    admin::{self, TopicSpec},
    settings::Settings,
};
use fleet_ops::{errors, http};
use tokio_util::sync::CancellationToken;

/// How often to check for a broker or a topic that is not there.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a broker may take to answer.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// How many checks lie between two attempts to create what is missing.
const CHECKS_PER_ATTEMPT: u32 = 30;

/// The topics that a worker needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequiredTopics<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) topics: &'a Topics,
    /// Whether missing topics may be created. The jobs topic never is: people have to choose the
    /// number of its partitions.
    pub(crate) may_create: bool,
}

/// The topics that exist.
#[derive(Debug)]
struct FoundTopics {
    /// The number of partitions of the jobs topic.
    jobs: i32,
    /// The number of partitions of the delayed topic.
    delayed: Option<i32>,
    /// The topics that don't exist.
    missing: Vec<String>,
}

impl RequiredTopics<'_> {
    /// Waits until the broker answers and has all required topics. Returns the number of partitions
    /// of the delayed topic, which is optional, as are those of control and pauses; `None` if the
    /// worker is to stop before that.
    pub(crate) async fn wait_until_ready(
        &self,
        health: &http::Health,
        shutdown: &CancellationToken,
    ) -> Option<Option<i32>> {
        let (mut reported, mut checks, mut created) = (String::new(), 0, Vec::new());
        loop {
            let problem = match self.look_up().await {
                Err(problem) => problem,
                Ok(found) if found.missing.is_empty() => return Some(found.delayed),
                Ok(found) => {
                    let is_due = self.may_create && u32::is_multiple_of(checks, CHECKS_PER_ATTEMPT);
                    checks += 1;
                    let refusal = match is_due {
                        true => self.create_missing(&found, &mut created).await,
                        false => None,
                    };

                    // Topics that were just created take a moment to appear.
                    let is_awaited = created.iter().any(|name| found.missing.contains(name));
                    match self.first_required(&found) {
                        None if !is_awaited || checks > CHECKS_PER_ATTEMPT => {
                            return Some(found.delayed);
                        }
                        None => "waiting for the topics that were just created".to_owned(),
                        Some(error) => refusal.unwrap_or_else(|| errors::chain(&error)),
                    }
                }
            };

            if problem != reported {
                tracing::warn!("waiting: {problem}");
                health.set_not_ready(problem.clone());
                reported = problem;
            }
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
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

    /// Creates the missing topics, with as many replicas as the jobs topic has. Returns what went
    /// wrong, if anything.
    async fn create_missing(
        &self,
        found: &FoundTopics,
        created: &mut Vec<String>,
    ) -> Option<String> {
        let (settings, jobs) = (self.settings.clone(), self.topics.jobs.clone());
        let replicas = tokio::task::spawn_blocking(move || {
            admin::replication(&settings, &jobs, METADATA_TIMEOUT)
        });
        let replicas = replicas.await.ok().and_then(Result::ok).unwrap_or(-1);
        let specs = missing_specs(self.topics, found, replicas);

        let result = admin::create_topics(self.settings, &specs).await;
        created.extend(specs.into_iter().map(|spec| spec.name));
        match result {
            Ok(names) => {
                tracing::info!(created = ?names, "created missing topics");
                None
            }
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(missing = ?found.missing, error, "could not create missing topics");
                created.clear();
                Some(format!("{error}; create it with `mcp-fleet topics create`"))
            }
        }
    }

    /// The first missing topic that the worker can't do without.
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

    for name in [&topics.events, &topics.dlq, &topics.delayed, &topics.control, &topics.pauses] {
        match admin::partitions(settings, name, METADATA_TIMEOUT) {
            Ok(partitions) if *name == topics.delayed => found.delayed = Some(partitions),
            Ok(_) => {}
            Err(KafkaError::NoTopic(_)) => found.missing.push(name.clone()),
            // A worker that may not read them can't cancel or pause jobs; its feeds warn about that.
            Err(KafkaError::Request { .. })
                if *name == topics.control || *name == topics.pauses => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// How the missing topics are to be created.
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
