//! Applies a child's limits between its start and its first instruction.
//!
//! Limits must hold before the program runs and for everything that it starts, and code between
//! fork and exec is unsafe to write. The child therefore starts as this very binary: it closes the
//! files that it has inherited, lowers its own limits and privileges, enters a Landlock domain, and
//! then executes the program under the same process id and with the same pipes. Setting limits from
//! outside would be too late for a program that immediately starts another one. A shell's `ulimit`
//! would need a shell, which small images lack, and the arguments would have to pass through it.

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
mod privileges;

pub use domain::is_available as can_separate_children;
pub use domain::{warn_if_inseparable, warn_of_gaps};

use fleet_policy::{confinement::Confinement, limits::ProcessLimits};

/// The first argument of a process that is to execute another program.
const ARGUMENT: &str = "__launch";
/// The exit code that shells use if a program cannot be started.
const EXIT_CANNOT_START: u8 = 127;

/// The second argument: how to prepare this process for the program.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    limits: ProcessLimits,
    confinement: Confinement,
    /// The canonical working directory that policy has allowed.
    cwd: Option<PathBuf>,
}

/// Returns the program to start, and the arguments to put before the child's own, so that `program`
/// runs under these limits.
pub fn wrap(
    program: &Path,
    limits: &ProcessLimits,
    confinement: &Confinement,
    cwd: Option<&Path>,
) -> (OsString, Vec<OsString>) {
    let launch =
        Launch { limits: *limits, confinement: confinement.clone(), cwd: cwd.map(Path::to_owned) };
    // Paths come from TOML or JSON text, so they are UTF-8, and everything else always serializes.
    let launch = serde_json::to_string(&launch).unwrap_or_default();
    let arguments = vec![ARGUMENT.into(), launch.into(), program.as_os_str().to_owned()];
    // Not the path of this binary, which may have been replaced or deleted since the start.
    ("/proc/self/exe".into(), arguments)
}

/// Executes the program that this process was started for. Returns `None` if the process was
/// started for another purpose.
///
/// Call this first in `main` of every binary that hosts servers, right after
/// `fleet_ops::inspection::forbid`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }

    let error = launch(arguments);
    // The server shows a child's standard error if its handshake fails.
    _ = writeln!(io::stderr(), "could not start the program: {error}");
    Some(ExitCode::from(EXIT_CANNOT_START))
}

/// Executes the program. Returns only if that fails.
fn launch(mut arguments: impl Iterator<Item = OsString>) -> io::Error {
    let (Some(launch), Some(program)) = (arguments.next(), arguments.next()) else {
        return io::ErrorKind::InvalidInput.into();
    };

    // First, before this process opens anything itself.
    if let Err(error) = privileges::close_inherited_files() {
        return error;
    }

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

    if let Err(error) = privileges::drop_dangerous() {
        return error;
    }

    let program = PathBuf::from(program);
    if let Err(error) = domain::enter(&launch.confinement, &program) {
        // A container may forbid domains. Then the child has its user's full rights, and its log
        // says so.
        _ = writeln!(io::stderr(), "warning: this program runs outside a Landlock domain: {error}");
    }

    Command::new(program).args(arguments).exec()
}

/// Changes to a directory, provided that its canonical path is still the one that policy allowed: a
/// symlink in the path may have changed since.
fn change_directory(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;

    let directory = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let actual = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;

    if actual != path {
        let problem = format!(
            "the working directory {} now refers to {}, which policy has not allowed",
            path.display(),
            actual.display()
        );
        return Err(io::Error::other(problem));
    }

    Ok(nix::unistd::fchdir(&directory)?)
}

/// Sets the limits of this process.
fn set_limits(limits: &ProcessLimits) -> io::Result<()> {
    let ProcessLimits { memory_mb, cpu_seconds, open_files } = *limits;

    // Data segment and private writable mappings, that is, memory in use. Limiting the whole
    // address space would be wrong: V8 and others reserve hundreds of gigabytes and use little.
    lower(Resource::RLIMIT_DATA, memory_mb.map(|mb| mb.saturating_mul(1024 * 1024)), 0)?;

    // SIGXCPU first, so that the cause is recognisable, then SIGKILL for programs that ignore it.
    lower(Resource::RLIMIT_CPU, cpu_seconds, 1)?;

    lower(Resource::RLIMIT_NOFILE, open_files, 0)
}

/// Lowers a limit, never raises it: a child may not use more than we may.
fn lower(resource: Resource, limit: Option<u64>, grace: u64) -> io::Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    let (_, hard) = getrlimit(resource)?;
    let soft = limit.min(hard);
    Ok(setrlimit(resource, soft, soft.saturating_add(grace).min(hard))?)
}
