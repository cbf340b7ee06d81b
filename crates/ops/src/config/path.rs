//! Paths on the command line and in variables.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Parses a path. Unlike clap's own parser, this takes the empty one, since an empty variable counts
/// as unset: Compose writes `NAME=${NAME:-}`.
pub fn path_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// A path that is not empty.
pub fn named_path(path: &Option<PathBuf>) -> Option<PathBuf> {
    path.clone().filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Args {
        #[arg(long, value_parser = path_parser())]
        file: Option<PathBuf>,
        #[arg(long, value_parser = path_parser(), value_delimiter = ':')]
        roots: Vec<PathBuf>,
    }

    #[test]
    fn an_empty_path_is_none() {
        let parse = |file: &str| {
            let args = Args::parse_from(["x", "--file", file, "--roots", ""]);
            assert_eq!(args.roots, [PathBuf::new()]);
            named_path(&args.file)
        };
        assert_eq!(parse(""), None);
        assert_eq!(parse("a b"), Some("a b".into()));
    }
}
