//! Where an export continues. Pure.

use std::{collections::HashSet, io};

use fleet_job::{
    export::{COLUMNS, ExportFormat, original},
    filter::JobFilter,
    time::Timestamp,
    view::JobView,
};

use super::submitted_at;

/// How far an export has come. Jobs come in the order of their submission, newest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// When the last job was submitted.
    last: Option<Timestamp>,
    /// The ids of the jobs that were submitted at that time.
    ids: HashSet<String>,
}

impl Place {
    /// Notes a job that is written.
    pub(super) fn pass(&mut self, id: &str, submitted_at: Timestamp) {
        match self.last {
            Some(last) if last < submitted_at => {}
            Some(last) if last == submitted_at => {
                self.ids.insert(id.to_owned());
            }
            _ => {
                self.last = Some(submitted_at);
                self.ids = HashSet::from([id.to_owned()]);
            }
        }
    }

    /// Returns the filter of the jobs that may be left.
    pub(super) fn narrow(&self, filter: &JobFilter) -> JobFilter {
        let Some(last) = self.last else { return filter.clone() };
        let end = Timestamp::from_millis_clamped(last.as_millis().saturating_add(1));
        let until = filter.until.map_or(end, |until| until.min(end));
        JobFilter { until: Some(until), ..filter.clone() }
    }

    /// Returns whether a job is not written yet.
    pub(super) fn is_new(&self, job: &JobView) -> bool {
        self.last.is_none_or(|last| {
            let at = submitted_at(job);
            at < last || (at == last && !self.ids.contains(&job.event.job_id))
        })
    }

    /// Returns the place at which both this file and another one have all jobs that belong into
    /// them.
    pub(super) fn shared_with(&self, other: &Self) -> Self {
        match (self.last, other.last) {
            (Some(own), Some(others)) if own != others => {
                if own > others {
                    self.clone()
                } else {
                    other.clone()
                }
            }
            (Some(_), Some(_)) => {
                Self { last: self.last, ids: self.ids.union(&other.ids).cloned().collect() }
            }
            _ => Self::default(),
        }
    }
}

/// The complete part of a file: how long it is, and how far it has come.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) length: u64,
    pub(super) jobs: Vec<(String, Timestamp)>,
}

/// Reads what an earlier export has written. A last line that was cut off is left out.
pub(super) fn read(format: ExportFormat, file: &[u8]) -> Result<Found, io::Error> {
    let complete = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let file = &file[..complete];
    match format {
        ExportFormat::Jsonl => read_jsonl(file),
        ExportFormat::Csv => read_csv(file),
    }
}

fn read_jsonl(file: &[u8]) -> Result<Found, io::Error> {
    let mut found = Found { length: file.len() as u64, jobs: Vec::new() };
    for (number, line) in file.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let job: JobView = serde_json::from_slice(line).map_err(|error| {
            io::Error::other(format!("line {} is not a job: {error}", number + 1))
        })?;
        let at = submitted_at(&job);
        found.jobs.push((job.event.job_id, at));
    }
    Ok(found)
}

fn read_csv(file: &[u8]) -> Result<Found, io::Error> {
    let mut found = Found::default();
    if file.is_empty() {
        return Ok(found);
    }
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
    if *reader.headers()? != COLUMNS[..] {
        return Err(io::Error::other("its first line does not name the columns of an export"));
    }

    found.length = reader.position().byte();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record)? {
        // A break within the quotes of a line that was cut off.
        if record.len() != COLUMNS.len() {
            break;
        }
        let at = record[5].parse().map_err(|error| {
            io::Error::other(format!("`submittedAt` of {} is no time: {error}", &record[0]))
        })?;
        found.jobs.push((original(&record[0]).to_owned(), at));
        found.length = reader.position().byte();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(id: &str, ms: i64) -> JobView {
        let time = Timestamp::from_millis(ms).unwrap();
        let result = json!({"text": "a\nb"});
        let job = json!({"jobID": id, "state": "succeeded", "time": time, "submittedAt": time, "result": result});
        serde_json::from_value(job).unwrap()
    }

    /// Exports jobs with a cut after every byte, and expects the rest to be written by the second
    /// export.
    #[test]
    fn an_export_that_was_cut_off_anywhere_is_completed() {
        let jobs = [job("a", 3000), job("b", 2000), job("c", 2000), job("d", 2000), job("e", 1)];
        for format in ExportFormat::ALL {
            let lines = jobs.iter().map(|job| format.line(job));
            let whole: Vec<u8> = [format.header()].into_iter().chain(lines).flatten().collect();
            for length in 0..=whole.len() {
                let found = read(format, &whole[..length]).unwrap();
                let mut file = whole[..usize::try_from(found.length).unwrap()].to_vec();
                let mut place = Place::default();
                found.jobs.iter().for_each(|(id, at)| place.pass(id, *at));
                if file.is_empty() {
                    file.extend(format.header());
                }

                let filter = place.narrow(&JobFilter::default());
                for job in jobs.iter().filter(|job| filter.matches(&job.event)) {
                    if place.is_new(job) {
                        file.extend(format.line(job));
                        place.pass(&job.event.job_id, submitted_at(job));
                    }
                }
                assert!(file == whole, "{format} cut after {length} bytes");
            }
        }
    }

    #[test]
    fn of_two_files_the_one_that_has_come_less_far_decides() {
        let place = |jobs: &[(&str, i64)]| {
            let mut place = Place::default();
            for (id, ms) in jobs {
                place.pass(id, Timestamp::from_millis(*ms).unwrap());
            }
            place
        };
        let far = place(&[("a", 3000), ("b", 1000)]);
        let shared = place(&[("c", 2000)]).shared_with(&far);
        assert!(shared.is_new(&job("d", 2000)) && !shared.is_new(&job("c", 2000)));
        assert!(!far.is_new(&job("d", 2000)), "the file would have it");

        // A file without jobs may have lost all of them.
        assert!(far.shared_with(&Place::default()).is_new(&job("d", 4000)));
        let shared = far.shared_with(&place(&[("e", 1000)]));
        assert!(!shared.is_new(&job("b", 1000)) && !shared.is_new(&job("e", 1000)));
        assert!(shared.is_new(&job("f", 1000)));
    }

    #[test]
    fn the_users_bound_stays() {
        let until = Timestamp::from_millis(1500);
        let filter = JobFilter { until, ..JobFilter::default() };
        let mut place = Place::default();
        place.pass("a", Timestamp::from_millis(2000).unwrap());
        assert_eq!(place.narrow(&filter).until, until);
        place.pass("b", Timestamp::from_millis(1000).unwrap());
        assert_eq!(place.narrow(&filter).until, Timestamp::from_millis(1001));
    }

    #[test]
    fn other_files_are_refused() {
        for (format, text) in
            [(ExportFormat::Csv, "name,age\nx,1\n"), (ExportFormat::Jsonl, "{\"a\":1}\n")]
        {
            assert!(read(format, text.as_bytes()).is_err(), "{text}");
        }
    }
}
