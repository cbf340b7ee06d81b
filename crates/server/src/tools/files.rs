//! The `files` toolkit: looking at files below configured roots, and at nothing else.

use std::sync::Arc;

use crate::toolkit::Toolkit;

pub mod digest;
pub mod list;
mod path_glob;
pub mod read;
pub mod roots;
mod walk;

pub use roots::{Files, RootError};

/// The tools over these roots.
pub fn toolkit(files: Arc<Files>) -> Toolkit<Files> {
    Toolkit::new(files)
        .with(&list::SPEC, list::file_list)
        .with(&read::SPEC, read::file_read)
        .with(&digest::SPEC, digest::file_digest)
}
