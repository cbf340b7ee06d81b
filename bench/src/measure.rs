//! The resource usage of a contestant, as counted by the kernel.

use std::fs;

/// The number of clock ticks per second in which Linux reports CPU time to programs, on every
/// architecture that Rust and Kafka support.
const TICKS_PER_SECOND: f64 = 100.0;

/// The usage of a process group at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU time of all its processes and of their ended children, in seconds.
    pub(crate) cpu: f64,
    /// The sum of the peak memory of each of its current processes, in MiB.
    pub(crate) peak_rss: f64,
}

/// Measures all processes of a group. Each contestant leads a group of its own.
pub(crate) fn group(leader: u32) -> Usage {
    let Ok(entries) = fs::read_dir("/proc") else { return Usage::default() };
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut usage = Usage::default();
    for pid in pids {
        let Some(stat) = read_stat(pid).filter(|stat| stat.group == leader) else { continue };
        usage.cpu += stat.ticks / TICKS_PER_SECOND;
        usage.peak_rss += peak_rss(pid);
    }
    usage
}

/// The CPU time of one process, in seconds.
pub(crate) fn cpu(pid: u32) -> f64 {
    read_stat(pid).map_or(0.0, |stat| stat.ticks / TICKS_PER_SECOND)
}

struct Stat {
    group: u32,
    ticks: f64,
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads a line of `/proc/<pid>/stat` (proc_pid_stat(5)). The name in brackets may hold anything.
fn parse_stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { group: fields.get(2)?.parse().ok()?, ticks })
}

fn peak_rss(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_parsed_whatever_the_name() {
        let line = "42 (a) b (c) S 1 40 40 0 -1 4194560 100 0 0 0 250 50 7 3 20 0 1 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.group, stat.ticks), (40, 310.0));
        assert!(parse_stat("nothing").is_none());
    }

    #[test]
    fn this_process_has_used_resources() {
        let mut sum = 0_u64;
        while cpu(std::process::id()) == 0.0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(peak_rss(std::process::id()) > 0.5);
    }
}
