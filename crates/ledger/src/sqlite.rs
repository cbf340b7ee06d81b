//! A ledger in an SQLite file, which survives a restart and resumes reading where it stopped.
//!
//! The file can be deleted at any time, because the topic still holds everything in it. Writes are
//! therefore consistent but need not be durable when they return.

mod listing;
mod schema;
mod totals;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use fleet_job::{
    event::JobEvent,
    outcome::JobError,
    state::{Standing, Verdict},
    time::Timestamp,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use crate::{
    query::{Page, Query},
    retention::{Forgotten, Retention},
    store::{
        Batch, Known, LoggedEvent, Overtaken, Positions, Store, StoreError, Tallies, Update,
        standing_text, state_number, submitted_at,
    },
};
use totals::{HELD, Held, Totals};

/// The name of the ledger file.
pub const FILE_NAME: &str = "ledger.sqlite";
/// The number of the first terminal state.
const FIRST_TERMINAL: usize = 3;
/// The number of the last terminal state. States that were added later have greater numbers.
const LAST_TERMINAL: usize = 6;
/// How many jobs to delete in one transaction.
const DELETE_BATCH: i64 = 1_000;

/// A ledger in an SQLite file.
#[derive(Clone)]
pub struct SqliteStore {
    retention: Retention,
    inner: Arc<Inner>,
}

struct Inner {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    /// Lists and counts can be slow; requests for a single job should not wait for them.
    lister: Mutex<Connection>,
    /// Jobs evicted for lack of space since the last report.
    evicted: Mutex<Forgotten>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("retention", &self.retention).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the ledger in `directory`, or creates one. `topic` identifies the events topic; a file
    /// that belongs to another topic is emptied.
    ///
    /// # Errors
    /// Returns an error if the directory or the file cannot be used.
    pub async fn open(
        directory: &Path,
        topic: &str,
        retention: Retention,
    ) -> Result<Self, StoreError> {
        let (directory, topic) = (directory.to_owned(), topic.to_owned());
        run_on_blocking_thread(move || Self::open_file(&directory, &topic, retention)).await
    }

    fn open_file(directory: &Path, topic: &str, retention: Retention) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(StoreError::Directory)?;
        let file = directory.join(FILE_NAME);

        let writer = connect(&file)?;
        writer.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32768;",
        )?;
        schema::prepare_tables(&writer)?;

        let known: Option<String> =
            writer.query_row("SELECT name FROM topic", (), |row| row.get(0)).optional()?;
        if known.as_deref() != Some(topic) {
            writer.execute_batch(schema::EMPTY)?;
            writer.execute("DELETE FROM topic", ())?;
            writer.execute("INSERT INTO topic VALUES (?1)", [topic])?;
        }

        let reader = connect(&file)?;
        reader.execute_batch("PRAGMA query_only=1; PRAGMA cache_size=-32768;")?;
        let lister = connect(&file)?;
        lister.execute_batch("PRAGMA query_only=1; PRAGMA cache_size=-8192;")?;

        let inner = Inner {
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            lister: Mutex::new(lister),
            evicted: Mutex::default(),
        };
        Ok(Self { retention, inner: Arc::new(inner) })
    }

    /// Runs `work` on a thread of the blocking pool.
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        run_on_blocking_thread(move || work(&store)).await
    }

    fn apply_batch(&self, batch: &Batch) -> Result<Vec<Verdict>, StoreError> {
        let mut writer = self.inner.writer.lock();
        let transaction = writer.transaction()?;

        let mut totals = Totals::read(&transaction)?;
        let mut verdicts = Vec::with_capacity(batch.updates.len());
        let positions = read_positions(&transaction)?;

        for update in &batch.updates {
            if update.was_applied(&positions) {
                verdicts.push(Verdict::Again);
                continue;
            }
            verdicts.push(apply_update(&transaction, update, &mut totals)?);
        }

        for position in &batch.positions {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO positions VALUES (?1, ?2)")?
                .execute(position)?;
        }

        let forgotten = enforce_bounds(&transaction, &self.retention, &mut totals)?;
        totals.write(&transaction)?;
        transaction.commit()?;
        *self.inner.evicted.lock() += forgotten;
        Ok(verdicts)
    }

    fn find_overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError> {
        let reader = self.inner.reader.lock();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);

        let mut find = reader.prepare_cached(
            "SELECT id, partition, event, standing FROM jobs WHERE overtaken = 1 LIMIT ?1",
        )?;
        let overtaken = find.query_and_then([limit], |row| {
            let (job_id, standing): (String, String) = (row.get(0)?, row.get(3)?);
            let standing = read_standing(&job_id, &standing)?;
            Ok(Overtaken { job_id, partition: row.get(1)?, value: row.get(2)?, standing })
        })?;
        overtaken.collect()
    }

    fn find_job(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        let reader = self.inner.reader.lock();

        let mut find =
            reader.prepare_cached("SELECT partition, offset, event, id FROM jobs WHERE id = ?1")?;
        let mut found = find.query([job_id])?;
        found.next()?.map(read_job).transpose()
    }

    fn forget_ended(&self, oldest: i64) -> Result<u64, StoreError> {
        let mut writer = self.inner.writer.lock();
        let transaction = writer.transaction()?;
        let mut totals = Totals::read(&transaction)?;
        let which = format!(
            "SELECT id FROM jobs WHERE state BETWEEN {FIRST_TERMINAL} AND {LAST_TERMINAL} AND time < {oldest} ORDER BY time LIMIT {DELETE_BATCH}"
        );

        let forgotten = delete_jobs(&transaction, &which, &mut totals)?;
        totals.write(&transaction)?;
        transaction.commit()?;
        Ok(forgotten)
    }
}

/// Runs `work` on a thread of the blocking pool.
async fn run_on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Worker)?
}

/// Opens a connection to the file, which is created if necessary. Its name is never read as a URI.
fn connect(file: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(file, flags)?)
}

fn read_positions(connection: &Connection) -> Result<Positions, StoreError> {
    let mut find = connection.prepare_cached("SELECT partition, next FROM positions")?;
    let positions = find.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(positions.collect::<Result<_, _>>()?)
}

/// Applies one record.
fn apply_update(
    connection: &Connection,
    update: &Update,
    totals: &mut Totals,
) -> Result<Verdict, StoreError> {
    let id = update.job_id.as_str();

    let find = format!("SELECT {HELD}, partition, standing FROM jobs WHERE id = ?1");
    let known: Option<(Held, i32, String)> = connection
        .prepare_cached(&find)?
        .query_row([id], |row| Ok((Held::read(row)?, row.get("partition")?, row.get("standing")?)))
        .optional()?;
    let standing = match &known {
        Some((_, partition, text)) if *partition == update.partition => {
            Some(read_standing(id, text)?)
        }
        _ => None,
    };
    let held = known.map(|(held, ..)| held);

    let Some(logged) = &update.event else {
        if let Some(mut newer) = standing.filter(|standing| standing.seen() >= update.offset) {
            newer.forget_older();
            write_standing(connection, id, &newer)?;
            return Ok(Verdict::Stale);
        }
        held.iter().for_each(|held| totals.remove(held));
        connection.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id])?;
        return Ok(Verdict::State);
    };

    let entry = update.entry(logged);
    let (standing, verdict) = match standing {
        Some(mut standing) => {
            let verdict = standing.take(&entry);
            (standing, verdict)
        }
        None => (Standing::new(&entry), Verdict::State),
    };

    if verdict == Verdict::State {
        held.iter().for_each(|held| totals.remove(held));
        insert_job(connection, update, logged, &standing, totals)?;
    } else {
        write_standing(connection, id, &standing)?;
    }
    Ok(verdict)
}

fn insert_job(
    connection: &Connection,
    update: &Update,
    logged: &LoggedEvent,
    standing: &Standing,
    totals: &mut Totals,
) -> Result<(), StoreError> {
    let (event, bytes) = (&logged.event, &logged.value);
    totals.add(&Held::of(event, bytes));

    let mut insert = connection.prepare_cached(
        "INSERT OR REPLACE INTO jobs
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;

    // There are few states.
    let state = state_number(event.state) as i64;
    insert.execute(params![
        update.job_id.as_str(),
        update.partition,
        standing.offset(),
        state,
        event.job_type.as_deref(),
        event.tool.as_deref(),
        event.tenant.as_deref(),
        event.owner.as_deref(),
        submitted_at(event).as_millis(),
        event.time.as_millis(),
        bytes,
        standing_text(standing),
        standing.is_overtaken(),
        event.error.as_ref().map(JobError::stable_code)
    ])?;
    Ok(())
}

fn read_standing(job_id: &str, text: &str) -> Result<Standing, StoreError> {
    serde_json::from_str(text)
        .map_err(|source| StoreError::Event { job_id: job_id.to_owned(), source })
}

fn write_standing(
    connection: &Connection,
    id: &str,
    standing: &Standing,
) -> Result<(), StoreError> {
    let mut change =
        connection.prepare_cached("UPDATE jobs SET standing = ?2, overtaken = ?3 WHERE id = ?1")?;
    change.execute(params![id, standing_text(standing), standing.is_overtaken()])?;
    Ok(())
}

/// Deletes jobs until the store is within its bounds, ended jobs first.
fn enforce_bounds(
    connection: &Connection,
    retention: &Retention,
    totals: &mut Totals,
) -> Result<Forgotten, StoreError> {
    let max_jobs = i64::try_from(retention.max_jobs).unwrap_or(i64::MAX);
    let max_bytes = i64::try_from(retention.max_bytes).unwrap_or(i64::MAX);
    let mut forgotten = Forgotten::default();
    while totals.jobs > max_jobs || totals.bytes > max_bytes {
        // Delete exactly the excess jobs; if only bytes exceed the bound, one job at a time.
        let portion = (totals.jobs - max_jobs).clamp(1, DELETE_BATCH);
        let ended = format!(
            "SELECT id FROM jobs WHERE state BETWEEN {FIRST_TERMINAL} AND {LAST_TERMINAL} ORDER BY time, id LIMIT {portion}"
        );
        let deleted = delete_jobs(connection, &ended, totals)?;
        forgotten.ended += deleted;
        if deleted == 0 {
            let open = format!("SELECT id FROM jobs ORDER BY submitted, id LIMIT {portion}");
            let deleted = delete_jobs(connection, &open, totals)?;
            forgotten.open += deleted;
            if deleted == 0 {
                break;
            }
        }
    }
    Ok(forgotten)
}

/// Deletes jobs that the log may still have. Returns their number.
fn delete_jobs(
    connection: &Connection,
    which: &str,
    totals: &mut Totals,
) -> Result<u64, StoreError> {
    let sql = format!("DELETE FROM jobs WHERE id IN ({which}) RETURNING {HELD}");
    let mut delete = connection.prepare(&sql)?;
    let mut rows = delete.query(())?;

    let mut deleted = 0;
    while let Some(row) = rows.next()? {
        totals.forget(&Held::read(row)?);
        deleted += 1;
    }
    Ok(deleted)
}

fn read_job(row: &Row<'_>) -> Result<Known, StoreError> {
    let bytes: Vec<u8> = row.get(2)?;

    let event: JobEvent = match serde_json::from_slice(&bytes) {
        Ok(event) => event,
        Err(source) => return Err(StoreError::Event { job_id: row.get(3)?, source }),
    };
    Ok(Known { partition: row.get(0)?, offset: row.get(1)?, event })
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError> {
        self.run_blocking(move |store| store.apply_batch(&batch)).await
    }

    async fn overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError> {
        self.run_blocking(move |store| store.find_overtaken(limit)).await
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        self.run_blocking(|store| read_positions(&store.inner.reader.lock())).await
    }

    async fn reset(&self) -> Result<(), StoreError> {
        self.run_blocking(|store| Ok(store.inner.writer.lock().execute_batch(schema::EMPTY)?)).await
    }

    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        let job_id = job_id.to_owned();
        self.run_blocking(move |store| store.find_job(&job_id)).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let query = query.clone();
        self.run_blocking(move |store| listing::read_page(&store.inner.lister.lock(), &query)).await
    }

    async fn tallies(&self) -> Result<Tallies, StoreError> {
        self.run_blocking(|store| totals::read_tallies(&store.inner.lister.lock())).await
    }

    async fn forget(&self, now: Timestamp) -> Result<Forgotten, StoreError> {
        let age = i64::try_from(self.retention.max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.as_millis().saturating_sub(age);

        let mut forgotten = std::mem::take(&mut *self.inner.evicted.lock());
        loop {
            // One batch at a time, so that other work can run in between.
            let deleted = self.run_blocking(move |store| store.forget_ended(oldest)).await?;
            forgotten.ended += deleted;
            if deleted == 0 {
                return Ok(forgotten);
            }
        }
    }
}
