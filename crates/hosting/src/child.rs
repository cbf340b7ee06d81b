//! Child processes: each in a process group of its own, in a clean environment, reaped, and killed
//! as a group.
//!
//! A server is often a launcher (`npx`, `uv run`) with the real one below it. Killing only what was
//! started would leave the rest behind, so signals go to the whole group, and whatever is left of
//! it when its leader is gone is killed too.

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

/// How long a child may take to leave by itself once its standard input is closed, and again after
/// SIGTERM.
const GRACE: Duration = Duration::from_millis(1500);

/// How a child has ended that found nothing wrong.
pub(crate) const ENDED_WELL: &str = "the process exited with status 0";

/// A child that was started. The process is watched by a task of its own; dropping this does not
/// stop it.
#[derive(Debug, Clone)]
pub struct ChildProcess {
    /// Its process id, which is its group's too.
    pub pid: u32,
    /// The end of its standard error.
    pub stderr: StderrTail,
    /// What was noticed about its standard output.
    pub stdout: StdoutWatch,
    stop: CancellationToken,
    exit: watch::Receiver<Option<String>>,
}

/// The ends of a child's standard input and output that are ours.
pub(crate) type ChildPipes = (ChildStdout, ChildStdin);

/// Starts a child.
///
/// # Errors
///
/// Where the operating system refuses.
pub(crate) fn spawn_child(
    server: &str,
    spec: &ChildSpec,
    limits: &ProcessLimits,
) -> io::Result<(ChildProcess, ChildPipes)> {
    fleet_launcher::warn_of_gaps(server, &spec.confinement);
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
    let gone = || io::Error::other("the child was gone at once");
    let pid = child.id().ok_or_else(gone)?;
    let (stdin, stdout) =
        (child.stdin.take().ok_or_else(gone)?, child.stdout.take().ok_or_else(gone)?);
    let stderr = StderrTail::hiding(spec.secrets.clone());
    let mut drained = None;
    if let Some(stream) = child.stderr.take() {
        drained = Some(tokio::spawn(stderr.clone().follow(server.to_owned(), stream)));
    }
    let stop = CancellationToken::new();
    let (exited, exit) = watch::channel(None);
    let watch = StdoutWatch::default();
    let process = ChildProcess { pid, stderr, stdout: watch, stop: stop.clone(), exit };
    let counted = Counted::new(&metrics::CHILDREN);
    tokio::spawn(async move {
        let status = supervise_child(child, pid, stop).await;
        drop(counted);
        if let Some(drained) = drained {
            // The last words matter most. Somebody outside of the group may hold the pipe, so not
            // for ever.
            _ = tokio::time::timeout(GRACE, drained).await;
        }
        // Nobody needs to be listening any more.
        _ = exited.send(Some(status));
    });
    Ok((process, (stdout, stdin)))
}

impl ChildProcess {
    /// Ends the child, by force where it does not leave by itself, and waits until it is reaped.
    /// Its standard input should be closed by now.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.wait_for_exit().await;
    }

    /// Ends the child when it is dropped.
    pub fn stop_guard(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// How it ended, once it has.
    pub async fn wait_for_exit(&self) -> String {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "the process is not watched any more".to_owned(),
        }
    }
}

/// Waits for the child's end or for the wish to end it; either way nothing of its group is left
/// afterwards.
async fn supervise_child(mut child: Child, pid: u32, stop: CancellationToken) -> String {
    let status = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => terminate_child(&mut child, pid).await,
    };
    signal_group(pid, Signal::SIGKILL);
    match status {
        Ok(status) => describe_status(status),
        Err(error) => format!("waiting for the process failed: {error}"),
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
        // There is nobody left, which is what was wanted.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => {
            tracing::warn!(pid, %signal, %error, "a process group could not be signalled")
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
