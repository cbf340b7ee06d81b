//! An open loop: jobs are sent at their scheduled times, whatever the state of earlier jobs, and
//! latency is measured from the scheduled time. So a contestant that falls behind can't hide that
//! by slowing down the sender.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fleet_tests::topics;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use crate::{
    calls::{self, Call},
    figures,
    machine::{self, Machine},
    workload::{self, Workload},
};

/// The duration of the warm-up, which doesn't count.
const WARM_UP: Duration = Duration::from_secs(5);
/// The duration of the measurement.
const WINDOW: Duration = Duration::from_secs(12);
/// The longest time for the last jobs.
const REST: Duration = Duration::from_secs(30);
/// The longest time to a contestant's first call.
const FIRST_CALL: Duration = Duration::from_secs(90);
/// The interval between jobs before the first call.
const KNOCK: Duration = Duration::from_millis(200);

/// The load.
pub(crate) struct Live {
    workload: Workload,
    rate: f64,
}

/// The sent jobs, and the listener for their ends.
pub(crate) struct Sent {
    /// The scheduled time of each job, by its number, in µs since 1970.
    intended: Vec<u64>,
    /// The first job that counts.
    counts_from: usize,
    listener: Option<Listener>,
}

/// Reads terminal events as they arrive.
struct Listener {
    thread: JoinHandle<HashMap<u32, u64>>,
    enough: Arc<AtomicBool>,
}

impl Live {
    pub(crate) fn new(partitions: i32, bytes: usize, rate: f64) -> Self {
        Self { workload: Workload::new(partitions, bytes), rate }
    }

    /// Sends jobs until the contestant makes calls, and then for the warm-up and the measurement.
    pub(crate) fn send(
        &self,
        brokers: &str,
        topic: &str,
        has_events: bool,
        works: impl Fn() -> bool,
    ) -> Sent {
        let producer = machine::producer(brokers, "0");
        let listener = has_events.then(|| Listener::start(brokers, topic));
        let mut intended = Vec::new();
        let mut send = |at| {
            let n = u32::try_from(intended.len()).unwrap_or(u32::MAX);
            intended.push(at);
            machine::send(&producer, topic, &self.workload, n);
            intended.len()
        };

        let give_up = Instant::now() + FIRST_CALL;
        while !works() {
            assert!(Instant::now() < give_up, "no call came");
            send(calls::now());
            thread::sleep(KNOCK);
        }

        let begin = calls::now();
        let counts_at = begin + micros(WARM_UP);
        let end = counts_at + micros(WINDOW);
        let (mut counts_from, mut random, mut at) = (0, 0xBE9C, begin as f64);
        loop {
            random = workload::hash(random);
            // Poisson arrivals.
            at -= (1.0 - workload::unit(random)).ln() * 1e6 / self.rate;
            let due = at as u64;
            if due >= end {
                break;
            }
            thread::sleep(Duration::from_micros(due.saturating_sub(calls::now())));
            let sent = send(due);
            if due < counts_at {
                counts_from = sent;
            }
        }

        Sent { intended, counts_from, listener }
    }
}

impl Sent {
    /// Waits until all jobs have been called and have ended; returns the time of each end, if there
    /// are events.
    pub(crate) fn wait(
        &mut self,
        machine: &Machine,
        goes_on: impl FnMut() -> bool,
    ) -> HashMap<u32, u64> {
        machine.wait_for_calls(self.intended.len(), REST, goes_on);
        self.listener.take().map(Listener::stop).unwrap_or_default()
    }

    /// The latencies of the jobs that count. Jobs without a call or an end are counted as missing.
    pub(crate) fn figures(
        &self,
        calls: &[Call],
        ended: &HashMap<u32, u64>,
        figures: &mut std::collections::BTreeMap<String, f64>,
    ) {
        let mut first: HashMap<u32, Call> = HashMap::new();
        for call in calls {
            first.entry(call.job).or_insert(*call);
        }
        let (mut answer, mut added, mut terminal, mut added_terminal) =
            (vec![], vec![], vec![], vec![]);
        let mut missing = 0;
        for (n, intended) in self.intended.iter().enumerate().skip(self.counts_from) {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            let ms = |us: u64| us as f64 / 1000.0;
            let Some(call) = first.get(&n) else {
                missing += 1;
                continue;
            };
            let took = call.end - call.begin;
            answer.push(ms(call.end.saturating_sub(*intended)));
            added.push(ms((call.end - took).saturating_sub(*intended)));
            if let Some(end) = ended.get(&n) {
                terminal.push(ms(end.saturating_sub(*intended)));
                added_terminal.push(ms(end.saturating_sub(*intended + took)));
            } else if !ended.is_empty() {
                missing += 1;
            }
        }
        figures.insert("missing".to_owned(), f64::from(missing));
        for (name, mut values) in [
            ("to_answer", answer),
            ("added_to_answer", added),
            ("to_terminal", terminal),
            ("added_to_terminal", added_terminal),
        ] {
            values.sort_by(f64::total_cmp);
            for (suffix, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
                if !values.is_empty() {
                    figures
                        .insert(format!("{name}_{suffix}_ms"), figures::quantile(&values, share));
                }
            }
        }
    }
}

impl Listener {
    fn start(brokers: &str, topic: &str) -> Self {
        let events = format!("{topic}.events");
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "bench-listener")
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for partition in 0..topics::partitions(brokers, &events) {
            assignment
                .add_partition_offset(&events, partition, Offset::Beginning)
                .expect("a partition");
        }
        consumer.assign(&assignment).expect("an assignment");
        let enough = Arc::new(AtomicBool::new(false));
        let stop = enough.clone();
        let thread = thread::spawn(move || {
            let mut ended = HashMap::new();
            loop {
                match consumer.poll(Duration::from_millis(200)) {
                    Some(Ok(message)) => {
                        let number = message.key().and_then(workload::number_of);
                        let value = message.payload().unwrap_or_default();
                        if let Some(n) = number.filter(|_| is_success(value)) {
                            ended.entry(n).or_insert_with(calls::now);
                        }
                    }
                    // No more events arrive, and the listener has been stopped.
                    None if stop.load(Ordering::Relaxed) => return ended,
                    Some(Err(_)) | None => {}
                }
            }
        });
        Self { thread, enough }
    }

    fn stop(self) -> HashMap<u32, u64> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().expect("the listener's end")
    }
}

fn is_success(event: &[u8]) -> bool {
    const MARK: &[u8] = br#""state":"succeeded""#;
    event.windows(MARK.len()).any(|window| window == MARK)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_counts_from_the_scheduled_time() {
        let sent = Sent { intended: vec![0, 1_000, 2_000, 3_000], counts_from: 1, listener: None };
        let call = |job, begin, end| Call { job, worker: 1, begin, end };
        let calls = [call(0, 0, 900_000), call(1, 3_000, 13_000), call(2, 4_000, 14_000)];
        let ended = HashMap::from([(1, 15_000), (2, 19_000)]);
        let mut figures = std::collections::BTreeMap::new();
        sent.figures(&calls, &ended, &mut figures);
        let get = |name: &str| figures.get(name).copied();
        assert_eq!(get("missing"), Some(1.0));
        assert_eq!(get("to_answer_p50_ms"), Some(12.0));
        assert_eq!(get("added_to_answer_p99_ms"), Some(2.0));
        assert_eq!(get("to_terminal_p99_ms"), Some(17.0));
        assert_eq!(get("added_to_terminal_p50_ms"), Some(4.0));
    }
}
