//! Reads the files that a user names.

use std::{io::Read as _, path::Path};

use crate::error::CliError;

/// Returns whether a path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Returns the content of a file, or of standard input.
pub(crate) fn read_input(path: &Path) -> Result<Vec<u8>, CliError> {
    let bytes = if is_stdin(path) {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    bytes.map_err(|source| CliError::File { what: "could not read", path: path.to_owned(), source })
}
