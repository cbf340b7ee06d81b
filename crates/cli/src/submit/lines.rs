//! Parses jobs from a file with one JSON object per line. Pure.

use fleet_job::decode::{self, DecodeError};
use serde_json::Value;

use super::Job;
use crate::bad_lines::BadLines;

/// Parses the jobs in a text and skips empty lines. `key` overrides the key of every job.
pub(super) fn parse(text: &str, file: &str, key: Option<&str>) -> Result<Vec<Job>, BadLines> {
    let (mut jobs, mut bad) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match job(line, key) {
            Ok(job) => jobs.push(job),
            Err(error) => bad.push((index + 1, error)),
        }
    }

    if bad.is_empty() {
        return Ok(jobs);
    }
    Err(BadLines { file: file.to_owned(), lines: jobs.len() + bad.len(), bad })
}

fn job(line: &str, key: Option<&str>) -> Result<Job, DecodeError> {
    let mut envelope = decode::from_json(line.as_bytes())?;

    // `key` is not a field of the envelope but the key of its record.
    let own = match envelope.extra.shift_remove("key") {
        Some(Value::String(own)) => Some(own),
        Some(other) => {
            envelope.extra.insert("key".to_owned(), other);
            None
        }
        None => None,
    };
    Ok(Job { envelope, key: key.map(str::to_owned).or(own) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_thousands_of_bad_lines_the_first_are_listed() {
        let text = "no job\n".repeat(5_000);
        let error =
            parse(&text, "jobs.jsonl", None).map(|jobs| jobs.len()).unwrap_err().to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 22, "{error}");
        assert!(lines[0].starts_with("5000 of 5000 lines of jobs.jsonl"), "{error}");
        assert!(lines[20].starts_with("  line 20: "), "{error}");
        assert_eq!(lines[21], "  … and 4980 more");
    }

    #[test]
    fn all_bad_lines_are_listed() {
        let good = r#"{"jobID":"a","jobType":"tool-call","payload":{"tool":"t"},"key":"k"}"#;
        let text = format!(
            "{good}\n\nno job\n{good}\n{{\"jobID\":\"b\",\"jobType\":\"tea\",\"payload\":{{}}}}\n"
        );
        let error =
            parse(&text, "jobs.jsonl", None).map(|jobs| jobs.len()).unwrap_err().to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 3, "{error}");
        assert_eq!(
            lines[0],
            "2 of 4 lines of jobs.jsonl are not valid jobs; nothing was submitted"
        );
        assert!(
            lines[1].starts_with("  line 3: ") && lines[2].starts_with("  line 5: "),
            "{error}"
        );
        assert!(lines[2].contains("tea"), "{error}");

        let jobs = parse(&format!("{good}\n\n{good}"), "jobs.jsonl", None).unwrap();
        let keys: Vec<_> = jobs.iter().map(|job| job.key.as_deref()).collect();
        assert_eq!(keys, [Some("k"), Some("k")]);
        assert_eq!(parse(good, "-", Some("x")).unwrap()[0].key.as_deref(), Some("x"));
    }
}
