//! Brings the tables of the database up to date.

use deadpool_postgres::Client;

use crate::store::StoreError;

/// The steps that have made the tables, by their numbers.
const MIGRATIONS: [(i32, &str); 1] =
    [(1, include_str!("../../migrations/postgres/0001_ledger.sql"))];
/// Waits to become the only one who changes the tables of this schema.
const LOCK: &str = "SELECT pg_advisory_xact_lock(
    hashtextextended('fleet ledger: tables ' || coalesce(current_schema(), ''), 0))";

/// Takes the steps that are missing, in one transaction. Replicas that start together wait for each
/// other.
pub(super) async fn migrate(client: &mut Client) -> Result<(), StoreError> {
    let transaction = client.transaction().await?;
    // Without notes about what exists already.
    let settings = "SET LOCAL statement_timeout = '60s'; SET LOCAL client_min_messages = warning";
    transaction.batch_execute(settings).await?;
    transaction.execute(LOCK, &[]).await?;

    let encoding: String = transaction.query_one("SHOW server_encoding", &[]).await?.try_get(0)?;
    if encoding != "UTF8" {
        return Err(StoreError::Encoding(encoding));
    }

    transaction
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS ledger_migrations (
                 number integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await?;
    let sql = "SELECT coalesce(max(number), 0) FROM ledger_migrations";
    let applied: i32 = transaction.query_one(sql, &[]).await?.try_get(0)?;
    let newest = MIGRATIONS.iter().map(|(number, _)| *number).max().unwrap_or_default();
    if applied > newest {
        return Err(StoreError::NewerSchema { found: applied, known: newest });
    }

    for (number, sql) in MIGRATIONS.iter().filter(|(number, _)| *number > applied) {
        transaction.batch_execute(sql).await?;
        let note = "INSERT INTO ledger_migrations (number) VALUES ($1)";
        transaction.execute(note, &[number]).await?;
        tracing::info!(number, "brought the tables of the ledger's database up to date");
    }
    transaction.commit().await?;
    Ok(())
}
