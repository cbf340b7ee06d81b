//! The harness of the integration tests: real brokers, real binaries, real third-party MCP servers,
//! and the oracle that reads the topics afterwards.
//!
//! A test is a function of an [`Env`] and runs once per broker ([`on_every_broker!`]): on Apache
//! Kafka and on the embedded broker. It creates a [`Fleet`] (topics of its own, a server, workers),
//! submits records, and lets the [`oracle`] check that each of them has exactly one end.
//!
//! Nothing here sleeps to wait for a condition: [`wait::poll_until`] polls with a deadline. No process
//! outlives the test process: see [`process`].

#![expect(clippy::expect_used, reason = "the harness is test code: a panic is the report")]

pub mod bins;
pub mod brokers;
pub mod cache;
pub mod chaos;
pub mod compose;
pub mod dashboards;
pub mod fixture;
pub mod fleet;
pub mod go;
pub mod http;
pub mod issuer;
pub mod kafka;
pub mod keda;
pub mod mcp;
pub mod node;
pub mod oracle;
pub mod otlp;
pub mod process;
pub mod prometheus;
pub mod promql;
pub mod proxy;
pub mod python;
pub mod rest;
pub mod secured;
pub mod topics;
pub mod wait;

pub use brokers::Env;
pub use fleet::Fleet;
pub use oracle::Oracle;

/// Makes one test per broker of each `fn case(env: &Env)`: `apache_kafka::case` and
/// `embedded_broker::case`.
#[macro_export]
macro_rules! on_every_broker {
    ($($case:ident),+ $(,)?) => {
        mod apache_kafka {
            $(#[test] fn $case() {
                if let Some(env) = $crate::Env::apache_kafka() {
                    super::$case(env);
                }
            })+
        }
        mod embedded_broker {
            $(#[test] fn $case() {
                super::$case(&$crate::Env::embedded_broker(module_path!()));
            })+
        }
    };
}

/// Prints a message past the test runner, which would hide the output of passing tests.
pub fn loud(message: &str) {
    use std::io::Write as _;
    let text = format!("\n!!! {message}\n\n");
    // If stderr is closed, nobody could read the message.
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// Whether an environment variable is set to something other than an empty string or `0`.
pub fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0")
}
