//! Tests of the real binary over every transport, in one test binary that is linked once.

// `cfg(test)` tells clippy that helper functions are test code, too.
#[cfg(test)]
mod access;
#[cfg(test)]
mod access_audit;
#[cfg(test)]
mod access_rules;
#[cfg(test)]
mod access_sessions;
#[cfg(test)]
mod access_tokens;
#[cfg(test)]
mod apps;
#[cfg(test)]
mod check;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod closing_remotes;
#[cfg(test)]
mod common;
#[cfg(test)]
mod confinement;
#[cfg(test)]
mod console;
#[cfg(test)]
mod escapes;
#[cfg(test)]
mod files;
#[cfg(test)]
mod forgotten;
#[cfg(test)]
mod gateway;
#[cfg(test)]
mod guarded;
#[cfg(test)]
mod hosting;
#[cfg(test)]
mod issuer;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod message;
#[cfg(test)]
mod oauth_remotes;
#[cfg(test)]
mod odd;
#[cfg(test)]
mod odd_remotes;
#[cfg(test)]
mod pins;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod repeats;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod signed_jobs;
#[cfg(test)]
mod sse;
#[cfg(test)]
mod starts;
#[cfg(test)]
mod supervision;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod variables;
#[cfg(test)]
mod views;
