//! What the ledger in PostgreSQL does beyond the contract of all stores: replicas share it, and the
//! database can go away, be restored, or belong to another fleet.

#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::{
    collections::BTreeMap,
    env,
    process::{Command, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use fleet_job::{
    event::{JobEvent, JobState, Source},
    filter::JobFilter,
    state::Verdict,
    time::Timestamp,
};
use fleet_ledger::{
    Batch, DatabaseUrl, Known, LogId, MemoryStore, PostgresStore, Query, Retention, Store,
    StoreError, Tally, Update, query::Visibility, testing::Cluster,
};
use fleet_ops::tls::testing::Authority;
use proptest::prelude::*;
use serde_json::json;
use tokio_postgres::NoTls;

static CLUSTER: LazyLock<Option<Cluster>> = LazyLock::new(Cluster::start);

const STATES: [JobState; 4] =
    [JobState::Queued, JobState::Running, JobState::Succeeded, JobState::Failed];
/// How long a test waits for something.
const LONG: Duration = Duration::from_secs(60);

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis_clamped(ms)
}

fn unbounded() -> Retention {
    Retention { max_age: Duration::from_secs(1 << 40), max_jobs: usize::MAX, max_bytes: u64::MAX }
}

fn open(url: &str) -> PostgresStore {
    PostgresStore::new(&DatabaseUrl::parse(url).unwrap(), unbounded())
}

fn log(topic_id: &str) -> LogId {
    LogId {
        topic: "mcp-jobs.events".to_owned(),
        cluster_id: Some("c".to_owned()),
        topic_id: Some(topic_id.to_owned()),
    }
}

fn event(partition: i32, offset: i64, job: &str, state: JobState) -> Update {
    let source = Source { topic: "mcp-jobs".to_owned(), topic_id: None, partition, offset: 0 };
    Update::new(
        partition,
        offset,
        JobEvent {
            submitted_at: Some(at(1)),
            source: Some(source),
            result: state.is_terminal().then(|| json!({"offset": offset})),
            ..JobEvent::new(job, state, at(offset))
        },
    )
}

/// A batch of updates with the positions behind them.
fn batch(updates: &[Update]) -> Batch {
    let positions = updates.iter().map(|update| (update.partition, update.offset + 1)).collect();
    Batch { updates: updates.to_vec(), positions }
}

/// Everything that a store says of its jobs.
async fn contents(store: &dyn Store) -> (Vec<Known>, Vec<Known>, Vec<Tally>) {
    let visibility = Visibility::new(|_, _| true);
    let query = Query { limit: 500, visibility, ..Query::default() };
    let filter = JobFilter { id_prefix: Some("job-1\0".to_owned()), ..JobFilter::default() };
    let searched = store.list(&Query { filter, ..query.clone() }).await.unwrap().jobs;

    let page = store.list(&query).await.unwrap();
    let mut jobs = Vec::new();
    for known in page.jobs {
        jobs.push(store.get(&known.event.job_id).await.unwrap().unwrap());
    }

    let mut tallies = store.tallies().await.unwrap().tallies;
    tallies.sort_by_key(|tally| (tally.state.as_str(), tally.owner.clone(), tally.tenant.clone()));
    (jobs, searched, tallies)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What one of two replicas does next.
#[derive(Debug, Clone)]
enum Step {
    /// It applies this many of the records that it has not applied yet.
    Apply(usize, usize),
    /// It is killed, and starts again.
    Restart(usize),
    /// It loses its connections, opens the log again, and applies.
    Reopen(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2usize, 1..12usize).prop_map(|(replica, records)| Step::Apply(replica, records)),
        1 => (0..2usize).prop_map(Step::Restart),
        1 => (0..2usize).prop_map(Step::Reopen),
    ];
    prop::collection::vec(step, 0..20)
}

fn records() -> impl Strategy<Value = Vec<Update>> {
    let record = (0..6u8, 0..9u8, 0..3i64, 0..3u8);
    prop::collection::vec(record, 0..50).prop_map(|records| {
        let mut ends = BTreeMap::new();
        let place = |(job, state, source, who): (u8, u8, i64, u8)| {
            let partition = i32::from(job % 3);
            let offset: &mut i64 = ends.entry(partition).or_default();
            *offset += 1;
            // Names with what PostgreSQL refuses in texts.
            let job_id = format!("job-{job}\0\u{1}");
            let Some(state) = STATES.get(usize::from(state % 4)).filter(|_| state < 8) else {
                return Update { partition, offset: *offset, job_id, event: None };
            };
            let mut update = event(partition, *offset, &job_id, *state);
            if let Some(logged) = &mut update.event {
                let event = &mut logged.event;
                event.tenant = (who == 1).then(|| "a\0b".to_owned());
                event.owner = (who == 2).then(|| "me\u{1}0".to_owned());
                event.tool = Some("a-tool ".repeat(usize::from(who) * 100));
                event.source = (*state != JobState::Queued).then(|| Source {
                    topic: "mcp-jobs".to_owned(),
                    topic_id: None,
                    partition: 0,
                    offset: source,
                });
                logged.value = event.to_bytes();
            }
            update
        };
        records.into_iter().map(place).collect()
    })
}

/// One replica with what it has read of the log.
struct Replica {
    store: PostgresStore,
    read: usize,
}

impl Replica {
    async fn start(url: &str, log: &[Update]) -> Self {
        let mut replica = Self { store: open(url), read: 0 };
        replica.reopen(log).await;
        replica
    }

    /// Begins where the store says. The log is one sequence here, so that is its first record that
    /// is not covered.
    async fn reopen(&mut self, updates: &[Update]) {
        let positions = self.store.resume(&log("1")).await.unwrap();
        let is_new = |update: &Update| {
            positions.get(&update.partition).is_none_or(|next| update.offset >= *next)
        };
        self.read = updates.iter().position(is_new).unwrap_or(updates.len());
    }

    async fn apply(&mut self, log: &[Update], records: usize) {
        let end = (self.read + records).min(log.len());
        self.store.apply(batch(&log[self.read..end])).await.unwrap();
        self.read = end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever two replicas apply in whatever order, again or after a restart, the state is the one
    /// that a single store has that reads the log once.
    #[test]
    fn replicas_come_to_the_state_of_a_single_store(log in records(), steps in steps()) {
        let Some(cluster) = &*CLUSTER else { return Ok(()) };
        runtime().block_on(async {
            let memory = MemoryStore::new(unbounded());
            memory.apply(batch(&log)).await.unwrap();

            let url = cluster.create_schema();
            let mut replicas = [Replica::start(&url, &log).await, Replica::start(&url, &log).await];
            for step in steps {
                match step {
                    Step::Apply(replica, records) => replicas[replica].apply(&log, records).await,
                    Step::Restart(replica) => replicas[replica] = Replica::start(&url, &log).await,
                    Step::Reopen(replica) => replicas[replica].reopen(&log).await,
                }
            }
            for replica in &mut replicas {
                replica.apply(&log, log.len()).await;
                assert_eq!(contents(&replica.store).await, contents(&memory).await);
            }
        });
    }
}

/// Every replica passes on the same events, whoever of them wrote the jobs.
#[test]
fn replicas_judge_records_alike() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let updates = [
            event(0, 1, "a", JobState::Queued),
            event(0, 2, "a", JobState::Running),
            event(0, 3, "a", JobState::Succeeded),
            event(0, 4, "a", JobState::Running),
            event(0, 5, "b", JobState::Running),
        ];
        let (first, second) = (open(&url), open(&url));
        let expected =
            [Verdict::State, Verdict::State, Verdict::State, Verdict::Stale, Verdict::State];
        assert_eq!(first.apply(batch(&updates)).await.unwrap(), expected);
        assert_eq!(second.apply(batch(&updates)).await.unwrap(), expected);
    });
}

/// Owners whose jobs are gone leave no row behind.
#[test]
fn counts_of_nothing_are_not_kept() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    let owned = |partition, offset, job: &str, state| {
        let mut update = event(partition, offset, job, state);
        if let Some(logged) = &mut update.event {
            logged.event.owner = Some(format!("owner of {job}"));
            logged.value = logged.event.to_bytes();
        }
        update
    };

    runtime().block_on(async {
        let retention = Retention { max_age: Duration::from_millis(10), ..unbounded() };
        let store = PostgresStore::new(&DatabaseUrl::parse(&url).unwrap(), retention);
        let updates = [
            owned(0, 1, "a", JobState::Queued),
            owned(0, 2, "a", JobState::Running),
            owned(1, 3, "b", JobState::Succeeded),
            owned(1, 50, "c", JobState::Succeeded),
        ];
        for update in &updates {
            store.apply(batch(std::slice::from_ref(update))).await.unwrap();
        }
        let rows = || {
            cluster.query(&url, "SELECT string_agg(owner, ', ' ORDER BY owner) FROM ledger_counts")
        };
        assert_eq!(rows(), "owner of a, owner of b, owner of c");

        let removed = Update { partition: 0, offset: 3, job_id: "a".to_owned(), event: None };
        store.apply(batch(&[removed])).await.unwrap();
        assert_eq!(store.forget(at(50)).await.unwrap().ended, 1);
        assert_eq!(rows(), "owner of c");

        // What the log has removed is not forgotten.
        let tallies = store.tallies().await.unwrap();
        assert_eq!(tallies.complete_since, Some(at(4)));
        assert_eq!(tallies.tallies.len(), 1);
    });
}

/// Applies the long log in small batches; for a process that is killed meanwhile.
fn project_long_log(url: &str) {
    runtime().block_on(async {
        let store = open(url);
        store.resume(&log("1")).await.unwrap();
        for portion in long_log().chunks(10) {
            store.apply(batch(portion)).await.unwrap();
        }
    });
}

fn long_log() -> Vec<Update> {
    let record = |n: i64| {
        let (job, state) = (format!("job-{}", n / 4 % 40), STATES[usize::try_from(n % 4).unwrap()]);
        event(i32::try_from(n / 4 % 2).unwrap(), n, &job, state)
    };
    (0..4_000).map(record).collect()
}

#[test]
fn a_projector_takes_over_from_one_that_is_killed() {
    // The test starts itself as the projector that is killed.
    if let Ok(url) = env::var("FLEET_TEST_DATABASE") {
        project_long_log(&url);
        return;
    }
    let Some(cluster) = &*CLUSTER else { return };
    let log = long_log();
    runtime().block_on(async {
        let memory = MemoryStore::new(unbounded());
        memory.apply(batch(&log)).await.unwrap();
        let expected = contents(&memory).await;

        for _ in 0..2 {
            let url = cluster.create_database();
            let store = open(&url);
            let positions = store.resume(&self::log("1")).await.unwrap();
            assert_eq!(positions, BTreeMap::new());

            let mut other = Command::new(env::current_exe().unwrap())
                .args(["--exact", "a_projector_takes_over_from_one_that_is_killed"])
                .env("FLEET_TEST_DATABASE", &url)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let mut portions = log.chunks(25);
            let deadline = Instant::now() + LONG;
            // Both project, until the other one has written something that we have not.
            loop {
                assert!(Instant::now() < deadline, "the other projector did nothing");
                let ahead: i64 = store.positions().await.unwrap().values().sum();
                if ahead > 200 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            for portion in portions.by_ref().take(20) {
                store.apply(batch(portion)).await.unwrap();
            }
            other.kill().unwrap();
            for portion in portions {
                store.apply(batch(portion)).await.unwrap();
            }
            other.wait().unwrap();
            assert_eq!(contents(&store).await, expected);
        }
    });
}

/// A projector that holds a partition and stops is cut off by the database.
#[test]
fn a_projector_takes_over_from_one_that_hangs() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let store = open(&url);
        store.apply(batch(&[event(0, 1, "a", JobState::Queued)])).await.unwrap();

        let (hanging, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        hanging
            .batch_execute(
                "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '1s';
                 SELECT * FROM ledger_positions FOR UPDATE",
            )
            .await
            .unwrap();

        store.apply(batch(&[event(0, 2, "a", JobState::Succeeded)])).await.unwrap();
        assert_eq!(store.counts().await.unwrap()["succeeded"], 1);
        assert!(hanging.batch_execute("COMMIT").await.is_err(), "it has been cut off");
    });
}

/// After a restore or a failover, the database may lack what the reader has applied.
#[test]
fn what_the_database_has_lost_is_read_again() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let store = open(&url);
        let updates: Vec<_> = (0..10).map(|n| event(0, n, "a", STATES[n as usize % 2])).collect();
        store.resume(&log("1")).await.unwrap();
        store.apply(batch(&updates[..8])).await.unwrap();

        cluster.query(&url, "UPDATE ledger_positions SET next = 4");
        let error = store.apply(batch(&updates[8..])).await.unwrap_err();
        assert!(matches!(error, StoreError::WentBack { partition: 0 }), "{error}");
        assert!(error.is_unavailable());
        assert_eq!(store.resume(&log("1")).await.unwrap(), BTreeMap::from([(0, 4)]));
        store.apply(batch(&updates[4..])).await.unwrap();

        // A reader that is behind the others goes on where it was.
        let other = open(&url);
        other.resume(&log("1")).await.unwrap();
        other.apply(batch(&[event(0, 10, "b", JobState::Running)])).await.unwrap();
        assert_eq!(store.positions().await.unwrap(), BTreeMap::from([(0, 11)]));
        assert_eq!(store.resume(&log("1")).await.unwrap(), BTreeMap::from([(0, 10)]));

        // Everything is gone, tables included.
        cluster.query(&url, "DROP TABLE ledger_jobs, ledger_positions, ledger_counts, ledger_log, ledger_migrations");
        assert!(store.get("a").await.unwrap_err().is_unavailable());
        assert_eq!(store.resume(&log("1")).await.unwrap(), BTreeMap::new());
        store.apply(batch(&updates)).await.unwrap();
        assert!(store.get("a").await.unwrap().is_some());
    });
}

#[test]
fn another_log_empties_the_ledger_unless_somebody_follows_the_old_one() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let (ours, theirs) = (open(&url), open(&url));
        let update = [event(0, 7, "a", JobState::Succeeded)];
        for store in [&ours, &theirs] {
            store.resume(&log("1")).await.unwrap();
            store.apply(batch(&update)).await.unwrap();
        }

        // The topic was made again.
        assert_eq!(ours.resume(&log("2")).await.unwrap(), BTreeMap::new());
        assert_eq!(ours.get("a").await.unwrap(), None);
        let error = theirs.apply(batch(&[event(0, 8, "a", JobState::Queued)])).await.unwrap_err();
        assert!(matches!(error, StoreError::Emptied), "{error}");

        // The topic of another cluster.
        let foreign = LogId { cluster_id: Some("d".to_owned()), ..log("2") };
        let error = theirs.resume(&foreign).await.unwrap_err();
        assert!(matches!(error, StoreError::Contested { .. }), "{error}");
        ours.apply(batch(&update)).await.unwrap();
        assert!(theirs.get("a").await.unwrap().is_some(), "nothing was emptied");

        cluster.query(&url, "UPDATE ledger_log SET seen_at = now() - interval '2 minutes'");
        ours.forget(at(0)).await.unwrap();
        assert!(theirs.resume(&foreign).await.is_err(), "ours has shown a sign of life");
        cluster.query(&url, "UPDATE ledger_log SET seen_at = now() - interval '2 minutes'");
        assert_eq!(theirs.resume(&foreign).await.unwrap(), BTreeMap::new());
        assert_eq!(theirs.get("a").await.unwrap(), None);

        // What the other fleet has in there is not shown as ours.
        theirs.apply(batch(&update)).await.unwrap();
        let error = ours.get("a").await.unwrap_err();
        assert!(matches!(error, StoreError::Contested { .. }), "{error}");
        assert!(ours.list(&Query::default()).await.unwrap_err().is_unavailable());
        assert!(ours.forget(at(0)).await.is_ok());
    });
}

/// Only the first of several replicas that find the log truncated empties the ledger.
#[test]
fn a_reset_does_not_take_what_another_replica_has_read_since() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let (first, second) = (open(&url), open(&url));
        let update = [event(0, 7, "a", JobState::Succeeded)];
        for store in [&first, &second] {
            store.resume(&log("1")).await.unwrap();
            store.apply(batch(&update)).await.unwrap();
        }

        first.reset().await.unwrap();
        first.apply(batch(&update)).await.unwrap();
        second.reset().await.unwrap();
        assert!(first.get("a").await.unwrap().is_some());
        second.apply(batch(&update)).await.unwrap();
    });
}

#[test]
fn replicas_that_start_together_make_the_tables_once() {
    let Some(cluster) = &*CLUSTER else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let stores: Vec<_> = (0..6).map(|_| open(&url)).collect();
        let started = stores.iter().map(|store| {
            let store = store.clone();
            tokio::spawn(async move { store.counts().await.unwrap() })
        });
        for started in started.collect::<Vec<_>>() {
            assert_eq!(started.await.unwrap()["queued"], 0);
        }
        assert_eq!(cluster.query(&url, "SELECT count(*) FROM ledger_migrations"), "1");

        cluster.query(&url, "INSERT INTO ledger_migrations (number) VALUES (99)");
        let error = open(&url).counts().await.unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
    });
}

#[test]
fn a_database_that_is_away_is_an_error_until_it_is_back() {
    let Some(mut cluster) = Cluster::with_password() else { return };
    let url = cluster.create_database();
    runtime().block_on(async {
        let store = open(&url);
        let updates: Vec<_> = (0..40).map(|n| event(0, n, "a", STATES[n as usize % 2])).collect();
        store.resume(&log("1")).await.unwrap();
        store.apply(batch(&updates[..20])).await.unwrap();

        let wrong = open(&url.replace("hunter2", "hunter3"));
        let error = wrong.get("a").await.unwrap_err();
        assert!(error.is_unavailable(), "{error:?}");
        assert!(!format!("{error:?} {wrong:?}").contains("hunter"), "{error:?}");

        cluster.kill();
        let error = store.get("a").await.unwrap_err();
        assert!(error.is_unavailable(), "{error:?}");
        assert!(store.apply(batch(&updates[20..])).await.unwrap_err().is_unavailable());

        cluster.run();
        let positions = store.resume(&log("1")).await.unwrap();
        let next = usize::try_from(positions.get(&0).copied().unwrap_or_default()).unwrap();
        assert!(next <= 20, "{positions:?}");
        store.apply(batch(&updates[next..])).await.unwrap();
        assert_eq!(store.get("a").await.unwrap().unwrap().offset, 39);
    });
}

#[test]
fn connections_are_secured_as_sslmode_says() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new(directory.path(), "ours");
    let foreign = Authority::new(directory.path(), "foreign");
    let Some(cluster) = Cluster::with_tls(&ours.issue("server", "DNS:localhost")) else { return };

    runtime().block_on(async {
        let connects = async |host: &str, parameters: &str| {
            let store = open(&format!("{}?{parameters}", cluster.tls_url(host)));
            let result = store.counts().await;
            assert!(result.as_ref().err().is_none_or(StoreError::is_unavailable), "{result:?}");
            result.is_ok()
        };
        let trusted = format!("sslrootcert={}", ours.certificate().display());
        let untrusted = format!("sslrootcert={}", foreign.certificate().display());

        assert!(!connects("localhost", "sslmode=disable").await, "the server wants TLS");
        assert!(connects("localhost", "").await);
        assert!(connects("localhost", "sslmode=require").await);
        assert!(!connects("localhost", &format!("sslmode=require&{untrusted}")).await);
        assert!(connects("127.0.0.1", &format!("sslmode=verify-ca&{trusted}")).await);
        assert!(!connects("127.0.0.1", &format!("sslmode=verify-full&{trusted}")).await);
        assert!(connects("localhost", &format!("sslmode=verify-full&{trusted}")).await);
        assert!(!connects("localhost", &format!("sslmode=verify-full&{untrusted}")).await);
        assert!(!connects("localhost", "sslmode=verify-full").await, "not a public authority");
        assert!(!connects("localhost", "sslmode=verify-full&sslrootcert=/none").await);
    });
}
