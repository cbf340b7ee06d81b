//! Sets the limits of a child between its start and its first instruction.
//!
//! Limits must hold before the program runs and for whatever it starts itself, and code between
//! fork and exec is unsafe to write. So the child first is this very binary once more: it lowers
//! its own limits, enters a Landlock domain and then becomes the program, with the same process id
//! and pipes. Setting them from outside would come too late for a program that starts another one
//! at once; a shell's `ulimit` would need a shell, which small images do not have, and would stand
//! between us and the arguments.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    fcntl::OFlag,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};

mod domain;

pub use domain::is_available as can_separate_children;
pub use domain::warn_of_gaps;

use fleet_policy::{confinement::Confinement, limits::ProcessLimits};

/// The first argument of a process that is to become another one.
const ARGUMENT: &str = "__launch";
/// What shells exit with where a program can't be started.
const EXIT_CANNOT_START: u8 = 127;

/// What a process is to become, and under which limits: the second argument.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    limits: ProcessLimits,
    confinement: Confinement,
    /// The working directory that policy has allowed, canonical.
    cwd: Option<PathBuf>,
}

/// The program to start, and what comes before the arguments of a child, so that it runs under
/// these limits.
pub fn wrap(
    program: &Path,
    limits: &ProcessLimits,
    confinement: &Confinement,
    cwd: Option<&Path>,
) -> (OsString, Vec<OsString>) {
    let launch =
        Launch { limits: *limits, confinement: confinement.clone(), cwd: cwd.map(Path::to_owned) };
    // Paths come from a TOML text or a JSON one, so they are UTF-8, and nothing else of this can
    // fail to become JSON.
    let launch = serde_json::to_string(&launch).unwrap_or_default();
    let arguments = vec![ARGUMENT.into(), launch.into(), program.as_os_str().to_owned()];
    // Not the path that we were started by: another version may be there by now, or nothing.
    ("/proc/self/exe".into(), arguments)
}

/// Becomes the program that this process was started to become. Nothing where it was started for
/// something else.
///
/// To be called in `main` of every binary that hosts servers, before everything but
/// `fleet_ops::inspection::forbid`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let error = launch(arguments);
    // Standard error is what is shown of a child that did not do its handshake.
    _ = writeln!(io::stderr(), "the program could not be started: {error}");
    Some(ExitCode::from(EXIT_CANNOT_START))
}

/// Comes back only where that fails.
fn launch(mut arguments: impl Iterator<Item = OsString>) -> io::Error {
    let (Some(launch), Some(program)) = (arguments.next(), arguments.next()) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let launch: Launch = match serde_json::from_slice(launch.as_encoded_bytes()) {
        Ok(launch) => launch,
        Err(error) => return error.into(),
    };
    if let Err(error) = set_limits(&launch.limits) {
        return error;
    }

    if let Some(cwd) = &launch.cwd
        && let Err(error) = change_directory(cwd)
    {
        return error;
    }

    let program = PathBuf::from(program);
    if let Err(error) = domain::enter(&launch.confinement, &program) {
        // A container may forbid it. The child has its own rights then, and this in its log.
        _ = writeln!(io::stderr(), "this program is not in a Landlock domain: {error}");
    }
    Command::new(program).args(arguments).exec()
}

/// Goes to a directory, if it is still where it was when policy allowed it: a link in its path may
/// lead elsewhere by now.
fn change_directory(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let directory = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let place = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    if place != path {
        let problem = format!(
            "the working directory {} is another one than policy has allowed",
            path.display()
        );
        return Err(io::Error::other(problem));
    }
    Ok(nix::unistd::fchdir(&directory)?)
}

/// Sets the limits of this process.
fn set_limits(limits: &ProcessLimits) -> io::Result<()> {
    let ProcessLimits { memory_mb, cpu_seconds, open_files } = *limits;

    // The data segment and private writable mappings, which is memory in use. Limiting the whole
    // address space would be wrong: V8 and others reserve hundreds of gigabytes of it and use
    // little.
    lower(Resource::RLIMIT_DATA, memory_mb.map(|mb| mb.saturating_mul(1024 * 1024)), 0)?;

    // SIGXCPU first, so that the cause can be told from others, then SIGKILL for a program that
    // ignores it.
    lower(Resource::RLIMIT_CPU, cpu_seconds, 1)?;

    lower(Resource::RLIMIT_NOFILE, open_files, 0)
}

/// Limits never go up: what we may not use ourselves no child may.
fn lower(resource: Resource, limit: Option<u64>, grace: u64) -> io::Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    let (_, hard) = getrlimit(resource)?;
    let soft = limit.min(hard);
    Ok(setrlimit(resource, soft, soft.saturating_add(grace).min(hard))?)
}
