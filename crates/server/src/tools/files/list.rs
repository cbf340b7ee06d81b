//! `file_list`: the entries of a directory.

use std::{
    collections::VecDeque,
    fs::{self, DirEntry},
    io,
    path::PathBuf,
    sync::Arc,
    time::UNIX_EPOCH,
};

use fleet_ops::blocking::run_blocking;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    path_glob::PathGlob,
    roots::{Confined, Files, io_failure, relative_text},
};
use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "file_list",
    title: "List files",
    description: "Lists the entries of a directory below the configured roots, sorted by path. \
                  Symlinks are listed but not followed.",
    effect: Effect::ReadOnly,
};

const DEFAULT_MAX: usize = 1000;
const HIGHEST_MAX: usize = 10_000;
/// The number of entries after which a recursive listing stops.
const MAX_SCANNED: usize = 200_000;

/// The directory to list, and a filter for its entries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The directory's path, relative to a root or absolute. The first root by default.
    #[serde(default)]
    path: Option<String>,
    /// Whether to list subdirectories recursively.
    #[serde(default)]
    recursive: bool,
    /// Only entries whose path (relative to `path`) matches this pattern: `*` and `?` match within
    /// a name, `**` across directories. A pattern without `/` applies to the name only.
    #[serde(default)]
    glob: Option<String>,
    /// The most entries to return (1000 by default, at most 10000).
    #[serde(default)]
    #[schemars(range(min = 1, max = 10_000))]
    max: Option<usize>,
}

/// The listing of a directory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listing {
    /// The root to which the paths are relative.
    root: String,
    /// The directory's path, relative to the root.
    path: String,
    /// The entries, sorted by path.
    entries: Vec<Entry>,
    /// Whether there are more entries than were returned.
    truncated: bool,
}

/// An entry of a directory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Entry {
    /// The entry's path, relative to the root.
    path: String,
    /// The type of the entry.
    #[serde(rename = "type")]
    kind: Kind,
    /// The size in bytes, for files.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// The time of the last modification, in milliseconds since 1970.
    #[serde(rename = "modifiedMs", skip_serializing_if = "Option::is_none")]
    modified_ms: Option<u64>,
}

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, wherever it leads.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

/// Lists a directory.
///
/// # Errors
///
/// Returns an error if the directory is outside the roots, doesn't exist or can't be read.
pub async fn file_list(
    files: Arc<Files>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Listing, ToolFailure> {
    run_blocking(move || list_directory(&files, &args, &|| context.ct.is_cancelled())).await
}

fn list_directory(
    files: &Files,
    args: &Args,
    cancelled: &dyn Fn() -> bool,
) -> Result<Listing, ToolFailure> {
    let wanted = args.path.as_deref().unwrap_or(".");
    let start = files.resolve(wanted)?;
    if !start.path.is_dir() {
        return Err(ToolFailure::permanent(format!("`{wanted}` is not a directory")));
    }

    let max = args.max.unwrap_or(DEFAULT_MAX);
    if !(1..=HIGHEST_MAX).contains(&max) {
        return Err(ToolFailure::permanent(format!(
            "`max` is {max}; it must be between 1 and {HIGHEST_MAX}"
        )));
    }

    let glob = args.glob.as_deref().map(PathGlob::new);
    let mut found = Vec::new();
    let mut scanned = 0;
    let mut queue = VecDeque::from([start.path.clone()]);
    while let Some(directory) = queue.pop_front() {
        if cancelled() {
            return Err(ToolFailure::transient("the call was cancelled"));
        }
        let entries = match read_sorted(&directory) {
            Ok(entries) => entries,
            // Subdirectories that can't be read are left out, but the directory itself must be
            // readable.
            Err(error) if directory == start.path => return Err(io_failure(wanted, &error)),
            Err(_) => continue,
        };

        for entry in entries {
            scanned += 1;
            let Ok(kind) = entry.file_type() else { continue };
            if files.excludes(&entry.path()) {
                continue;
            }
            if args.recursive && kind.is_dir() {
                queue.push_back(entry.path());
            }
            let below = relative_text(&entry.path(), &start.path);
            if glob.as_ref().is_none_or(|glob| glob.matches(&below)) {
                found.push(entry.path());
            }
        }
        if scanned > MAX_SCANNED {
            break;
        }
    }

    let truncated = found.len() > max || !queue.is_empty();
    found.sort();
    found.truncate(max);
    let entries = found.into_iter().filter_map(|path| describe_entry(path, &start)).collect();
    Ok(Listing {
        root: start.root.to_string_lossy().into_owned(),
        path: start.relative_path(),
        entries,
        truncated,
    })
}

fn read_sorted(directory: &PathBuf) -> io::Result<Vec<DirEntry>> {
    let mut entries: Vec<DirEntry> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// Describes an entry; `None` if it has disappeared since it was found.
fn describe_entry(path: PathBuf, start: &Confined) -> Option<Entry> {
    let metadata = path.symlink_metadata().ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink,
        _ => Kind::Other,
    };

    let since_epoch =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Some(Entry {
        path: relative_text(&path, &start.root),
        kind,
        size: (kind == Kind::File).then_some(metadata.len()),
        modified_ms: since_epoch.and_then(|duration| u64::try_from(duration.as_millis()).ok()),
    })
}
