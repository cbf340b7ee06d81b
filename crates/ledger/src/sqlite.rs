//! A ledger in an SQLite file, which survives a restart and resumes reading where it stopped.
//!
//! The file can be deleted at any time, because the topic still holds everything in it. Writes are
//! therefore consistent but need not be durable when they return.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use fleet_job::{
    event::JobEvent,
    state::{Standing, Verdict},
    time::Timestamp,
};
use libsql::{Connection, Row, Value, params, params_from_iter};
use tokio::{runtime::Handle, sync::Mutex};

use crate::{
    query::{Cursor, Page, Query},
    retention::{Forgotten, Retention},
    store::{
        Batch, Known, LoggedEvent, Overtaken, Positions, STATES, Store, StoreError, Update,
        state_number, strip_details, submitted_at,
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
/// The most jobs that one page may examine.
const MAX_SCANNED: usize = 20_000;

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
        std::fs::create_dir_all(directory).map_err(StoreError::Directory)?;
        let database = libsql::Builder::new_local(directory.join(FILE_NAME)).build().await?;

        let writer = database.connect()?;
        writer
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32768;",
            )
            .await?;

        let version = first_number(&writer, "PRAGMA user_version").await?;
        if version != Some(SCHEMA_VERSION) {
            writer
                .execute_batch(
                    "DROP TABLE IF EXISTS jobs; DROP TABLE IF EXISTS positions; DROP TABLE IF EXISTS totals;
                     DROP TABLE IF EXISTS topic;",
                )
                .await?;
            writer.execute_batch(&format!("PRAGMA user_version={SCHEMA_VERSION};")).await?;
        }

        writer.execute_batch(TABLES).await?;
        writer.execute_batch("CREATE TABLE IF NOT EXISTS topic (name TEXT NOT NULL);").await?;
        let mut rows = writer.query("SELECT name FROM topic", ()).await?;
        let known: Option<String> = rows.next().await?.map(|row| row.get(0)).transpose()?;
        drop(rows);

        let reader = database.connect()?;
        reader.execute_batch("PRAGMA query_only=1; PRAGMA cache_size=-32768;").await?;
        let lister = database.connect()?;
        lister.execute_batch("PRAGMA query_only=1; PRAGMA cache_size=-8192;").await?;

        let inner = Inner {
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            lister: Mutex::new(lister),
            evicted: Mutex::default(),
        };
        let store = Self { retention, inner: Arc::new(inner) };

        if known.as_deref() != Some(topic) {
            store.reset().await?;
            let writer = store.inner.writer.lock().await;
            writer.execute("DELETE FROM topic", ()).await?;
            writer.execute("INSERT INTO topic VALUES (?1)", [topic]).await?;
        }
        Ok(store)
    }

    /// Runs blocking work on a thread of the blocking pool.
    async fn run_blocking<T, F, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>>,
        W: FnOnce(Self) -> F + Send + 'static,
    {
        let store = self.clone();

        let runtime = Handle::current();
        let worker = tokio::task::spawn_blocking(move || runtime.block_on(work(store)));
        worker.await.map_err(|_| StoreError::Worker)?
    }

    async fn apply_batch(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError> {
        let writer = self.inner.writer.lock().await;
        let transaction = writer.transaction().await?;

        let mut totals = Totals::read(&transaction).await?;
        let mut verdicts = Vec::with_capacity(batch.updates.len());
        let positions = read_positions(&transaction).await?;

        for update in &batch.updates {
            if update.was_applied(&positions) {
                verdicts.push(Verdict::Again);
                continue;
            }
            verdicts.push(apply_update(&transaction, update, &mut totals).await?);
        }

        for (partition, next) in &batch.positions {
            transaction
                .execute("INSERT OR REPLACE INTO positions VALUES (?1, ?2)", (*partition, *next))
                .await?;
        }

        let forgotten = enforce_bounds(&transaction, &self.retention, &mut totals).await?;
        totals.write(&transaction).await?;
        transaction.commit().await?;
        *self.inner.evicted.lock().await += forgotten;
        Ok(verdicts)
    }

    async fn find_overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError> {
        let reader = self.inner.reader.lock().await;
        let sql = "SELECT id, partition, event, standing FROM jobs WHERE overtaken = 1 LIMIT ?1";

        let mut rows = reader.query(sql, [i64::try_from(limit).unwrap_or(i64::MAX)]).await?;
        let mut overtaken = Vec::new();

        while let Some(row) = rows.next().await? {
            let (job_id, standing): (String, String) = (row.get(0)?, row.get(3)?);
            let standing = read_standing(&job_id, &standing)?;
            overtaken.push(Overtaken {
                job_id,
                partition: row.get(1)?,
                value: row.get(2)?,
                standing,
            });
        }
        Ok(overtaken)
    }

    async fn find_job(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        let reader = self.inner.reader.lock().await;

        let statement =
            reader.prepare("SELECT partition, offset, event, id FROM jobs WHERE id = ?1").await?;
        let mut rows = statement.query([job_id]).await?;
        rows.next().await?.map(|row| read_job(&row)).transpose()
    }

    async fn read_page(&self, query: &Query) -> Result<Page, StoreError> {
        let (sql, values) = build_list_query(query);
        let limit = query.bounded_limit();

        let reader = self.inner.lister.lock().await;
        let mut rows = reader.query(&sql, params_from_iter(values)).await?;
        let mut page = Page::default();
        let mut examined = 0;
        let mut last = None;

        while let Some(row) = rows.next().await? {
            if page.jobs.len() == limit || examined == MAX_SCANNED {
                page.next = last;
                break;
            }
            examined += 1;
            let (job_id, submitted): (String, i64) = (row.get(3)?, row.get(4)?);
            let submitted_at = Timestamp::from_millis_clamped(submitted);
            let owner: Option<String> = row.get(5)?;
            if query.may_see(owner.as_deref()) {
                let known = read_job(&row)?;
                page.jobs.push(Known { event: strip_details(known.event), ..known });
            }
            last = Some(Cursor { submitted_at, job_id });
        }
        Ok(page)
    }

    async fn forget_ended(&self, oldest: i64) -> Result<u64, StoreError> {
        let writer = self.inner.writer.lock().await;
        let transaction = writer.transaction().await?;
        let mut totals = Totals::read(&transaction).await?;
        let which = format!(
            "SELECT id FROM jobs WHERE state >= {FIRST_TERMINAL} AND time < {oldest} ORDER BY time LIMIT {DELETE_BATCH}"
        );

        let forgotten = delete_jobs(&transaction, &which, &mut totals).await?;
        totals.write(&transaction).await?;
        transaction.commit().await?;
        Ok(forgotten)
    }
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

    async fn read(connection: &Connection) -> Result<Self, StoreError> {
        let mut rows = connection.query("SELECT jobs, bytes FROM totals", ()).await?;
        Ok(match rows.next().await? {
            Some(row) => Self { jobs: row.get(0)?, bytes: row.get(1)? },
            None => Self { jobs: 0, bytes: 0 },
        })
    }

    async fn write(self, connection: &Connection) -> Result<(), StoreError> {
        let sql = "UPDATE totals SET jobs = ?1, bytes = ?2";
        connection.execute(sql, (self.jobs, self.bytes)).await?;
        Ok(())
    }
}

async fn read_positions(connection: &Connection) -> Result<Positions, StoreError> {
    let mut rows = connection.query("SELECT partition, next FROM positions", ()).await?;
    let mut positions = Positions::new();
    while let Some(row) = rows.next().await? {
        positions.insert(row.get(0)?, row.get(1)?);
    }
    Ok(positions)
}

/// Applies one record.
async fn apply_update(
    connection: &Connection,
    update: &Update,
    totals: &mut Totals,
) -> Result<Verdict, StoreError> {
    let id = update.job_id.as_str();

    let find = connection
        .prepare("SELECT partition, standing, length(event) FROM jobs WHERE id = ?1")
        .await?;
    let known: Option<(i32, String, i64)> = match find.query([id]).await?.next().await? {
        Some(row) => Some((row.get(0)?, row.get(1)?, row.get(2)?)),
        None => None,
    };
    let bytes = known.as_ref().map(|(.., bytes)| *bytes);
    let standing = match known.filter(|(partition, ..)| *partition == update.partition) {
        Some((_, text, _)) => Some(read_standing(id, &text)?),
        None => None,
    };

    let Some(logged) = &update.event else {
        if let Some(mut newer) = standing.filter(|standing| standing.seen() >= update.offset) {
            newer.forget_older();
            write_standing(connection, id, &newer).await?;
            return Ok(Verdict::Stale);
        }
        totals.remove(bytes);
        connection.execute("DELETE FROM jobs WHERE id = ?1", [id]).await?;
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
        insert_job(connection, update, logged, &standing, totals).await?;
    } else {
        write_standing(connection, id, &standing).await?;
    }
    Ok(verdict)
}

async fn insert_job(
    connection: &Connection,
    update: &Update,
    logged: &LoggedEvent,
    standing: &Standing,
    totals: &mut Totals,
) -> Result<(), StoreError> {
    let (event, bytes) = (&logged.event, &logged.value);
    totals.jobs += 1;
    totals.bytes += i64::try_from(bytes.len()).unwrap_or(i64::MAX) + OVERHEAD;

    let insert = connection
        .prepare(
            "INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )
        .await?;

    // There are seven states.
    let state = state_number(event.state) as i64;
    insert
        .execute(params![
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
            bytes.clone(),
            standing_text(standing),
            standing.is_overtaken()
        ])
        .await?;
    Ok(())
}

fn read_standing(job_id: &str, text: &str) -> Result<Standing, StoreError> {
    serde_json::from_str(text)
        .map_err(|source| StoreError::Event { job_id: job_id.to_owned(), source })
}

async fn write_standing(
    connection: &Connection,
    id: &str,
    standing: &Standing,
) -> Result<(), StoreError> {
    let change =
        connection.prepare("UPDATE jobs SET standing = ?2, overtaken = ?3 WHERE id = ?1").await?;
    change.execute(params![id, standing_text(standing), standing.is_overtaken()]).await?;
    Ok(())
}

fn standing_text(standing: &Standing) -> String {
    // A struct of plain fields can't fail to become JSON.
    serde_json::to_string(standing).unwrap_or_default()
}

/// Deletes jobs until the store is within its bounds, ended jobs first.
async fn enforce_bounds(
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
        let deleted = delete_jobs(connection, &ended, totals).await?;
        forgotten.ended += deleted;
        if deleted == 0 {
            let open = format!("SELECT id FROM jobs ORDER BY submitted, id LIMIT {portion}");
            let deleted = delete_jobs(connection, &open, totals).await?;
            forgotten.open += deleted;
            if deleted == 0 {
                break;
            }
        }
    }
    Ok(forgotten)
}

async fn delete_jobs(
    connection: &Connection,
    which: &str,
    totals: &mut Totals,
) -> Result<u64, StoreError> {
    let sql = format!("DELETE FROM jobs WHERE id IN ({which}) RETURNING length(event)");
    let mut rows = connection.query(&sql, ()).await?;

    let mut deleted = 0;
    while let Some(row) = rows.next().await? {
        totals.jobs -= 1;
        totals.bytes -= row.get::<i64>(0)? + OVERHEAD;
        deleted += 1;
    }
    Ok(deleted)
}

async fn first_number(connection: &Connection, sql: &str) -> Result<Option<i64>, StoreError> {
    let mut rows = connection.query(sql, ()).await?;
    Ok(rows.next().await?.map(|row| row.get(0)).transpose()?)
}

fn read_job(row: &Row) -> Result<Known, StoreError> {
    let bytes: Vec<u8> = row.get(2)?;

    let event: JobEvent = match serde_json::from_slice(&bytes) {
        Ok(event) => event,
        Err(source) => return Err(StoreError::Event { job_id: row.get(3)?, source }),
    };
    Ok(Known { partition: row.get(0)?, offset: row.get(1)?, event })
}

/// Builds the SQL for a list query. Ownership is checked afterwards, in one place for all stores.
fn build_list_query(query: &Query) -> (String, Vec<Value>) {
    let mut conditions = vec!["1".to_owned()];
    let mut values: Vec<Value> = Vec::new();
    let mut with = |condition: &str, value: Value| {
        values.push(value);
        conditions.push(format!("{condition} ?{}", values.len()));
    };

    let texts = [
        ("type =", &query.filter.job_type),
        ("tool =", &query.filter.tool),
        ("tenant =", &query.filter.tenant),
    ];
    for (condition, value) in texts {
        if let Some(value) = value {
            with(condition, value.clone().into());
        }
    }

    if let Some(since) = query.filter.since {
        with("submitted >=", since.as_millis().into());
    }
    if let Some(until) = query.filter.until {
        with("submitted <", until.as_millis().into());
    }

    if let Some(cursor) = &query.after {
        values.push(cursor.submitted_at.as_millis().into());
        values.push(cursor.job_id.clone().into());
        let n = values.len();
        conditions.push(format!("(submitted, id) < (?{}, ?{n})", n - 1));
    }

    if !query.filter.states.is_empty() {
        let states: Vec<String> =
            query.filter.states.iter().map(|state| state_number(*state).to_string()).collect();
        conditions.push(match &states[..] {
            [state] => format!("state = {state}"),
            states => format!("state IN ({})", states.join(",")),
        });
    }

    let limit = MAX_SCANNED + 1;
    let sql = format!(
        "SELECT partition, offset, event, id, submitted, owner FROM jobs WHERE {} \
         ORDER BY submitted DESC, id DESC LIMIT {limit}",
        conditions.join(" AND ")
    );
    (sql, values)
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError> {
        self.run_blocking(move |store| async move { store.apply_batch(batch).await }).await
    }

    async fn overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError> {
        self.run_blocking(move |store| async move { store.find_overtaken(limit).await }).await
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        self.run_blocking(|store| async move {
            let reader = store.inner.reader.lock().await;
            read_positions(&reader).await
        })
        .await
    }

    async fn reset(&self) -> Result<(), StoreError> {
        self.run_blocking(|store| async move {
            let writer = store.inner.writer.lock().await;
            writer
                .execute_batch(
                    "DELETE FROM jobs; DELETE FROM positions; UPDATE totals SET jobs = 0, bytes = 0;",
                )
                .await?;
            Ok(())
        })
        .await
    }

    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        let job_id = job_id.to_owned();
        self.run_blocking(move |store| async move { store.find_job(&job_id).await }).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let query = query.clone();
        self.run_blocking(move |store| async move { store.read_page(&query).await }).await
    }

    async fn counts(&self) -> Result<BTreeMap<&'static str, u64>, StoreError> {
        self.run_blocking(|store| async move {
            let reader = store.inner.lister.lock().await;

            let mut rows =
                reader.query("SELECT state, count(*) FROM jobs GROUP BY state", ()).await?;
            let mut counts: BTreeMap<_, _> =
                STATES.iter().map(|state| (state.as_str(), 0)).collect();

            while let Some(row) = rows.next().await? {
                let (state, count): (u64, u64) = (row.get(0)?, row.get(1)?);
                if let Some(state) = usize::try_from(state).ok().and_then(|state| STATES.get(state))
                {
                    counts.insert(state.as_str(), count);
                }
            }
            Ok(counts)
        })
        .await
    }

    async fn forget(&self, now: Timestamp) -> Result<Forgotten, StoreError> {
        let age = i64::try_from(self.retention.max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.as_millis().saturating_sub(age);

        let mut forgotten = std::mem::take(&mut *self.inner.evicted.lock().await);
        loop {
            // One batch at a time, so that other work can run in between.
            let deleted = self
                .run_blocking(move |store| async move { store.forget_ended(oldest).await })
                .await?;
            forgotten.ended += deleted;
            if deleted == 0 {
                return Ok(forgotten);
            }
        }
    }
}
