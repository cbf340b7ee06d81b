//! Which log the database is a projection of, and what happens if it is another one.

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::Row;

use super::project::begin;
use crate::store::{LogId, Positions, StoreError};

/// Whoever follows another log keeps this database for as long after its last sign of life.
const QUIET: &str = "1 minute";

/// In a query whose first parameters are those of [`OurLog`]: whether the database still is a
/// projection of our log. It is asked together with each row, since the database may have been given
/// to another fleet at any time.
pub(super) const IS_OURS: &str = "(SELECT $1::text IS NULL OR topic = $1
    AND (cluster_id IS NULL OR $2::text IS NULL OR cluster_id = $2) FROM ledger_log)";

/// The log that this process reads, once it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct OurLog {
    pub(super) topic: Option<String>,
    pub(super) cluster_id: Option<String>,
}

impl OurLog {
    pub(super) fn of(log: &LogId) -> Self {
        Self { topic: Some(log.topic.clone()), cluster_id: log.cluster_id.clone() }
    }
}

/// Checks what a row has in the column [`IS_OURS`].
pub(super) fn check_ours(row: &Row, column: usize) -> Result<(), StoreError> {
    match row.try_get(column)? {
        Some(false) => Err(StoreError::Contested { log: None }),
        _ => Ok(()),
    }
}

/// What the database says of its log.
struct KnownLog {
    generation: i64,
    log: Option<LogId>,
    is_quiet: bool,
}

/// How two logs relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// They are the same, as far as is known.
    Same,
    /// The topic was deleted and created again.
    Recreated,
    /// They are of different clusters, or have different names.
    Foreign,
}

fn relate(known: &LogId, log: &LogId) -> Relation {
    let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    if known.topic != log.topic || differ(&known.cluster_id, &log.cluster_id) {
        Relation::Foreign
    } else if differ(&known.topic_id, &log.topic_id) {
        Relation::Recreated
    } else {
        Relation::Same
    }
}

/// Makes the database a projection of `log`. Returns the generation, and how far it has come.
pub(super) async fn adopt_log(
    client: &mut Client,
    log: &LogId,
) -> Result<(i64, Positions), StoreError> {
    let transaction = begin(client).await?;
    let known = lock_log(&transaction).await?;
    let mut generation = known.generation;

    match known.log.as_ref().map(|known| relate(known, log)) {
        None | Some(Relation::Same) => {}
        Some(Relation::Foreign) if !known.is_quiet => {
            return Err(StoreError::Contested { log: known.log.map(Box::new) });
        }
        Some(relation) => {
            tracing::warn!(
                known = ?known.log,
                ?log,
                ?relation,
                "the database holds the ledger of another log; emptying it"
            );
            generation = empty(&transaction).await?;
        }
    }

    // An id that is not known now may have been known before.
    let sql = "UPDATE ledger_log SET topic = $1, seen_at = now(),
        cluster_id = CASE WHEN $4 THEN coalesce($2, cluster_id) ELSE $2 END,
        topic_id = CASE WHEN $4 THEN coalesce($3, topic_id) ELSE $3 END";
    let is_same = generation == known.generation;
    transaction.execute(sql, &[&log.topic, &log.cluster_id, &log.topic_id, &is_same]).await?;
    let positions = read_positions(&transaction).await?;
    transaction.commit().await?;
    Ok((generation, positions))
}

async fn lock_log(transaction: &Transaction<'_>) -> Result<KnownLog, StoreError> {
    let sql = format!(
        "SELECT generation, topic, cluster_id, topic_id, seen_at < now() - interval '{QUIET}'
         FROM ledger_log FOR UPDATE"
    );
    let row = transaction.query_one(&sql, &[]).await?;

    let topic: Option<String> = row.try_get(1)?;
    let (cluster_id, topic_id) = (row.try_get(2)?, row.try_get(3)?);
    let log = topic.map(|topic| LogId { topic, cluster_id, topic_id });
    Ok(KnownLog { generation: row.try_get(0)?, log, is_quiet: row.try_get(4)? })
}

/// Forgets everything, unless another replica has done so since `generation`. Returns the present
/// generation.
pub(super) async fn reset(client: &mut Client, generation: Option<i64>) -> Result<i64, StoreError> {
    let transaction = begin(client).await?;
    let known = lock_log(&transaction).await?;
    if generation.is_some_and(|generation| generation != known.generation) {
        return Ok(known.generation);
    }

    let generation = empty(&transaction).await?;
    transaction.commit().await?;
    Ok(generation)
}

/// Forgets everything and begins a new generation.
async fn empty(transaction: &Transaction<'_>) -> Result<i64, StoreError> {
    // Projectors touch the positions first, so this waits for them, and they for this.
    transaction
        .batch_execute(
            "LOCK TABLE ledger_positions IN ACCESS EXCLUSIVE MODE;
             TRUNCATE ledger_positions, ledger_counts, ledger_jobs",
        )
        .await?;
    let sql = "UPDATE ledger_log SET generation = generation + 1 RETURNING generation";
    Ok(transaction.query_one(sql, &[]).await?.try_get(0)?)
}

/// Tells those who follow other logs that this one is followed. Returns whether the ledger still is
/// of this generation.
pub(super) async fn show_life(client: &Client, generation: i64) -> Result<bool, StoreError> {
    let sql = "UPDATE ledger_log SET seen_at = now() WHERE generation = $1";
    let statement = client.prepare_cached(sql).await?;
    Ok(client.execute(&statement, &[&generation]).await? > 0)
}

/// Reads how far each partition has been projected.
pub(super) async fn read_positions(
    client: &impl deadpool_postgres::GenericClient,
) -> Result<Positions, StoreError> {
    let sql = "SELECT partition, next FROM ledger_positions WHERE next IS NOT NULL";
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query(&statement, &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_differ_only_by_what_is_known_of_both() {
        let log = |topic: &str, cluster: &str, id: &str| {
            let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            LogId { topic: topic.to_owned(), cluster_id: known(cluster), topic_id: known(id) }
        };
        let check = |other: LogId, expected: Relation| {
            assert_eq!(relate(&log("t", "c", "1"), &other), expected, "{other:?}");
            assert_eq!(relate(&other, &log("t", "c", "1")), expected, "{other:?}");
        };
        check(log("t", "c", "1"), Relation::Same);
        check(log("t", "", ""), Relation::Same);
        check(log("t", "c", "2"), Relation::Recreated);
        check(log("t", "", "2"), Relation::Recreated);
        check(log("t", "d", "1"), Relation::Foreign);
        check(log("u", "c", "1"), Relation::Foreign);
    }
}
