//! What the service does regularly: forgetting old jobs and measuring topics.

use std::time::Duration;

use fleet_kafka::admin;
use fleet_ledger::retention::Forgotten;
use tokio::time::{Interval, interval};

use super::{Jobs, metrics};

/// How often old jobs are forgotten and the gauges of the ledger updated.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);
/// How often the topics are measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(15);
/// The timeout of one request to a broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

impl Jobs {
    /// Makes the ledger forget old jobs regularly, until the server stops.
    pub(super) async fn forget_old_jobs(self) {
        let mut ticks = interval(FORGET_INTERVAL);
        while self.is_next_tick(&mut ticks).await {
            match self.inner.store.forget(fleet_ops::clock::now()).await {
                Ok(forgotten) => count_forgotten(forgotten),
                Err(error) => {
                    let error = fleet_ops::errors::chain(&error);
                    tracing::warn!(error, "could not remove old jobs from the ledger");
                }
            }

            if let Ok(counts) = self.inner.store.counts().await {
                for (state, count) in counts {
                    ::metrics::gauge!(metrics::LEDGER_JOBS.name, "state" => state)
                        .set(count as f64);
                }
            }
        }
    }

    /// Measures regularly how far the ledger is behind and how many dead letters there are, until
    /// the server stops. If the broker does not answer, the gauges keep their values.
    pub(super) async fn measure_topics(self) {
        let mut ticks = interval(MEASURE_INTERVAL);
        while self.is_next_tick(&mut ticks).await {
            let settings = self.inner.link.follower.settings().clone();
            let topics = self.inner.topics.clone();
            let (answer, asked) = tokio::sync::oneshot::channel();
            // A plain thread, because the runtime would wait for one of its own at shutdown.
            std::thread::spawn(move || {
                let names = [topics.events.as_str(), topics.dlq.as_str()];
                answer.send(admin::spans_of(&settings, names, BROKER_TIMEOUT)).ok();
            });

            let found = tokio::select! {
                found = asked => found,
                () = self.inner.stop.cancelled() => return,
            };
            let positions = self.inner.store.positions().await;
            let (Ok(Ok([events, dead])), Ok(positions)) = (found, positions) else { continue };

            let behind = events.iter().map(|span| {
                let read = positions.get(&span.partition).copied().unwrap_or_default();
                (span.end - read.max(span.start)).max(0)
            });
            ::metrics::gauge!(metrics::LEDGER_BEHIND.name).set(behind.sum::<i64>() as f64);
            let letters: i64 = dead.iter().map(|span| span.end - span.start).sum();
            ::metrics::gauge!(metrics::DEAD_LETTERS.name).set(letters as f64);
        }
    }

    /// Waits for the next tick. Returns `false` if the server stops first.
    pub(super) async fn is_next_tick(&self, ticks: &mut Interval) -> bool {
        tokio::select! {
            _ = ticks.tick() => true,
            () = self.inner.stop.cancelled() => false,
        }
    }
}

fn count_forgotten(Forgotten { ended, open }: Forgotten) {
    let count = |what: &'static str, jobs: u64| {
        ::metrics::counter!(metrics::LEDGER_FORGOTTEN.name, "what" => what).increment(jobs);
    };
    count("ended", ended);
    count("open", open);

    if open > 0 {
        tracing::warn!(
            open,
            "the ledger is too small for the open jobs and has removed some of them; raise MCP_LEDGER_MAX_JOBS or \
             MCP_LEDGER_MAX_BYTES"
        );
    }
}
