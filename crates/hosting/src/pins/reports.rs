//! What is reported of a server's tools that are not as pinned: a server that changes its tools all
//! the time, or has very many, fills no log.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fleet_pins::{Digest, Standing};

/// The least time between two lines about one server.
const INTERVAL: Duration = Duration::from_secs(60);

/// Tools that are not as pinned, by own name and digest.
pub(super) type Unapproved = BTreeMap<(String, Digest), Standing>;

/// What has been reported of a server.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The tools that were not as pinned the last time.
    known: Unapproved,
    /// How many have come since the last line.
    unlogged: usize,
    logged_at: Option<Instant>,
}

/// What is to be reported now.
#[derive(Debug, PartialEq)]
pub(super) struct Noted {
    /// How tools stand to their pins that were not known to be so.
    pub(super) new: Vec<Standing>,
    /// The line of the log that is due.
    pub(super) due: Option<ReportLine>,
}

/// A line of the log.
#[derive(Debug, PartialEq)]
pub(super) struct ReportLine {
    /// How many tools it is about.
    pub(super) tools: usize,
    /// One of the tools.
    pub(super) tool: String,
    pub(super) digest: Digest,
    pub(super) standing: Standing,
}

impl Reports {
    /// Notes which tools are not as pinned. Lines that are not due are made up for by the number of
    /// the next one.
    pub(super) fn note(&mut self, unapproved: Unapproved, now: Instant) -> Noted {
        let is_new = |(tool, standing): &(&(String, Digest), &Standing)| {
            self.known.get(*tool) != Some(standing)
        };
        let new: Vec<_> = unapproved.iter().filter(is_new).map(|(_, standing)| *standing).collect();
        self.unlogged += new.len();
        self.known = unapproved;

        let is_due = self.logged_at.is_none_or(|at| now.duration_since(at) >= INTERVAL);
        let example = self.known.iter().next().filter(|_| self.unlogged > 0 && is_due);
        let due = example.map(|((tool, digest), standing)| ReportLine {
            tools: self.unlogged,
            tool: tool.clone(),
            digest: digest.clone(),
            standing: *standing,
        });
        if due.is_some() {
            (self.unlogged, self.logged_at) = (0, Some(now));
        }
        Noted { new, due }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_changes_all_the_time_gets_one_line_per_interval() {
        let digest = |number: usize| format!("{number:064x}").parse::<Digest>().unwrap();
        let changed =
            |number| Unapproved::from([(("get".to_owned(), digest(number)), Standing::Changed)]);
        let (mut reports, start) = (Reports::default(), Instant::now());
        let mut lines = Vec::new();
        for number in 0..1_200 {
            let now = start + Duration::from_millis(100) * u32::try_from(number).unwrap();
            let noted = reports.note(changed(number), now);
            assert_eq!(noted.new, [Standing::Changed], "{number}");
            lines.extend(noted.due.map(|line| line.tools));
            // The same list is no news.
            let again = reports.note(changed(number), now);
            assert_eq!(again, Noted { new: Vec::new(), due: None });
        }
        assert_eq!(lines, [1, 600]);
    }
}
