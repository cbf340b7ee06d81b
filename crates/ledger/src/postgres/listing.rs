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
    query::{Cursor, Page, Query, end_of_prefix},
    store::{Known, StoreError, strip_details},
};

/// The most jobs that are read at once.
const MAX_CHUNK: usize = 2_000;

/// Reads one page, newest first. Jobs are read in chunks, which grow if most of what they hold may
/// not be seen.
pub(super) async fn read_page(
    client: &Client,
    ours: &OurLog,
    query: &Query,
) -> Result<Page, StoreError> {
    let by_id = has_few_ids(client, query).await?;
    let (limit, max_examined) = (query.bounded_limit(), query.max_examined());
    let mut page = Page::default();
    let mut examined = 0;
    let mut after = query.after.clone();
    let mut chunk = limit + 1;

    loop {
        let rows = read_chunk(client, ours, query, after.as_ref(), by_id, chunk).await?;
        let is_last = rows.len() < chunk;

        for row in rows {
            if page.jobs.len() == limit || examined == max_examined {
                page.next = after;
                return Ok(page);
            }
            examined += 1;
            check_ours(&row, 7)?;
            let (job_id, submitted) = (from_column(row.try_get(3)?), row.try_get(4)?);
            let submitted_at = Timestamp::from_millis_clamped(submitted);
            page.jobs.extend(read_if_wanted(query, &row, &job_id)?);
            after = Some(Cursor { submitted_at, job_id });
        }

        if is_last {
            return Ok(page);
        }
        chunk = (chunk * 4).min(MAX_CHUNK);
    }
}

/// Reads a job that the SQL selects, unless it is not wanted or may not be seen.
fn read_if_wanted(query: &Query, row: &Row, job_id: &str) -> Result<Option<Known>, StoreError> {
    let text = |column| row.try_get(column).map(|text: Option<String>| text.map(from_column));
    let (owner, tenant, job_type) = (text(5)?, text(6)?, text(8)?);
    let is_wanted = query.filter.wants_id(job_id)
        && (query.filter.job_type.is_none() || query.filter.job_type == job_type)
        && query.visibility.covers(owner.as_deref(), tenant.as_deref());
    if !is_wanted {
        return Ok(None);
    }

    let known = read_job(row, job_id)?;
    let is_wanted = query.filter.wants_metadata(&known.event.metadata);
    Ok(is_wanted.then(|| Known { event: strip_details(known.event), ..known }))
}

/// Returns whether so few jobs have the wanted prefix that they can all be sorted.
async fn has_few_ids(client: &Client, query: &Query) -> Result<bool, StoreError> {
    let mut conditions = Conditions::default();
    conditions.add_prefix(query.filter.id_prefix.as_deref());
    if conditions.texts.is_empty() {
        return Ok(false);
    }

    let most = query.max_examined();
    let sql = format!(
        "SELECT count(*) FROM (SELECT FROM ledger_jobs WHERE {} LIMIT {}) AS found",
        conditions.sql(),
        most + 1
    );
    let statement = client.prepare_cached(&sql).await?;
    let values: Vec<_> = conditions.values.iter().map(Value::as_sql).collect();
    let found: i64 = client.query_one(&statement, &values).await?.try_get(0)?;
    Ok(usize::try_from(found).is_ok_and(|found| found <= most))
}

async fn read_chunk(
    client: &Client,
    ours: &OurLog,
    query: &Query,
    after: Option<&Cursor>,
    by_id: bool,
    limit: usize,
) -> Result<Vec<Row>, StoreError> {
    let mut conditions = Conditions::of(query, after);
    // An expression is in no index, so that jobs are found by what selects few of them.
    let submitted = if by_id { "submitted + 0" } else { "submitted" };
    if by_id {
        conditions.add_prefix(query.filter.id_prefix.as_deref());
    }
    let limit = conditions.value(Value::Number(i64::try_from(limit).unwrap_or(i64::MAX)));
    let sql = format!(
        "SELECT partition, \"offset\", coalesce(brief, event), id, submitted, owner, tenant, {IS_OURS}, type
         FROM ledger_jobs
         WHERE {} ORDER BY {submitted} DESC, id DESC LIMIT {limit}",
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

/// The conditions of a query, each of which is one call of [`Conditions::add`]: those for which
/// there are indexes, so that what a page examines is bounded. The others, and what may be seen, are
/// checked afterwards.
#[derive(Default)]
struct Conditions<'a> {
    texts: Vec<String>,
    values: Vec<Value<'a>>,
    /// How many values precede these.
    earlier: usize,
}

impl<'a> Conditions<'a> {
    fn of(query: &'a Query, after: Option<&'a Cursor>) -> Self {
        let filter = &query.filter;
        let text =
            |text: &'a Option<String>| text.as_deref().map(|text| Value::Text(to_column(text)));
        let time = |time: Option<Timestamp>| time.map(|time| Value::Number(time.as_millis()));

        // Those of our log come first.
        let mut conditions = Self { earlier: 2, ..Self::default() };
        conditions.add("tool = ?", [text(&filter.tool)]);
        conditions.add("tenant = ?", [text(&filter.tenant)]);
        conditions.add("code = ?", [text(&filter.error_code)]);
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

    /// Adds that the id begins with this.
    fn add_prefix(&mut self, prefix: Option<&'a str>) {
        let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) else { return };
        let first = to_column(prefix);
        let end = end_of_prefix(&first).map(|end| Value::Text(end.into()));
        self.add("id >= ?", [Some(Value::Text(first))]);
        self.add("id < ?", [end]);
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

    /// Adds a value and returns what stands for it.
    fn value(&mut self, value: Value<'a>) -> String {
        self.values.push(value);
        format!("${}", self.values.len() + self.earlier)
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

        let mut conditions = Conditions::default();
        conditions.add_prefix(Some(""));
        assert_eq!(conditions.sql(), "true");
        conditions.add_prefix(Some("\u{10ffff}"));
        conditions.add_prefix(Some("a"));
        assert_eq!(conditions.sql(), "id >= $1 AND id >= $2 AND id < $3");
    }
}
