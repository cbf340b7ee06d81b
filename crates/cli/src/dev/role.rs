//! A process of `dev` and the task that owns it: only that task waits for it and signals it, so a
//! signal never reaches another process that has been given its number.

use std::{net::SocketAddr, path::Path, time::Duration};

use nix::sys::signal::Signal;
use tokio::{sync::mpsc, time::timeout};

use super::supervisor::Role;
use crate::{
    broker,
    supervise::{self, Process},
};

/// How often a process is asked whether it lives, and how long it may take to answer.
const PROBE: Duration = Duration::from_secs(10);
/// How often to look whether a process listens.
const LOOK: Duration = Duration::from_millis(50);

/// What a role reports.
#[derive(Debug)]
pub(super) enum News {
    /// Its process listens here.
    Listens(SocketAddr),
    /// It has answered a probe, or has not.
    Probed(bool),
    /// It has ended, in these words; `true` where it ended by itself, with an error.
    Exited(String, bool),
}

/// How a process is asked whether it lives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Probe {
    /// By its `/health`.
    Http,
    /// By the first requests of a Kafka client.
    Kafka,
}

/// The way to a process.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) pid: u32,
    signals: mpsc::UnboundedSender<Signal>,
}

impl Handle {
    pub(super) fn signal(&self, signal: Signal) {
        // A receiver that is gone has exited.
        self.signals.send(signal).ok();
    }
}

/// Owns `process` until it exits, and reports what happens to it.
pub(super) fn own(
    role: Role,
    mut process: Process,
    probe: Probe,
    news: mpsc::UnboundedSender<(Role, News)>,
) -> Handle {
    let (signals, mut inbox) = mpsc::unbounded_channel();
    let handle = Handle { pid: process.id().unwrap_or_default(), signals };
    tokio::spawn(async move {
        let ready_file = process.ready_file().to_owned();
        let observing = observe(role, &ready_file, probe, &news);
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
        news.send((role, News::Exited(how, by_itself))).ok();
    });
    handle
}

/// Tells where a process listens and then, again and again, whether it lives. Never ends.
async fn observe(
    role: Role,
    ready_file: &Path,
    probe: Probe,
    news: &mpsc::UnboundedSender<(Role, News)>,
) {
    let address = loop {
        match timeout(PROBE, address(ready_file)).await {
            Ok(address) => break address,
            Err(_) => news.send((role, News::Probed(false))).ok(),
        };
    };
    news.send((role, News::Listens(address))).ok();

    loop {
        tokio::time::sleep(PROBE).await;
        let answered = timeout(PROBE, answers(address, probe)).await.unwrap_or(false);
        news.send((role, News::Probed(answered))).ok();
    }
}

/// Where a process listens, once it does.
async fn address(ready_file: &Path) -> SocketAddr {
    loop {
        if let Some(address) = supervise::read_address(ready_file).await {
            return address;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn answers(address: SocketAddr, probe: Probe) -> bool {
    match probe {
        Probe::Kafka => broker::first_answers(address).await.is_ok(),
        Probe::Http => {
            let Ok(client) = reqwest::Client::builder().no_proxy().build() else { return false };
            let answer = client.get(format!("http://{address}/health")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        }
    }
}
