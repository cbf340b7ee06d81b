//! The only place that writes to the terminal. Data goes to standard output, talk to standard error
//! when the output is meant for programs.

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
#[cfg(feature = "embedded-broker")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Talk {
    pub(crate) json: bool,
}

#[cfg(feature = "embedded-broker")]
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

/// What is drawn again and again at one place of the terminal that standard output is.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// Lines that were drawn the last time, and the terminal's size then.
    drawn: usize,
    size: (u16, u16),
}

impl Screen {
    /// How many lines there is room for.
    pub(crate) fn height(&self) -> usize {
        let (rows, _) = console::Term::stdout().size();
        usize::from(rows)
    }

    /// How long a line can be.
    pub(crate) fn width(&self) -> usize {
        let (_, columns) = console::Term::stdout().size();
        usize::from(columns)
    }

    /// Draws `text` over what was drawn before.
    pub(crate) fn draw(&mut self, text: &str) {
        let size = console::Term::stdout().size();
        // Another size breaks lines anew, so that nobody knows where the last drawing is.
        let resized = self.drawn > 0 && self.size != size;
        self.size = size;
        let before = if resized { None } else { Some(self.drawn) };
        self.drawn = text.lines().count();
        let frame = frame(text, usize::from(size.1), before);
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(frame.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            _ => {}
        }
    }
}

/// `text` with what makes a terminal put it over the last drawing of so many lines, or on an empty
/// screen. It is written at once and nothing is erased before it is written over, or it would
/// flicker.
fn frame(text: &str, width: usize, before: Option<usize>) -> String {
    let mut frame = match before {
        None => "\x1b[2J\x1b[H".to_owned(),
        Some(0) => String::new(),
        Some(lines) => format!("\x1b[{lines}A\r"),
    };
    for line in text.lines() {
        frame.push_str(&console::truncate_str(line, width, "…"));
        frame.push_str("\x1b[K\n");
    }
    frame.push_str("\x1b[J");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_covers_the_one_before() {
        assert_eq!(frame("abcdef\ng", 4, Some(0)), "abc…\x1b[K\ng\x1b[K\n\x1b[J");
        assert_eq!(frame("a", 4, Some(2)), "\x1b[2A\ra\x1b[K\n\x1b[J");
        assert!(frame("a", 4, None).starts_with("\x1b[2J\x1b[H"));
    }
}
