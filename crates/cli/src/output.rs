//! The only place that writes to the terminal. Data goes to standard output, talk to standard error when the output is
//! meant for programs.

use std::io::{ErrorKind, Write};

use serde::Serialize;

/// Writes a line. Whoever closes the pipe (`head`, for one) has seen enough, which is no error.
fn write_line(mut to: impl Write, text: impl std::fmt::Display) {
    match writeln!(to, "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // Without a place to write to there is none to complain at either.
        _ => {}
    }
}

/// Talk for people: on standard output, or on standard error when `json` has that for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Talk {
    pub(crate) json: bool,
}

impl Talk {
    pub(crate) fn say(self, text: impl std::fmt::Display) {
        if self.json {
            write_line(std::io::stderr(), text);
        } else {
            write_line(std::io::stdout(), text);
        }
    }
}

/// One JSON value on one line of standard output.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => problem(&error.to_string()),
    }
}

/// A line of data.
pub(crate) fn line(text: &str) {
    write_line(std::io::stdout(), text);
}

/// Something went wrong.
pub(crate) fn problem(text: &str) {
    write_line(std::io::stderr(), format_args!("mcp-fleet: {text}"));
}
