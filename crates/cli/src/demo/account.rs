//! The report of a demo for people, at most 100 columns wide.

use std::fmt::Write as _;

use console::truncate_str;
use fleet_job::event::RESULT_OMITTED;

use crate::{
    dlq::text,
    tally::{Report, ReportRow},
};

const WIDTH: usize = 100;
/// If there are more rows than this, the table omits jobs that succeeded at the first attempt.
const MAX_ROWS: usize = 100;
/// The widths of the columns for a job's name, its request, and its worker.
const LABEL: usize = 12;
const WHAT: usize = 36;
const WORKER: usize = 15;

/// Renders the whole report.
pub(super) fn render(report: &Report) -> String {
    let is_complete = report.rows.len() <= MAX_ROWS;
    let is_shown = |row: &&ReportRow| is_complete || row.state != "succeeded" || row.attempts > 1;
    let shown: Vec<&ReportRow> = report.rows.iter().filter(is_shown).collect();

    let mut account = table(&shown);
    if !is_complete {
        account.push_str("\n(jobs that succeeded at the first attempt are omitted)");
    }

    let noted: Vec<_> = shown.iter().filter(|row| !row.note.is_empty()).collect();
    if !noted.is_empty() {
        account.push('\n');
    }

    for row in noted {
        let line = format!("{}: {}", row.label, row.note).replace(['\n', '\r'], " ");
        push_line(&mut account, &line);
    }

    account.push_str(&totals(report));
    for surprise in &report.surprises {
        push_line(&mut account, &format!("unexpected: {surprise}"));
    }
    if report.is_perfect() {
        push_line(
            &mut account,
            "every record has exactly one terminal state, and the one it was meant to have",
        );
    }
    account
}

fn table(rows: &[&ReportRow]) -> String {
    let mut table = text::new_table(["JOB", "WHAT", "STATE", "ATTEMPTS", "MS", "WORKER"]);
    for row in rows {
        table.add_row([
            truncate_str(&row.label, LABEL, "…").into_owned(),
            truncate_str(&row.what, WHAT, "…").into_owned(),
            row.state.clone(),
            row.attempts.to_string(),
            row.ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
            truncate_str(&row.worker, WORKER, "…").into_owned(),
        ]);
    }
    format!("\n{}", table.trim_fmt())
}

fn totals(report: &Report) -> String {
    let omitted = match report.result_omitted {
        0 => String::new(),
        omitted => format!("; {omitted} results were too large to keep ({RESULT_OMITTED})"),
    };
    format!(
        "\n\n{} submitted: {} succeeded, {} failed, {} dead letters, {} lost, {} repeated\n{} ms, {} jobs/s{omitted}",
        report.submitted,
        report.succeeded,
        report.failed,
        report.dead_lettered,
        report.lost,
        report.repeated,
        report.elapsed_ms,
        report.jobs_per_second
    )
}

fn push_line(account: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _written = write!(account, "\n{}", truncate_str(line, WIDTH, "…"));
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;

    use super::*;

    fn row(label: &str, what: &str, note: &str) -> ReportRow {
        ReportRow {
            label: label.to_owned(),
            what: what.to_owned(),
            state: "succeeded".to_owned(),
            attempts: 10,
            ms: Some(1_234_567),
            worker: "kafka-worker-64".to_owned(),
            note: note.to_owned(),
        }
    }

    #[test]
    fn no_line_is_wider_than_a_hundred_columns() {
        let path =
            "files__file_read {\"path\":\"a/very/long/path/to/a/file/that/has/a/long/name.txt\"}";
        let wide =
            "files__file_read {\"path\":\"工具工具工具工具工具工具工具工具工具工具工具工具.txt\"}";
        let rows = vec![
            row("job-1000000", path, ""),
            row("bad-path", wide, &"a long reason\nin two lines ".repeat(20)),
        ];
        let surprises = vec!["a surprise ".repeat(30)];
        let report = Report {
            submitted: 1_000_005,
            succeeded: 1_000_000,
            result_omitted: 1,
            elapsed_ms: 123_456_789,
            surprises,
            rows,
            ..Report::default()
        };
        let account = render(&report);
        for line in account.lines() {
            assert!(measure_text_width(line) <= WIDTH, "{}: {line}", measure_text_width(line));
        }
        assert!(account.contains("bad-path: a long reason in two lines"), "{account}");
        assert!(account.contains("kafka-worker-64") && account.contains("1234567"), "{account}");
    }
}
