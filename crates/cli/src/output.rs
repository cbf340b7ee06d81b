//! The only module that writes to the terminal. Data goes to standard output. Messages go to
//! standard error if standard output is meant for programs.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::CliError;

/// Writes a line. A closed pipe is not an error: the reader (such as `head`) has seen enough.
fn write_line(mut to: impl Write, text: impl std::fmt::Display) {
    match writeln!(to, "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // If writing fails, there is nowhere to report it.
        _ => {}
    }
}

/// Prints messages for people: on standard output, or on standard error if `json` reserves standard
/// output for data.
#[cfg(feature = "fleet")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Messages {
    pub(crate) json: bool,
}

#[cfg(feature = "fleet")]
impl Messages {
    pub(crate) fn print(self, text: impl std::fmt::Display) {
        if self.json {
            write_line(std::io::stderr(), text);
        } else {
            write_line(std::io::stdout(), text);
        }
    }
}

/// Prints one JSON value on one line of standard output.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => problem(&error.to_string()),
    }
}

/// Prints a line of data.
pub(crate) fn line(text: &str) {
    write_line(std::io::stdout(), text);
}

/// Prints a note for people on standard error.
pub(crate) fn note(text: &str) {
    write_line(std::io::stderr(), text);
}

/// Prints a problem on standard error. If nobody reads it, the exit code still tells of it.
pub(crate) fn problem(text: &str) {
    _ = writeln!(std::io::stderr(), "mcp-fleet: {text}");
}

/// What a command says that prints records until it is stopped.
pub(crate) fn following(topic: &str) -> String {
    format!("following {topic} until Ctrl-C; --no-follow ends with its last record")
}

/// The error of a command that can't notice Ctrl-C.
pub(crate) fn no_signals(error: std::io::Error) -> CliError {
    CliError::Io("could not install signal handlers", error)
}

/// A drawing on standard output that is repeatedly redrawn in place.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// The number of lines of the last drawing, and the terminal's size at that time.
    drawn: usize,
    size: (u16, u16),
}

impl Screen {
    /// Returns the number of lines of the terminal.
    pub(crate) fn height(&self) -> usize {
        let (rows, _) = console::Term::stdout().size();
        usize::from(rows)
    }

    /// Returns the number of columns of the terminal.
    pub(crate) fn width(&self) -> usize {
        let (_, columns) = console::Term::stdout().size();
        usize::from(columns)
    }

    /// Draws `text` over the previous drawing.
    pub(crate) fn draw(&mut self, text: &str) {
        let size = console::Term::stdout().size();
        // A resize rewraps lines, so the position of the last drawing is no longer known.
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

/// Returns `text` with the escape sequences that put it over a previous drawing of `before` lines,
/// or on an empty screen. Everything is written at once, and nothing is erased before it is
/// overwritten, to avoid flicker.
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
    fn a_drawing_covers_the_previous_one() {
        assert_eq!(frame("abcdef\ng", 4, Some(0)), "abc…\x1b[K\ng\x1b[K\n\x1b[J");
        assert_eq!(frame("a", 4, Some(2)), "\x1b[2A\ra\x1b[K\n\x1b[J");
        assert!(frame("a", 4, None).starts_with("\x1b[2J\x1b[H"));
    }
}
