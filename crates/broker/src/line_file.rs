//! Files of JSON lines that are appended to. A line that was cut off, because the broker was killed
//! or the disk was full, costs itself and never the next one.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use serde::Serialize;

use super::format;

/// An open file of lines.
#[derive(Debug)]
pub(super) struct LineFile {
    file: File,
    /// Whether the last line is complete.
    is_whole: bool,
}

impl LineFile {
    /// Opens or creates a file in order to append to it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        let mut last = [b'\n'];
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self { file, is_whole: last == [b'\n'] })
    }

    /// Replaces the file by one with these lines.
    pub(super) fn replace(path: &Path, lines: &[u8]) -> io::Result<Self> {
        Ok(Self { file: format::replace(path, lines)?, is_whole: true })
    }

    /// Appends a line that [`to_line`] has made.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.is_whole {
            self.file.write_all(b"\n")?;
        }
        self.is_whole = false;
        self.file.write_all(line)?;
        self.is_whole = true;
        Ok(())
    }
}

/// Returns a line with its end.
pub(super) fn to_line(line: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_incomplete_line_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines");
        fs::write(&path, "\"whole\"\n\"cut o").unwrap();

        let mut lines = LineFile::open(&path).unwrap();
        lines.append(&to_line(&"next").unwrap()).unwrap();
        lines.append(&to_line(&"last").unwrap()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "\"whole\"\n\"cut o\n\"next\"\n\"last\"\n");
    }

    /// A write that fails may have written a part of its line, as on a full disk.
    #[test]
    fn the_line_after_a_failed_write_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines");
        let mut lines = LineFile::open(&path).unwrap();
        let writable = std::mem::replace(&mut lines.file, File::open(&path).unwrap());
        lines.append(b"1\n").unwrap_err();

        lines.file = writable;
        lines.file.write_all(b"half").unwrap();
        lines.append(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "half\n2\n");
    }

    #[test]
    fn a_failed_replacement_keeps_the_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines.jsonl");
        fs::write(&path, "1\n").unwrap();
        fs::create_dir(path.with_extension("new")).unwrap();

        LineFile::replace(&path, b"2\n").unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }
}
