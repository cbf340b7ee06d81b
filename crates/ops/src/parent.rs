//! Ties the life of a child process to that of its parent.

use std::{
    os::{fd::OwnedFd, unix::process::parent_id},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

/// How often a child checks that its parent still exists, if the kernel can't tell it.
const WATCH: Duration = Duration::from_millis(500);

/// Starts a thread that shuts this process down, in the usual way, when its parent has ended for
/// whatever reason. Without it, a killed `mcp-fleet dev` would leave its processes running.
///
/// `parent` is the parent's process id, as the parent knows it. A child cannot ask for it: if the
/// parent has been killed since it started the child, the child would watch the process that
/// adopted it.
///
/// # Panics
///
/// Panics if the operating system cannot create a thread.
pub fn shut_down_with_parent(parent: u32) {
    thread::spawn(move || {
        wait_for_end(parent);

        tracing::warn!("the parent process has ended; shutting down");
        // To the whole process: whoever called `signal_token` drains now; otherwise it ends.
        if kill(unistd::Pid::this(), Signal::SIGTERM).is_err() {
            std::process::exit(1);
        }
    });
}

/// Waits until `parent` is not the parent of this process, without waking up before.
fn wait_for_end(parent: u32) {
    // The process that was opened is the parent only if the parent had not ended by then.
    if let Some(process) = open_process(parent)
        && parent_id() == parent
        && wait_until_readable(&process).is_ok()
    {
        return;
    }

    while parent_id() == parent {
        thread::sleep(WATCH);
    }
}

/// Opens a descriptor that becomes readable when the process ends. `None` if the kernel has none.
fn open_process(id: u32) -> Option<OwnedFd> {
    let id = Pid::from_raw(i32::try_from(id).ok()?)?;
    pidfd_open(id, PidfdFlags::empty()).ok()
}

fn wait_until_readable(process: &OwnedFd) -> Result<(), Errno> {
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        sync::mpsc,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn the_end_of_a_process_is_noticed() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = open_process(child.id()).expect("a kernel of 5.3 or newer");
        let (sender, ended) = mpsc::channel();
        let waiting = thread::spawn(move || {
            wait_until_readable(&process).unwrap();
            sender.send(()).unwrap();
        });
        assert!(ended.recv_timeout(Duration::from_millis(50)).is_err(), "it still runs");

        drop(child.stdin.take());

        ended.recv_timeout(DEADLINE).unwrap();
        waiting.join().unwrap();
        child.wait().unwrap();
        assert!(open_process(child.id()).is_none());
    }

    #[test]
    fn a_parent_that_has_already_ended_is_not_waited_for() {
        let mut other = Command::new("true").spawn().unwrap();
        other.wait().unwrap();
        wait_for_end(other.id());
    }
}
