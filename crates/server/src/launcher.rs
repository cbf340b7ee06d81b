//! Sets the limits of a child between its start and its first instruction.
//!
//! Limits must hold before the program runs and for whatever it starts itself, and code between fork and exec is
//! unsafe to write. So the child first is this very binary once more: it lowers its own limits and then becomes the program,
//! with the same process id and pipes. Setting them from outside would come too late for a program that starts another one
//! at once; a shell's `ulimit` would need a shell, which small images do not have, and would stand between us and the
//! arguments.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::policy::limits::ProcessLimits;

/// The first argument of a process that is to become another one.
const ARGUMENT: &str = "__launch";
/// In place of a limit that is not set.
const NONE: &str = "-";
/// What shells exit with where a program can't be started.
const CAN_NOT_START: u8 = 127;

/// The program to start, and what comes before the arguments of a child, so that it runs under these limits.
pub(crate) fn wrap(program: &Path, limits: &ProcessLimits) -> (OsString, Vec<OsString>) {
    let ProcessLimits { memory_mb, cpu_seconds, open_files } = limits;
    let limits = [memory_mb, cpu_seconds, open_files];
    let limits = limits.map(|limit| limit.map_or_else(|| NONE.to_owned(), |limit| limit.to_string()));
    let mut arguments = vec![OsString::from(ARGUMENT)];
    arguments.extend(limits.map(OsString::from));
    arguments.push(program.as_os_str().to_owned());
    // Not the path that we were started by: another version may be there by now, or nothing.
    ("/proc/self/exe".into(), arguments)
}

/// Becomes the program that this process was started to become. Nothing where it was started for something else.
///
/// To be called first in `main` of every binary that hosts servers.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let error = launch(arguments);
    // Standard error is what is shown of a child that did not do its handshake.
    _ = writeln!(io::stderr(), "the program could not be started: {error}");
    Some(ExitCode::from(CAN_NOT_START))
}

/// Comes back only where that fails.
fn launch(mut arguments: impl Iterator<Item = OsString>) -> io::Error {
    let mut set = |resource, unit: u64, grace: u64| {
        let limit = arguments.next().ok_or(io::ErrorKind::InvalidInput)?;
        if limit == OsStr::new(NONE) {
            return Ok(());
        }
        let limit: u64 =
            limit.to_str().and_then(|limit| limit.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
        lower(resource, limit.saturating_mul(unit), grace)
    };
    // The data segment and private writable mappings, which is memory in use. The whole address space would be the
    // wrong thing to limit: V8 and others reserve hundreds of gigabytes of it and use little.
    let limited = set(Resource::RLIMIT_DATA, 1024 * 1024, 0)
        // SIGXCPU first, by which the end can be told from others, then SIGKILL for who ignores that.
        .and_then(|()| set(Resource::RLIMIT_CPU, 1, 1))
        .and_then(|()| set(Resource::RLIMIT_NOFILE, 1, 0));
    if let Err(error) = limited {
        return error;
    }
    match arguments.next() {
        Some(program) => Command::new(program).args(arguments).exec(),
        None => io::ErrorKind::InvalidInput.into(),
    }
}

/// Limits never go up: what we may not use ourselves no child may.
fn lower(resource: Resource, limit: u64, grace: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(resource)?;
    let soft = limit.min(hard);
    Ok(setrlimit(resource, soft, soft.saturating_add(grace).min(hard))?)
}
