//! What errors of a PostgreSQL database mean.

use std::error::Error as _;

use fleet_ops::tls::TlsError;
use tokio_postgres::{Error, error::SqlState};

/// Returns whether the database can't serve us now, although the statement was right: it is away,
/// starting, stopping, full or a standby, or it refuses us.
pub(crate) fn is_away(error: &Error) -> bool {
    if is_tls_error(error) {
        return true;
    }
    let Some(state) = error.code() else {
        // Not an answer of the database.
        return true;
    };

    let class = state.code().get(..2).unwrap_or_default();
    matches!(class, "08" | "28" | "3D" | "40" | "53" | "55" | "57" | "58")
        || *state == SqlState::READ_ONLY_SQL_TRANSACTION
        || *state == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        || *state == SqlState::INSUFFICIENT_PRIVILEGE
        || is_without_tables(error)
}

/// Returns whether the tables are missing, as they are after the database was made again.
pub(crate) fn is_without_tables(error: &Error) -> bool {
    let state = error.code();
    state == Some(&SqlState::UNDEFINED_TABLE) || state == Some(&SqlState::INVALID_SCHEMA_NAME)
}

fn is_tls_error(error: &Error) -> bool {
    error.source().is_some_and(|source| source.is::<TlsError>())
}
