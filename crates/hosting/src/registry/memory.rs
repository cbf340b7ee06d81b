//! A registry in the memory of one process.

use std::collections::BTreeMap;

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Record, Registry, RegistryChange, RegistryError};

/// Records in memory.
#[derive(Debug, Default)]
pub struct MemoryRegistry {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Record>,
    watcher: Option<mpsc::UnboundedSender<RegistryChange>>,
    asked: u64,
}

impl State {
    fn send_change(&self, change: RegistryChange) {
        if let Some(watcher) = &self.watcher {
            // There may be no watcher any more.
            _ = watcher.send(change);
        }
    }
}

impl MemoryRegistry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Registry for MemoryRegistry {
    fn is_shared(&self) -> bool {
        false
    }

    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>> {
        let mut state = self.lock();
        state.records.insert(record.name.clone(), record.clone());
        state.send_change(RegistryChange::Put(record.clone()));
        futures::future::ready(Ok(())).boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>> {
        let mut state = self.lock();
        if state.records.remove(name).is_some() {
            state.send_change(RegistryChange::Removed { name: name.to_owned(), at: None });
        }
        futures::future::ready(Ok(())).boxed()
    }

    fn watch(&self) -> Result<BoxStream<'static, RegistryChange>, RegistryError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        state.watcher = Some(sender);
        state
            .records
            .values()
            .for_each(|record| state.send_change(RegistryChange::Put(record.clone())));
        state.send_change(RegistryChange::CaughtUp(state.asked));
        Ok(UnboundedReceiverStream::new(receiver).boxed())
    }

    fn catch_up(&self) -> u64 {
        let mut state = self.lock();
        state.asked += 1;
        state.send_change(RegistryChange::CaughtUp(state.asked));
        state.asked
    }
}
