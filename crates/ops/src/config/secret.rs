//! Secrets in files of their own, as mounted Secrets and `mcp-fleet keys init` make them.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A file from which a secret could not be read. Its content is never repeated.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file is missing, or can't be read.
    #[error(
        "could not read the secret from `{}`; check that the file exists and that this user may \
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
    /// The file has something else in it.
    #[error(
        "`{}` does not hold a secret; expected one line without spaces in it",
        path.display()
    )]
    NotOneLine {
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
    let text = std::fs::read_to_string(path)
        .map_err(|error| SecretFileError::Read { path: path.to_owned(), error })?;

    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(SecretFileError::NotOneLine { path: path.to_owned() });
    }
    Ok(secret.to_owned())
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
}
