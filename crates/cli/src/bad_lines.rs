//! The lines of a file that are not jobs.

use std::fmt::Write as _;

use fleet_job::decode::DecodeError;

/// How many lines are described. A whole file of another format would fill the screen.
const MOST_DESCRIBED: usize = 20;

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
        // Writing to a string cannot fail.
        for (line, error) in self.bad.iter().take(MOST_DESCRIBED) {
            let _written = write!(text, "\n  line {line}: {}", fleet_ops::errors::chain(error));
        }
        if bad > MOST_DESCRIBED {
            let _written = write!(text, "\n  … and {} more", bad - MOST_DESCRIBED);
        }
        text
    }
}
