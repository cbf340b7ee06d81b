//! One engine, told step by step what happens, and what it wants then.

use fleet_engine::{Admission, Attempt, Command, Config, Engine, Input, JobSpec, Token};
use fleet_group::{
    Partition,
    log::{self, Found, LogName},
};
use fleet_job::{outcome::FailureClass, time::Timestamp};

pub(crate) const P: Partition = Partition { topic: 0, number: 0 };
pub(crate) const LOG: LogName = LogName { cluster: 1, topic: 2 };
pub(crate) const SPEC: JobSpec = JobSpec::new(3);
pub(crate) const NONE: [i64; 0] = [];
pub(crate) const UNAVAILABLE: Attempt = Attempt::Failed(FailureClass::Unavailable, None);
pub(crate) const RETRY: Attempt = Attempt::Failed(FailureClass::Retry, None);

pub(crate) fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms).unwrap()
}

pub(crate) fn token(offset: i64) -> Token {
    Token { partition: P, offset, generation: 1 }
}

/// An engine with one partition, and the commands it has given.
pub(crate) struct Story {
    pub(crate) engine: Engine,
    pub(crate) now: i64,
}

impl Story {
    pub(crate) fn new(config: Config, committed: Option<(i64, &str)>) -> Self {
        let mut story = Self { engine: Engine::new(config), now: 0 };
        let found = Found { log: LOG, committed, first: None, end: None };
        let progress = log::start(found).progress;
        assert_eq!(
            story.feed(Input::Assigned { partition: P, generation: 1, log: LOG, progress }),
            []
        );
        story
    }

    pub(crate) fn from_start(config: Config) -> Self {
        Self::new(config, None)
    }

    pub(crate) fn feed(&mut self, input: Input<'_>) -> Vec<Command> {
        self.engine.handle(at(self.now), input);
        std::iter::from_fn(|| self.engine.poll()).collect()
    }

    pub(crate) fn record(&mut self, offset: i64, spec: JobSpec) -> Vec<Command> {
        self.feed(Input::Record {
            partition: P,
            offset,
            bytes: 10,
            admission: Admission::Job(spec),
        })
    }

    /// Lets time pass up to `until`, waking up whenever the engine wants to.
    pub(crate) fn wait(&mut self, until: i64) -> Vec<Command> {
        let mut commands = Vec::new();
        while self.now < until {
            let wake = self.engine.next_wakeup().map_or(until, Timestamp::as_millis);
            self.now = wake.clamp(self.now + 1, until);
            commands.extend(self.feed(Input::Tick));
        }
        commands
    }

    pub(crate) fn ends(&mut self, offset: i64, attempt: Attempt) -> Vec<Command> {
        self.feed(Input::Finished(token(offset), attempt))
    }

    /// Finishes the job with success and acknowledges its end.
    pub(crate) fn succeeds(&mut self, offset: i64) -> Vec<Command> {
        let ended = self.ends(offset, Attempt::Succeeded);
        [ended, self.feed(Input::Written(token(offset)))].concat()
    }
}

pub(crate) fn started(commands: &[Command]) -> Vec<i64> {
    commands
        .iter()
        .filter_map(
            |command| {
                if let Command::Start(token, _) = command { Some(token.offset) } else { None }
            },
        )
        .collect()
}
