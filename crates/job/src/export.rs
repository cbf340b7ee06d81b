//! Jobs as lines of a file: JSON Lines, or CSV for spreadsheets.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{time::Timestamp, view::JobView};

/// The columns of a CSV file. The last one is a number, so that a line that was cut off is
/// noticed.
pub const COLUMNS: [&str; 12] = [
    "jobID",
    "state",
    "type",
    "tool",
    "tenant",
    "submittedAt",
    "time",
    "code",
    "errorCode",
    "error",
    "result",
    "attempts",
];

/// The format of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// One JSON object per line: the job as [`JobView`].
    #[default]
    Jsonl,
    /// Comma-separated values (RFC 4180) with a header of [`COLUMNS`].
    Csv,
}

impl ExportFormat {
    /// Both formats.
    pub const ALL: [Self; 2] = [Self::Jsonl, Self::Csv];

    /// The name of the format.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }

    /// The media type of a file.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jsonl => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    /// What a file begins with.
    pub fn header(self) -> Vec<u8> {
        match self {
            Self::Jsonl => Vec::new(),
            Self::Csv => csv_line(COLUMNS),
        }
    }

    /// The lines of a job, with the line break at their end.
    pub fn line(self, job: &JobView) -> Vec<u8> {
        match self {
            Self::Jsonl => {
                let mut line = json_text(job).into_bytes();
                line.push(b'\n');
                line
            }
            Self::Csv => csv_line(cells(job).iter().map(|cell| unformulated(cell).into_owned())),
        }
    }
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ExportFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is not a format; expected `jsonl` or `csv`"))
    }
}

/// When the job was submitted, by which exports are ordered, newest first.
pub fn submitted_at(job: &JobView) -> Timestamp {
    job.event.submitted_at.unwrap_or(job.event.time)
}

fn cells(job: &JobView) -> [Cow<'_, str>; COLUMNS.len()] {
    let event = &job.event;
    let text = |text: &'_ Option<String>| Cow::Owned(text.clone().unwrap_or_default());
    let error = event.error.as_ref();
    let error_code = error.and_then(|error| error.error_code.as_ref());
    [
        Cow::Borrowed(&*event.job_id),
        event.state.as_str().into(),
        text(&event.job_type),
        text(&event.tool),
        text(&event.tenant),
        submitted_at(job).to_string().into(),
        event.time.to_string().into(),
        text(&event.code),
        error_code.map(ToString::to_string).unwrap_or_default().into(),
        error.map_or(Cow::Borrowed(""), |error| Cow::Borrowed(&*error.message)),
        event.result.as_ref().map(json_text).unwrap_or_default().into(),
        event.attempts.to_string().into(),
    ]
}

/// Spreadsheets run what begins like a formula, and results are not ours: such cells get an
/// apostrophe in front, which spreadsheets don't show. So do those that begin with one already,
/// so that [`original`] is exact.
fn unformulated(cell: &str) -> Cow<'_, str> {
    match cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\'']) {
        true => format!("'{cell}").into(),
        false => cell.into(),
    }
}

/// Returns the text that a cell stands for.
pub fn original(cell: &str) -> &str {
    cell.strip_prefix('\'').unwrap_or(cell)
}

fn json_text(value: &impl Serialize) -> String {
    // The types of this crate have text keys and no serializer that fails.
    serde_json::to_string(value).unwrap_or_default()
}

fn csv_line<C: AsRef<[u8]>>(cells: impl IntoIterator<Item = C>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory can't fail.
    _ = writer.write_record(cells);
    writer.into_inner().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(fields: serde_json::Value) -> JobView {
        let mut job = json!({"jobID": "j", "state": "succeeded", "attempts": 2,
            "time": "2026-11-21T08:00:01.000Z", "submittedAt": "2026-11-21T08:00:00.000Z"});
        for (name, value) in fields.as_object().unwrap() {
            job[name] = value.clone();
        }
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn lines_are_read_back() {
        let job = job(json!({"tool": "a__b", "result": {"text": "line\nbreak, \"quotes\""}}));
        let line = ExportFormat::Jsonl.line(&job);
        assert_eq!(serde_json::from_slice::<JobView>(&line).unwrap(), job);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);

        let file = [ExportFormat::Csv.header(), ExportFormat::Csv.line(&job)].concat();
        let mut reader = csv::Reader::from_reader(&*file);
        assert_eq!(reader.headers().unwrap(), &COLUMNS[..]);
        let record = reader.records().next().unwrap().unwrap();
        assert_eq!(
            (&record[0], &record[3], &record[5], &record[11]),
            ("j", "a__b", "2026-11-21T08:00:00.000Z", "2")
        );
        let result: serde_json::Value = serde_json::from_str(&record[10]).unwrap();
        assert_eq!(Some(result), job.event.result);
    }

    #[test]
    fn no_cell_begins_like_a_formula() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"] {
            let error = json!({"kind": "tool", "message": text});
            let job = job(json!({"jobID": text, "state": "failed", "error": error}));
            let line = ExportFormat::Csv.line(&job);
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&*line);
            let record = reader.records().next().unwrap().unwrap();
            for cell in [&record[0], &record[9]] {
                assert_eq!(cell, format!("'{text}"));
                assert_eq!(original(cell), text);
            }
        }
    }
}
