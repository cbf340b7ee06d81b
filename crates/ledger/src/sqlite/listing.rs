//! Pages of jobs, read from the SQLite file.

use fleet_job::time::Timestamp;
use rusqlite::{Connection, Row, params_from_iter, types::Value};

use super::read_job;
use crate::{
    query::{Cursor, Page, Query, end_of_prefix},
    store::{Known, StoreError, state_number, strip_details},
};

/// Reads one page, newest first.
pub(super) fn read_page(connection: &Connection, query: &Query) -> Result<Page, StoreError> {
    let (sql, values) = build_list_query(query, has_few_ids(connection, query)?);
    let (limit, max_examined) = (query.bounded_limit(), query.max_examined());

    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut page = Page::default();
    let mut examined = 0;
    let mut last = None;

    while let Some(row) = rows.next()? {
        if page.jobs.len() == limit || examined == max_examined {
            page.next = last;
            break;
        }
        examined += 1;
        let (job_id, submitted): (String, i64) = (row.get(3)?, row.get(4)?);
        let submitted_at = Timestamp::from_millis_clamped(submitted);
        page.jobs.extend(read_if_wanted(query, row, &job_id)?);
        last = Some(Cursor { submitted_at, job_id });
    }
    Ok(page)
}

/// Reads a job that the SQL selects, unless it is not wanted or may not be seen.
fn read_if_wanted(query: &Query, row: &Row<'_>, job_id: &str) -> Result<Option<Known>, StoreError> {
    let (owner, tenant): (Option<String>, Option<String>) = (row.get(5)?, row.get(6)?);
    let job_type: Option<String> = row.get(7)?;
    let is_wanted = query.filter.wants_id(job_id)
        && (query.filter.job_type.is_none() || query.filter.job_type == job_type)
        && query.visibility.covers(owner.as_deref(), tenant.as_deref());
    if !is_wanted {
        return Ok(None);
    }

    let known = read_job(row)?;
    let is_wanted = query.filter.wants_metadata(&known.event.metadata);
    Ok(is_wanted.then(|| Known { event: strip_details(known.event), ..known }))
}

/// Returns whether so few jobs have the wanted prefix that they can all be sorted.
fn has_few_ids(connection: &Connection, query: &Query) -> Result<bool, StoreError> {
    let Some(prefix) = query.filter.id_prefix.as_deref().filter(|prefix| !prefix.is_empty()) else {
        return Ok(false);
    };
    let most = i64::try_from(query.max_examined()).unwrap_or(i64::MAX);

    let mut count = connection.prepare_cached(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE id >= ?1 AND (?2 IS NULL OR id < ?2) LIMIT ?3)",
    )?;
    let found: i64 =
        count.query_row((prefix, end_of_prefix(prefix), most + 1), |row| row.get(0))?;
    Ok(found <= most)
}

/// Builds the SQL for a list query, by the index of ids or by one that is sorted by time. It has
/// only conditions for which there are indexes, so that what a page examines is bounded.
fn build_list_query(query: &Query, by_id: bool) -> (String, Vec<Value>) {
    let mut conditions = vec!["1".to_owned()];
    let mut values: Vec<Value> = Vec::new();
    let mut with = |condition: &str, value: Value| {
        values.push(value);
        conditions.push(format!("{condition} ?{}", values.len()));
    };

    let texts = [
        ("tool =", &query.filter.tool),
        ("tenant =", &query.filter.tenant),
        ("code =", &query.filter.error_code),
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

    if let (true, Some(prefix)) = (by_id, &query.filter.id_prefix) {
        with("id >=", prefix.clone().into());
        if let Some(end) = end_of_prefix(prefix) {
            with("id <", end.into());
        }
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

    // SQLite's own name for the index of the primary key.
    let index = if by_id { "INDEXED BY sqlite_autoindex_jobs_1" } else { "" };
    let limit = query.max_examined() + 1;
    let sql = format!(
        "SELECT partition, offset, event, id, submitted, owner, tenant, type FROM jobs {index} \
         WHERE {} ORDER BY submitted DESC, id DESC LIMIT {limit}",
        conditions.join(" AND ")
    );
    (sql, values)
}
