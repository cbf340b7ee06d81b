//! The evidence of a chaos run: what was done to workers and servers, and what workers noticed.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use fleet_job::{event::JobEvent, time::Timestamp};

/// A settled job is committed within `MCP_COMMIT_INTERVAL` (1 s) and the time that a commit takes
/// on a busy machine.
pub const COMMIT_MS: i64 = 4_000;
/// How long before and after a worker's log line about lost partitions that loss explains repeats:
/// one session timeout before, when the worker didn't know yet, and the time to write its events.
pub(super) const NOTICED_MS: i64 = 10_000;

/// A worker has stopped, or may have been replaced, without giving its partitions back.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The worker's name in events.
    pub worker: String,
    /// The first time, in milliseconds, at which an end that the worker wrote may be repeated.
    pub from: i64,
    /// The last such time.
    pub until: i64,
}

impl Loss {
    pub(super) fn explains(&self, end: &JobEvent) -> bool {
        end.worker.as_deref() == Some(&self.worker)
            && (self.from..=self.until).contains(&end.time.as_millis())
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, until] = [self.from, self.until].map(Timestamp::from_millis_clamped);
        write!(f, "{from} to {until}")
    }
}

/// A server was killed or cut off while it had calls.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The time it began, in milliseconds.
    pub from: i64,
    /// The time from which calls were answered again, in milliseconds.
    pub until: i64,
    /// The number of calls that one job can have lost.
    pub lost_calls: u32,
    /// Whether only calls of the hosted remote server were lost.
    pub only_remote: bool,
}

/// A worker that has run, and its log.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The worker's name in events.
    pub worker: String,
    /// The path of its log.
    pub log: PathBuf,
}

/// What workers log when they have lost partitions without a last commit.
const ADMISSIONS: [&str; 3] =
    ["lost: their jobs will run elsewhere", "jobs may repeat", "will run again elsewhere"];

/// What a worker logs when the end of a job was not acknowledged in time.
pub(super) const UNWRITTEN: &str = "the end of a job could not be written";

/// The evidence in a worker's log.
#[derive(Debug, Default)]
pub(super) struct Testimony {
    pub(super) losses: Vec<Loss>,
    /// The times at which it stopped waiting for the acknowledgement of an end.
    pub(super) unwritten: Vec<i64>,
}

impl Witness {
    /// Reads the losses that the worker has noticed itself, for example after a broker failed, and
    /// reports violated invariants.
    pub(super) fn testify(&self, wrong: &mut Vec<String>, outages: &[(i64, i64)]) -> Testimony {
        let mut testimony = Testimony::default();
        for line in read(&self.log).lines() {
            if line.contains("invariant violated") || line.contains("panicked") {
                wrong.push(format!("{}: {line}", self.worker));
            }
            let time = line.split(' ').next().and_then(|word| word.parse::<Timestamp>().ok());
            let Some(time) = time.map(Timestamp::as_millis) else { continue };
            if line.contains(UNWRITTEN) {
                testimony.unwritten.push(time);
            }
            if ADMISSIONS.iter().any(|words| line.contains(words)) {
                let (from, until) = (time - NOTICED_MS, time + NOTICED_MS);
                // While the group's coordinator is down, commits fail without any notice.
                let since = outages
                    .iter()
                    .filter(|(down, up)| *down < time && from < *up)
                    .map(|(down, _)| *down);
                let from = since.chain([from + COMMIT_MS]).min().unwrap_or(from) - COMMIT_MS;
                testimony.losses.push(Loss { worker: self.worker.clone(), from, until });
            }
        }

        testimony
    }
}

pub(super) fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
