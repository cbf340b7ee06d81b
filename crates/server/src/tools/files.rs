//! The `file_*` tools: read-only access to files below the configured roots.

use std::sync::Arc;

use crate::toolkit::Toolkit;

pub mod digest;
pub mod list;
mod path_glob;
pub mod read;
pub mod roots;
mod walk;

pub use roots::{Files, RootError};

/// The toolkit of the `file_*` tools.
pub fn toolkit(files: Arc<Files>) -> Toolkit<Files> {
    Toolkit::new(files)
        .with(&list::SPEC, list::file_list)
        .with(&read::SPEC, read::file_read)
        .with(&digest::SPEC, digest::file_digest)
}
