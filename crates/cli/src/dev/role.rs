//! A process of `dev` and the task that owns it. Only that task waits for the process and signals
//! it, so a signal never reaches another process that has been given the same id.

use std::{net::SocketAddr, path::Path, time::Duration};

use nix::sys::signal::Signal;
use tokio::{sync::mpsc, time::timeout};

use super::{kafka_probe, supervisor::Role};
use crate::supervise::{self, Process};

/// How often a process is probed, and how long it may take to respond.
const PROBE: Duration = Duration::from_secs(10);
/// How often to check whether a process listens yet.
const LOOK: Duration = Duration::from_millis(50);

/// A report on the process of a role.
#[derive(Debug)]
pub(super) enum Report {
    /// The process listens on this address.
    Listens(SocketAddr),
    /// The process has responded to a probe, or has not.
    Probed(bool),
    /// The process has ended, as the text describes; `true` if it failed on its own.
    Exited(String, bool),
}

/// How to probe whether a process is alive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Probe {
    /// Request its `/health`.
    Http,
    /// Send the first requests of a Kafka client.
    Kafka,
}

/// A handle to a process that a task owns.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) pid: u32,
    signals: mpsc::UnboundedSender<Signal>,
}

impl Handle {
    pub(super) fn signal(&self, signal: Signal) {
        // If the receiver is gone, the process has exited.
        self.signals.send(signal).ok();
    }
}

/// Starts a task that owns `process` until it exits and reports what happens to it.
pub(super) fn spawn_owner(
    role: Role,
    mut process: Process,
    probe: Probe,
    reports: mpsc::UnboundedSender<(Role, Report)>,
) -> Handle {
    let (signals, mut inbox) = mpsc::unbounded_channel();
    let handle = Handle { pid: process.id().unwrap_or_default(), signals };

    tokio::spawn(async move {
        let ready_file = process.ready_file().to_owned();
        let observing = observe_process(role, &ready_file, probe, &reports);
        tokio::pin!(observing);
        let status = loop {
            tokio::select! {
                status = process.wait() => break status,
                Some(signal) = inbox.recv() => process.signal(signal),
                () = &mut observing => {}
            }
        };

        let (how, by_itself) = match status {
            Ok(status) => {
                (supervise::describe(status), status.code().is_some_and(|code| code != 0))
            }
            Err(error) => (format!("could not be waited for ({error})"), true),
        };
        reports.send((role, Report::Exited(how, by_itself))).ok();
    });
    handle
}

/// Reports where a process listens, and then repeatedly whether it is alive. Never returns.
async fn observe_process(
    role: Role,
    ready_file: &Path,
    probe: Probe,
    reports: &mpsc::UnboundedSender<(Role, Report)>,
) {
    let address = loop {
        match timeout(PROBE, wait_for_address(ready_file)).await {
            Ok(address) => break address,
            Err(_) => reports.send((role, Report::Probed(false))).ok(),
        };
    };
    reports.send((role, Report::Listens(address))).ok();

    loop {
        tokio::time::sleep(PROBE).await;
        let answered = timeout(PROBE, probe_process(address, probe)).await.unwrap_or(false);
        reports.send((role, Report::Probed(answered))).ok();
    }
}

/// Waits until a process listens and returns its address.
async fn wait_for_address(ready_file: &Path) -> SocketAddr {
    loop {
        if let Some(address) = supervise::read_address(ready_file).await {
            return address;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns whether a process responds to a probe.
async fn probe_process(address: SocketAddr, probe: Probe) -> bool {
    match probe {
        Probe::Kafka => kafka_probe::send_first_requests(address).await.is_ok(),
        Probe::Http => {
            let Ok(client) = reqwest::Client::builder().no_proxy().build() else { return false };
            let answer = client.get(format!("http://{address}/health")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        }
    }
}
