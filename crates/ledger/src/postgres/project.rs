//! Applies batches of records: the one place that writes jobs.
//!
//! Every replica reads the whole topic and offers all of it. Whoever locks the row of a partition
//! is its projector until the transaction ends, and a projector that dies or stops answering loses
//! the lock with its connection. The others then find in the row that the records have been
//! applied, and read what became of them.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use deadpool_postgres::{Client, Transaction};
use fleet_job::state::{Standing, Verdict};
use tokio_postgres::types::ToSql;

use super::{
    fold::{Changes, NewRow, Stored, TallyKey, fold_batch},
    tallies::change_counts,
    text::{from_column, to_column},
};
use crate::{
    metrics,
    store::{Batch, Positions, StoreError, Update, standing_text, strip_details, submitted_at},
};

/// Begins a transaction that writes. It waits for another projector for a bounded time; one that
/// has stopped in the middle is cut off by the database after the same time. Jobs are found by their
/// ids, whatever the statistics say of tables that have just been filled. A commit need not be on
/// disk when it returns: what a crash of the database takes is read from the topic again.
const SETTINGS: &str = "
    SET LOCAL lock_timeout = '10s';
    SET LOCAL idle_in_transaction_session_timeout = '10s';
    SET LOCAL statement_timeout = '30s';
    SET LOCAL synchronous_commit = off;
    SET LOCAL enable_seqscan = off;
    SET LOCAL enable_hashjoin = off;
    SET LOCAL enable_mergejoin = off";

/// The most bytes of events in one statement, of which the database takes a gigabyte at most.
const MAX_STATEMENT: usize = 8 << 20;
/// Events above this size have a second, shorter form for lists.
const BRIEF_ABOVE: usize = 1_024;

const ADD_POSITIONS: &str = "INSERT INTO ledger_positions (partition)
    SELECT partition FROM unnest($1::int[]) AS t (partition)
    ON CONFLICT (partition) DO NOTHING";
const LOCK_POSITIONS: &str = "SELECT partition, next FROM ledger_positions
    WHERE partition = ANY ($1) ORDER BY partition FOR UPDATE";
const GENERATION: &str = "SELECT generation FROM ledger_log";
const FIND_STORED: &str =
    "SELECT id, partition, state, octet_length(event)::bigint, standing, owner, tenant
    FROM ledger_jobs WHERE id = ANY ($1)";
const INSERT: &str = "INSERT INTO ledger_jobs (id, partition, \"offset\", state, has_ended, type, tool, tenant, owner,
        code, submitted, time, is_overtaken, standing, brief, event)
    SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[], $4::text[], $5::bool[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::bool[], $14::text[], $15::bytea[],
        $16::bytea[])
    ON CONFLICT (id) DO NOTHING";
const REPLACE: &str = "UPDATE ledger_jobs AS j SET partition = n.partition, \"offset\" = n.\"offset\",
        state = n.state, has_ended = n.has_ended, type = n.type, tool = n.tool, tenant = n.tenant, owner = n.owner,
        code = n.code, submitted = n.submitted, time = n.time, is_overtaken = n.is_overtaken,
        standing = n.standing, brief = n.brief, event = n.event
    FROM unnest($1::text[], $2::int[], $3::bigint[], $4::text[], $5::bool[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::bool[], $14::text[], $15::bytea[],
        $16::bytea[], $17::text[])
        AS n (id, partition, \"offset\", state, has_ended, type, tool, tenant, owner, code, submitted, time,
        is_overtaken, standing, brief, event, was)
    WHERE j.id = n.id AND j.standing = n.was";
const RESTAND: &str = "UPDATE ledger_jobs AS j SET standing = n.standing, is_overtaken = n.is_overtaken
    FROM unnest($1::text[], $2::text[], $3::bool[], $4::text[]) AS n (id, standing, is_overtaken, was)
    WHERE j.id = n.id AND j.standing = n.was";
const DELETE: &str =
    "DELETE FROM ledger_jobs AS j USING unnest($1::text[], $2::text[]) AS n (id, was)
    WHERE j.id = n.id AND j.standing = n.was";
const ADVANCE: &str = "UPDATE ledger_positions AS p SET next = greatest(p.next, n.next)
    FROM unnest($1::int[], $2::bigint[]) AS n (partition, next) WHERE p.partition = n.partition";

/// What the reader of the log knows when it offers a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reading {
    /// The generation of the projection that the reader's positions belong to.
    pub(super) generation: Option<i64>,
    /// How far the reader has come; the database must have come at least as far.
    pub(super) read_to: Positions,
}

impl Reading {
    /// Notes that a batch up to these positions has been applied.
    pub(super) fn note_applied(&mut self, generation: i64, positions: &Positions) {
        self.generation = Some(generation);
        self.read_to.extend(positions);
    }

    /// Begins to read again. Within a generation the reader goes on where it was, although others
    /// may have come further, so that it passes on everything; if the database has lost its last
    /// transactions, it begins where the database is.
    pub(super) fn resume(&mut self, generation: i64, positions: Positions) {
        let known = std::mem::take(&mut self.read_to);
        let is_known = self.generation.replace(generation) == Some(generation);
        self.read_to = positions
            .into_iter()
            .map(|(partition, next)| match known.get(&partition) {
                Some(read_to) if is_known => (partition, next.min(*read_to)),
                _ => (partition, next),
            })
            .collect();
    }
}

/// What a batch has done.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) verdicts: Vec<Verdict>,
    pub(super) generation: i64,
    /// Whether jobs were added, so that there may be too many.
    pub(super) has_grown: bool,
}

/// Begins a transaction that writes.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(SETTINGS).await?;
    Ok(transaction)
}

/// Applies a batch.
pub(super) async fn apply_batch(
    client: &mut Client,
    batch: &Batch,
    reading: &Reading,
) -> Result<Applied, StoreError> {
    let partitions = touched_partitions(batch, &reading.read_to);
    let transaction = begin(client).await?;
    let (positions, generation) = lock_positions(&transaction, &partitions).await?;
    check_reading(reading, &partitions, &positions, generation)?;

    let is_news = |update: &Update| !update.was_applied(&positions);
    let news = batch.updates.iter().filter(|update| is_news(update)).count();
    metrics::count_projected("this", news);
    metrics::count_projected("another", batch.updates.len() - news);
    if news == 0 && covers(&positions, &batch.positions, &partitions) {
        // Others need the lock, and what follows reads only.
        transaction.commit().await?;
        let stored = find_stored(client, &batch.updates).await?;
        let (verdicts, _) = fold_batch(&batch.updates, &positions, stored);
        return Ok(Applied { verdicts, generation, has_grown: false });
    }

    let stored = find_stored(&transaction, &batch.updates).await?;
    let (verdicts, changes) = fold_batch(&batch.updates, &positions, stored);
    let has_grown = !changes.inserted.is_empty() || !changes.replaced.is_empty();
    write_changes(&transaction, &changes).await?;
    advance(&transaction, &batch.positions, &partitions).await?;
    transaction.commit().await?;
    Ok(Applied { verdicts, generation, has_grown })
}

/// Returns the partitions of which a batch has something to say.
fn touched_partitions(batch: &Batch, read_to: &Positions) -> Vec<i32> {
    let advanced = batch
        .positions
        .iter()
        .filter(|(partition, next)| read_to.get(partition).is_none_or(|read_to| read_to < next));
    let touched: BTreeSet<i32> = batch
        .updates
        .iter()
        .map(|update| update.partition)
        .chain(advanced.map(|(partition, _)| *partition))
        .collect();
    touched.into_iter().collect()
}

/// Becomes the projector of these partitions. Returns how far they have been projected, and the
/// generation of the projection.
async fn lock_positions(
    transaction: &Transaction<'_>,
    partitions: &Vec<i32>,
) -> Result<(Positions, i64), StoreError> {
    let [add, lock, generation] = [ADD_POSITIONS, LOCK_POSITIONS, GENERATION];
    let lock = transaction.prepare_cached(lock).await?;
    let mut rows = transaction.query(&lock, &[partitions]).await?;
    if rows.len() < partitions.len() {
        let add = transaction.prepare_cached(add).await?;
        transaction.execute(&add, &[partitions]).await?;
        rows = transaction.query(&lock, &[partitions]).await?;
    }

    // Read after the lock, which waits for whoever empties the ledger.
    let generation = transaction.prepare_cached(generation).await?;
    let generation = transaction.query_one(&generation, &[]).await?.try_get(0)?;

    let mut positions = Positions::new();
    for row in rows {
        if let Some(next) = row.try_get(1)? {
            positions.insert(row.try_get(0)?, next);
        }
    }
    Ok((positions, generation))
}

/// Checks that the database has come as far as the reader. It has not after it was emptied, restored
/// from a backup, or replaced by a standby that lacked the last transactions; the records in between
/// would be missing.
fn check_reading(
    reading: &Reading,
    partitions: &[i32],
    positions: &Positions,
    generation: i64,
) -> Result<(), StoreError> {
    if reading.generation.is_some_and(|known| known != generation) {
        return Err(StoreError::Emptied);
    }

    let lacks = |partition: &&i32| {
        let next = positions.get(partition);
        let read_to = reading.read_to.get(partition);
        read_to.is_some_and(|read_to| next.is_none_or(|next| next < read_to))
    };
    match partitions.iter().find(lacks) {
        Some(partition) => Err(StoreError::WentBack { partition: *partition }),
        None => Ok(()),
    }
}

/// Returns whether nothing of the batch's positions is new.
fn covers(positions: &Positions, wanted: &Positions, partitions: &[i32]) -> bool {
    let reaches = |partition: &i32| match (positions.get(partition), wanted.get(partition)) {
        (_, None) => true,
        (Some(next), Some(wanted)) => next >= wanted,
        (None, Some(_)) => false,
    };
    partitions.iter().all(reaches)
}

/// Reads what the database holds of the jobs of a batch.
async fn find_stored(
    client: &impl deadpool_postgres::GenericClient,
    updates: &[Update],
) -> Result<HashMap<String, Stored>, StoreError> {
    let ids: BTreeSet<&str> = updates.iter().map(|update| update.job_id.as_str()).collect();
    let ids: Vec<_> = ids.into_iter().map(to_column).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }

    let find = client.prepare_cached(FIND_STORED).await?;
    let rows = client.query(&find, &[&ids]).await?;
    let mut stored = HashMap::with_capacity(rows.len());
    for row in rows {
        let job_id = from_column(row.try_get(0)?);
        let written: String = row.try_get(4)?;
        let standing = read_standing(&job_id, &written)?;
        let (owner, tenant): (Option<String>, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
        let tally = TallyKey {
            partition: row.try_get(1)?,
            state: row.try_get(2)?,
            owner: owner.map(from_column),
            tenant: tenant.map(from_column),
        };
        stored.insert(job_id, Stored { tally, bytes: row.try_get(3)?, standing, written });
    }
    Ok(stored)
}

pub(super) fn read_standing(job_id: &str, text: &str) -> Result<Standing, StoreError> {
    serde_json::from_str(text)
        .map_err(|source| StoreError::Event { job_id: job_id.to_owned(), source })
}

/// Writes what a batch has changed. Fails if a row is not what the changes were made from.
async fn write_changes(
    transaction: &Transaction<'_>,
    changes: &Changes<'_>,
) -> Result<(), StoreError> {
    for rows in portions(&changes.inserted, NewRow::size) {
        let columns = Columns::of(rows.iter());
        execute(transaction, INSERT, &columns.values(), rows.len()).await?;
    }

    for rows in portions(&changes.replaced, |(row, _)| row.size()) {
        let columns = Columns::of(rows.iter().map(|(row, _)| row));
        let was: Vec<_> = rows.iter().map(|(_, was)| was).collect();
        let mut values = columns.values();
        values.push(&was);
        execute(transaction, REPLACE, &values, rows.len()).await?;
    }

    if !changes.restood.is_empty() {
        let rows = &changes.restood;
        let ids: Vec<_> = rows.iter().map(|row| to_column(row.job_id)).collect();
        let standings: Vec<_> = rows.iter().map(|row| standing_text(&row.standing)).collect();
        let overtaken: Vec<_> = rows.iter().map(|row| row.standing.is_overtaken()).collect();
        let was: Vec<_> = rows.iter().map(|row| &row.was).collect();
        execute(transaction, RESTAND, &[&ids, &standings, &overtaken, &was], rows.len()).await?;
    }

    if !changes.deleted.is_empty() {
        let (ids, was): (Vec<_>, Vec<_>) =
            changes.deleted.iter().map(|(job_id, was)| (to_column(job_id), was)).unzip();
        execute(transaction, DELETE, &[&ids, &was], changes.deleted.len()).await?;
    }

    change_counts(transaction, &changes.counts).await
}

/// Splits rows into portions for one statement each: as many as fit into [`MAX_STATEMENT`], and at
/// least one.
fn portions<T>(mut rows: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0_usize;
        let is_within = |row: &T| {
            bytes = bytes.saturating_add(size(row));
            bytes <= MAX_STATEMENT
        };
        let fitting = rows.iter().map(is_within).take_while(|fits| *fits).count();
        let portion;
        (portion, rows) = rows.split_at(fitting.max(1).min(rows.len()));
        (!portion.is_empty()).then_some(portion)
    })
}

/// Executes a statement that has to change this many rows.
pub(super) async fn execute(
    transaction: &Transaction<'_>,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
    rows: usize,
) -> Result<(), StoreError> {
    let statement = transaction.prepare_cached(sql).await?;
    let changed = transaction.execute(&statement, values).await?;
    if changed == rows as u64 { Ok(()) } else { Err(StoreError::Contended) }
}

async fn advance(
    transaction: &Transaction<'_>,
    positions: &Positions,
    partitions: &[i32],
) -> Result<(), StoreError> {
    let (advanced, next): (Vec<i32>, Vec<i64>) =
        positions.iter().filter(|(partition, _)| partitions.contains(partition)).unzip();
    if advanced.is_empty() {
        return Ok(());
    }
    execute(transaction, ADVANCE, &[&advanced, &next], advanced.len()).await
}

type Texts<'a> = Vec<Option<Cow<'a, str>>>;

/// The columns of new rows, in the order of [`INSERT`].
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Cow<'a, str>>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    states: Vec<&'static str>,
    have_ended: Vec<bool>,
    types: Texts<'a>,
    tools: Texts<'a>,
    tenants: Texts<'a>,
    owners: Texts<'a>,
    codes: Texts<'a>,
    submitted: Vec<i64>,
    times: Vec<i64>,
    are_overtaken: Vec<bool>,
    standings: Vec<String>,
    briefs: Vec<Option<Vec<u8>>>,
    events: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of<'row>(rows: impl Iterator<Item = &'row NewRow<'a>>) -> Self
    where
        'a: 'row,
    {
        let mut columns = Self::default();
        for row in rows {
            columns.push(row);
        }
        columns
    }

    fn push(&mut self, row: &NewRow<'a>) {
        let event = &row.logged.event;
        let name = |name: &'a Option<String>| name.as_deref().map(to_column);
        self.ids.push(to_column(&row.update.job_id));
        self.partitions.push(row.update.partition);
        self.offsets.push(row.standing.offset());
        self.states.push(event.state.as_str());
        self.have_ended.push(event.state.is_terminal());
        self.types.push(name(&event.job_type));
        self.tools.push(name(&event.tool));
        self.tenants.push(name(&event.tenant));
        self.owners.push(name(&event.owner));
        self.codes.push(event.error.as_ref().map(|error| to_column(error.stable_code())));
        self.submitted.push(submitted_at(event).as_millis());
        self.times.push(event.time.as_millis());
        self.are_overtaken.push(row.standing.is_overtaken());
        self.standings.push(standing_text(&row.standing));
        let is_long = row.logged.value.len() > BRIEF_ABOVE;
        self.briefs.push(is_long.then(|| strip_details(event.clone()).to_bytes()));
        self.events.push(&row.logged.value);
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.ids,
            &self.partitions,
            &self.offsets,
            &self.states,
            &self.have_ended,
            &self.types,
            &self.tools,
            &self.tenants,
            &self.owners,
            &self.codes,
            &self.submitted,
            &self.times,
            &self.are_overtaken,
            &self.standings,
            &self.briefs,
            &self.events,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_bounded_by_bytes() {
        let check = |sizes: &[usize], expected: &[usize]| {
            let portions: Vec<_> = portions(sizes, |size| *size).map(<[usize]>::len).collect();
            assert_eq!(portions, expected, "{sizes:?}");
        };
        let (all, half) = (MAX_STATEMENT, MAX_STATEMENT / 2);
        check(&[], &[]);
        check(&[1, 2, 3], &[3]);
        check(&[half, half, half], &[2, 1]);
        check(&[all + 1, 1, all, usize::MAX, usize::MAX], &[1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_database_must_have_come_as_far_as_the_reader() {
        let at = |next: i64| Positions::from([(0, next)]);
        let check = |read_to: Positions, positions: Positions, is_right: bool| {
            let reading = Reading { generation: Some(1), read_to };
            assert_eq!(check_reading(&reading, &[0], &positions, 1).is_ok(), is_right);
            assert!(check_reading(&reading, &[0], &positions, 2).is_err(), "it was emptied");
        };
        check(at(5), at(5), true);
        check(at(5), at(6), true);
        check(at(5), at(4), false);
        check(at(5), Positions::new(), false);
        check(Positions::new(), at(4), true);
    }
}
