//! How much of what hosted servers may use, and how long things may take: for all, for some
//! servers, for single tools.
//!
//! Every limit has a default that can be changed for all servers in `[limits]`. A `[[server]]`
//! changes it for those whose name it matches; where several do, the first that says something
//! about a limit counts.

use std::{num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};

use super::glob::Glob;

/// All limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many servers may be hosted at once.
    pub max_servers: usize,
    /// How long a server may take from its start to the end of its handshake.
    pub handshake_timeout: Duration,
    /// How long the calls under way of a server that is not allowed any more may go on.
    pub drain_timeout: Duration,
    /// What holds for a server of which no rule says otherwise.
    pub defaults: ServerLimits,
    /// What holds for some servers, the first rule before the others.
    pub servers: Vec<ServerRule>,
}

/// What holds for one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// How long one call may take, once it is sent.
    pub call_timeout: Duration,
    /// How many calls may be under way at once.
    pub max_concurrency: Option<NonZeroUsize>,
    /// How many more may wait for that, for each such number.
    pub max_queued: usize,
    /// How long they may wait.
    pub queue_timeout: Duration,
    /// When it is left alone because it does not answer.
    pub breaker: BreakerLimits,
    /// After how long without a call a child is ended until the next one.
    pub idle_timeout: Option<Duration>,
    /// What each process of a child may use.
    pub process: ProcessLimits,
}

/// When a breaker opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// How many failures in a row open it; 0 for never.
    pub failures: u32,
    /// How long it stays open the first time; twice as long each further time.
    pub first_wait: Duration,
    /// How long it stays open at most.
    pub longest_wait: Duration,
}

/// What one process may use. The operating system enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Processor time in seconds, over its whole life.
    pub cpu_seconds: Option<u64>,
    /// Open files.
    pub open_files: Option<u64>,
}

/// What holds for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// The server's limits, with the call timeout of the tool.
    pub server: ServerLimits,
    /// How many calls of the same tool may be under way at once.
    pub tool_concurrency: Option<NonZeroUsize>,
}

/// What a `[[server]]` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRule {
    pub(super) name: Glob,
    pub(super) settings: ServerSettings,
    pub(super) tools: Vec<ToolRule>,
}

/// What is said about a server; nothing where the default or another rule should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ServerSettings {
    pub(super) call_timeout: Option<Duration>,
    pub(super) max_concurrency: Option<NonZeroUsize>,
    pub(super) max_queued: Option<usize>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) breaker_failures: Option<u32>,
    pub(super) breaker_wait: Option<Duration>,
    pub(super) breaker_max_wait: Option<Duration>,
    /// Zero for never.
    pub(super) idle_timeout: Option<Duration>,
    pub(super) process: ProcessLimits,
}

/// What a `[[server.tool]]` says about each tool that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToolRule {
    pub(super) name: Glob,
    pub(super) call_timeout: Option<Duration>,
    pub(super) max_concurrency: Option<NonZeroUsize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_servers: 32,
            handshake_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(60),
            defaults: ServerLimits::default(),
            servers: Vec::new(),
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(60 * 60),
            max_concurrency: None,
            max_queued: 100,
            queue_timeout: Duration::from_secs(30),
            breaker: BreakerLimits {
                failures: 5,
                first_wait: Duration::from_secs(1),
                longest_wait: Duration::from_secs(30),
            },
            idle_timeout: None,
            process: ProcessLimits::default(),
        }
    }
}

impl Limits {
    /// What holds for a server.
    pub fn of_server(&self, server: &str) -> ServerLimits {
        let rules = self.servers.iter().rev().filter(|rule| rule.name.matches(server));
        rules.fold(self.defaults, |limits, rule| rule.settings.over(limits))
    }

    /// What holds for a call of a tool, by the name that it has at its server.
    pub fn of_call(&self, server: &str, tool: &str) -> CallLimits {
        let mut limits = CallLimits { server: self.of_server(server), tool_concurrency: None };
        let rules = self.servers.iter().filter(|rule| rule.name.matches(server));
        let tools = rules.flat_map(|rule| &rule.tools).filter(|rule| rule.name.matches(tool));
        // Backwards, so that the first has the last word.
        for rule in tools.rev() {
            limits.server.call_timeout = rule.call_timeout.unwrap_or(limits.server.call_timeout);
            limits.tool_concurrency = rule.max_concurrency.or(limits.tool_concurrency);
        }
        limits
    }
}

impl Limits {
    /// The longest time that any call may take.
    pub fn longest_call(&self) -> Duration {
        let rules = self.servers.iter();
        let said = rules.flat_map(|rule| {
            let tools = rule.tools.iter().map(|tool| tool.call_timeout);
            tools.chain([rule.settings.call_timeout])
        });
        said.flatten().fold(self.defaults.call_timeout, Duration::max)
    }
}

impl ServerSettings {
    /// The limits with what is said put over them.
    pub(super) fn over(&self, limits: ServerLimits) -> ServerLimits {
        let ServerLimits { breaker, process, .. } = limits;
        ServerLimits {
            call_timeout: self.call_timeout.unwrap_or(limits.call_timeout),
            max_concurrency: self.max_concurrency.or(limits.max_concurrency),
            max_queued: self.max_queued.unwrap_or(limits.max_queued),
            queue_timeout: self.queue_timeout.unwrap_or(limits.queue_timeout),
            breaker: BreakerLimits {
                failures: self.breaker_failures.unwrap_or(breaker.failures),
                first_wait: self.breaker_wait.unwrap_or(breaker.first_wait),
                longest_wait: self.breaker_max_wait.unwrap_or(breaker.longest_wait),
            },
            idle_timeout: match self.idle_timeout {
                Some(timeout) => Some(timeout).filter(|timeout| !timeout.is_zero()),
                None => limits.idle_timeout,
            },
            process: ProcessLimits {
                memory_mb: self.process.memory_mb.or(process.memory_mb),
                cpu_seconds: self.process.cpu_seconds.or(process.cpu_seconds),
                open_files: self.process.open_files.or(process.open_files),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    #[test]
    fn the_first_rule_that_says_something_counts() {
        let policy = Policy::from_toml(
            r#"
            [limits]
            call_timeout_ms = 1000
            max_concurrency = 8
            idle_timeout_ms = 5000
            [[server]]
            name = "db"
            call_timeout_ms = 2000
            idle_timeout_ms = 0
            [[server.tool]]
            name = "query_*"
            max_concurrency = 1
            [[server.tool]]
            name = "query_slow"
            call_timeout_ms = 9000
            max_concurrency = 7
            [[server]]
            name = "d*"
            call_timeout_ms = 3000
            max_memory_mb = 64
            breaker_failures = 0
            "#,
        )
        .unwrap();
        let limits = &policy.limits;
        let millis = Duration::from_millis;
        let some = |n: usize| NonZeroUsize::new(n);
        assert_eq!(limits.of_server("other").call_timeout, millis(1000));
        assert_eq!(limits.of_server("other").idle_timeout, Some(millis(5000)));
        let db = limits.of_server("db");
        assert_eq!(
            (db.call_timeout, db.max_concurrency, db.idle_timeout),
            (millis(2000), some(8), None)
        );
        assert_eq!((db.process.memory_mb, db.breaker.failures), (Some(64), 0));
        assert_eq!(limits.of_server("dx").call_timeout, millis(3000));
        let call = |tool| {
            let call = limits.of_call("db", tool);
            (call.server.call_timeout, call.tool_concurrency)
        };
        assert_eq!(call("other"), (millis(2000), None));
        assert_eq!(call("query_fast"), (millis(2000), some(1)));
        assert_eq!(call("query_slow"), (millis(9000), some(1)));
        for bad in [
            "[limits]\nmax_concurrency = 0",
            "[limits]\ncall_timeout_ms = 0",
            "[limits]\nname = \"x\"",
            "[[server]]\ncall_timeout_ms = 1",
            "[[server]]\nname = \"a\"\nmax_servers = 1",
            "[[server]]\nname = \"a\"\n[[server.tool]]\nname = \"b\"\nmax_memory_mb = 1",
            "[limits]\nmax_memory_mb = 0",
        ] {
            assert!(Policy::from_toml(bad).is_err(), "{bad}");
        }
    }
}
