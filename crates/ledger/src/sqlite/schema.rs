//! The tables of the SQLite file.

use rusqlite::Connection;

use super::totals;
use crate::store::StoreError;

/// The version of the file's schema. A file of an unknown version is recreated.
const VERSION: i64 = 3;
/// The version before error codes could be searched and jobs were counted by owner.
const WITHOUT_TALLIES: i64 = 2;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS totals (id INTEGER PRIMARY KEY CHECK (id = 0), jobs INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT OR IGNORE INTO totals VALUES (0, 0, 0);
    CREATE TABLE IF NOT EXISTS tallies (shared TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS forgotten (id INTEGER PRIMARY KEY CHECK (id = 0), until INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, partition INTEGER NOT NULL, offset INTEGER NOT NULL, state INTEGER NOT NULL,
        type TEXT, tool TEXT, tenant TEXT, owner TEXT, submitted INTEGER NOT NULL, time INTEGER NOT NULL,
        event BLOB NOT NULL, standing TEXT NOT NULL, overtaken INTEGER NOT NULL, code TEXT
    );
    CREATE INDEX IF NOT EXISTS by_time ON jobs (submitted, id);
    CREATE INDEX IF NOT EXISTS by_state ON jobs (state, submitted, id);
    CREATE INDEX IF NOT EXISTS by_tool ON jobs (tool, submitted, id);
    CREATE INDEX IF NOT EXISTS by_tenant ON jobs (tenant, submitted, id) WHERE tenant IS NOT NULL;
    CREATE INDEX IF NOT EXISTS by_code ON jobs (code, submitted, id) WHERE code IS NOT NULL;
    CREATE INDEX IF NOT EXISTS by_end ON jobs (time) WHERE state >= 3;
    CREATE INDEX IF NOT EXISTS by_overtaken ON jobs (id) WHERE overtaken = 1;";

/// Removes all jobs and positions.
pub(super) const EMPTY: &str = "
    DELETE FROM jobs; DELETE FROM positions; DELETE FROM tallies; DELETE FROM forgotten;
    UPDATE totals SET jobs = 0, bytes = 0;";

/// Creates the tables. Those of the previous version get what they lack; those of any other version
/// are dropped before.
pub(super) fn prepare_tables(writer: &Connection) -> Result<(), StoreError> {
    let transaction = writer.unchecked_transaction()?;
    let found: i64 = transaction.query_row("PRAGMA user_version", (), |row| row.get(0))?;

    match found {
        VERSION => {}
        WITHOUT_TALLIES => transaction.execute_batch("ALTER TABLE jobs ADD COLUMN code TEXT")?,
        _ => transaction.execute_batch(
            "DROP TABLE IF EXISTS jobs; DROP TABLE IF EXISTS positions; DROP TABLE IF EXISTS totals;
             DROP TABLE IF EXISTS tallies; DROP TABLE IF EXISTS forgotten; DROP TABLE IF EXISTS topic;",
        )?,
    }

    transaction.execute_batch(TABLES)?;
    transaction.execute_batch("CREATE TABLE IF NOT EXISTS topic (name TEXT NOT NULL);")?;
    if found == WITHOUT_TALLIES {
        totals::fill_in(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}
