//! The workers of the fleet, and how far they have come.

use std::{collections::BTreeMap, time::Duration};

use fleet_access::{Action, Context, Resource};
use fleet_job::{event::JobState, filter::JobFilter};
use fleet_kafka::{KafkaError, settings::Settings};
use fleet_lag::{Lag, WorkerList, WorkerView, fetch_lag, fetch_workers};
use fleet_ledger::{Query, query::Visibility};
use fleet_ops::{blocking::run_blocking, clock};

use super::{Caller, Jobs, JobsError};

/// How long a broker may take to answer each question.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// The most running jobs that are counted.
const MAX_COUNTED: usize = 10_000;

impl Jobs {
    /// Returns how far the workers have come on each partition of the jobs topic.
    ///
    /// # Errors
    ///
    /// Returns an error if the caller may not see it, or Kafka can't be asked.
    pub async fn lag(&self, caller: &Caller) -> Result<Lag, JobsError> {
        let (group, topic) = (self.inner.group.clone(), self.inner.topics.jobs.clone());
        self.ask_kafka(caller, move |settings| {
            fetch_lag(settings, &group, &topic, ASK_LIMIT, clock::now())
        })
        .await
    }

    /// Returns the workers and how many jobs each is running.
    ///
    /// # Errors
    ///
    /// Returns an error if the caller may not see them, or if Kafka or the ledger can't be asked.
    pub async fn workers(&self, caller: &Caller) -> Result<WorkerList, JobsError> {
        let (group, topics) = (self.inner.group.clone(), self.inner.topics.clone());
        let found = self
            .ask_kafka(caller, move |settings| fetch_workers(settings, &group, &topics, ASK_LIMIT))
            .await?;

        let (running, counted_all) = self.count_running().await?;
        let workers = found.workers.into_iter().map(|worker| WorkerView {
            in_flight: running.get(&worker.name).copied().unwrap_or_default(),
            worker,
        });
        Ok(WorkerList {
            group: found.group,
            state: found.state,
            workers: workers.collect(),
            counted_all,
        })
    }

    /// Asks Kafka something about the fleet that `caller` may see.
    async fn ask_kafka<T: Send + 'static>(
        &self,
        caller: &Caller,
        ask: impl FnOnce(&Settings) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, JobsError> {
        caller.check(Action::ReadFleet, &Resource::default(), &Context::default())?;
        // Each question has a client of its own, which is not for free.
        let permit = self.inner.searches.clone().acquire_owned().await;
        let settings = self.inner.link.follower.settings().clone();
        run_blocking(move || {
            let _permit = permit;
            Ok::<_, JobsError>(ask(&settings)?)
        })
        .await
    }

    /// Counts the running jobs of each worker, whoever has submitted them. The second value is
    /// whether all of them were counted.
    async fn count_running(&self) -> Result<(BTreeMap<String, u64>, bool), JobsError> {
        self.check_log_is_read()?;
        let filter = JobFilter { states: vec![JobState::Running], ..JobFilter::default() };
        let mut query = Query {
            filter,
            visibility: Visibility::new(|_, _| true),
            limit: fleet_ledger::query::MAX_LIMIT,
            after: None,
        };

        let mut running = BTreeMap::new();
        for _ in 0..MAX_COUNTED / fleet_ledger::query::MAX_LIMIT {
            let page = self.inner.store.list(&query).await?;
            for worker in page.jobs.iter().filter_map(|known| known.event.worker.clone()) {
                *running.entry(worker).or_default() += 1;
            }
            query.after = page.next;
            if query.after.is_none() {
                return Ok((running, true));
            }
        }
        Ok((running, false))
    }
}
