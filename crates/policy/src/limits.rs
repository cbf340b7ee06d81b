//! How much hosted servers may use and how long their operations may take: for all servers, for
//! some servers, and for single tools.
//!
//! Every limit has a default that `[limits]` changes for all servers. A `[[server]]` changes it for
//! the servers whose name it matches; if several match, the first one that sets a limit wins.

use std::{num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};

use fleet_job::glob::Glob;

/// All limits of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of hosted servers.
    pub max_servers: usize,
    /// How long a server may take from start to the end of its handshake.
    pub handshake_timeout: Duration,
    /// How long calls in progress may continue after a server's permission has been withdrawn.
    pub drain_timeout: Duration,
    /// The limits of a server that no rule matches.
    pub defaults: ServerLimits,
    /// Rules for some servers, in order of precedence.
    pub servers: Vec<ServerRule>,
}

/// The limits of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// How long one call may take after it has been sent.
    pub call_timeout: Duration,
    /// The maximum number of calls in progress.
    pub max_concurrency: Option<NonZeroUsize>,
    /// How many calls may queue for a free slot, for each such limit.
    pub max_queued: usize,
    /// How long a call may queue.
    pub queue_timeout: Duration,
    /// When to stop calling a server that does not respond.
    pub breaker: BreakerLimits,
    /// How long a child may go without a call before it is stopped until the next one.
    pub idle_timeout: Option<Duration>,
    /// Limits of each process of a child.
    pub process: ProcessLimits,
}

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// The number of consecutive failures that open the breaker; 0 if it never opens.
    pub failures: u32,
    /// How long the breaker stays open the first time; the wait doubles each further time.
    pub first_wait: Duration,
    /// The longest time that the breaker stays open.
    pub longest_wait: Duration,
}

/// The resources that one process may use. The operating system enforces these limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// CPU time in seconds over the whole life of the process.
    pub cpu_seconds: Option<u64>,
    /// Open file descriptors.
    pub open_files: Option<u64>,
}

/// The limits of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// The server's limits, with the tool's own call timeout.
    pub server: ServerLimits,
    /// The maximum number of calls of the same tool in progress.
    pub tool_concurrency: Option<NonZeroUsize>,
}

/// A `[[server]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRule {
    pub(super) name: Glob,
    pub(super) settings: ServerSettings,
    pub(super) tools: Vec<ToolRule>,
}

/// Settings for a server; `None` leaves a limit to the next rule or the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ServerSettings {
    pub(super) call_timeout: Option<Duration>,
    pub(super) max_concurrency: Option<NonZeroUsize>,
    pub(super) max_queued: Option<usize>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) breaker_failures: Option<u32>,
    pub(super) breaker_wait: Option<Duration>,
    pub(super) breaker_max_wait: Option<Duration>,
    /// Zero disables the timeout.
    pub(super) idle_timeout: Option<Duration>,
    pub(super) process: ProcessLimits,
}

/// A `[[server.tool]]` table, which applies to each tool whose name it matches.
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
    /// Returns the limits of a server.
    pub fn of_server(&self, server: &str) -> ServerLimits {
        let rules = self.servers.iter().rev().filter(|rule| rule.name.matches(server));
        rules.fold(self.defaults, |limits, rule| rule.settings.over(limits))
    }

    /// Returns the limits of a call. `tool` is the tool's name at its own server.
    pub fn of_call(&self, server: &str, tool: &str) -> CallLimits {
        let mut limits = CallLimits { server: self.of_server(server), tool_concurrency: None };
        let rules = self.servers.iter().filter(|rule| rule.name.matches(server));
        let tools = rules.flat_map(|rule| &rule.tools).filter(|rule| rule.name.matches(tool));
        // In reverse, so that the first rule has the last word.
        for rule in tools.rev() {
            limits.server.call_timeout = rule.call_timeout.unwrap_or(limits.server.call_timeout);
            limits.tool_concurrency = rule.max_concurrency.or(limits.tool_concurrency);
        }

        limits
    }
    /// Returns the longest timeout that any call may have.
    pub fn longest_call(&self) -> Duration {
        let timeouts = self.servers.iter().flat_map(|rule| {
            let tools = rule.tools.iter().map(|tool| tool.call_timeout);
            tools.chain([rule.settings.call_timeout])
        });
        timeouts.flatten().fold(self.defaults.call_timeout, Duration::max)
    }
}

impl ServerSettings {
    /// Applies these settings on top of `limits`.
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
    fn the_first_rule_that_sets_a_limit_wins() {
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
