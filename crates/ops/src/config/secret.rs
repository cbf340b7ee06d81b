//! Secrets in files of their own, as mounted Secrets and `mcp-fleet keys init` make them.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// The largest secret that is read from a file, in bytes. Certificates with their chains fit.
pub const MAX_SECRET: u64 = 64 * 1024;

/// A file from which a secret could not be read. Its content is never repeated.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file is missing, or can't be read.
    #[error(
        "could not read the secret in `{}`; check that the file exists and that this user may \
         read it",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The file has something else in it than one key or token.
    #[error(
        "`{}` does not hold a secret; expected one line without spaces in it",
        path.display()
    )]
    NotOneLine {
        /// The file.
        path: PathBuf,
    },
    /// The file is empty or too large.
    #[error(
        "`{}` does not hold a secret; expected a text of 1 to {MAX_SECRET} bytes",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the one line of a file, without the space around it.
///
/// # Errors
///
/// Returns an error if the file can't be read, or does not have exactly one line with text.
pub fn read_secret_file(path: &Path) -> Result<String, SecretFileError> {
    let text = read_bounded(path)?;
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(SecretFileError::NotOneLine { path: path.to_owned() });
    }
    Ok(secret.to_owned())
}

/// Reads a secret that may be any text, such as a password or a private key: the whole file but for
/// one line break at its end, which editors and `echo` add.
///
/// # Errors
///
/// Returns an error if the file can't be read, is empty, or is larger than [`MAX_SECRET`].
pub fn read_secret_text(path: &Path) -> Result<String, SecretFileError> {
    let text = read_bounded(path)?;
    match without_last_line_break(&text) {
        "" => Err(SecretFileError::Size { path: path.to_owned() }),
        secret => Ok(secret.to_owned()),
    }
}

/// Returns a text without one line break at its end.
pub fn without_last_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

fn read_bounded(path: &Path) -> Result<String, SecretFileError> {
    let unread = |error| SecretFileError::Read { path: path.to_owned(), error };

    let mut text = String::new();
    let file = File::open(path).map_err(unread)?;
    file.take(MAX_SECRET + 1).read_to_string(&mut text).map_err(unread)?;
    if text.len() as u64 > MAX_SECRET {
        return Err(SecretFileError::Size { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_secret_and_errors_name_the_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker.key");
        let missing = read_secret_file(&path).unwrap_err().to_string();
        assert!(missing.contains("worker.key"), "{missing}");

        for (text, expected) in [("hunter2\n", Some("hunter2")), (" hunter2", Some("hunter2"))] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_secret_file(&path).ok().as_deref(), expected, "{text:?}");
        }
        for text in ["", "\n", "hunter2 hunter2", "hunter2\nhunter2\n"] {
            std::fs::write(&path, text).unwrap();
            let error = read_secret_file(&path).unwrap_err();
            assert!(error.to_string().contains("worker.key"), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_secret_may_be_any_text_of_bounded_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let largest = "x".repeat(MAX_SECRET as usize);
        for (text, expected) in [
            ("two words \n", Some("two words ")),
            ("-----BEGIN\nx\n-----END\r\n", Some("-----BEGIN\nx\n-----END")),
            ("x\n\n", Some("x\n")),
            (&largest, Some(largest.as_str())),
            (&format!("{largest}x"), None),
            ("", None),
            ("\n", None),
        ] {
            std::fs::write(&path, text).unwrap();
            let found = read_secret_text(&path);
            assert_eq!(found.as_deref().ok(), expected, "{} bytes", text.len());
        }
        std::fs::write(&path, b"hunter2\xff").unwrap();
        let error = read_secret_text(&path).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}
