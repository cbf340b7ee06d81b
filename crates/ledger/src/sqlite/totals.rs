//! The number and size of jobs, maintained incrementally to avoid counting.

use std::collections::BTreeMap;

use fleet_job::{event::JobEvent, outcome::JobError};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::store::{STATES, StoreError, Tallies, Tally, complete_since, state_number};

/// The bytes that a job needs besides its event, for names and index entries.
const OVERHEAD: i64 = 650;

/// The columns of a job that [`Held::read`] reads.
pub(super) const HELD: &str = "length(event) AS bytes, time, state, owner, tenant";

/// What the totals need to know about a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    bytes: i64,
    time: i64,
    state: u16,
    owner: Option<String>,
    tenant: Option<String>,
}

impl Held {
    pub(super) fn of(event: &JobEvent, value: &[u8]) -> Self {
        Self {
            bytes: i64::try_from(value.len()).unwrap_or(i64::MAX),
            time: event.time.as_millis(),
            // There are few states.
            state: state_number(event.state) as u16,
            owner: event.owner.clone(),
            tenant: event.tenant.clone(),
        }
    }

    /// Reads the columns [`HELD`].
    pub(super) fn read(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            bytes: row.get("bytes")?,
            time: row.get("time")?,
            state: row.get("state")?,
            owner: row.get("owner")?,
            tenant: row.get("tenant")?,
        })
    }

    /// What the job shares with others of its tally, as a key of the table.
    fn shared(&self) -> String {
        shared_key(self.state, self.owner.as_deref(), self.tenant.as_deref())
    }
}

fn shared_key(state: u16, owner: Option<&str>, tenant: Option<&str>) -> String {
    // A tuple of plain values can't fail to become JSON.
    serde_json::to_string(&(state, owner, tenant)).unwrap_or_default()
}

/// The totals of all jobs, and the changes of one transaction to the tallies.
pub(super) struct Totals {
    pub(super) jobs: i64,
    pub(super) bytes: i64,
    /// The change of each tally.
    tallies: BTreeMap<String, i64>,
    /// The newest time of a job that the transaction forgets.
    forgotten_until: Option<i64>,
}

impl Totals {
    /// Adds a job.
    pub(super) fn add(&mut self, held: &Held) {
        self.jobs += 1;
        self.bytes += held.bytes + OVERHEAD;
        *self.tallies.entry(held.shared()).or_default() += 1;
    }

    /// Subtracts a job.
    pub(super) fn remove(&mut self, held: &Held) {
        self.jobs -= 1;
        self.bytes -= held.bytes + OVERHEAD;
        *self.tallies.entry(held.shared()).or_default() -= 1;
    }

    /// Subtracts a job that the log may still have.
    pub(super) fn forget(&mut self, held: &Held) {
        self.remove(held);
        self.forgotten_until = self.forgotten_until.max(Some(held.time));
    }

    pub(super) fn read(connection: &Connection) -> Result<Self, StoreError> {
        let mut find = connection.prepare_cached("SELECT jobs, bytes FROM totals")?;
        let found = find.query_row((), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let (jobs, bytes) = found.unwrap_or_default();
        Ok(Self { jobs, bytes, tallies: BTreeMap::new(), forgotten_until: None })
    }

    pub(super) fn write(&self, connection: &Connection) -> Result<(), StoreError> {
        let mut change = connection.prepare_cached("UPDATE totals SET jobs = ?1, bytes = ?2")?;
        change.execute((self.jobs, self.bytes))?;

        for (shared, change) in self.tallies.iter().filter(|(_, change)| **change != 0) {
            connection
                .prepare_cached(
                    "INSERT INTO tallies VALUES (?1, ?2)
                     ON CONFLICT (shared) DO UPDATE SET jobs = jobs + excluded.jobs",
                )?
                .execute(params![shared, change])?;
            connection
                .prepare_cached("DELETE FROM tallies WHERE shared = ?1 AND jobs <= 0")?
                .execute([shared])?;
        }

        if let Some(until) = self.forgotten_until {
            connection
                .prepare_cached(
                    "INSERT INTO forgotten VALUES (0, ?1)
                     ON CONFLICT (id) DO UPDATE SET until = max(until, excluded.until)",
                )?
                .execute([until])?;
        }
        Ok(())
    }
}

/// Reads how many jobs there are.
pub(super) fn read_tallies(connection: &Connection) -> Result<Tallies, StoreError> {
    let mut find = connection.prepare_cached("SELECT shared, jobs FROM tallies")?;
    let mut rows = find.query(())?;
    let mut tallies = Vec::new();
    while let Some(row) = rows.next()? {
        let (shared, jobs): (String, i64) = (row.get(0)?, row.get(1)?);
        // Only this module writes the table.
        let read = serde_json::from_str::<(u16, Option<String>, Option<String>)>(&shared).ok();
        let Some((state, owner, tenant)) = read else { continue };
        let Some(state) = STATES.get(usize::from(state)).copied() else { continue };
        tallies.push(Tally { state, owner, tenant, jobs: u64::try_from(jobs).unwrap_or_default() });
    }

    let mut find = connection.prepare_cached("SELECT until FROM forgotten")?;
    let until: Option<i64> = find.query_row((), |row| row.get(0)).optional()?;
    Ok(Tallies { tallies, complete_since: until.map(complete_since) })
}

/// Fills in what a file of the previous version does not have: tallies and error codes.
pub(super) fn fill_in(connection: &Connection) -> Result<(), StoreError> {
    let mut find = connection
        .prepare("SELECT state, owner, tenant, count(*) FROM jobs GROUP BY state, owner, tenant")?;
    let mut rows = find.query(())?;
    let mut insert = connection.prepare("INSERT INTO tallies VALUES (?1, ?2)")?;
    while let Some(row) = rows.next()? {
        let (owner, tenant): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
        let shared = shared_key(row.get(0)?, owner.as_deref(), tenant.as_deref());
        insert.execute(params![shared, row.get::<_, i64>(3)?])?;
    }

    // Only jobs in these states have an error.
    let mut find = connection.prepare("SELECT id, event FROM jobs WHERE state IN (2, 4, 5, 6)")?;
    let mut rows = find.query(())?;
    let mut change = connection.prepare("UPDATE jobs SET code = ?2 WHERE id = ?1")?;
    while let Some(row) = rows.next()? {
        let (id, event): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let event: JobEvent = serde_json::from_slice(&event)
            .map_err(|source| StoreError::Event { job_id: id.clone(), source })?;
        change.execute(params![id, event.error.as_ref().map(JobError::stable_code)])?;
    }
    Ok(())
}
