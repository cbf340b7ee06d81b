//! The lines of a file that are not jobs.

use std::fmt::Write as _;

use fleet_job::decode::DecodeError;

/// The lines of a file that are not valid jobs; there is at least one.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub(crate) struct BadLines {
    pub(crate) file: String,
    /// The number of non-empty lines.
    pub(crate) lines: usize,
    /// The line number, starting at 1, and the error.
    pub(crate) bad: Vec<(usize, DecodeError)>,
}

impl BadLines {
    fn describe(&self) -> String {
        let (bad, lines, file) = (self.bad.len(), self.lines, &self.file);
        let mut text =
            format!("{bad} of {lines} lines of {file} are not valid jobs; nothing was submitted");
        for (line, error) in &self.bad {
            // Writing to a string cannot fail.
            let _written = write!(text, "\n  line {line}: {}", fleet_ops::errors::chain(error));
        }
        text
    }
}
