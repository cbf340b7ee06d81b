//! Pages of jobs, read from the SQLite file.

use fleet_job::time::Timestamp;
use rusqlite::{Connection, params_from_iter, types::Value};

use super::read_job;
use crate::{
    query::{Cursor, Page, Query},
    store::{Known, StoreError, state_number, strip_details},
};

/// The most jobs that one page may examine.
const MAX_SCANNED: usize = 20_000;

/// Reads one page, newest first.
pub(super) fn read_page(connection: &Connection, query: &Query) -> Result<Page, StoreError> {
    let (sql, values) = build_list_query(query);
    let limit = query.bounded_limit();

    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut page = Page::default();
    let mut examined = 0;
    let mut last = None;

    while let Some(row) = rows.next()? {
        if page.jobs.len() == limit || examined == MAX_SCANNED {
            page.next = last;
            break;
        }
        examined += 1;
        let (job_id, submitted): (String, i64) = (row.get(3)?, row.get(4)?);
        let submitted_at = Timestamp::from_millis_clamped(submitted);
        let (owner, tenant): (Option<String>, Option<String>) = (row.get(5)?, row.get(6)?);
        if query.visibility.covers(owner.as_deref(), tenant.as_deref()) {
            let known = read_job(row)?;
            page.jobs.push(Known { event: strip_details(known.event), ..known });
        }
        last = Some(Cursor { submitted_at, job_id });
    }
    Ok(page)
}

/// Builds the SQL for a list query. What may be seen is checked afterwards.
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
        "SELECT partition, offset, event, id, submitted, owner, tenant FROM jobs WHERE {} \
         ORDER BY submitted DESC, id DESC LIMIT {limit}",
        conditions.join(" AND ")
    );
    (sql, values)
}
