//! API keys: `mf_<id>_<secret>`.
//!
//! A key's id is not secret and stands in logs; its secret is 32 random bytes in base64url. The
//! keys file has a digest of each key, so whoever reads the file can't use the keys. The digest is
//! fast on purpose: a secret of 256 random bits can't be guessed, so a slow one would only make
//! every request slow.

mod file;
mod format;
mod table;

pub use file::{KeyEntry, KeysFile, KeysFileError};
pub use format::{KeyIdError, Pepper, check_key_id};
pub(crate) use table::KeyTable;
