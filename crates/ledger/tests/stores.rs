//! Tests all stores against a model that states the contract directly: every job has the state
//! that the rule of `fleet_job::state` gives it.

#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::{collections::BTreeMap, fs::File, io, path::Path, sync::LazyLock, time::Duration};

use flate2::read::GzDecoder;
use fleet_job::{
    event::{JobEvent, JobState, Source},
    filter::JobFilter,
    outcome::{ErrorKind, JobError},
    state::{Entry, Standing, Verdict},
    time::Timestamp,
};
use fleet_ledger::{
    Batch, DatabaseUrl, Known, LoggedEvent, MemoryStore, PostgresStore, Query, Retention,
    SqliteStore, Store, Tallies, Tally, Update,
    query::{MAX_LIMIT, Visibility},
    testing::Cluster,
};
use proptest::prelude::*;
use serde_json::json;

const STATES: [JobState; 4] =
    [JobState::Queued, JobState::Running, JobState::Succeeded, JobState::Failed];

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis_clamped(ms)
}

fn unbounded() -> Retention {
    Retention { max_age: Duration::from_secs(1 << 40), max_jobs: usize::MAX, max_bytes: u64::MAX }
}

/// Where the stores in PostgreSQL are, if that is installed.
static CLUSTER: LazyLock<Option<Cluster>> = LazyLock::new(Cluster::start);

async fn stores(directory: &Path, retention: Retention) -> Vec<Box<dyn Store>> {
    let mut stores: Vec<Box<dyn Store>> = vec![
        Box::new(MemoryStore::new(retention)),
        Box::new(SqliteStore::open(directory, "t", retention).await.unwrap()),
    ];
    if let Some(cluster) = &*CLUSTER {
        let url = DatabaseUrl::parse(&cluster.create_schema()).unwrap();
        stores.push(Box::new(PostgresStore::new(&url, retention)));
    }
    stores
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// An event of one of a few jobs, so that events of the same job collide often. Each job has events
/// of up to `sources` sources.
fn event(sources: i64) -> impl Strategy<Value = (u8, Option<JobEvent>)> {
    (0..8u8, 0..9u8, 0..40i64, 0..3u8, 0..3u8, 0..sources).prop_map(
        move |(job, state, time, tool, who, offset)| {
            let source =
                Source { topic: "mcp-jobs".to_owned(), topic_id: None, partition: 0, offset };
            let event = STATES.get(usize::from(state % 4)).map(|state| JobEvent {
                job_type: Some("tool-call".to_owned()),
                tool: (tool > 0).then(|| format!("tool-{tool}")),
                tenant: (who == 1).then(|| "acme".to_owned()),
                owner: (who == 2).then(|| "me".to_owned()),
                // A job keeps the time of its submission.
                submitted_at: Some(at(i64::from(job) * 10 % 30)),
                result: state.is_terminal().then(|| json!({"content": [time]})),
                error: (*state == JobState::Failed).then(|| {
                    let kind = if time % 2 == 0 { ErrorKind::Timeout } else { ErrorKind::Tool };
                    JobError::new(kind, "it failed")
                }),
                metadata: match json!({"tool": tool, "who": format!("{who}")}) {
                    serde_json::Value::Object(metadata) => metadata,
                    _ => unreachable!("it is an object"),
                },
                // Jobs with several sources are announced before their records are known.
                source: (sources == 1 || *state != JobState::Queued).then_some(source),
                ..JobEvent::new(format!("job-{job}"), *state, at(time))
            });
            (job, event.filter(|_| state < 8))
        },
    )
}

fn updates(events: Vec<(u8, Option<JobEvent>)>) -> Vec<Update> {
    let mut ends = BTreeMap::new();
    let place = |(job, event): (u8, Option<JobEvent>)| {
        let partition = i32::from(job % 3);
        let offset = ends.entry(partition).or_insert(0);
        *offset += 1;
        let event = event.map(LoggedEvent::from);
        Update { partition, offset: *offset, job_id: format!("job-{job}"), event }
    };
    events.into_iter().map(place).collect()
}

/// Computes the expected state of every job.
fn model(updates: &[Update]) -> BTreeMap<String, Known> {
    let mut jobs: BTreeMap<String, (Standing, Known)> = BTreeMap::new();
    for update in updates {
        let Some(logged) = &update.event else {
            jobs.remove(&update.job_id);
            continue;
        };

        let entry = Entry::new(update.offset, &logged.event, &logged.value, logged.restated);
        let known = || Known {
            partition: update.partition,
            offset: update.offset,
            event: logged.event.clone(),
        };

        let fresh = || (Standing::new(&entry), known());
        let (standing, state) = jobs.entry(update.job_id.clone()).or_insert_with(fresh);
        if standing.take(&entry) == Verdict::State {
            *state = known();
        }
    }
    jobs.into_iter().map(|(id, (_, known))| (id, known)).collect()
}

/// Lists the ids on all pages.
async fn list(store: &dyn Store, mut query: Query) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        for known in &page.jobs {
            assert_eq!(known.event.result, None, "results are left out");
            ids.push(known.event.job_id.clone());
        }
        match page.next {
            Some(next) => query.after = Some(next),
            None => return ids,
        }
    }
}

fn expected(jobs: &BTreeMap<String, Known>, query: &Query) -> Vec<String> {
    let mut fitting: Vec<_> = jobs
        .values()
        .filter(|known| {
            let event = &known.event;
            query.filter.matches(event)
                && query.visibility.covers(event.owner.as_deref(), event.tenant.as_deref())
        })
        .map(|known| (known.submitted_at(), known.event.job_id.clone()))
        .collect();
    fitting.sort();
    fitting.into_iter().rev().map(|(_, id)| id).collect()
}

/// The expected number of jobs by state, owner and tenant.
fn tallies_of(jobs: &BTreeMap<String, Known>) -> Vec<Tally> {
    let mut tallies: Vec<Tally> = Vec::new();
    for JobEvent { state, owner, tenant, .. } in jobs.values().map(|known| &known.event) {
        let shared = tallies
            .iter_mut()
            .find(|tally| (&tally.state, &tally.owner, &tally.tenant) == (state, owner, tenant));
        match shared {
            Some(tally) => tally.jobs += 1,
            None => tallies.push(Tally {
                state: *state,
                owner: owner.clone(),
                tenant: tenant.clone(),
                jobs: 1,
            }),
        }
    }
    sorted(tallies)
}

fn sorted(mut tallies: Vec<Tally>) -> Vec<Tally> {
    tallies.sort_by_key(|tally| (tally.state.as_str(), tally.owner.clone(), tally.tenant.clone()));
    tallies
}

fn queries() -> Vec<Query> {
    let base = Query { limit: 3, ..Query::default() };
    vec![
        base.clone(),
        Query {
            limit: MAX_LIMIT,
            visibility: Visibility::new(|owner, tenant| {
                owner == Some("me") || tenant == Some("acme")
            }),
            ..base.clone()
        },
        Query {
            filter: JobFilter { states: vec![JobState::Succeeded], ..JobFilter::default() },
            ..base.clone()
        },
        Query {
            filter: JobFilter {
                states: vec![JobState::Queued, JobState::Failed],
                ..JobFilter::default()
            },
            limit: 1,
            ..base.clone()
        },
        Query {
            filter: JobFilter { tool: Some("tool-1".to_owned()), ..JobFilter::default() },
            limit: 1,
            ..base.clone()
        },
        Query {
            filter: JobFilter {
                tenant: Some("acme".to_owned()),
                states: vec![JobState::Running],
                ..JobFilter::default()
            },
            ..base.clone()
        },
        Query {
            filter: JobFilter { since: Some(at(10)), until: Some(at(20)), ..JobFilter::default() },
            ..base.clone()
        },
        Query {
            filter: JobFilter {
                job_type: Some("tool-call".to_owned()),
                until: Some(at(10)),
                ..JobFilter::default()
            },
            limit: 2,
            ..base.clone()
        },
        Query {
            filter: JobFilter {
                error_code: Some("FLEET-TIMEOUT".to_owned()),
                ..JobFilter::default()
            },
            limit: 1,
            ..base.clone()
        },
        Query {
            filter: JobFilter { id_prefix: Some("job-".to_owned()), ..JobFilter::default() },
            limit: 2,
            ..base.clone()
        },
        Query {
            filter: JobFilter {
                id_prefix: Some("job-3".to_owned()),
                states: vec![JobState::Queued, JobState::Running],
                ..JobFilter::default()
            },
            ..base.clone()
        },
        Query {
            filter: JobFilter {
                metadata: [("tool", "1"), ("who", "0")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                ..JobFilter::default()
            },
            limit: 1,
            ..base
        },
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn all_stores_agree_with_the_model(events in prop::collection::vec(event(3), 0..60), cut in 0..60usize) {
        let updates = updates(events);
        let jobs = model(&updates);
        let directory = tempfile::tempdir().unwrap();
        run(async {
            for store in stores(directory.path(), unbounded()).await {
                // In two batches, the second of which repeats the first.
                let cut = cut.min(updates.len());
                for part in [&updates[..cut], &updates[..]] {
                    let positions = part.iter().map(|update| (update.partition, update.offset + 1)).collect();
                    store.apply(Batch { updates: part.to_vec(), positions }).await.unwrap();
                }

                for id in (0..8).map(|n| format!("job-{n}")) {
                    assert_eq!(store.get(&id).await.unwrap().as_ref(), jobs.get(&id), "{store:?} {id}");
                }

                for query in queries() {
                    assert_eq!(list(&*store, query.clone()).await, expected(&jobs, &query), "{store:?} {query:?}");
                }

                let tallies = store.tallies().await.unwrap();
                assert_eq!(tallies.complete_since, None);
                assert_eq!(sorted(tallies.tallies), tallies_of(&jobs), "{store:?}");

                let counts = store.counts().await.unwrap();
                for state in STATES {
                    let count = jobs.values().filter(|known| known.event.state == state).count() as u64;
                    assert_eq!(counts[state.as_str()], count);
                }
            }
        });
    }

    /// The compacted log produces the same ledger as the whole log.
    #[test]
    fn a_ledger_from_the_compacted_log_is_the_same(events in prop::collection::vec(event(1), 0..60)) {
        let mut updates = updates(events);
        run(async {
            let (whole, rebuilt) = (MemoryStore::new(unbounded()), MemoryStore::new(unbounded()));
            whole.apply(Batch { updates: updates.clone(), ..Batch::default() }).await.unwrap();
            restate(&whole, &mut updates).await;
            rebuilt.apply(Batch { updates: compacted(&updates), ..Batch::default() }).await.unwrap();

            for id in (0..8).map(|n| format!("job-{n}")) {
                let states = [whole.get(&id).await.unwrap(), rebuilt.get(&id).await.unwrap()].map(state);
                assert_eq!(states[0], states[1]);
            }
            assert_eq!(whole.bytes(), rebuilt.bytes());
        });
    }

    /// All stores know which terminal events have been overtaken, and stop reporting them once
    /// they have been restated.
    #[test]
    fn an_overtaken_end_is_restated_once(events in prop::collection::vec(event(3), 0..60)) {
        let updates = updates(events);
        let directory = tempfile::tempdir().unwrap();
        run(async {
            for store in stores(directory.path(), unbounded()).await {
                let mut updates = updates.clone();
                store.apply(Batch { updates: updates.clone(), ..Batch::default() }).await.unwrap();
                restate(&*store, &mut updates).await;
                assert_eq!(store.overtaken(100).await.unwrap(), []);

                let rebuilt = MemoryStore::new(unbounded());
                rebuilt.apply(Batch { updates: compacted(&updates), ..Batch::default() }).await.unwrap();

                for id in (0..8).map(|n| format!("job-{n}")) {
                    let known = store.get(&id).await.unwrap();
                    if known.as_ref().is_some_and(|known| known.event.is_over()) {
                        assert_eq!(state(known), state(rebuilt.get(&id).await.unwrap()));
                    }
                }
            }
        });
    }
}

/// The state of a job without its offset: compaction keeps the later of two identical records.
fn state(known: Option<Known>) -> Option<(i32, JobEvent)> {
    known.map(|known| (known.partition, known.event))
}

/// Restates overtaken terminal events, as a server does.
async fn restate(store: &dyn Store, updates: &mut Vec<Update>) {
    for overtaken in store.overtaken(100).await.unwrap() {
        let of_partition = updates.iter().filter(|update| update.partition == overtaken.partition);
        let known = of_partition.map(|update| update.offset).max().unwrap();
        let event = serde_json::from_slice(&overtaken.value).unwrap();
        let restated = Some(overtaken.standing.restated(known));
        let logged = LoggedEvent { event, value: overtaken.value, restated };

        let update = Update::new(overtaken.partition, known + 1, logged);
        let verdicts =
            store.apply(Batch { updates: vec![update.clone()], ..Batch::default() }).await.unwrap();
        assert_eq!(verdicts, [Verdict::Again]);

        updates.push(update);
    }
}

/// Keeps only the newest record of every job.
fn compacted(updates: &[Update]) -> Vec<Update> {
    let is_newest = |n: usize, update: &Update| {
        !updates[n + 1..].iter().any(|later| later.job_id == update.job_id)
    };
    let newest = updates.iter().enumerate().filter(|(n, update)| is_newest(*n, update));
    newest.map(|(_, update)| update.clone()).collect()
}

fn ended(n: i64, state: JobState) -> Update {
    let event =
        JobEvent { submitted_at: Some(at(n)), ..JobEvent::new(format!("job-{n}"), state, at(n)) };
    Update::new(0, n, event)
}

#[test]
fn jobs_that_ended_first_are_forgotten_first_and_open_jobs_last() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        for store in stores(directory.path(), Retention { max_jobs: 3, ..unbounded() }).await {
            let states =
                [JobState::Queued, JobState::Succeeded, JobState::Failed, JobState::Running];
            let mut updates: Vec<_> = (1..).zip(states).map(|(n, state)| ended(n, state)).collect();
            updates.push(ended(5, JobState::Running));
            store.apply(Batch { updates, ..Batch::default() }).await.unwrap();

            let all = Query { limit: 10, ..Query::default() };
            assert_eq!(list(&*store, all.clone()).await, ["job-5", "job-4", "job-1"]);

            // Only open jobs are left, so the one submitted first is evicted.
            let batch = Batch { updates: vec![ended(6, JobState::Queued)], ..Batch::default() };
            store.apply(batch).await.unwrap();
            assert_eq!(list(&*store, all).await, ["job-6", "job-5", "job-4"]);

            let forgotten = store.forget(at(0)).await.unwrap();
            assert_eq!((forgotten.ended, forgotten.open), (2, 1));
            assert_eq!(store.forget(at(0)).await.unwrap().ended, 0, "evictions are reported once");

            // Jobs up to the third were forgotten.
            let tallies = store.tallies().await.unwrap();
            assert_eq!(tallies.complete_since, Some(at(4)), "{store:?}");
            assert_eq!(tallies.tallies.iter().map(|tally| tally.jobs).sum::<u64>(), 3);
        }
    });
}

#[test]
fn bytes_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        for store in stores(directory.path(), Retention { max_bytes: 100_000, ..unbounded() }).await
        {
            for n in 0..100 {
                let event = ended(n, JobState::Succeeded).event.unwrap().event;
                let update =
                    Update::new(0, n, JobEvent { result: Some("x".repeat(5_000).into()), ..event });
                store.apply(Batch { updates: vec![update], ..Batch::default() }).await.unwrap();
            }

            let left = list(&*store, Query { limit: 500, ..Query::default() }).await;
            assert!((15..=20).contains(&left.len()), "{}", left.len());
            assert_eq!(left[0], "job-99");
        }
    });
}

#[test]
fn old_ended_jobs_are_forgotten_and_open_jobs_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let retention = Retention { max_age: Duration::from_millis(10), ..unbounded() };
        for store in stores(directory.path(), retention).await {
            let states = [
                JobState::Succeeded,
                JobState::Queued,
                JobState::AwaitingApproval,
                JobState::Expired,
                JobState::Cancelled,
            ];

            let updates = (1..).zip(states).map(|(n, state)| ended(n, state)).collect();
            store.apply(Batch { updates, ..Batch::default() }).await.unwrap();

            let forgotten = store.forget(at(15)).await.unwrap();
            assert_eq!((forgotten.ended, forgotten.open), (2, 0));
            assert_eq!(store.tallies().await.unwrap().complete_since, Some(at(5)));

            let all = Query { limit: 10, ..Query::default() };
            assert_eq!(list(&*store, all).await, ["job-5", "job-3", "job-2"]);

            store.reset().await.unwrap();
            assert_eq!(store.tallies().await.unwrap(), Tallies::default());
        }
    });
}

#[test]
fn a_file_is_reopened_and_emptied_if_the_topic_differs() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let open = |topic: &'static str| SqliteStore::open(directory.path(), topic, unbounded());
        let store = open("t").await.unwrap();

        let positions: BTreeMap<i32, i64> = [(0, 2), (1, 7)].into();
        let updates = vec![ended(1, JobState::Succeeded)];
        store.apply(Batch { updates, positions: positions.clone() }).await.unwrap();
        drop(store);

        let store = open("t").await.unwrap();
        assert_eq!(store.positions().await.unwrap(), positions);
        assert!(store.get("job-1").await.unwrap().is_some());
        drop(store);

        let store = open("u").await.unwrap();
        assert!(store.positions().await.unwrap().is_empty());
        assert_eq!(store.get("job-1").await.unwrap(), None);
    });
}

/// Unpacks a file that the previous version of this crate, with libsql, left behind when its process
/// was killed: all jobs are in the write-ahead log.
fn unpack_file_of_libsql(directory: &Path) {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libsql");
    for name in ["ledger.sqlite", "ledger.sqlite-wal"] {
        let mut packed = GzDecoder::new(File::open(packed.join(format!("{name}.gz"))).unwrap());
        let mut file = File::create(directory.join(name)).unwrap();
        io::copy(&mut packed, &mut file).unwrap();
    }
}

#[test]
fn a_file_of_libsql_is_opened_with_its_jobs() {
    let directory = tempfile::tempdir().unwrap();
    unpack_file_of_libsql(directory.path());

    run(async {
        let topic = "127.0.0.1:19492 mcp-jobs.events";
        let store = SqliteStore::open(directory.path(), topic, unbounded()).await.unwrap();
        assert_eq!(store.positions().await.unwrap(), BTreeMap::from([(0, 6)]));

        let query = Query { limit: MAX_LIMIT, ..Query::default() };
        let page = store.list(&query).await.unwrap();
        let jobs: Vec<_> = page
            .jobs
            .iter()
            .map(|known| (known.offset, known.event.state, known.event.tool.as_deref()))
            .collect();
        let expected = [
            (5, JobState::Failed, Some("files__no_such_tool")),
            (2, JobState::Succeeded, Some("files__file_digest")),
        ];
        assert_eq!(jobs, expected);
        let failed_with = page.jobs[0].event.error.as_ref().unwrap().stable_code().to_owned();

        // What the previous version could not search or count is filled in.
        let failed = JobFilter { error_code: Some(failed_with), ..JobFilter::default() };
        let query = Query { filter: failed, ..query };
        assert_eq!(list(&store, query).await.len(), 1);
        assert_eq!(store.counts().await.unwrap()["failed"], 1);

        // It is written on, too.
        let updates = vec![ended(9, JobState::Succeeded)];
        store.apply(Batch { updates, positions: BTreeMap::new() }).await.unwrap();
        assert_eq!(store.counts().await.unwrap()["succeeded"], 2);
    });
}
