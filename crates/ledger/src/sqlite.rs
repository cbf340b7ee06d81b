//! A ledger in an SQLite file, which survives a restart and resumes reading where it stopped.
//!
//! The file can be deleted at any time, because the topic still holds everything in it. Writes are
//! therefore consistent but need not be durable when they return.

mod listing;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use fleet_job::{
    event::JobEvent,
    state::{Standing, Verdict},
    time::Timestamp,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use crate::{
    query::{Page, Query},
    retention::{Forgotten, Retention},
    store::{
        Batch, Known, LoggedEvent, Overtaken, Positions, STATES, Store, StoreError, Update,
        standing_text, state_number, submitted_at,
    },
};

/// The name of the ledger file.
pub const FILE_NAME: &str = "ledger.sqlite";
/// The version of the file's schema. A file with another version is recreated.
const SCHEMA_VERSION: i64 = 2;
/// The bytes that a job needs besides its event, for names and index entries.
const OVERHEAD: i64 = 650;
/// The number of the first terminal state.
const FIRST_TERMINAL: usize = 3;
/// How many jobs to delete in one transaction.
const DELETE_BATCH: i64 = 1_000;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS totals (id INTEGER PRIMARY KEY CHECK (id = 0), jobs INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT OR IGNORE INTO totals VALUES (0, 0, 0);
    CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, partition INTEGER NOT NULL, offset INTEGER NOT NULL, state INTEGER NOT NULL,
        type TEXT, tool TEXT, tenant TEXT, owner TEXT, submitted INTEGER NOT NULL, time INTEGER NOT NULL,
        event BLOB NOT NULL, standing TEXT NOT NULL, overtaken INTEGER NOT NULL
    );
    CREATE INDEX IF NOT EXISTS by_time ON jobs (submitted, id);
    CREATE INDEX IF NOT EXISTS by_state ON jobs (state, submitted, id);
    CREATE INDEX IF NOT EXISTS by_tool ON jobs (tool, submitted, id);
    CREATE INDEX IF NOT EXISTS by_tenant ON jobs (tenant, submitted, id) WHERE tenant IS NOT NULL;
    CREATE INDEX IF NOT EXISTS by_end ON jobs (time) WHERE state >= 3;
    CREATE INDEX IF NOT EXISTS by_overtaken ON jobs (id) WHERE overtaken = 1;";

/// Removes all jobs and positions.
const EMPTY: &str =
    "DELETE FROM jobs; DELETE FROM positions; UPDATE totals SET jobs = 0, bytes = 0;";

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
        prepare_tables(&writer)?;

        let known: Option<String> =
            writer.query_row("SELECT name FROM topic", (), |row| row.get(0)).optional()?;
        if known.as_deref() != Some(topic) {
            writer.execute_batch(EMPTY)?;
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

    fn count_states(&self) -> Result<BTreeMap<&'static str, u64>, StoreError> {
        let lister = self.inner.lister.lock();
        let mut counts: BTreeMap<_, _> = STATES.iter().map(|state| (state.as_str(), 0)).collect();

        let mut count = lister.prepare_cached("SELECT state, count(*) FROM jobs GROUP BY state")?;
        let mut rows = count.query(())?;
        while let Some(row) = rows.next()? {
            let (state, count): (i64, i64) = (row.get(0)?, row.get(1)?);
            let state = usize::try_from(state).ok().and_then(|state| STATES.get(state));
            if let Some(state) = state {
                counts.insert(state.as_str(), u64::try_from(count).unwrap_or_default());
            }
        }
        Ok(counts)
    }

    fn forget_ended(&self, oldest: i64) -> Result<u64, StoreError> {
        let mut writer = self.inner.writer.lock();
        let transaction = writer.transaction()?;
        let mut totals = Totals::read(&transaction)?;
        let which = format!(
            "SELECT id FROM jobs WHERE state >= {FIRST_TERMINAL} AND time < {oldest} ORDER BY time LIMIT {DELETE_BATCH}"
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

/// Creates the tables. Those of another version of the schema are dropped before.
fn prepare_tables(writer: &Connection) -> Result<(), StoreError> {
    let version: i64 = writer.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    if version != SCHEMA_VERSION {
        writer.execute_batch(
            "DROP TABLE IF EXISTS jobs; DROP TABLE IF EXISTS positions; DROP TABLE IF EXISTS totals;
             DROP TABLE IF EXISTS topic;",
        )?;
        writer.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }

    writer.execute_batch(TABLES)?;
    writer.execute_batch("CREATE TABLE IF NOT EXISTS topic (name TEXT NOT NULL);")?;
    Ok(())
}

/// The number and total size of all jobs, maintained incrementally to avoid counting.
#[derive(Clone, Copy)]
struct Totals {
    jobs: i64,
    bytes: i64,
}

impl Totals {
    /// Subtracts a job whose event has this size, if there is one.
    fn remove(&mut self, bytes: Option<i64>) {
        if let Some(bytes) = bytes {
            self.jobs -= 1;
            self.bytes -= bytes + OVERHEAD;
        }
    }

    fn read(connection: &Connection) -> Result<Self, StoreError> {
        let mut find = connection.prepare_cached("SELECT jobs, bytes FROM totals")?;
        let found = find
            .query_row((), |row| Ok(Self { jobs: row.get(0)?, bytes: row.get(1)? }))
            .optional()?;
        Ok(found.unwrap_or(Self { jobs: 0, bytes: 0 }))
    }

    fn write(self, connection: &Connection) -> Result<(), StoreError> {
        let mut change = connection.prepare_cached("UPDATE totals SET jobs = ?1, bytes = ?2")?;
        change.execute((self.jobs, self.bytes))?;
        Ok(())
    }
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

    let mut find = connection
        .prepare_cached("SELECT partition, standing, length(event) FROM jobs WHERE id = ?1")?;
    let known: Option<(i32, String, i64)> =
        find.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let bytes = known.as_ref().map(|(.., bytes)| *bytes);
    let standing = match known.filter(|(partition, ..)| *partition == update.partition) {
        Some((_, text, _)) => Some(read_standing(id, &text)?),
        None => None,
    };

    let Some(logged) = &update.event else {
        if let Some(mut newer) = standing.filter(|standing| standing.seen() >= update.offset) {
            newer.forget_older();
            write_standing(connection, id, &newer)?;
            return Ok(Verdict::Stale);
        }
        totals.remove(bytes);
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
        totals.remove(bytes);
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
    totals.jobs += 1;
    totals.bytes += i64::try_from(bytes.len()).unwrap_or(i64::MAX) + OVERHEAD;

    let mut insert = connection.prepare_cached(
        "INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;

    // There are seven states.
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
        standing.is_overtaken()
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
            "SELECT id FROM jobs WHERE state >= {FIRST_TERMINAL} ORDER BY time, id LIMIT {portion}"
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

fn delete_jobs(
    connection: &Connection,
    which: &str,
    totals: &mut Totals,
) -> Result<u64, StoreError> {
    let sql = format!("DELETE FROM jobs WHERE id IN ({which}) RETURNING length(event)");
    let mut delete = connection.prepare(&sql)?;
    let mut rows = delete.query(())?;

    let mut deleted = 0;
    while let Some(row) = rows.next()? {
        totals.jobs -= 1;
        totals.bytes -= row.get::<_, i64>(0)? + OVERHEAD;
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
        self.run_blocking(|store| Ok(store.inner.writer.lock().execute_batch(EMPTY)?)).await
    }

    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        let job_id = job_id.to_owned();
        self.run_blocking(move |store| store.find_job(&job_id)).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let query = query.clone();
        self.run_blocking(move |store| listing::read_page(&store.inner.lister.lock(), &query)).await
    }

    async fn counts(&self) -> Result<BTreeMap<&'static str, u64>, StoreError> {
        self.run_blocking(Self::count_states).await
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
