//! `file_digest`: a file's size and SHA-256, for example of files that are too large to read.

use std::{fmt::Write, io::Read, sync::Arc};

use fleet_ops::blocking::run_blocking;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::roots::{Files, io_failure};
use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "file_digest",
    title: "Digest a file",
    description: "Returns the size and the SHA-256 of a file below the configured roots. There is \
                  no size limit.",
    effect: Effect::ReadOnly,
};

const CHUNK: usize = 256 * 1024;

/// The file to digest.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The file's path, relative to a root or absolute.
    path: String,
}

/// The digest of a file.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileDigest {
    /// The file's path, relative to its root.
    path: String,
    /// The number of bytes digested.
    size: u64,
    /// The SHA-256 of these bytes, in lower-case hexadecimal.
    sha256: String,
}

/// Digests a file.
///
/// # Errors
///
/// Returns an error if the file is outside the roots, doesn't exist or can't be read.
pub async fn file_digest(
    files: Arc<Files>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<FileDigest, ToolFailure> {
    run_blocking(move || digest_file(&files, &args, &|| context.ct.is_cancelled())).await
}

fn digest_file(
    files: &Files,
    args: &Args,
    cancelled: &dyn Fn() -> bool,
) -> Result<FileDigest, ToolFailure> {
    let (confined, mut file, _) = files.open(&args.path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut size = 0;

    loop {
        if cancelled() {
            return Err(ToolFailure::transient("the call was cancelled"));
        }
        let read = file.read(&mut chunk).map_err(|error| io_failure(&args.path, &error))?;
        if read == 0 {
            break;
        }
        hasher.update(&chunk[..read]);
        size += read as u64;
    }

    let sha256 = hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string can't fail.
        _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok(FileDigest { path: confined.relative_path(), size, sha256 })
}
