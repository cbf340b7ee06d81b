//! Tests with a registry that refuses, loses and delays writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fleet_policy::{Policy, current::CurrentPolicy};
use futures::{
    FutureExt as _,
    future::{self, BoxFuture},
    stream::BoxStream,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{wanted::Wish, *};
use crate::registry::memory::MemoryRegistry;

fn entry(command: &str) -> ServerEntry {
    ServerEntry::from_value(&json!({ "command": command }), "config").unwrap()
}

async fn eventually(what: &str, check: impl Fn() -> bool) {
    let wait = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn a_refused_server_is_shown_until_its_record_is_removed() {
    let registry = Arc::new(MemoryRegistry::default());
    let bad = Record::new("bad", &entry("rm"));
    registry.put(&bad).await.unwrap();
    registry.put(&Record::new("gone", &entry("rm"))).await.unwrap();
    registry.remove("gone").await.unwrap();
    let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
    let shared = Shared::new(fleet, registry.clone(), Plain::default());
    let stop = CancellationToken::new();
    shared.follow(stop.clone()).unwrap();
    shared.wait_until_read().await;
    eventually("the refusal", || !shared.refused_servers().is_empty()).await;
    let refused = shared.refused_servers();
    assert_eq!(
        (refused.len(), refused[0].name.as_str(), refused[0].state.as_str()),
        (1, "bad", "refused")
    );
    assert!(refused[0].last_error.as_ref().unwrap().contains("rm"), "{refused:?}");

    assert!(shared.remove("bad").await.unwrap());
    assert!(shared.refused_servers().is_empty());
    assert!(!shared.remove("bad").await.unwrap());
    let error = shared.initialize("x", &entry("rm")).await.unwrap_err();
    assert!(
        error.is_permanent() && shared.refused_servers().is_empty(),
        "what is refused here is not shared: {error}"
    );
    stop.cancel();
}

#[tokio::test]
async fn an_unreadable_record_is_shown() {
    let shared = Shared::new(
        Fleet::new(CurrentPolicy::new(Policy::default())),
        Arc::new(MemoryRegistry::default()),
        Plain::default(),
    );
    let stop = CancellationToken::new();
    let unreadable =
        RegistryChange::Unreadable { name: "odd".to_owned(), reason: "no JSON".to_owned() };
    shared.apply_change(unreadable, &stop);
    assert_eq!(shared.refused_servers()[0].last_error.as_deref(), Some("no JSON"));
    shared.apply_change(RegistryChange::Removed { name: "odd".to_owned(), at: None }, &stop);
    assert!(shared.refused_servers().is_empty());
}

#[tokio::test]
async fn an_unreadable_record_does_not_replace_a_readable_one() {
    let shared = Shared::new(
        Fleet::new(CurrentPolicy::new(Policy::default())),
        Arc::new(MemoryRegistry::default()),
        Plain::default(),
    );
    let stop = CancellationToken::new();
    shared.apply_change(RegistryChange::Put(Record::new("s", &entry("x"))), &stop);
    shared.apply_change(
        RegistryChange::Unreadable {
            name: "s".to_owned(),
            reason: "a copy of an event".to_owned(),
        },
        &stop,
    );

    let is_hosted = |wish: &Wish| matches!(wish.goal, Goal::Hosted(_));
    assert!(shared.wanted().wish("s").is_some_and(is_hosted), "the last readable record holds");

    shared.apply_change(RegistryChange::Removed { name: "s".to_owned(), at: None }, &stop);
    assert!(!shared.wanted().wants("s"), "a removal can be read");
}

#[tokio::test]
async fn a_server_of_ones_own_is_tried_at_once_and_a_record_goes_before_it() {
    let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
    let shared = Shared::new(fleet, Arc::new(MemoryRegistry::default()), Plain::default());
    let stop = CancellationToken::new();
    assert!(shared.want("a__b", &entry("x"), &stop).is_err());

    // The registry has not been read, and never will be.
    shared.want("own", &entry("rm"), &stop).unwrap();
    eventually("the refusal", || !shared.refused_servers().is_empty()).await;
    let refused = shared.refused_servers();
    assert_eq!((refused[0].name.as_str(), refused[0].state.as_str()), ("own", "refused"));

    let removal = || RegistryChange::Removed { name: "own".to_owned(), at: None };
    shared.apply_change(removal(), &stop);
    assert!(shared.wanted().has_own("own"), "an old removal is not about this wish");

    shared.apply_change(RegistryChange::Put(Record::new("own", &entry("y"))), &stop);
    shared.want("own", &entry("z"), &stop).unwrap();
    let wanted = shared.wanted().wish("own").map(|wish| wish.goal.clone());
    assert!(matches!(wanted, Some(Goal::Hosted(wanted)) if wanted == entry("y")));
    stop.cancel();
}

#[tokio::test]
async fn a_server_of_ones_own_can_be_removed() {
    let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
    let shared = Shared::new(fleet, Arc::new(MemoryRegistry::default()), Plain::default());
    let stop = CancellationToken::new();
    shared.want("own", &entry("rm"), &stop).unwrap();
    shared.follow(stop.clone()).unwrap();
    shared.wait_until_read().await;

    eventually("the refusal", || !shared.refused_servers().is_empty()).await;
    assert!(shared.remove("own").await.unwrap());
    assert!(!shared.wanted().wants("own") && shared.refused_servers().is_empty());
    assert!(!shared.remove("own").await.unwrap());
    stop.cancel();
}

/// A shared registry that is read, answers and accepts writes only if the test lets it.
#[derive(Debug, Default)]
struct Fickle {
    watcher: Mutex<Option<mpsc::UnboundedSender<RegistryChange>>>,
    asked: AtomicU64,
    answers: AtomicBool,
    takes: AtomicBool,
    can_not_be_followed: AtomicBool,
    tries: AtomicU64,
}

impl Fickle {
    fn tell(&self, change: RegistryChange) {
        let watcher = self.watcher.lock();
        watcher.as_ref().unwrap().send(change).unwrap();
    }

    fn write(&self, change: RegistryChange) -> BoxFuture<'static, Result<(), RegistryError>> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        let result = if self.takes.load(Ordering::Relaxed) {
            self.tell(change);
            Ok(())
        } else {
            Err(RegistryError::NotRead)
        };
        future::ready(result).boxed()
    }

    /// Reports that the registry has been read, and answers from now on.
    fn is_read(&self) {
        self.answers.store(true, Ordering::Relaxed);
        self.tell(RegistryChange::CaughtUp(self.asked.load(Ordering::Relaxed)));
    }
}

impl Registry for Fickle {
    fn is_shared(&self) -> bool {
        true
    }

    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>> {
        self.write(RegistryChange::Put(record.clone()))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>> {
        self.write(RegistryChange::Removed {
            name: name.to_owned(),
            at: Some(fleet_ops::clock::now()),
        })
    }

    fn watch(&self) -> Result<BoxStream<'static, RegistryChange>, RegistryError> {
        if self.can_not_be_followed.load(Ordering::Relaxed) {
            return Err(RegistryError::NotRead);
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.watcher.lock() = Some(sender);
        Ok(UnboundedReceiverStream::new(receiver).boxed())
    }

    fn catch_up(&self) -> u64 {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.answers.load(Ordering::Relaxed) {
            self.tell(RegistryChange::CaughtUp(asked));
        }
        asked
    }
}

/// Otherwise the server would wait forever for the registry to be read.
#[tokio::test]
async fn a_registry_that_can_not_be_followed_is_an_error() {
    let registry = Fickle { can_not_be_followed: true.into(), ..Fickle::default() };
    let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
    let shared = Shared::new(fleet, Arc::new(registry), Plain::default());
    assert!(shared.follow(CancellationToken::new()).is_err());
}

/// Creates such a registry and a fleet that follows it with short timeouts and may start nothing.
fn fickle() -> (Arc<Fickle>, Arc<Shared>) {
    let registry = Arc::new(Fickle::default());
    let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
    let wait = Duration::from_millis(100);
    let patience = Patience { catch_up: wait, write: wait };
    let shared = Shared::with_patience(fleet, registry.clone(), Plain::default(), patience);
    let shared = Arc::new(shared);
    shared.follow(CancellationToken::new()).unwrap();
    (registry, shared)
}

async fn is_awaited(shared: &Shared, name: &str, word: &str) {
    match shared.look_for(name).await {
        Presence::Awaited { reason, retry_after } => {
            assert!(reason.contains(word), "{reason}");
            assert!(!retry_after.is_zero());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_is_unknown_only_after_the_registry_was_read() {
    let (registry, shared) = fickle();
    is_awaited(&shared, "x", "has not been read yet").await;
    let error = shared.initialize("x", &entry("rm")).await.unwrap_err();
    assert!(error.outage().is_some() && !error.is_permanent(), "{error}");

    registry.is_read();
    shared.wait_until_read().await;
    assert_eq!(shared.look_for("x").await, Presence::Unknown);
    // A registry that does not answer may have been written since.
    registry.answers.store(false, Ordering::Relaxed);
    is_awaited(&shared, "x", "does not answer").await;
    // A wanted server that policy refuses is known, whatever the registry does.
    registry.tell(RegistryChange::Put(Record::new("x", &entry("rm"))));
    eventually("the refusal", || !shared.refused_servers().is_empty()).await;
    is_awaited(&shared, "x", "policy refuses").await;

    registry.is_read();
    registry.tell(RegistryChange::Removed { name: "x".to_owned(), at: None });
    eventually("the removal", || shared.refused_servers().is_empty()).await;
    assert_eq!(shared.look_for("x").await, Presence::Unknown);
}

#[tokio::test]
async fn a_failed_write_is_repeated() {
    let (registry, shared) = fickle();
    registry.is_read();
    shared.wait_until_read().await;
    registry.tell(RegistryChange::Put(Record::new("x", &entry("rm"))));
    eventually("the refusal", || !shared.refused_servers().is_empty()).await;

    let error = shared.remove("x").await.unwrap_err();
    assert!(matches!(error, ShareError::Unwritten { .. }), "{error}");
    assert!(error.outage().is_some() && !error.is_permanent(), "{error}");
    let sharing = shared.statuses()[0].sharing.clone().unwrap();
    assert_eq!(sharing.state, "removal-unwritten");
    assert!(sharing.failures > 0 && sharing.last_error.is_some(), "{sharing:?}");

    // The record is written without another request.
    registry.takes.store(true, Ordering::Relaxed);
    eventually("the removal", || shared.statuses().is_empty()).await;
    assert_eq!(shared.writes().len(), 0);
    let tries = registry.tries.load(Ordering::Relaxed);
    assert!(tries >= 2, "{tries}");
}

#[tokio::test]
async fn a_late_record_does_not_undo_a_newer_open_write() {
    let (registry, shared) = fickle();
    let old = Record::new("x", &entry("old"));
    registry.is_read();
    shared.wait_until_read().await;

    let ours = Record {
        written_at: old.written_at.plus(Duration::from_secs(1)),
        ..Record::new("x", &entry("new"))
    };
    let write = Write::Put(Box::new(ours.clone()));
    let error = shared.share_write("x", write).await.unwrap_err();
    assert!(matches!(error, ShareError::Unwritten { .. }), "{error}");
    registry.tell(RegistryChange::Put(old));
    registry.tell(RegistryChange::Put(Record::new("y", &entry("rm"))));
    eventually("what was told after it", || !shared.refused_servers().is_empty()).await;
    assert!(!shared.wanted().wants("x"));

    // A newer record of another replica replaces the open write.
    let newer = Record { written_at: ours.written_at.plus(Duration::from_secs(1)), ..ours };
    registry.tell(RegistryChange::Put(Record { revision: "another".to_owned(), ..newer }));
    eventually("the newer word", || shared.wanted().wants("x")).await;
    assert_eq!(shared.writes().len(), 0);
}
