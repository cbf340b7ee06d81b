//! Child processes: in groups of their own, with their output in files, killed when dropped.
//!
//! Drop doesn't run when a test process is killed, or for the brokers that all tests of a process
//! share. Therefore a shell waits on a pipe that closes when this process ends, however it ends,
//! and then kills the remaining groups and removes their directories.

use std::{
    fs::{self, File},
    io::Write as _,
    num::NonZeroUsize,
    os::unix::process::CommandExt as _,
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Once, OnceLock},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use parking_lot::Mutex;

use crate::{bins, wait};

/// How much of a log is shown after a failure, in bytes.
const TAIL: usize = 6_000;

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` as the leader of a process group. Its output goes to a file below
    /// `directory`.
    pub fn start(name: &str, directory: &Path, mut command: Command) -> Self {
        remember_panics();
        let log = directory.join(format!("{}.log", bins::unique(name)));
        let output = File::create(&log).expect("a log file");
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the log file again"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} did not start: {error} ({command:?})"));
        reaper(&format!("group {}", child.id()));
        Self { name: name.to_owned(), child, log }
    }

    /// The id of the process and of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with its output, which remains after the process has ended.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        signal::kill(self.as_pid(), signal)
            .unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Stops the process with SIGSTOP, and returns once none of its threads runs any more. The
    /// signal itself returns before that, and a thread may still answer a request.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let what = format!("{} to stand still", self.name);
        wait::poll_until(&what, wait::LONG, || self.stands_still().then_some(()));
    }

    /// Lets the threads of this name run only while nothing else wants to, or again like others.
    /// They are starved only on a machine that is busy; see [`Burners`].
    pub fn starve_threads(&self, name: &str, starve: bool) {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let is_named = |thread: &fs::DirEntry| {
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let named: Vec<_> = threads.flatten().filter(is_named).collect();
        assert!(!named.is_empty(), "{} has no thread {name}", self.name);

        for thread in named {
            let policy = if starve { "--idle" } else { "--other" };
            let mut command = Command::new("chrt");
            command.args([policy, "--pid", "0"]).arg(thread.file_name());
            let output = command.output().expect("chrt");
            // Only root may take it back, without which the threads are slow as long as the machine
            // is busy.
            assert!(output.status.success() || !starve, "{output:?}");
        }
    }

    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let mut stats =
            threads.flatten().map(|thread| fs::read_to_string(thread.path().join("stat")));
        // The state follows the name, which is in parentheses and may contain some itself.
        stats.all(|stat| {
            stat.is_ok_and(|stat| {
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        })
    }

    /// Kills the process alone with SIGKILL and waits for it. Its own children live on, as they
    /// would after a crash.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("the end of a killed process");
    }

    /// Asks the process to stop and waits for it.
    pub fn stop(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(deadline)
    }

    /// Waits until the process ends.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait::poll_until_ok(&what, deadline, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(tail(&self.log)),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Whether the process is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `look` returns a value, and panics with the log if the process ends first.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> T {
        let what = format!("{what} of {}", self.name);
        wait::poll_until_ok(&what, deadline, || {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status} instead of {what}:\n{}", self.name, tail(&self.log));
            }
            Err(tail(&self.log))
        })
    }

    /// Waits until the process has written `text`.
    pub fn says(&mut self, text: &str, deadline: Duration) {
        let log = self.log.clone();
        self.wait_until(&format!("the words {text:?}"), deadline, || {
            String::from_utf8_lossy(&fs::read(&log).ok()?).contains(text).then_some(())
        });
    }

    /// Does something and waits until the process has written `text` once more.
    pub fn says_after(&mut self, text: &str, deadline: Duration, act: impl FnOnce()) {
        let log = self.log.clone();
        let count = move || fs::read_to_string(&log).unwrap_or_default().matches(text).count();
        let before = count();
        act();
        self.wait_until(&format!("the words {text:?} once more"), deadline, || {
            (count() > before).then_some(())
        });
    }

    /// The output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group may have members after its leader has ended, or may have ended completely.
        signal::killpg(self.as_pid(), Signal::SIGKILL).ok();
        drop(self.child.wait());
        reaper(&format!("gone {}", self.child.id()));
        if thread::panicking() {
            eprintln_log(&self.name, &self.log);
        }
    }
}

/// Processes that keep all processors busy until this is dropped.
#[derive(Debug)]
pub struct Burners {
    _processes: Vec<Process>,
}

impl Burners {
    /// Starts them.
    pub fn start(directory: &Path) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let burner = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]);
            Process::start("burner", directory, command)
        };
        Self { _processes: (0..2 * processors).map(burner).collect() }
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test runner, under the test that failed")]
fn eprintln_log(name: &str, log: &Path) {
    eprintln!("--- {name} ({}) ---\n{}", log.display(), tail(log));
    // Repeat the panic message at the end, where it is easy to find.
    let why = WHY.lock();
    eprintln!("--- the test had failed before, since: {}", *why);
}

/// The beginning of the last panic message of this process.
static WHY: Mutex<String> = Mutex::new(String::new());
const WHY_LENGTH: usize = 1500;

/// From now on, logs that are shown after a failure end with the panic message.
fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            *WHY.lock() = what.to_string().chars().take(WHY_LENGTH).collect();
            before(what);
        }));
    });
}

/// The end of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..]).into_owned()
}

/// Removes `directory` once this process has ended.
pub fn remove_at_exit(directory: &Path) {
    reaper(&format!("directory {}", directory.display()));
}

const REAPER: &str = r#"
groups=""
directories=""
newline='
'
while read -r what which; do
    case "$what" in
        group) groups="$groups $which " ;;
        gone) groups="${groups%% $which *} ${groups#* $which }" ;;
        directory) directories="$directories$which$newline" ;;
    esac
done
for group in $groups; do kill -KILL "-$group"; done 2>/dev/null
printf %s "$directories" | while read -r directory; do rm -rf -- "$directory"; done
"#;

fn reaper(line: &str) {
    /// The shell with its pipe. It outlives this process, so it can't be waited for.
    static SHELL: OnceLock<Mutex<Child>> = OnceLock::new();
    let shell = SHELL.get_or_init(|| Mutex::new(start_reaper()));
    let mut shell = shell.lock();
    let pipe = shell.stdin.as_mut().expect("the shell's stdin");
    writeln!(pipe, "{line}").expect("the shell that cleans up");
}

fn start_reaper() -> Child {
    Command::new("sh")
        .args(["-c", REAPER])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Closing the pipe simulates a test process that ends without a drop.
    #[test]
    fn the_reaper_kills_remaining_groups_and_removes_their_directories() {
        let start = || Command::new("sleep").arg("600").process_group(0).spawn().expect("sleep");
        let (mut first, mut spared, mut last) = (start(), start(), start());
        let directory = bins::scratch("to be removed");
        let mut reaper = start_reaper();
        let mut pipe = reaper.stdin.take().expect("its stdin");
        for child in [&first, &spared, &last] {
            writeln!(pipe, "group {}", child.id()).expect("a line");
        }

        writeln!(pipe, "gone {}", spared.id()).expect("a line");
        writeln!(pipe, "directory {}", directory.display()).expect("a line");
        drop(pipe);
        assert!(reaper.wait().expect("its end").success());

        for killed in [&mut first, &mut last] {
            let status =
                wait::poll_until("its end", Duration::from_secs(10), || killed.try_wait().ok()?);
            assert_eq!(
                std::os::unix::process::ExitStatusExt::signal(&status),
                Some(Signal::SIGKILL as i32)
            );
        }

        assert!(
            spared.try_wait().expect("its state").is_none(),
            "an ended process must not be killed"
        );
        assert!(!directory.exists());
        spared.kill().expect("its end");
        spared.wait().expect("its end");
    }
}
