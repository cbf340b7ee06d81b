//! Prints results, and keeps the images and files within them.

use std::{
    fs::File,
    io::{ErrorKind, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    output,
    result_view::{self, Media, ResultFormat, file_stem, for_terminal},
};

/// How many names are tried for a file, since existing files are never overwritten.
const MAX_NAMES: usize = 10_000;

/// How a command prints results.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ResultArgs {
    /// How to print the result
    #[arg(help_heading = "Output", short = 'o', long = "output", value_name = "FORMAT")]
    format: Option<ResultFormat>,

    /// Save images, audio and files of the result in this directory, and print their names
    #[arg(help_heading = "Output", long, value_name = "DIR")]
    save: Option<PathBuf>,
}

impl ResultArgs {
    /// Returns whether the user wants to see or keep results.
    pub(crate) fn is_given(&self) -> bool {
        self.format.is_some() || self.save.is_some()
    }

    /// Returns how to print results, in `usual` form unless the user chose another.
    pub(crate) fn printer(&self, usual: ResultFormat) -> ResultPrinter {
        let format = self.format.unwrap_or(usual);
        ResultPrinter { format, save: self.save.clone() }
    }
}

/// Prints results in one form.
#[derive(Debug, Clone)]
pub(crate) struct ResultPrinter {
    format: ResultFormat,
    save: Option<PathBuf>,
}

/// The result has no structured part, which the user asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotStructured;

impl ResultPrinter {
    /// Returns whether standard output is for results, so that messages go elsewhere.
    pub(crate) fn takes_stdout(&self) -> bool {
        self.format != ResultFormat::None
    }

    /// Returns whether results are printed for people.
    pub(crate) fn is_text(&self) -> bool {
        self.format == ResultFormat::Text
    }

    /// Prints the result of `name`, a tool or a job.
    pub(crate) fn print(&self, name: &str, result: &Value) -> Result<(), NotStructured> {
        match self.format {
            ResultFormat::Text => self.print_text(name, result),
            ResultFormat::Json => {
                print_json(result);
                self.save_only(name, result);
            }
            ResultFormat::Structured => {
                let structured = result_view::structured(result).ok_or(NotStructured)?;
                print_json(&structured);
                self.save_only(name, result);
            }
            ResultFormat::None => self.save_only(name, result),
        }
        Ok(())
    }

    fn print_text(&self, name: &str, result: &Value) {
        let text = result_view::to_text(result, &mut |media| self.place(name, media));
        // A tool that says nothing prints nothing.
        if !text.is_empty() {
            output::line(&printable(text));
        }
    }

    /// Keeps what is to be saved, and tells on standard error where.
    fn save_only(&self, name: &str, result: &Value) {
        if self.save.is_some() {
            let mut lines = Vec::new();
            result_view::to_text(result, &mut |media| {
                lines.push(self.place(name, media));
                String::new()
            });
            lines.iter().for_each(|line| output::note(line));
        }
    }

    /// Saves an image, a sound or a file if the user asked for that, and returns the line about it.
    fn place(&self, name: &str, media: &Media) -> String {
        let what = media.describe();
        match (&self.save, &media.bytes) {
            (Some(directory), Some(bytes)) => {
                match save(directory, &file_stem(name), media.extension(), bytes) {
                    Ok(path) => format!("saved {} ({what})", path.display()),
                    Err(error) => {
                        let directory = directory.display();
                        output::problem(&format!("could not save to `{directory}`: {error}"));
                        format!("[{what}; not saved]")
                    }
                }
            }
            (None, Some(_)) => format!("[{what}; --save DIR keeps it]"),
            (_, None) => format!("[{what}]"),
        }
    }
}

/// Writes a new file and returns its path.
fn save(
    directory: &Path,
    stem: &str,
    extension: &str,
    bytes: &[u8],
) -> Result<PathBuf, std::io::Error> {
    std::fs::create_dir_all(directory)?;
    for number in 1..=MAX_NAMES {
        let path = directory.join(format!("{stem}-{number}.{extension}"));
        match File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                file.write_all(bytes)?;
                return Ok(path);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other(format!("it has {MAX_NAMES} files named {stem}-….{extension}")))
}

/// Prints JSON: indented for people, on one line for programs.
fn print_json(value: &impl Serialize) {
    if !std::io::stdout().is_terminal() {
        return output::json(value);
    }
    match serde_json::to_string_pretty(value) {
        Ok(text) => output::line(&printable(text)),
        Err(error) => output::problem(&error.to_string()),
    }
}

/// Returns text without escape sequences if standard output is a terminal; programs get everything.
fn printable(text: String) -> String {
    if std::io::stdout().is_terminal() { for_terminal(&text) } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_saved_under_new_names() {
        let directory = tempfile::tempdir().unwrap();
        let pictures = directory.path().join("pictures");
        let printer = ResultPrinter { format: ResultFormat::None, save: Some(pictures.clone()) };
        let image = json!({"type": "image", "mimeType": "image/png", "data": "AQID"});
        let result = json!({"content": [image, image]});

        for _ in 0..2 {
            printer.print("draw/it", &result).unwrap();
        }

        let mut names: Vec<_> = std::fs::read_dir(&pictures)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        let expected = ["draw_it-1.png", "draw_it-2.png", "draw_it-3.png", "draw_it-4.png"];
        assert_eq!(names, expected);
        assert_eq!(std::fs::read(pictures.join("draw_it-4.png")).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn what_is_not_saved_is_described() {
        let printer = ResultPrinter { format: ResultFormat::Text, save: None };
        let media = Media { mime: "image/png".to_owned(), bytes: Some(vec![0; 2048]) };
        let line = printer.place("t", &media);
        assert_eq!(line, "[image/png, 2.0 KiB; --save DIR keeps it]");
        let plain = ResultPrinter { format: ResultFormat::Structured, save: None };
        assert_eq!(plain.print("t", &json!({"content": []})), Err(NotStructured));
    }
}
