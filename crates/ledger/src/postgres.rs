//! A ledger in a PostgreSQL database, which all replicas share.
//!
//! Every replica reads the events topic and offers what it reads; one at a time projects a
//! partition (see `project`), and all read. How far the log has been applied stands in the same
//! transaction as what it covers. The database can be emptied at any time, because the topic still
//! holds everything in it.
//!
//! A database that is away is an error of each call and nothing else: connections are opened when
//! they are needed.

mod database;
mod fold;
mod listing;
mod log;
mod project;
mod schema;
mod tallies;
mod text;
mod tls;
mod upkeep;
mod url;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use deadpool_postgres::Client;
use fleet_job::{state::Verdict, time::Timestamp};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;

use self::{
    database::{Database, Lent, Work},
    listing::{read_job, read_page},
    log::{IS_OURS, OurLog, check_ours},
    project::{Reading, apply_batch, read_standing},
    tallies::read_tallies,
    text::{from_column, to_column},
};
use crate::{
    query::{Page, Query},
    retention::{Forgotten, Retention},
    sqlstate::is_without_tables,
    store::{Batch, Known, LogId, Overtaken, Positions, Store, StoreError, Tallies},
};

pub use self::url::{DatabaseUrl, DatabaseUrlError};

/// How often a batch is tried that another replica's changes have crossed.
const TRIES: usize = 3;

/// A ledger in a PostgreSQL database.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    retention: Retention,
    database: Database,
    /// Whether the tables are known to exist.
    is_prepared: AtomicBool,
    ours: Mutex<OurLog>,
    reading: Mutex<Reading>,
    /// Jobs evicted for lack of space since the last report.
    evicted: Mutex<Forgotten>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("database", &self.inner.name).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Creates a ledger in this database, which is not connected to before it is needed.
    pub fn new(url: &DatabaseUrl, retention: Retention) -> Self {
        let inner = Inner {
            name: url.to_string(),
            retention,
            database: Database::new(url),
            is_prepared: AtomicBool::new(false),
            ours: Mutex::default(),
            reading: Mutex::default(),
            evicted: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Lends a connection, after the tables have been brought up to date.
    async fn lend(&self, work: Work) -> Result<Lent, StoreError> {
        if !self.inner.is_prepared.load(Ordering::Acquire) {
            let mut lent = self.inner.database.lend(Work::Project).await?;
            let done = timeout(Work::Project.limit(), schema::migrate(&mut lent.client)).await;
            lent.give_back(done)?;
            self.inner.is_prepared.store(true, Ordering::Release);
        }
        self.inner.database.lend(work).await
    }

    /// Takes a connection back after the work.
    fn settle<T>(
        &self,
        lent: Lent,
        done: Result<Result<T, StoreError>, tokio::time::error::Elapsed>,
    ) -> Result<T, StoreError> {
        let result = lent.give_back(done);
        // The database has been made again.
        if matches!(&result, Err(StoreError::Database(error)) if is_without_tables(error)) {
            self.inner.is_prepared.store(false, Ordering::Release);
        }
        result
    }

    /// Applies a batch once. Afterwards the reader has come as far as the batch.
    async fn try_batch(&self, batch: &Batch) -> Result<Vec<Verdict>, StoreError> {
        let reading = self.inner.reading.lock().clone();

        let mut lent = self.lend(Work::Project).await?;
        let work = apply_batch(&mut lent.client, batch, &reading);
        let done = timeout(Work::Project.limit(), work).await;
        let applied = self.settle(lent, done)?;

        self.inner.reading.lock().note_applied(applied.generation, &batch.positions);
        if applied.has_grown {
            self.enforce_bounds().await;
        }
        Ok(applied.verdicts)
    }

    /// Deletes what is too much. If that fails, the next batch tries again.
    async fn enforce_bounds(&self) {
        let Ok(mut lent) = self.lend(Work::Project).await else { return };
        let work = upkeep::enforce_bounds(&mut lent.client, &self.inner.retention);
        let done = timeout(Work::Project.limit(), work).await;
        match self.settle(lent, done) {
            Ok(forgotten) => *self.inner.evicted.lock() += forgotten,
            Err(error) => tracing::debug!(%error, "could not bound the ledger; trying again"),
        }
    }

    async fn find_overtaken(
        client: &Client,
        ours: &OurLog,
        limit: usize,
    ) -> Result<Vec<Overtaken>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = format!(
            "SELECT id, partition, event, standing, {IS_OURS} FROM ledger_jobs WHERE is_overtaken LIMIT $3"
        );
        let statement = client.prepare_cached(&sql).await?;

        let values: [&(dyn ToSql + Sync); 3] = [&ours.topic, &ours.cluster_id, &limit];
        let rows = client.query(&statement, &values).await?;
        let overtaken = rows.iter().map(|row| {
            check_ours(row, 4)?;
            let job_id = from_column(row.try_get(0)?);
            let standing = read_standing(&job_id, row.try_get(3)?)?;
            Ok(Overtaken { job_id, partition: row.try_get(1)?, value: row.try_get(2)?, standing })
        });
        overtaken.collect()
    }

    async fn find_job(
        client: &Client,
        ours: &OurLog,
        job_id: &str,
    ) -> Result<Option<Known>, StoreError> {
        let sql = format!(
            "SELECT partition, \"offset\", event, {IS_OURS} FROM ledger_jobs WHERE id = $3"
        );
        let statement = client.prepare_cached(&sql).await?;

        let id = to_column(job_id);
        let values: [&(dyn ToSql + Sync); 3] = [&ours.topic, &ours.cluster_id, &id];
        let Some(row) = client.query_opt(&statement, &values).await? else { return Ok(None) };
        check_ours(&row, 3)?;
        read_job(&row, job_id).map(Some)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError> {
        let mut tries = 1;
        loop {
            match self.try_batch(&batch).await {
                Err(StoreError::Contended) if tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn resume(&self, log: &LogId) -> Result<Positions, StoreError> {
        let mut lent = self.lend(Work::Project).await?;
        let done = timeout(Work::Project.limit(), log::adopt_log(&mut lent.client, log)).await;
        let (generation, positions) = self.settle(lent, done)?;
        *self.inner.ours.lock() = OurLog::of(log);

        let mut reading = self.inner.reading.lock();
        reading.resume(generation, positions);
        Ok(reading.read_to.clone())
    }

    async fn overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError> {
        let ours = self.inner.ours.lock().clone();
        let lent = self.lend(Work::List).await?;
        let done =
            timeout(Work::List.limit(), Self::find_overtaken(&lent.client, &ours, limit)).await;
        self.settle(lent, done)
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        let lent = self.lend(Work::Find).await?;
        let done = timeout(Work::Find.limit(), log::read_positions(&lent.client)).await;
        self.settle(lent, done)
    }

    async fn reset(&self) -> Result<(), StoreError> {
        let generation = self.inner.reading.lock().generation;
        let mut lent = self.lend(Work::Project).await?;
        let done = timeout(Work::Project.limit(), log::reset(&mut lent.client, generation)).await;
        let generation = Some(self.settle(lent, done)?);
        *self.inner.reading.lock() = Reading { generation, read_to: Positions::new() };
        Ok(())
    }

    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        let ours = self.inner.ours.lock().clone();
        let lent = self.lend(Work::Find).await?;
        let done = timeout(Work::Find.limit(), Self::find_job(&lent.client, &ours, job_id)).await;
        self.settle(lent, done)
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let ours = self.inner.ours.lock().clone();
        let lent = self.lend(Work::List).await?;
        let done = timeout(Work::List.limit(), read_page(&lent.client, &ours, query)).await;
        self.settle(lent, done)
    }

    async fn tallies(&self) -> Result<Tallies, StoreError> {
        let ours = self.inner.ours.lock().clone();
        let lent = self.lend(Work::List).await?;
        let done = timeout(Work::List.limit(), read_tallies(&lent.client, &ours)).await;
        self.settle(lent, done)
    }

    async fn forget(&self, now: Timestamp) -> Result<Forgotten, StoreError> {
        let age = i64::try_from(self.inner.retention.max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.as_millis().saturating_sub(age);
        let generation = self.inner.reading.lock().generation;

        let mut forgotten = Forgotten::default();
        loop {
            // One batch at a time, so that projectors can go on in between.
            let mut lent = self.lend(Work::Project).await?;
            let work = async {
                // What others have made of it meanwhile is not ours to forget.
                if let Some(generation) = generation
                    && !log::show_life(&lent.client, generation).await?
                {
                    return Ok(None);
                }
                upkeep::forget_ended(&mut lent.client, oldest).await
            };
            let done = timeout(Work::Project.limit(), work).await;
            match self.settle(lent, done)? {
                Some(deleted) if deleted > 0 => forgotten.ended += deleted,
                _ => break,
            }
        }

        forgotten += std::mem::take(&mut *self.inner.evicted.lock());
        Ok(forgotten)
    }
}
