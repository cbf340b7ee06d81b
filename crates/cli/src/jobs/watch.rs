//! `mcp-fleet jobs watch`: follows jobs.

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use fleet_job::{filter::JobFilter, view::JobView};
use fleet_ops::{clock, config::parse_duration, shutdown};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    api::Api,
    board::Board,
    filter::FilterArgs,
    follow::{StreamUpdate, follow},
    list::Pages,
    render,
};
use crate::{
    api_error::ApiError,
    error::CliError,
    output::{self, Screen},
    server_args::ServerArgs,
};

/// How many jobs are remembered and counted by state.
const REMEMBERED: usize = 500;
/// Lines of the screen that are not jobs: two above the table, its header, and one below it for the
/// cursor.
const FRAME: usize = 4;

const EXAMPLES: &str = "\
On a terminal, shows a live table of the newest jobs until Ctrl-C. Otherwise, and with --json,
prints one line per event.

Examples:
  mcp-fleet jobs watch
  mcp-fleet jobs watch --state queued,running,retrying --tenant acme
  mcp-fleet jobs watch --json | jq -r 'select(.state == \"failed\") | .error.message'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    filter: FilterArgs,

    /// The maximum number of jobs in the table; a small terminal shows fewer
    #[arg(help_heading = "Output", long, default_value_t = 50, value_name = "N")]
    limit: usize,

    /// How often to redraw the table
    #[arg(
        help_heading = "Output",
        long,
        default_value = "500ms",
        value_parser = parse_duration,
        value_name = "DURATION",
    )]
    interval: Duration,

    /// Print the events, one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;

    let (api, filter) = (args.server.api()?, args.filter.at(clock::now()));

    let show: Box<dyn Show> = match (args.json, std::io::stdout().is_terminal()) {
        (false, true) => {
            Box::new(Table { server: api.name(), limit: args.limit, ..Table::default() })
        }
        (json, _) => Box::new(Lines { json, begun: false, troubled: false }),
    };

    let news = follow(api.clone(), api.events(&filter)?);
    let board = Board::new(filter.clone(), REMEMBERED);
    let watch = Watch { api, filter, board, show, stale: false };
    // A shorter interval would keep the terminal busy with nothing else.
    watch.run(news, args.interval.max(Duration::from_millis(20)), stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// Presents updates to the user.
pub(super) trait Show {
    /// A matching job has entered another state.
    fn job(&mut self, job: &JobView);
    /// The jobs have been listed, at the start or after a gap; `news` are those that have changed.
    fn begin(&mut self, news: &[&JobView]);
    /// The connection to the server has been established, or has failed.
    fn connection(&mut self, trouble: Option<&ApiError>);
    /// Time has passed.
    fn tick(&mut self, board: &Board);
}

/// The board, and what keeps it up to date.
pub(super) struct Watch {
    pub(super) api: Api,
    pub(super) filter: JobFilter,
    pub(super) board: Board,
    pub(super) show: Box<dyn Show>,
    /// Whether events have been missed, so that the jobs must be listed.
    pub(super) stale: bool,
}

impl Watch {
    pub(super) async fn run(
        mut self,
        mut news: mpsc::Receiver<StreamUpdate>,
        interval: Duration,
        stop: CancellationToken,
    ) -> Result<(), ApiError> {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                next = news.recv() => match next {
                    Some(StreamUpdate::Ended(error)) => return Err(error),
                    Some(next) => {
                        if matches!(next, StreamUpdate::Missed) {
                            ticks.reset_immediately();
                        }
                        self.handle_update(next);
                    }
                    None => break,
                },
                _ = ticks.tick() => {
                    if self.stale {
                        // Updates wait in the meantime: they are newer than the list, or repeat it.
                        tokio::select! {
                            () = stop.cancelled() => break,
                            listed = list(&self.api, &self.filter) => self.handle_list(listed)?,
                        }
                    }
                    self.show.tick(&self.board);
                }
            }
        }

        self.show.tick(&self.board);
        Ok(())
    }

    fn handle_update(&mut self, news: StreamUpdate) {
        match news {
            StreamUpdate::Open => self.show.connection(None),
            StreamUpdate::Missed => self.stale = true,
            StreamUpdate::Trouble(error) => self.show.connection(Some(&error)),
            StreamUpdate::Job(job) => {
                if self.board.update(&job) {
                    self.show.job(&job);
                }
            }
            // The caller handles this.
            StreamUpdate::Ended(_) => {}
        }
    }

    fn handle_list(&mut self, listed: Result<Vec<JobView>, ApiError>) -> Result<(), ApiError> {
        match listed {
            Ok(jobs) => {
                self.stale = false;
                self.show.begin(&self.board.restart(&jobs));
            }
            // The next tick retries.
            Err(error) if error.is_passing() => self.show.connection(Some(&error)),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Lists the newest jobs that the server knows.
async fn list(api: &Api, filter: &JobFilter) -> Result<Vec<JobView>, ApiError> {
    let mut pages = Pages::new(api, filter, REMEMBERED);
    let mut jobs = Vec::new();
    while let Some(page) = pages.next().await? {
        jobs.extend(page);
    }
    Ok(jobs)
}

/// Prints lines of text or JSON.
struct Lines {
    json: bool,
    begun: bool,
    troubled: bool,
}

impl Show for Lines {
    fn job(&mut self, job: &JobView) {
        if self.json {
            output::json(job);
        } else {
            output::line(&render::event_line(job));
        }
    }

    fn begin(&mut self, news: &[&JobView]) {
        // At the start, nothing has happened yet. After a gap, the current states replace the
        // missed events.
        if std::mem::replace(&mut self.begun, true) {
            output::problem(
                "some events were missed; showing the current states of the newest jobs",
            );
            for job in news.iter().rev() {
                self.job(job);
            }
        }
    }

    fn connection(&mut self, trouble: Option<&ApiError>) {
        let troubled = std::mem::replace(&mut self.troubled, trouble.is_some());
        if let Some(error) = trouble.filter(|_| !troubled) {
            output::problem(&format!("{}; retrying", fleet_ops::errors::chain(error)));
        }
    }

    fn tick(&mut self, _: &Board) {}
}

/// Draws a table repeatedly.
#[derive(Debug, Default)]
struct Table {
    server: String,
    limit: usize,
    screen: Screen,
    /// Whether the jobs have been listed.
    begun: bool,
    trouble: Option<String>,
}

impl Show for Table {
    fn job(&mut self, _: &JobView) {}

    fn begin(&mut self, _: &[&JobView]) {
        self.begun = true;
    }

    fn connection(&mut self, trouble: Option<&ApiError>) {
        self.trouble = trouble.map(|error| fleet_ops::errors::chain(error));
    }

    fn tick(&mut self, board: &Board) {
        let now = clock::now();
        let connection = match &self.trouble {
            None if !self.begun => return,
            None => format!("{}   {now}   press Ctrl-C to stop", self.server),
            Some(trouble) => format!("{trouble}; retrying"),
        };

        let rows = self.limit.min(self.screen.height().saturating_sub(FRAME)).max(1);
        let jobs = render::jobs_within(board.newest(rows), now, self.screen.width());
        self.screen.draw(&format!("{connection}\n{}\n{jobs}", board.counts()));
    }
}
