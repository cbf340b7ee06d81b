//! The embedded broker, which is a program of its own: `mcp-fleet-broker`.
//!
//! This module finds the program, runs it in place of `mcp-fleet broker`, and keeps it as a child
//! process for `demo` and `dev`. Nothing of the broker is linked into `mcp-fleet`.

use std::{
    env,
    ffi::OsString,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    error::CliError,
    supervise::{self, Process, own_program},
};

/// The program's file name.
const PROGRAM: &str = "mcp-fleet-broker";
/// How long the broker may take to listen. Opening its file is the slow part.
const READY: Duration = Duration::from_secs(30);
/// The time for the broker to stop, in which it waits for pending writes.
const STOP: Duration = Duration::from_secs(10);

/// The arguments of `mcp-fleet broker`, which are those of the program.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// The arguments of mcp-fleet-broker; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Replaces this process with the program. Returns only if that fails.
pub(crate) fn exec(args: Args) -> Result<ExitCode, CliError> {
    let path = find()?;
    let source = Command::new(&path).args(args.arguments).exec();
    Err(CliError::File { what: "could not start", path, source })
}

/// Returns the path of the program: beside this one, or on `PATH`.
pub(crate) fn find() -> Result<PathBuf, CliError> {
    let own = own_program()?;
    let beside = own.parent().unwrap_or(Path::new("/")).to_owned();
    let path = env::var_os("PATH").unwrap_or_default();

    let directories = [beside.clone()].into_iter().chain(env::split_paths(&path));
    find_in(directories).ok_or(CliError::NoBroker { directory: beside })
}

/// Returns the program in the first of `directories` that has it. Relative directories are
/// skipped: a fleet must not run what happens to lie in the current directory.
fn find_in(directories: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let is_executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let absolute = directories.into_iter().filter(|directory| directory.is_absolute());
    absolute.map(|directory| directory.join(PROGRAM)).find(is_executable)
}

/// Starts a broker as a child process, without waiting for it. It keeps its data in `data_dir`, and
/// its log in `run_dir`.
pub(crate) fn start(run_dir: &Path, data_dir: &Path, port: u16) -> Result<Process, CliError> {
    let mut directory = OsString::from("--data-dir=");
    directory.push(data_dir);
    let args = [format!("--listen=127.0.0.1:{port}").into(), directory];
    Process::start(&find()?, "broker", run_dir, &args, &[])
}

/// A running broker and the task that owns its process. Dropping it kills the broker.
#[derive(Debug)]
pub(crate) struct RunningBroker {
    address: SocketAddr,
    /// Why the broker has exited, once it has on its own.
    failure: watch::Receiver<Option<BrokerFailure>>,
    stop: CancellationToken,
    owner: AbortOnDropHandle<()>,
}

/// How the broker's process ended although it should run.
#[derive(Debug, Clone)]
pub(crate) struct BrokerFailure {
    how: String,
    log: String,
}

impl RunningBroker {
    /// Starts a broker, and waits until it listens. Port 0 means any free port.
    pub(crate) async fn start(
        run_dir: &Path,
        data_dir: &Path,
        port: u16,
    ) -> Result<Self, CliError> {
        let mut process = start(run_dir, data_dir, port)?;
        let address = process.ready(READY).await?;

        let stop = CancellationToken::new();
        let (report, failure) = watch::channel(None);
        let owner =
            AbortOnDropHandle::new(tokio::spawn(own_process(process, stop.clone(), report)));
        Ok(Self { address, failure, stop, owner })
    }

    /// Returns the address for clients.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns once the broker has exited on its own, with the error to report.
    pub(crate) fn died(&self) -> impl Future<Output = CliError> + Send + use<> {
        let mut failure = self.failure.clone();
        async move {
            match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
                Ok(Some(BrokerFailure { how, log })) => CliError::BrokerDied { how, log },
                // It was told to stop, which is no failure.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        }
    }

    /// Stops the broker and waits, within a limit, for its process.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.owner.await {
            tracing::debug!(%error, "the task that owns the broker has failed");
        }
    }
}

/// Owns the process of a broker until it exits or is to stop.
async fn own_process(
    mut process: Process,
    stop: CancellationToken,
    report: watch::Sender<Option<BrokerFailure>>,
) {
    let status = tokio::select! {
        status = process.wait() => status,
        () = stop.cancelled() => {
            process.terminate();
            return process.stopped(STOP).await;
        }
    };

    let how = match status {
        Ok(status) => supervise::describe(status),
        Err(error) => format!("could not be waited for ({error})"),
    };
    report.send_replace(Some(BrokerFailure { how, log: process.tail() }));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_argument_of_the_command_reaches_the_program() {
        for arguments in [
            &["--listen", "127.0.0.1:0", "--data-dir=.fleet/broker"][..],
            &["--help"],
            &["-h"],
            &["--version"],
            &[],
        ] {
            let words = ["mcp-fleet", "broker"].iter().chain(arguments);
            let cli = crate::Cli::parse_from(words);
            let crate::Command::Broker(args) = cli.command else { unreachable!() };
            assert_eq!(args.arguments, arguments);
        }
    }

    #[test]
    fn the_first_directory_with_an_executable_program_is_used() {
        let root = tempfile::tempdir().unwrap();
        let [empty, plain, first, second] =
            ["empty", "plain", "first", "second"].map(|name| root.path().join(name));
        for (directory, mode) in
            [(&empty, None), (&plain, Some(0o644)), (&first, Some(0o755)), (&second, Some(0o755))]
        {
            fs::create_dir(directory).unwrap();
            if let Some(mode) = mode {
                fs::write(directory.join(PROGRAM), "").unwrap();
                fs::set_permissions(directory.join(PROGRAM), fs::Permissions::from_mode(mode))
                    .unwrap();
            }
        }

        let directories = [empty.clone(), plain.clone(), first.clone(), second];
        assert_eq!(find_in(directories), Some(first.join(PROGRAM)));
        assert_eq!(find_in([empty, plain]), None);
        assert_eq!(find_in([PathBuf::from("relative")]), None);
    }

    #[test]
    fn the_error_about_a_missing_program_says_what_to_do() {
        let error = CliError::NoBroker { directory: PathBuf::from("/opt/fleet") }.to_string();
        for word in
            ["mcp-fleet-broker", "/opt/fleet", "PATH", "cargo build", "FLEET-BROKER-MISSING"]
        {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
