//! Where jobs go: through a server, or straight to Kafka.

use clap::{ArgMatches, Args, Command, FromArgMatches, error::ErrorKind, parser::ValueSource};

use crate::{connection::Connection, server_args::ServerArgs};

/// Where jobs go. What is on the command line counts more than what is in the environment.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// Through this server.
    Server(Box<ServerArgs>),
    /// Straight to these brokers.
    Kafka(Connection),
}

/// The command line names both a server and brokers.
#[derive(Debug, PartialEq, Eq)]
struct Both;

/// Returns whether jobs go through a server, if one is named at all, by the sources of the two names.
fn is_server(
    is_named: bool,
    server: Option<ValueSource>,
    brokers: Option<ValueSource>,
) -> Result<bool, Both> {
    let is_typed = |source| source == Some(ValueSource::CommandLine);
    match (is_typed(server), is_typed(brokers)) {
        (true, true) if is_named => Err(Both),
        (false, true) => Ok(false),
        _ => Ok(is_named),
    }
}

impl FromArgMatches for Destination {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        // Reading the values takes them, with their sources.
        let sources = ["server", "brokers"].map(|name| matches.value_source(name));
        let server = ServerArgs::from_arg_matches_mut(matches)?;
        let connection = Connection::from_arg_matches_mut(matches)?;

        match is_server(server.is_given(), sources[0], sources[1]) {
            Ok(true) => Ok(Self::Server(Box::new(server))),
            Ok(false) => Ok(Self::Kafka(connection)),
            Err(Both) => Err(clap::Error::raw(
                ErrorKind::ArgumentConflict,
                "--server submits through a server, and --brokers straight to Kafka; give one of them\n",
            )),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Destination {
    fn augment_args(command: Command) -> Command {
        Connection::augment_args(ServerArgs::augment_args(command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Connection::augment_args_for_update(ServerArgs::augment_args_for_update(command))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Submit {
        #[command(flatten)]
        destination: Destination,
    }

    fn parse(words: &[&str]) -> Result<Destination, clap::Error> {
        let words = ["submit"].iter().chain(words);
        Submit::try_parse_from(words).map(|call| call.destination)
    }

    #[test]
    fn the_command_line_counts_more_than_the_environment() {
        use ValueSource::{CommandLine, DefaultValue, EnvVariable};
        let (typed, set, usual) = (Some(CommandLine), Some(EnvVariable), Some(DefaultValue));
        for (server, brokers, expected) in [
            (set, typed, Ok(false)),
            (set, set, Ok(true)),
            (set, usual, Ok(true)),
            (typed, set, Ok(true)),
            (typed, usual, Ok(true)),
            (typed, typed, Err(Both)),
        ] {
            assert_eq!(is_server(true, server, brokers), expected, "{server:?} {brokers:?}");
        }
        assert_eq!(is_server(false, None, usual), Ok(false));
        assert_eq!(is_server(false, typed, typed), Ok(false), "an empty name is none");
    }

    #[test]
    fn a_server_and_brokers_contradict_each_other() {
        let found = parse(&["--brokers=k:1"]).unwrap();
        assert!(matches!(found, Destination::Kafka(kafka) if kafka.brokers == "k:1"));
        let found = parse(&["--server=http://a:1"]).unwrap();
        assert!(matches!(found, Destination::Server(server) if server.is_given()));
        let error = parse(&["--brokers=k:1", "--server=http://a:1"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict);
    }
}
