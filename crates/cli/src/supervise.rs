//! Child processes: started in process groups of their own, with their logs in files, ended in
//! order.
//!
//! A group of its own keeps Ctrl-C in the terminal from reaching the children directly: the parent
//! passes it on once, and a second signal would make them skip the drain.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use crate::error::CliError;

/// How often a condition outside is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How much of a log is shown when its process fails.
const TAIL_LINES: usize = 15;

/// A child process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
    ready_file: PathBuf,
}

impl Process {
    /// Starts this very binary with `args`. It must take `--ready-file` and `--exit-with-parent`.
    pub(crate) fn start(
        name: &str,
        directory: &Path,
        args: &[String],
        env: &[(&str, &str)],
    ) -> Result<Self, CliError> {
        let file =
            |what, path: &Path, source| CliError::File { what, path: path.to_owned(), source };
        let exe = std::env::current_exe()
            .map_err(|error| CliError::Io("can't find this program", error))?;
        let log = directory.join(format!("{name}.log"));
        let ready_file = directory.join(format!("{name}.ready"));
        match std::fs::remove_file(&ready_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("can't remove", &ready_file, error));
            }
            _ => {}
        }
        let output = File::options().create(true).append(true).open(&log);
        let output = output.map_err(|error| file("can't write", &log, error))?;
        let errors = output.try_clone().map_err(|error| file("can't write", &log, error))?;
        let child = Command::new(&exe)
            .args(args)
            .arg("--exit-with-parent")
            .arg("--ready-file")
            .arg(&ready_file)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| file("can't start", &exe, error))?;
        Ok(Self { name: name.to_owned(), child, log, ready_file })
    }

    /// Waits until the process says where it listens.
    pub(crate) async fn ready(&mut self, within: Duration) -> Result<SocketAddr, CliError> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(address) = read_address(&self.ready_file).await {
                return Ok(address);
            }
            if self.exited().is_some() {
                return Err(CliError::EarlyEnd { name: self.name.clone(), log: self.tail() });
            }
            if Instant::now() >= deadline {
                let (name, log) = (self.name.clone(), self.tail());
                return Err(CliError::Slow { name, seconds: within.as_secs(), log });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How the process ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end of the process. Can be dropped and called again.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Where the process writes its address once it listens.
    pub(crate) fn ready_file(&self) -> &Path {
        &self.ready_file
    }

    /// Asks the process to end, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal, if the process has not been waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok())
            && let Err(error) = kill(Pid::from_raw(pid), signal)
        {
            tracing::debug!(%error, name = self.name, "the process is gone already");
        }
    }

    /// Waits for the end that was asked for, and forces it when it takes too long.
    pub(crate) async fn stopped(mut self, within: Duration) {
        if tokio::time::timeout(within, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::debug!(%error, name = self.name, "the process is gone already");
        }
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The last lines of the log.
    pub(crate) fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The address in a ready file, once it has been written.
pub(crate) async fn read_address(ready_file: &Path) -> Option<SocketAddr> {
    tokio::fs::read_to_string(ready_file).await.ok()?.trim().parse().ok()
}

/// How a process ended, for people.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}
