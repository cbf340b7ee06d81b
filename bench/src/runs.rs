//! The measured runs, one line of JSON per run, so that an interrupted series can continue.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::plan;

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// An endless backlog, for some seconds.
    Throughput,
    /// Arrivals at half of the throughput, measured from the scheduled time of each job.
    Latency,
    /// A backlog from its first job to its last.
    Drain,
    /// A thousand jobs in flight before a backlog of a million.
    Memory,
    /// Another worker joins.
    Rebalance,
}

/// The parameters of a measurement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) scenario: Scenario,
    pub(crate) contestant: String,
    pub(crate) service_us: u64,
    /// If not 0, one in a hundred jobs takes this long.
    pub(crate) slow_us: u64,
    pub(crate) bytes: usize,
    pub(crate) partitions: i32,
    pub(crate) concurrency: usize,
}

impl Cell {
    /// Whether only the contestant and the service time differ from the defaults. The memory
    /// scenario has more jobs in flight.
    pub(crate) fn is_usual(&self) -> bool {
        let concurrency =
            if self.scenario == Scenario::Memory { plan::MANY } else { plan::CONCURRENCY };
        self.slow_us == 0
            && (self.bytes, self.partitions, self.concurrency)
                == (plan::BYTES, plan::PARTITIONS, concurrency)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scenario = format!("{:?}", self.scenario).to_lowercase();
        let ms = |us: u64| us as f64 / 1000.0;
        write!(f, "{scenario}/{}/{}ms", self.contestant, ms(self.service_us))?;
        if self.slow_us > 0 {
            write!(f, "+{}ms", ms(self.slow_us))?;
        }
        write!(f, "/{}p/{}b/c{}", self.partitions, self.bytes, self.concurrency)
    }
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) cell: Cell,
    /// The figures by name; names end with their unit.
    pub(crate) figures: BTreeMap<String, f64>,
}

/// All runs of a file; empty if the file is missing. An incomplete line is left out.
pub(crate) fn read(path: &Path) -> Vec<Run> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Adds a run to the file.
pub(crate) fn append(path: &Path, run: &Run) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("the directory of the runs");
    }
    let line = serde_json::to_string(run).expect("a run as JSON");
    let file = OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.expect("the file of the runs"), "{line}").expect("a line of the runs");
}
