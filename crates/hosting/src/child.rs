//! Child processes: each in a process group of its own, with a clean environment, reaped, and
//! killed as a group.
//!
//! A command is often a launcher (`npx`, `uv run`) that starts the real server. Killing only the
//! launcher would leave the server behind, so signals go to the whole group, and what remains of
//! the group after its leader has exited is killed, too.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use fleet_ops::metrics::Counted;
use fleet_policy::limits::ProcessLimits;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{launch::ChildSpec, stderr::StderrTail, stdout::StdoutWatch};
use crate::metrics;

/// How long a child may take to exit after its standard input is closed, and again after SIGTERM.
const GRACE: Duration = Duration::from_millis(1500);

/// The description of a successful exit.
pub(crate) const ENDED_WELL: &str = "the process exited with status 0";

/// A child that was started. A task of its own supervises the process; dropping this does not end
/// it.
#[derive(Debug, Clone)]
pub struct ChildProcess {
    /// The process id, which is also the id of its group.
    pub pid: u32,
    /// The end of its standard error.
    pub stderr: StderrTail,
    /// What is wrong with its standard output.
    pub stdout: StdoutWatch,
    /// The restrictions that the kernel does not enforce on it.
    pub gaps: Vec<&'static str>,
    stop: CancellationToken,
    exit: watch::Receiver<Option<String>>,
}

/// Our ends of a child's standard input and output.
pub(crate) type ChildPipes = (ChildStdout, ChildStdin);

/// Starts a child.
///
/// # Errors
///
/// Returns an error if the operating system can't start the process.
pub(crate) fn spawn_child(
    server: &str,
    spec: &ChildSpec,
    limits: &ProcessLimits,
) -> io::Result<(ChildProcess, ChildPipes)> {
    let gaps = fleet_launcher::warn_of_gaps(server, &spec.confinement);
    let (program, arguments) =
        fleet_launcher::wrap(&spec.program, limits, &spec.confinement, spec.cwd.as_deref());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(&spec.args)
        .env_clear()
        .envs(&spec.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);

    let mut child = command.spawn()?;
    let exited = || io::Error::other("the process exited at once");
    let pid = child.id().ok_or_else(exited)?;
    let (stdin, stdout) =
        (child.stdin.take().ok_or_else(exited)?, child.stdout.take().ok_or_else(exited)?);

    let stderr = StderrTail::hiding(spec.secrets.clone());
    let mut drained = None;
    if let Some(stream) = child.stderr.take() {
        drained = Some(tokio::spawn(stderr.clone().follow(server.to_owned(), stream)));
    }

    let stop = CancellationToken::new();
    let (report_exit, exit) = watch::channel(None);
    let watch = StdoutWatch::default();
    let process = ChildProcess { pid, stderr, stdout: watch, gaps, stop: stop.clone(), exit };
    let counted = Counted::new(&metrics::CHILDREN);
    tokio::spawn(async move {
        let status = supervise_child(child, pid, stop).await;
        drop(counted);
        if let Some(drained) = drained {
            // The last lines matter most. But a process outside the group may keep the pipe open,
            // so don't wait for ever.
            _ = tokio::time::timeout(GRACE, drained).await;
        }
        // Nobody may be listening.
        _ = report_exit.send(Some(status));
    });

    Ok((process, (stdout, stdin)))
}

impl ChildProcess {
    /// Ends the child, by force if necessary, and waits until it is reaped. Close its standard
    /// input first.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.wait_for_exit().await;
    }

    /// Returns a guard that ends the child when it is dropped.
    pub fn stop_guard(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// Waits until the child has exited, and returns how.
    pub async fn wait_for_exit(&self) -> String {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "the process is no longer supervised".to_owned(),
        }
    }
}

/// Waits until the child exits or is to be ended. Afterwards, nothing of its group is left.
async fn supervise_child(mut child: Child, pid: u32, stop: CancellationToken) -> String {
    let status = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => terminate_child(&mut child, pid).await,
    };

    signal_group(pid, Signal::SIGKILL);
    match status {
        Ok(status) => describe_status(status),
        Err(error) => format!("could not wait for the process: {error}"),
    }
}

async fn terminate_child(child: &mut Child, pid: u32) -> io::Result<ExitStatus> {
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return status;
    }

    signal_group(pid, Signal::SIGTERM);
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return status;
    }

    signal_group(pid, Signal::SIGKILL);
    child.wait().await
}

fn signal_group(pid: u32, signal: Signal) {
    let Ok(group) = i32::try_from(pid) else { return };
    match killpg(Pid::from_raw(group), signal) {
        // ESRCH: nothing of the group is left.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => {
            tracing::warn!(pid, %signal, %error, "could not signal the process group of a child")
        }
    }
}

fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => ENDED_WELL.to_owned(),
        (Some(code), _) => format!("the process exited with status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(name) => format!("the process was killed by signal {signal} ({name})"),
            Err(_) => format!("the process was killed by signal {signal}"),
        },
        (None, None) => "the process ended".to_owned(),
    }
}
