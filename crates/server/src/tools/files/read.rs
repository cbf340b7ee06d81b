//! `file_read`: the content of a file, as text where it is text and as base64 where it is not.

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

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "file_read",
    title: "Read a file",
    description: "Reads a file below the configured roots, or a part of it. Text comes as UTF-8, everything else as \
                  base64; `encoding` says which.",
    effect: Effect::ReadOnly,
};

/// What to read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The file; relative to a root, or absolute.
    path: String,
    /// How many bytes to skip (default 0).
    #[serde(default)]
    #[schemars(range(max = 9_223_372_036_854_775_807_u64))]
    offset: u64,
    /// How many bytes to read at most. Without it the rest of the file, which must not be above the
    /// size limit.
    #[serde(default)]
    limit: Option<u64>,
}

/// What was read.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Content {
    /// The file, relative to its root.
    path: String,
    /// The size of the whole file in bytes.
    size: u64,
    /// Where the content starts.
    offset: u64,
    /// How many bytes of the file the content is.
    length: u64,
    /// Whether the content reaches the end of the file.
    eof: bool,
    /// How the bytes are written in `content`.
    encoding: Encoding,
    /// The content.
    content: String,
}

/// How bytes are written in a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Encoding {
    /// As they are: they are UTF-8 without zero bytes.
    #[serde(rename = "utf-8")]
    Utf8,
    /// In base64 with padding.
    #[serde(rename = "base64")]
    Base64,
}

/// The tool.
///
/// # Errors
///
/// Where the file is outside of the roots, does not exist, or more would be read than the limit
/// allows.
pub async fn file_read(
    files: Arc<Files>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Content, ToolFailure> {
    run_blocking(move || read_file(&files, &args)).await
}

fn read_file(files: &Files, args: &Args) -> Result<Content, ToolFailure> {
    if i64::try_from(args.offset).is_err() {
        return Err(ToolFailure::permanent("`offset` must be below 2^63: no file is larger"));
    }
    let (confined, mut file, metadata) = files.open(&args.path)?;
    let size = metadata.len();
    let rest = size.saturating_sub(args.offset);
    let length = args.limit.map_or(rest, |limit| limit.min(rest));
    if length > files.max_read() {
        return Err(ToolFailure::permanent(format!(
            "`{}`: {length} bytes are more than the limit of {} bytes for one read; read it in parts with `offset` and \
             `limit`",
            args.path,
            files.max_read()
        )));
    }
    let failure = |error| io_failure(&args.path, &error);
    if length > 0 {
        // Behind the end there is nothing to read, and the file system may not even be able to
        // count that far.
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
