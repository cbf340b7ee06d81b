//! The only place that writes to the terminal. Data goes to standard output, talk to standard error when the output is
//! meant for programs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this module is the terminal")]

use serde::Serialize;

/// Talk for people: on standard output, or on standard error when `json` has that for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Talk {
    pub(crate) json: bool,
}

impl Talk {
    pub(crate) fn say(self, text: impl std::fmt::Display) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }
}

/// One JSON value on one line of standard output.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("mcp-fleet: {error}"),
    }
}

/// A line of data.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Something went wrong.
pub(crate) fn problem(text: &str) {
    eprintln!("mcp-fleet: {text}");
}
