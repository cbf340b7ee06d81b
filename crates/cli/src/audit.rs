//! `mcp-fleet audit`: who did what, and what was refused.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use fleet_access::AuditRecord;
use fleet_job::record::RawRecord;
use fleet_kafka::reader::{From, Reader};
use fleet_ops::{blocking::run_blocking, clock, shutdown};

use crate::{
    connection::Connection,
    error::CliError,
    output,
    wait_notice::{Outage, WaitNotice},
};

mod filter;
mod line;

use filter::{Filter, FilterArgs};

const OPEN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "Examples:
  mcp-fleet audit
  mcp-fleet audit --since 24h --outcome refused
  mcp-fleet audit --from-start --no-follow --principal alice --tool 'db*' --json
  tail -F /var/log/mcp/audit.jsonl | mcp-fleet audit --file - --outcome refused

Records come from the topic <jobs topic>.audit, where they are kept for 90 days, or from the file of
a server's --audit-file. A server with MCP_AUDIT=required writes two records for each call: when it
begins, and when it has ended.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// Read this file instead of the topic, up to its end; `-` for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Start with the oldest record that still exists, instead of only new ones
    #[arg(long)]
    from_start: bool,

    /// Print the existing records from the start, then exit
    #[arg(long)]
    no_follow: bool,

    #[command(flatten)]
    filter: FilterArgs,

    /// Print the records unchanged, one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let shown = Shown { filter: args.filter.clone().at(clock::now()), is_json: args.json };

    run_blocking(move || match &args.file {
        Some(path) => print_file(path, &shown),
        None => follow_topic(&args, &shown),
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the records of the topic.
fn follow_topic(args: &Args, shown: &Shown) -> Result<(), CliError> {
    let is_whole = args.from_start || args.no_follow || args.filter.reaches_back();
    let from = if is_whole { From::Start } else { From::Now };
    let (settings, topic) = (args.connection.settings()?, args.connection.topics().audit);

    let notice = WaitNotice::for_kafka(&settings);
    let mut reader = Reader::open(&settings, &topic, from, OPEN)?;
    drop(notice);

    // Until here, Ctrl-C ends the process as it is.
    let stop = shutdown::signal_token().map_err(output::no_signals)?;
    if !args.no_follow {
        output::problem(&output::following(&topic));
    }
    let mut outage = Outage::default();
    while !stop.is_cancelled() {
        let record = reader.next(POLL)?;
        if outage.observe(reader.is_out_of_reach(), Instant::now()) {
            output::problem(&Outage::message(&settings));
        }
        match record {
            Some(RawRecord { value: Some(value), position, .. }) => {
                shown.print(&value, || {
                    format!("{}/{}/{}", position.topic, position.partition, position.offset)
                });
            }
            Some(_) => {}
            None if args.no_follow && reader.at_end() => break,
            None => {}
        }
    }
    Ok(())
}

/// Prints the records of a file.
fn print_file(path: &Path, shown: &Shown) -> Result<(), CliError> {
    let failed = |source| CliError::File {
        what: "could not read the audit log",
        path: path.to_owned(),
        source,
    };
    let mut lines: Box<dyn BufRead> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(BufReader::new(std::fs::File::open(path).map_err(failed)?)),
    };

    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        let text = line.trim_ascii();
        if !text.is_empty() {
            shown.print(text, || format!("line {number}"));
        }
    }
    Ok(())
}

/// Which records are printed, and how.
#[derive(Debug)]
struct Shown {
    filter: Filter,
    is_json: bool,
}

impl Shown {
    /// Prints a record if it should be shown. `position` says where it stands.
    fn print(&self, record: &[u8], position: impl FnOnce() -> String) {
        match serde_json::from_slice::<AuditRecord>(record) {
            Ok(parsed) if !self.filter.matches(&parsed) => {}
            // Fields that this version does not know stay.
            Ok(_) if self.is_json => output::line(&String::from_utf8_lossy(record)),
            Ok(parsed) => output::line(&line::describe(&parsed)),
            Err(error) => {
                output::problem(&format!("{} is not a valid audit record: {error}", position()));
            }
        }
    }
}
