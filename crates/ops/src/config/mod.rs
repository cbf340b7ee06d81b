//! Settings: a snapshot of the environment, typed readers, and errors that name the variable.
//!
//! The environment is a value ([`Env`]) that is read once at start. Tests create their own and
//! never touch the process's environment, which other threads may be reading.

mod env;
mod kafka;
mod path;
mod redact;
mod secret;
mod units;
mod vars;

pub use env::{ConfigError, Env};
pub use kafka::KAFKA_PREFIX;
pub use path::{named_path, path_parser};
pub use redact::{is_secret, redact};
pub use secret::{
    MAX_SECRET, SecretFileError, read_secret_file, read_secret_text, without_last_line_break,
};
pub use units::{UnitError, parse_bytes, parse_duration};
pub use vars::{Var, effective, markdown};
