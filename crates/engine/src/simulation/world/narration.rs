//! Tells a listener what happens in a schedule: the moves, what each engine is told, what it wants
//! done, and how its state has changed.

use super::{moves::Move, *};

/// Hears one line.
pub(crate) type Listener = fn(&str);

impl<E: Subject> World<E> {
    pub(super) fn tell_move(&self, next: Move) {
        if let Some(listener) = self.listener {
            listener(&format!("{next:?} (at {} ms)", self.now));
        }
    }

    pub(super) fn tell_input(&self, worker: usize, input: &Input<'_>) {
        if let Some(listener) = self.listener {
            listener(&format!("  worker {worker}  in       {}", describe_input(input)));
        }
    }

    pub(super) fn tell_command(&self, worker: usize, command: &Command) {
        if let Some(listener) = self.listener {
            listener(&format!("  worker {worker}  out      {}", describe_command(command)));
        }
    }

    pub(super) fn tell_changes(&mut self, worker: usize) {
        let Some(listener) = self.listener else { return };
        let Worker { engine, told, .. } = &mut self.workers[worker];

        let status = engine.status();
        for change in changes(told.as_ref(), &status) {
            listener(&format!("  worker {worker}  changed  {change}"));
        }
        *told = Some(status);
    }
}

fn name(partition: Partition) -> String {
    match partition.number as usize {
        DELAYED => "delayed".to_owned(),
        number => format!("jobs-{number}"),
    }
}

fn names(partitions: &[Partition]) -> String {
    partitions.iter().map(|partition| name(*partition)).collect::<Vec<_>>().join(", ")
}

/// A record by its partition and offset, with the generation of the assignment.
fn record(token: &Token) -> String {
    format!("{}@{} (generation {})", name(token.partition), token.offset, token.generation)
}

fn describe_input(input: &Input<'_>) -> String {
    match input {
        Input::Assigned { partition, generation, progress, .. } => {
            let from = match progress {
                Some(progress) => format!("offset {}", progress.base),
                None => "the beginning".to_owned(),
            };
            format!("Assigned {}, generation {generation}, from {from}", name(*partition))
        }
        Input::Record { partition, offset, admission, .. } => {
            format!("Record {}@{offset}: {}", name(*partition), describe_admission(admission))
        }
        Input::Holds(token, bytes) => format!("Holds {}: {bytes} bytes", record(token)),
        Input::End(partition, offset) => format!("End of {} at {offset}", name(*partition)),
        Input::Finished(token, attempt) => format!("Finished {}: {attempt:?}", record(token)),
        Input::Written(token) => format!("Written {}", record(token)),
        Input::WriteFailed(token) => format!("WriteFailed {}", record(token)),
        Input::NotDeferred(token) => format!("NotDeferred {}", record(token)),
        Input::Committed { partition, generation, ok } => {
            let answer = if *ok { "accepted" } else { "refused" };
            format!("Committed {}, generation {generation}: {answer}", name(*partition))
        }
        Input::Cancel(token) => format!("Cancel {}", record(token)),
        Input::Draining(partitions) => format!("Draining {}", names(partitions)),
        Input::Lost(partitions) => format!("Lost {}", names(partitions)),
        Input::Probed(_) | Input::Resumed(_) | Input::ContactRegained | Input::Tick => {
            format!("{input:?}")
        }
    }
}

fn describe_admission(admission: &Admission) -> String {
    let (kind, spec) = match admission {
        Admission::Job(spec) => ("job", spec),
        Admission::Cancelled(spec) => ("cancelled job", spec),
        Admission::Reject { key } => return format!("no job, {}", describe_key(*key)),
        Admission::Relay(at) => return format!("to be relayed at {} ms", at.as_millis()),
        Admission::Settled | Admission::Ended => return format!("{admission:?}"),
    };

    let time = |name: &str, at: Option<Timestamp>| {
        at.map(|at| format!(", {name} {} ms", at.as_millis())).unwrap_or_default()
    };
    let hosted = spec.hosted.map(|server| format!(", needs server {server}")).unwrap_or_default();
    format!(
        "{kind}, {}, priority {}{}{}{hosted}",
        describe_key(spec.key),
        spec.priority,
        time("not before", spec.not_before),
        time("deadline", spec.deadline),
    )
}

fn describe_key(key: Option<u64>) -> String {
    key.map_or("no key".to_owned(), |key| format!("key {key}"))
}

fn describe_command(command: &Command) -> String {
    match command {
        Command::Start(token, attempt) => format!("Start {}, attempt {attempt}", record(token)),
        Command::Settle(token, end, attempts) => {
            format!("Settle {} as {end:?} after {attempts} attempts", record(token))
        }
        Command::Abort(token) => format!("Abort {}", record(token)),
        Command::Retrying(token, attempts, at) => format!(
            "Retrying {} after {attempts} attempts, at {} ms",
            record(token),
            at.as_millis()
        ),
        Command::Forget(token) => format!("Forget {}", record(token)),
        Command::Commit(commit) => describe_commit(commit),
        Command::Pause(partition, _) => format!("Pause {}", name(*partition)),
        Command::Resume(partition, _) => format!("Resume {}", name(*partition)),
        Command::LogReset(partition) => format!("LogReset {}", name(*partition)),
        Command::Violation(invariant, token) => {
            format!("Violation of {} at {}", invariant.name(), record(token))
        }
        Command::Probe => "Probe".to_owned(),
    }
}

fn describe_commit(commit: &FinalCommit) -> String {
    let beyond = match Progress::decode(commit.offset, &commit.metadata) {
        Ok(progress) if progress.end > progress.base => {
            format!(", open {:?}, attempts {:?}", progress.open, progress.attempts)
        }
        _ => String::new(),
    };
    format!("Commit {} up to {}{beyond}", name(commit.partition), commit.offset)
}

/// What is different between two states of an engine.
fn changes(before: Option<&Status>, after: &Status) -> Vec<String> {
    let before = facts(before);
    let mut changes: Vec<_> = facts(Some(after))
        .iter()
        .filter(|(fact, value)| before.get(*fact) != Some(value))
        .map(|(fact, value)| match before.get(fact) {
            Some(before) => format!("{fact}: {before} → {value}"),
            None => format!("{fact}: {value}"),
        })
        .collect();

    let after = facts(Some(after));
    let gone = before.keys().filter(|fact| !after.contains_key(*fact));
    changes.extend(gone.map(|fact| format!("{fact}: gone")));
    changes
}

/// A status as names and values.
fn facts(status: Option<&Status>) -> BTreeMap<String, String> {
    let Some(status) = status else { return BTreeMap::new() };
    let mut facts = BTreeMap::from([
        ("running".to_owned(), status.in_flight.to_string()),
        ("in memory".to_owned(), status.buffered.to_string()),
        ("parked".to_owned(), status.parked.to_string()),
        ("breaker".to_owned(), format!("{:?}", status.breaker)),
    ]);

    for hold in &status.holds {
        let waiting = format!("{} jobs wait", hold.waiting);
        facts.insert(format!("{:?} is away", hold.need), waiting);
    }
    for partition in &status.partitions {
        let offset = |at: Option<i64>| at.map_or("?".to_owned(), |at| at.to_string());
        let mut value = format!(
            "frontier {}, committed {}, {} open",
            offset(partition.frontier),
            offset(partition.committed),
            partition.open
        );
        for (is_so, word) in [(partition.paused, "paused"), (partition.is_stalled, "stalled")] {
            if is_so {
                value = format!("{value}, {word}");
            }
        }
        facts.insert(name(partition.partition), value);
    }
    facts
}
