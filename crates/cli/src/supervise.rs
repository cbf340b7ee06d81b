//! Child processes: started in their own process groups, with logs in files, and stopped in order.
//!
//! With its own process group, a child does not receive the terminal's Ctrl-C directly. The parent
//! forwards it once; a second signal would make the child skip its drain.

use std::{
    ffi::OsStr,
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

/// How often external conditions are polled.
const LOOK: Duration = Duration::from_millis(25);
/// The number of log lines to show if a process fails.
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
    /// Starts `program` with `args`. It must accept `--ready-file` and `--exit-with-parent`.
    pub(crate) fn start(
        program: &Path,
        name: &str,
        directory: &Path,
        args: &[impl AsRef<OsStr>],
        env: &[(&str, &str)],
    ) -> Result<Self, CliError> {
        let file =
            |what, path: &Path, source| CliError::File { what, path: path.to_owned(), source };

        let log = directory.join(format!("{name}.log"));
        let ready_file = directory.join(format!("{name}.ready"));

        match std::fs::remove_file(&ready_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("could not remove", &ready_file, error));
            }
            _ => {}
        }

        let output = File::options().create(true).append(true).open(&log);
        let output = output.map_err(|error| file("could not write", &log, error))?;
        let errors = output.try_clone().map_err(|error| file("could not write", &log, error))?;

        let child = Command::new(program)
            .args(args)
            .arg(format!("--exit-with-parent={}", std::process::id()))
            .arg("--ready-file")
            .arg(&ready_file)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| file("could not start", program, error))?;

        Ok(Self { name: name.to_owned(), child, log, ready_file })
    }

    /// Waits until the process reports the address it listens on.
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

    /// Returns how the process ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the process to end. The future can be dropped and the method called again.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Returns the file to which the process writes its address once it listens.
    pub(crate) fn ready_file(&self) -> &Path {
        &self.ready_file
    }

    /// Asks the process to stop, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal, unless the process has already been waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok())
            && let Err(error) = kill(Pid::from_raw(pid), signal)
        {
            tracing::debug!(%error, name = self.name, "could not signal the process; it has already ended");
        }
    }

    /// Waits for a process that was asked to stop, and kills it after `within`.
    pub(crate) async fn stopped(mut self, within: Duration) {
        if tokio::time::timeout(within, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::debug!(%error, name = self.name, "could not kill the process; it has already ended");
        }
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns the last lines of the log.
    pub(crate) fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// Returns the path of this very program.
pub(crate) fn own_program() -> Result<PathBuf, CliError> {
    std::env::current_exe().map_err(|error| CliError::Io("could not find this program", error))
}

/// Renames the logs in `directory` from an earlier run to `NAME.log.1`, so that each run begins its
/// own. Older ones are dropped.
pub(crate) fn set_logs_aside(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("log")) {
            std::fs::rename(&path, path.with_extension("log.1"))?;
        }
    }
    Ok(())
}

/// Returns the last lines of a log file.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Returns the address in a ready file, once it has been written.
pub(crate) async fn read_address(ready_file: &Path) -> Option<SocketAddr> {
    tokio::fs::read_to_string(ready_file).await.ok()?.trim().parse().ok()
}

/// Describes for people how a process ended.
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_run_begins_its_own_logs() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, text) in [("broker.log", "second"), ("broker.log.1", "first"), ("keep", "")] {
            fs::write(path(name), text).unwrap();
        }

        set_logs_aside(directory.path()).unwrap();

        assert!(!path("broker.log").exists() && path("keep").exists());
        assert_eq!(fs::read_to_string(path("broker.log.1")).unwrap(), "second");
        set_logs_aside(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(path("broker.log.1")).unwrap(), "second");
    }
}
