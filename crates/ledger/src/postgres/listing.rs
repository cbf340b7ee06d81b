//! Pages of jobs, read from the database.

use std::borrow::Cow;

use deadpool_postgres::Client;
use fleet_job::{event::JobEvent, time::Timestamp};
use tokio_postgres::{Row, types::ToSql};

use super::{
    log::{IS_OURS, OurLog, check_ours},
    text::{from_column, to_column},
};
use crate::{
    query::{Cursor, Page, Query},
    store::{Known, StoreError, strip_details},
};

/// The most jobs that one page may examine.
const MAX_SCANNED: usize = 20_000;
/// The most jobs that are read at once.
const MAX_CHUNK: usize = 2_000;

/// Reads one page, newest first. Jobs are read in chunks, which grow if most of what they hold may
/// not be seen.
pub(super) async fn read_page(
    client: &Client,
    ours: &OurLog,
    query: &Query,
) -> Result<Page, StoreError> {
    let limit = query.bounded_limit();
    let mut page = Page::default();
    let mut examined = 0;
    let mut after = query.after.clone();
    let mut chunk = limit + 1;

    loop {
        let rows = read_chunk(client, ours, query, after.as_ref(), chunk).await?;
        let is_last = rows.len() < chunk;

        for row in rows {
            if page.jobs.len() == limit || examined == MAX_SCANNED {
                page.next = after;
                return Ok(page);
            }
            examined += 1;
            check_ours(&row, 7)?;
            let (job_id, submitted) = (from_column(row.try_get(3)?), row.try_get(4)?);
            let submitted_at = Timestamp::from_millis_clamped(submitted);
            if is_visible(query, &row)? {
                let known = read_job(&row, &job_id)?;
                page.jobs.push(Known { event: strip_details(known.event), ..known });
            }
            after = Some(Cursor { submitted_at, job_id });
        }

        if is_last {
            return Ok(page);
        }
        chunk = (chunk * 4).min(MAX_CHUNK);
    }
}

fn is_visible(query: &Query, row: &Row) -> Result<bool, StoreError> {
    let (owner, tenant): (Option<String>, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
    let (owner, tenant) = (owner.map(from_column), tenant.map(from_column));
    Ok(query.visibility.covers(owner.as_deref(), tenant.as_deref()))
}

async fn read_chunk(
    client: &Client,
    ours: &OurLog,
    query: &Query,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<Vec<Row>, StoreError> {
    let mut conditions = Conditions::of(query, after);
    let limit = conditions.value(Value::Number(i64::try_from(limit).unwrap_or(i64::MAX)));
    let sql = format!(
        "SELECT partition, \"offset\", coalesce(brief, event), id, submitted, owner, tenant, {IS_OURS}
         FROM ledger_jobs
         WHERE {} ORDER BY submitted DESC, id DESC LIMIT {limit}",
        conditions.sql()
    );

    let statement = client.prepare_cached(&sql).await?;
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&ours.topic, &ours.cluster_id];
    values.extend(conditions.values.iter().map(Value::as_sql));
    Ok(client.query(&statement, &values).await?)
}

/// Reads a job from a row that begins with partition, offset and event.
pub(super) fn read_job(row: &Row, job_id: &str) -> Result<Known, StoreError> {
    let value: &[u8] = row.try_get(2)?;
    let event: JobEvent = serde_json::from_slice(value)
        .map_err(|source| StoreError::Event { job_id: job_id.to_owned(), source })?;
    Ok(Known { partition: row.try_get(0)?, offset: row.try_get(1)?, event })
}

/// A value that a condition compares with.
enum Value<'a> {
    Text(Cow<'a, str>),
    Texts(Vec<&'static str>),
    Number(i64),
}

impl Value<'_> {
    fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Text(text) => text,
            Self::Texts(texts) => texts,
            Self::Number(number) => number,
        }
    }
}

/// The conditions of a query, each of which is one call of [`Conditions::add`]. What may be seen is
/// checked afterwards.
#[derive(Default)]
struct Conditions<'a> {
    texts: Vec<String>,
    values: Vec<Value<'a>>,
}

impl<'a> Conditions<'a> {
    fn of(query: &'a Query, after: Option<&'a Cursor>) -> Self {
        let filter = &query.filter;
        let text =
            |text: &'a Option<String>| text.as_deref().map(|text| Value::Text(to_column(text)));
        let time = |time: Option<Timestamp>| time.map(|time| Value::Number(time.as_millis()));

        let mut conditions = Self::default();
        conditions.add("type = ?", [text(&filter.job_type)]);
        conditions.add("tool = ?", [text(&filter.tool)]);
        conditions.add("tenant = ?", [text(&filter.tenant)]);
        conditions.add("submitted >= ?", [time(filter.since)]);
        conditions.add("submitted < ?", [time(filter.until)]);
        conditions.add(
            "(submitted, id) < (?, ?)",
            [
                time(after.map(|after| after.submitted_at)),
                after.map(|after| Value::Text(to_column(&after.job_id))),
            ],
        );

        // A single state can use its index in the order of the list.
        let states: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        match states[..] {
            [] => {}
            [state] => conditions.add("state = ?", [Some(Value::Text(state.into()))]),
            _ => conditions.add("state = ANY (?)", [Some(Value::Texts(states))]),
        }
        conditions
    }

    /// Adds a condition in which each question mark stands for a value. Without all values, it is
    /// left out.
    fn add<const N: usize>(&mut self, condition: &str, values: [Option<Value<'a>>; N]) {
        if values.iter().any(Option::is_none) {
            return;
        }

        let mut text = String::new();
        let mut parts = condition.split('?');
        text.push_str(parts.next().unwrap_or_default());
        for (part, value) in parts.zip(values.into_iter().flatten()) {
            text.push_str(&self.value(value));
            text.push_str(part);
        }
        self.texts.push(text);
    }

    /// Adds a value and returns what stands for it. Those of our log come first.
    fn value(&mut self, value: Value<'a>) -> String {
        self.values.push(value);
        format!("${}", self.values.len() + 2)
    }

    fn sql(&self) -> String {
        if self.texts.is_empty() { "true".to_owned() } else { self.texts.join(" AND ") }
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{event::JobState, filter::JobFilter};

    use super::*;

    #[test]
    fn a_query_has_the_conditions_that_are_asked_for() {
        assert_eq!(Conditions::of(&Query::default(), None).sql(), "true");

        let filter = JobFilter {
            tool: Some("t".to_owned()),
            states: vec![JobState::Queued, JobState::Failed],
            until: Some(Timestamp::from_millis_clamped(7)),
            ..JobFilter::default()
        };
        let query = Query { filter, ..Query::default() };
        let after =
            Cursor { submitted_at: Timestamp::from_millis_clamped(5), job_id: "j".to_owned() };
        let conditions = Conditions::of(&query, Some(&after));
        assert_eq!(
            conditions.sql(),
            "tool = $3 AND submitted < $4 AND (submitted, id) < ($5, $6) AND state = ANY ($7)"
        );
        assert_eq!(conditions.values.len(), 5);
    }
}
