//! `file_read`: the content of a file, as text if it is UTF-8 and as base64 otherwise.

use std::{
    io::{Read, Seek, SeekFrom},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use fleet_ops::blocking::run_blocking;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::roots::{Files, io_failure};
use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "file_read",
    title: "Read a file",
    description: "Reads a file below the configured roots, or a part of it. `content` is text if \
                  the bytes are UTF-8, and base64 otherwise; `encoding` tells which.",
    effect: Effect::ReadOnly,
};

/// The file to read, and the part of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The file's path, relative to a root or absolute.
    path: String,
    /// The number of bytes to skip (0 by default).
    #[serde(default)]
    #[schemars(range(max = 9_223_372_036_854_775_807_u64))]
    offset: u64,
    /// The most bytes to read. By default, the rest of the file, which must not exceed the size
    /// limit.
    #[serde(default)]
    limit: Option<u64>,
}

/// The part of a file that was read.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Content {
    /// The file's path, relative to its root.
    path: String,
    /// The size of the whole file, in bytes.
    size: u64,
    /// The position in the file at which the content starts.
    offset: u64,
    /// The length of the content, in bytes of the file.
    length: u64,
    /// Whether the content reaches the end of the file.
    eof: bool,
    /// The encoding of `content`.
    encoding: Encoding,
    /// The bytes that were read, encoded.
    content: String,
}

/// An encoding of bytes in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Encoding {
    /// Plain text, for UTF-8 without zero bytes.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Base64 with padding.
    #[serde(rename = "base64")]
    Base64,
}

/// Reads a file or a part of it.
///
/// # Errors
///
/// Returns an error if the file is outside the roots, doesn't exist or can't be read, or if the
/// part exceeds the size limit.
pub async fn file_read(
    files: Arc<Files>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Content, ToolFailure> {
    run_blocking(move || read_file(&files, &args)).await
}

fn read_file(files: &Files, args: &Args) -> Result<Content, ToolFailure> {
    if i64::try_from(args.offset).is_err() {
        return Err(ToolFailure::permanent("`offset` must be below 2^63; no file is larger"));
    }
    let (confined, mut file, metadata) = files.open(&args.path)?;
    let size = metadata.len();
    let rest = size.saturating_sub(args.offset);
    let length = args.limit.map_or(rest, |limit| limit.min(rest));
    if length > files.max_read() {
        return Err(ToolFailure::permanent(format!(
            "`{}`: {length} bytes exceed the limit of {} bytes for one read; \
             read the file in parts with `offset` and `limit`",
            args.path,
            files.max_read()
        )));
    }

    let failure = |error| io_failure(&args.path, &error);
    if length > 0 {
        // Past the end there is nothing to read, and the file system may reject such an offset.
        file.seek(SeekFrom::Start(args.offset)).map_err(failure)?;
    }
    let mut bytes = Vec::new();
    // The file may grow or shrink meanwhile; never read more than was allowed above.
    file.take(length).read_to_end(&mut bytes).map_err(failure)?;
    let length = bytes.len() as u64;

    let (encoding, content) = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => (Encoding::Utf8, text),
        Ok(text) => (Encoding::Base64, STANDARD.encode(text)),
        Err(error) => (Encoding::Base64, STANDARD.encode(error.as_bytes())),
    };
    let eof = args.offset.saturating_add(length) >= size;
    Ok(Content {
        path: confined.relative_path(),
        size,
        offset: args.offset,
        length,
        eof,
        encoding,
        content,
    })
}
