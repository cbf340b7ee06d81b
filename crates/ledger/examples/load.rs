//! Fills a ledger in PostgreSQL and measures it: events per second, and how long questions take while
//! events come in. Makes a cluster of its own and removes it.
//!
//! `scripts/ledger-load [JOBS]` runs it; the database, the projector and the readers share the
//! machine.

#![expect(clippy::expect_used, reason = "a panic is the report of a measurement")]
#![expect(clippy::print_stdout, reason = "the report of a measurement")]

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_job::{
    event::{JobEvent, JobState, Source},
    filter::JobFilter,
    time::Timestamp,
};
use fleet_ledger::{
    Batch, DatabaseUrl, PostgresStore, Query, Retention, Store, Update, query::Visibility,
    testing::Cluster,
};
use serde_json::json;

/// Partitions of the events topic.
const PARTITIONS: i32 = 4;
/// The records of one batch, as the follower of the topic makes them.
const BATCH: usize = 1_000;
/// The events per second that come in while questions are asked.
const RATE: u64 = 1_000;
/// Those who ask at the same time.
const LANES: usize = 8;
const TENANTS: u64 = 100;

fn main() {
    let argument = env::args().nth(1);
    let jobs = argument.map_or(1_000_000, |jobs| jobs.parse().expect("a number of jobs"));
    let options = "-c shared_buffers=512MB -c max_wal_size=4GB -c maintenance_work_mem=128MB";
    let cluster = Cluster::start_with(None, options).expect("PostgreSQL");
    let url = cluster.create_database();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();

    runtime.expect("a runtime").block_on(async {
        let mut load = Load::new(&url);
        load.fill(jobs).await;
        load.report_size(&cluster, &url, jobs);
        load.replace(60).await;
        cluster.query(&url, "VACUUM (ANALYZE) ledger_jobs");
        load.ask(jobs).await;
    });
}

struct Load {
    store: PostgresStore,
    /// The next offset of each partition.
    offsets: [i64; PARTITIONS as usize],
    /// The number of the next job.
    next: u64,
}

impl Load {
    fn new(url: &str) -> Self {
        let retention = Retention {
            max_age: Duration::from_secs(1 << 40),
            max_jobs: usize::MAX,
            max_bytes: u64::MAX,
        };
        let url = DatabaseUrl::parse(url).expect("a URL");
        Self { store: PostgresStore::new(&url, retention), offsets: [0; 4], next: 0 }
    }

    fn update(&mut self, n: u64, state: JobState) -> Update {
        let partition = i32::try_from(n % PARTITIONS as u64).expect("a small number");
        let offset = &mut self.offsets[partition as usize];
        *offset += 1;
        Update::new(partition, *offset, event(n, state))
    }

    /// A batch with these states of new jobs, one after the other.
    fn batch(&mut self, states: &[JobState]) -> Batch {
        let first = self.next;
        let jobs = (BATCH / states.len()) as u64;
        self.next += jobs;
        let mut updates = Vec::with_capacity(BATCH);
        for state in states {
            for n in first..first + jobs {
                updates.push(self.update(n, *state));
            }
        }
        Batch { updates, positions: self.positions() }
    }

    fn positions(&self) -> std::collections::BTreeMap<i32, i64> {
        (0..).zip(self.offsets.map(|offset| offset + 1)).collect()
    }

    /// Reads a compacted topic: one event for each job.
    async fn fill(&mut self, jobs: u64) {
        let (begin, mut step) = (Instant::now(), Instant::now());
        while self.next < jobs {
            let batch = self.batch(&[JobState::Succeeded]);
            self.store.apply(batch).await.expect("applied");
            if self.next.is_multiple_of(250_000) {
                let rate = 250_000.0 / step.elapsed().as_secs_f64();
                println!("  {} jobs, {rate:.0} events/s", self.next);
                step = Instant::now();
            }
        }
        let rate = jobs as f64 / begin.elapsed().as_secs_f64();
        println!("fill: {jobs} jobs of one event, {rate:.0} events/s");
    }

    fn report_size(&self, cluster: &Cluster, url: &str, jobs: u64) {
        let size = |sql: &str| -> u64 { cluster.query(url, sql).parse().expect("a number") };
        let all = size("SELECT pg_total_relation_size('ledger_jobs')");
        let events = size("SELECT sum(bytes)::bigint FROM ledger_counts");
        println!(
            "size: {} bytes for each job, of which {} are its event",
            all / jobs,
            events / jobs
        );
    }

    /// New jobs with three events each, in batches of their own, as they run.
    async fn replace(&mut self, seconds: u64) {
        let begin = Instant::now();
        let mut events = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            let first = self.next;
            for state in [JobState::Queued, JobState::Running, JobState::Succeeded] {
                self.next = first;
                let batch = self.batch(&[state]);
                events += batch.updates.len();
                self.store.apply(batch).await.expect("applied");
            }
        }
        let rate = events as f64 / begin.elapsed().as_secs_f64();
        println!(
            "live: {events} events of new jobs (queued, running, succeeded), {rate:.0} events/s"
        );
    }

    async fn ask(mut self, jobs: u64) {
        let (is_done, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let store = self.store.clone();
        let projector = tokio::spawn({
            let (is_done, came) = (is_done.clone(), came.clone());
            async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(1_000 / 10));
                while !is_done.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let count = RATE / 10;
                    let updates: Vec<_> = (0..count)
                        .map(|n| self.update(self.next + n, JobState::Succeeded))
                        .collect();
                    self.next += count;
                    let positions = self.positions();
                    self.store.apply(Batch { updates, positions }).await.expect("applied");
                    came.fetch_add(count, Ordering::Relaxed);
                }
            }
        });

        let begin = Instant::now();
        measure("get", 2_500, &store, move |store, n| async move {
            let found = store.get(&id(n.wrapping_mul(104_729) % jobs)).await.expect("an answer");
            assert!(found.is_some());
        })
        .await;
        for (name, filter) in filters(jobs) {
            measure(name, 100, &store, move |store, n| {
                let filter = filter(n);
                async move {
                    let visibility = Visibility::new(|_, _| true);
                    let query = Query { filter, visibility, limit: 50, after: None };
                    store.list(&query).await.expect("a page");
                }
            })
            .await;
        }
        measure("counts", 20, &store, |store, _| async move {
            store.counts().await.expect("counts");
        })
        .await;

        is_done.store(true, Ordering::Relaxed);
        projector.await.expect("the projector");
        let rate = came.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
        println!("meanwhile {rate:.0} events/s came in");
    }
}

type Filter = Arc<dyn Fn(u64) -> JobFilter + Send + Sync>;

fn filters(jobs: u64) -> Vec<(&'static str, Filter)> {
    let filter = |make: fn(u64, u64) -> JobFilter| -> Filter { Arc::new(move |n| make(n, jobs)) };
    vec![
        ("list, newest", filter(|_, _| JobFilter::default())),
        (
            "list, one state",
            filter(|_, _| JobFilter { states: vec![JobState::Succeeded], ..JobFilter::default() }),
        ),
        (
            "list, one tool",
            filter(|n, _| JobFilter { tool: Some(tool(n)), ..JobFilter::default() }),
        ),
        (
            "list, one tenant",
            filter(|n, _| JobFilter { tenant: Some(tenant(n)), ..JobFilter::default() }),
        ),
        (
            "list, before a time",
            filter(|n, jobs| JobFilter {
                until: Some(submitted(n.wrapping_mul(104_729) % jobs)),
                ..JobFilter::default()
            }),
        ),
        (
            "list, tenant and tool",
            filter(|n, _| JobFilter {
                tenant: Some(tenant(n)),
                tool: Some(tool(n)),
                ..JobFilter::default()
            }),
        ),
    ]
}

/// Asks in several lanes and reports the times.
async fn measure<F, W>(name: &str, each: u64, store: &PostgresStore, ask: F)
where
    F: Fn(PostgresStore, u64) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = ()> + Send,
{
    let begin = Instant::now();
    let lanes = (0..LANES as u64).map(|lane| {
        let (store, ask) = (store.clone(), ask.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for n in 0..each {
                let begin = Instant::now();
                ask(store.clone(), lane * each + n).await;
                times.push(begin.elapsed());
            }
            times
        })
    });

    let mut times = Vec::new();
    for lane in lanes.collect::<Vec<_>>() {
        times.extend(lane.await.expect("a lane"));
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "{name}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
        times.len() as f64 / begin.elapsed().as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn id(n: u64) -> String {
    format!("01930000-0000-7000-8000-{n:012}")
}

fn tool(n: u64) -> String {
    format!("server__tool-{}", n % 20)
}

fn tenant(n: u64) -> String {
    format!("tenant-{}", n % TENANTS)
}

fn submitted(n: u64) -> Timestamp {
    Timestamp::from_millis_clamped(1_795_000_000_000 + i64::try_from(n).expect("a small number"))
}

fn event(n: u64, state: JobState) -> JobEvent {
    let offset = i64::try_from(n).expect("a small number");
    let text = "a result of some length, as tools return it ".repeat(4);
    JobEvent {
        job_type: Some("tool-call".to_owned()),
        tool: Some(tool(n)),
        tenant: Some(tenant(n / 7)),
        submitted_at: Some(submitted(n)),
        source: Some(Source {
            topic: "mcp-jobs".to_owned(),
            topic_id: None,
            partition: (n % 12) as i32,
            offset,
        }),
        result: state.is_terminal().then(|| json!({"content": [{"type": "text", "text": text}]})),
        ..JobEvent::new(id(n), state, submitted(n))
    }
}
