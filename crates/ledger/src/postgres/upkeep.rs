//! Keeps the ledger within its bounds.

use std::ops::AddAssign as _;

use deadpool_postgres::{Client, Transaction};

use super::{project::begin, tallies::SHARED};
use crate::{
    retention::{Forgotten, Retention},
    store::StoreError,
};

/// The bytes that a job needs besides its event, for names, its standing and index entries. Measured
/// with a million jobs.
const OVERHEAD: i64 = 1_100;
/// How many jobs to delete in one transaction.
const DELETE_BATCH: i64 = 1_000;
/// Tries to become the only replica that forgets old jobs of this schema.
const FORGET_LOCK: &str = "SELECT pg_try_advisory_xact_lock(
    hashtextextended('fleet ledger: forget ' || coalesce(current_schema(), ''), 0))";

/// How many jobs there are, and how large their events are.
struct Totals {
    jobs: i64,
    bytes: i64,
}

/// Deletes jobs until the ledger is within its bounds, ended jobs first.
pub(super) async fn enforce_bounds(
    client: &mut Client,
    retention: &Retention,
) -> Result<Forgotten, StoreError> {
    let mut forgotten = Forgotten::default();
    // Most of the time there is nothing to do, so look before locking.
    while excess(&read_totals(client).await?, retention).is_some() {
        let transaction = begin(client).await?;
        lock_all_positions(&transaction).await?;
        let Some(excess) = excess(&read_totals(&transaction).await?, retention) else { break };

        let mut deleted = delete(&transaction, ENDED_FIRST, &[&excess]).await?;
        if deleted.is_empty() {
            deleted = delete(&transaction, OLDEST, &[&excess]).await?;
        }
        transaction.commit().await?;
        if deleted.is_empty() {
            break;
        }
        forgotten += deleted.forgotten;
    }
    Ok(forgotten)
}

/// Returns how many jobs to delete next, if there are too many or they are too large.
fn excess(totals: &Totals, retention: &Retention) -> Option<i64> {
    let max_jobs = i64::try_from(retention.max_jobs).unwrap_or(i64::MAX);
    let max_bytes = i64::try_from(retention.max_bytes).unwrap_or(i64::MAX);
    let bytes = totals.bytes.saturating_add(totals.jobs.saturating_mul(OVERHEAD));

    let jobs = totals.jobs.saturating_sub(max_jobs);
    if jobs > 0 {
        return Some(jobs.min(DELETE_BATCH));
    }
    // Half of what would do on average, since the oldest jobs may be larger than others.
    let usual = bytes / totals.jobs.max(1);
    let bytes = bytes.saturating_sub(max_bytes);
    (bytes > 0).then(|| (bytes / usual.max(1) / 2).clamp(1, DELETE_BATCH))
}

const ENDED_FIRST: &str = "SELECT id FROM ledger_jobs WHERE has_ended ORDER BY time, id LIMIT $1";
const OLDEST: &str = "SELECT id FROM ledger_jobs ORDER BY submitted, id LIMIT $1";
const TOO_OLD: &str =
    "SELECT id FROM ledger_jobs WHERE has_ended AND time < $1 ORDER BY time, id LIMIT $2";

/// Deletes jobs that ended before this time, in one batch. Returns `None` if another replica does.
pub(super) async fn forget_ended(
    client: &mut Client,
    oldest: i64,
) -> Result<Option<u64>, StoreError> {
    let transaction = begin(client).await?;
    let lock = transaction.prepare_cached(FORGET_LOCK).await?;
    let is_alone: bool = transaction.query_one(&lock, &[]).await?.try_get(0)?;
    if !is_alone {
        return Ok(None);
    }

    // Usually there is nothing to do, for which nobody should wait.
    let find = transaction.prepare_cached(TOO_OLD).await?;
    if transaction.query(&find, &[&oldest, &1_i64]).await?.is_empty() {
        return Ok(Some(0));
    }
    lock_all_positions(&transaction).await?;
    let deleted = delete(&transaction, TOO_OLD, &[&oldest, &DELETE_BATCH]).await?;
    transaction.commit().await?;
    Ok(Some(deleted.forgotten.ended + deleted.forgotten.open))
}

/// Waits for all projectors and keeps them from starting: they change rows and counts, too.
async fn lock_all_positions(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    let sql = "SELECT partition FROM ledger_positions ORDER BY partition FOR UPDATE";
    let statement = transaction.prepare_cached(sql).await?;
    transaction.query(&statement, &[]).await?;
    Ok(())
}

async fn read_totals(client: &impl deadpool_postgres::GenericClient) -> Result<Totals, StoreError> {
    let sql =
        "SELECT coalesce(sum(jobs), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM ledger_counts";
    let statement = client.prepare_cached(sql).await?;
    let row = client.query_one(&statement, &[]).await?;
    Ok(Totals { jobs: row.try_get(0)?, bytes: row.try_get(1)? })
}

/// What was deleted.
#[derive(Default)]
struct Deleted {
    forgotten: Forgotten,
}

impl Deleted {
    fn is_empty(&self) -> bool {
        self.forgotten == Forgotten::default()
    }
}

/// Deletes the jobs whose ids `which` selects, which the log may still have. Counts them out, and
/// notes until when jobs are forgotten. The caller is the projector of all partitions.
async fn delete(
    transaction: &Transaction<'_>,
    which: &str,
    values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Deleted, StoreError> {
    let sql = format!(
        "WITH gone AS (
             DELETE FROM ledger_jobs WHERE id IN ({which})
             RETURNING partition, state, owner, tenant, has_ended, time, octet_length(event) AS bytes
         ), less AS (
             SELECT partition, {SHARED} AS shared, has_ended, count(*) AS jobs, sum(bytes)::bigint AS bytes,
                 max(time) AS until
             FROM gone GROUP BY partition, state, owner, tenant, has_ended
         ), counted AS (
             UPDATE ledger_counts AS c SET jobs = c.jobs - less.jobs, bytes = c.bytes - less.bytes
             FROM less WHERE c.partition = less.partition AND c.shared = less.shared AND c.jobs > less.jobs
         ), emptied AS (
             DELETE FROM ledger_counts AS c USING less
             WHERE c.partition = less.partition AND c.shared = less.shared AND c.jobs <= less.jobs
         ), noted AS (
             UPDATE ledger_positions AS p SET forgotten_until = greatest(p.forgotten_until, f.until)
             FROM (SELECT partition, max(until) AS until FROM less GROUP BY partition) AS f
             WHERE p.partition = f.partition
         )
         SELECT has_ended, jobs FROM less"
    );
    let statement = transaction.prepare_cached(&sql).await?;

    let mut deleted = Deleted::default();
    for row in transaction.query(&statement, values).await? {
        let (has_ended, jobs): (bool, i64) = (row.try_get(0)?, row.try_get(1)?);
        let jobs = u64::try_from(jobs).unwrap_or_default();
        deleted.forgotten.add_assign(match has_ended {
            true => Forgotten { ended: jobs, open: 0 },
            false => Forgotten { ended: 0, open: jobs },
        });
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_is_deleted_than_is_too_much() {
        let retention = Retention {
            max_age: Duration::ZERO,
            max_jobs: 1_000_000,
            max_bytes: 10_000 * (1_000 + OVERHEAD as u64),
        };
        let check = |jobs: i64, bytes: i64, expected: Option<i64>| {
            assert_eq!(excess(&Totals { jobs, bytes }, &retention), expected, "{jobs} {bytes}");
        };
        check(0, 0, None);
        check(10_000, 10_000_000, None);
        check(10_001, 10_001_000, Some(1));
        check(10_100, 10_100_000, Some(50));
        check(1_000_001, 0, Some(1));
        check(2_000_000, 0, Some(DELETE_BATCH));
    }
}
