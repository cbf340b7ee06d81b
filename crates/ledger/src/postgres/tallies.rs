//! How many jobs there are of each state, owner and tenant, which is counted as they come and go.

use std::{borrow::Cow, collections::BTreeMap};

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::types::ToSql;

use super::{
    fold::TallyKey,
    log::{IS_OURS, OurLog, check_ours},
    project::execute,
    text::{from_column, to_column},
};
use crate::store::{STATES, StoreError, Tallies, Tally, complete_since};

/// The column `shared` of a row with state, owner and tenant. No column has U+0001 followed by a
/// comma, so different texts stay different.
pub(super) const SHARED: &str = "sha256(convert_to(
    state || E'\\x01,' || coalesce('=' || owner, '') || E'\\x01,' || coalesce('=' || tenant, ''), 'UTF8'))";

/// Adds changes to the counts, and writes down those that are new.
fn count_sql() -> String {
    format!(
        "INSERT INTO ledger_counts AS c (partition, shared, state, owner, tenant, jobs, bytes)
         SELECT partition, {SHARED}, state, owner, tenant, jobs, bytes
         FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
             AS n (partition, state, owner, tenant, jobs, bytes)
         ON CONFLICT (partition, shared)
             DO UPDATE SET jobs = c.jobs + excluded.jobs, bytes = c.bytes + excluded.bytes"
    )
}

/// Deletes those of these counts that have become zero, so that their owners are not kept for ever.
fn delete_zeros_sql() -> String {
    format!(
        "DELETE FROM ledger_counts AS c USING (
             SELECT partition, {SHARED} AS shared
             FROM unnest($1::int[], $2::text[], $3::text[], $4::text[])
                 AS n (partition, state, owner, tenant)
         ) AS n
         WHERE c.partition = n.partition AND c.shared = n.shared AND c.jobs <= 0"
    )
}

/// Counts jobs in and out. The caller is the projector of their partitions.
pub(super) async fn change_counts(
    transaction: &Transaction<'_>,
    changes: &BTreeMap<TallyKey, (i64, i64)>,
) -> Result<(), StoreError> {
    let changed = changes.iter().filter(|(_, change)| **change != (0, 0));
    let (keys, changes): (Vec<_>, Vec<(i64, i64)>) = changed.unzip();
    if keys.is_empty() {
        return Ok(());
    }

    let (jobs, bytes): (Vec<_>, Vec<_>) = changes.iter().copied().unzip();
    let columns = KeyColumns::of(keys.iter().copied());
    let mut values = columns.values();
    values.extend([&jobs as &(dyn ToSql + Sync), &bytes]);
    execute(transaction, &count_sql(), &values, keys.len()).await?;

    let fallen = keys.iter().zip(&jobs).filter(|(_, jobs)| **jobs < 0).map(|(key, _)| *key);
    let columns = KeyColumns::of(fallen);
    if !columns.partitions.is_empty() {
        let delete = transaction.prepare_cached(&delete_zeros_sql()).await?;
        transaction.execute(&delete, &columns.values()).await?;
    }
    Ok(())
}

/// Reads how many jobs there are.
pub(super) async fn read_tallies(client: &Client, ours: &OurLog) -> Result<Tallies, StoreError> {
    let sql = format!(
        "SELECT state, owner, tenant, sum(jobs)::bigint, {IS_OURS}
         FROM ledger_counts GROUP BY state, owner, tenant"
    );
    let statement = client.prepare_cached(&sql).await?;
    let values: [&(dyn ToSql + Sync); 2] = [&ours.topic, &ours.cluster_id];
    let mut tallies = Vec::new();
    for row in client.query(&statement, &values).await? {
        check_ours(&row, 4)?;
        let (state, jobs): (&str, i64) = (row.try_get(0)?, row.try_get(3)?);
        let (owner, tenant): (Option<String>, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
        // A newer version may know more states.
        let Some(state) = STATES.into_iter().find(|known| known.as_str() == state) else {
            continue;
        };
        let (owner, tenant) = (owner.map(from_column), tenant.map(from_column));
        let jobs = u64::try_from(jobs).unwrap_or_default();
        tallies.push(Tally { state, owner, tenant, jobs });
    }

    let sql = "SELECT max(forgotten_until) FROM ledger_positions";
    let statement = client.prepare_cached(sql).await?;
    let until: Option<i64> = client.query_one(&statement, &[]).await?.try_get(0)?;
    Ok(Tallies { tallies, complete_since: until.map(complete_since) })
}

/// The columns of keys.
#[derive(Default)]
struct KeyColumns<'a> {
    partitions: Vec<i32>,
    states: Vec<&'a str>,
    owners: Vec<Option<Cow<'a, str>>>,
    tenants: Vec<Option<Cow<'a, str>>>,
}

impl<'a> KeyColumns<'a> {
    fn of(keys: impl Iterator<Item = &'a TallyKey>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.partitions.push(key.partition);
            columns.states.push(&key.state);
            columns.owners.push(key.owner.as_deref().map(to_column));
            columns.tenants.push(key.tenant.as_deref().map(to_column));
        }
        columns
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![&self.partitions, &self.states, &self.owners, &self.tenants]
    }
}
