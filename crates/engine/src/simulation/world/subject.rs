//! What plays the part of the engine in the simulation.

use fleet_group::{FinalCommit, Partition};
use fleet_job::time::Timestamp;

use super::Fault;
use crate::{Command, Config, Engine, Input, Status, Token};

/// The engine, or something that wraps it and makes mistakes.
pub(crate) trait Subject {
    fn new(config: Config, fault: Option<Fault>) -> Self;

    fn handle(&mut self, now: Timestamp, input: Input<'_>);

    fn poll(&mut self) -> Option<Command>;

    fn release(&mut self, partitions: &[Partition]) -> Vec<FinalCommit>;

    fn token(&self, partition: Partition, offset: i64) -> Option<Token>;

    fn status(&self) -> Status;

    /// The jobs that wait for nothing but a slot, a limit and the turn of their tenant, as far as
    /// that is known.
    fn startable(&self) -> Vec<Token> {
        Vec::new()
    }
}

impl Subject for Engine {
    fn new(config: Config, _: Option<Fault>) -> Self {
        Self::new(config)
    }

    fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        self.handle(now, input);
    }

    fn poll(&mut self) -> Option<Command> {
        self.poll()
    }

    fn release(&mut self, partitions: &[Partition]) -> Vec<FinalCommit> {
        self.release(partitions)
    }

    fn token(&self, partition: Partition, offset: i64) -> Option<Token> {
        self.token(partition, offset)
    }

    fn status(&self) -> Status {
        self.status()
    }
}
