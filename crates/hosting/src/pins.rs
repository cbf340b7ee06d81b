//! Pins of hosted servers' tools in this process: judges what servers offer, and keeps the pins in a
//! compacted topic that replicas share, or in memory.
//!
//! What is decided is in [`fleet_pins`], which does no IO. The judgement is made whenever the routes
//! are built: a tool that is withheld has none, so it is neither listed nor called, and keeps its
//! name, so that no other tool gets its calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fleet_job::{record::RawRecord, tool_name, topics::pins_topic};
use fleet_kafka::{KafkaError, link::Link};
use fleet_ops::{clock, errors::chain};
use fleet_pins::{
    DecideError, Definition, Digest, PinDecision, PinMode, ServerPins, Sight, Standing,
    diff::find_changes, judge,
};
use fleet_policy::pins::PinPolicy;
use fleet_retry::{Backoff, Retry};
use futures::StreamExt as _;
use parking_lot::RwLock;
use rmcp::model::Tool;
use serde_json::Value;
use tokio::{
    sync::{Mutex, Notify, mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Fleet,
    catalog::Catalog,
    compacted::{CompactedTopic, Reading},
    metrics::{TOOLS_UNAPPROVED, TOOLS_WITHHELD},
};

mod review;

pub use review::{PinReview, ToolReview};

/// How long a decision may wait for its record to be kept.
const WRITE: Duration = Duration::from_secs(10);
/// The waits between attempts to write a record.
const RETRIES: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };
/// The most servers whose pins are kept, as many as the registry has.
const MAX_SERVERS: usize = 1000;
/// The most changes that are remembered as reported.
const MAX_REPORTED: usize = 10_000;

/// The pins of all servers.
#[derive(Debug)]
pub(crate) struct Pins {
    state: RwLock<State>,
    topic: RwLock<Option<Arc<CompactedTopic>>>,
    /// The servers whose pins are to be written.
    unwritten: (mpsc::UnboundedSender<String>, Mutex<mpsc::UnboundedReceiver<String>>),
    /// Held while a decision is made.
    deciding: Mutex<()>,
    /// Tells that the policy has changed.
    policy_changed: Notify,
    is_read: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    servers: BTreeMap<String, ServerPins>,
    /// What the log has reported already.
    reported: BTreeSet<(String, String, Digest)>,
}

/// The tools that are withheld, by server and own name.
pub(crate) type Withheld = BTreeMap<(String, String), Standing>;

/// Why nothing was decided about a tool.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No such server is hosted.
    #[error("no server of this name is hosted")]
    NoServer,
    /// The server has no such tool.
    #[error("the server has no such tool now")]
    NoTool,
    /// Nothing is pinned.
    #[error("the policy file pins no tools of this server")]
    Off,
    /// Only the policy file may allow it.
    #[error("only a [[pin]] of the policy file can allow other definitions of this tool")]
    ByFile,
    /// The tool is not what was seen, or there is nothing to decide.
    #[error(transparent)]
    Decide(#[from] DecideError),
    /// The pins have not been read yet.
    #[error("the pins have not been read yet; try again")]
    Unread,
    /// The decision could not be kept.
    #[error("the decision could not be kept: {0}")]
    Unwritten(String),
}

/// A change of the topic.
enum PinChange {
    Put(String, ServerPins),
    Removed(String),
    CaughtUp,
}

impl Default for Pins {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            state: RwLock::default(),
            topic: RwLock::default(),
            unwritten: (sender, Mutex::new(receiver)),
            deciding: Mutex::default(),
            policy_changed: Notify::new(),
            // In memory, there is nothing to read.
            is_read: watch::Sender::new(true),
        }
    }
}

impl Pins {
    /// Judges what servers offer. Returns the tools that are withheld, and pins those of servers that
    /// are seen for the first time.
    pub(crate) fn examine(&self, policy: &PinPolicy, catalogs: &[(String, Catalog)]) -> Withheld {
        let mut withheld = Withheld::new();
        for (server, catalog) in catalogs {
            let mode = policy.mode_of(server);
            if mode == PinMode::Off {
                continue;
            }

            let definitions = definitions_of(&catalog.tools);
            self.pin_first_sight(server, &definitions);
            for (tool, definition) in definitions {
                let (digest, of_file) = (definition.digest(), policy.digests_of(server, &tool));
                let judged =
                    self.with_sight(server, |sight| judge(mode, sight, of_file, &tool, &digest));
                if judged.standing.is_unapproved() {
                    self.report(server, &tool, digest, judged.standing);
                }
                if judged.is_withheld {
                    withheld.insert((server.clone(), tool), judged.standing);
                }
            }
        }
        metrics::gauge!(TOOLS_WITHHELD.name).set(withheld.len() as f64);
        withheld
    }

    /// Tells that another policy is in force.
    pub(crate) fn note_policy(&self) {
        self.policy_changed.notify_one();
    }

    fn is_read(&self) -> bool {
        *self.is_read.borrow()
    }

    fn with_sight<R>(&self, server: &str, look: impl FnOnce(Sight<'_>) -> R) -> R {
        if !self.is_read() {
            return look(Sight::Unread);
        }
        let state = self.state.read();
        match state.servers.get(server) {
            // Nobody could tell later whether it has changed.
            None if state.servers.len() >= MAX_SERVERS => look(Sight::Unread),
            pins => look(Sight::Read(pins)),
        }
    }

    /// Pins the tools of a server that is seen for the first time as they are.
    fn pin_first_sight(&self, server: &str, definitions: &[(String, Definition)]) {
        if definitions.is_empty() || !self.is_read() {
            return;
        }
        let mut state = self.state.write();
        let is_known = state.servers.get(server).is_some_and(|pins| !pins.is_empty());
        if is_known || state.servers.len() >= MAX_SERVERS {
            return;
        }

        let tools = definitions.iter().map(|(tool, known)| (tool.as_str(), known.clone()));
        state.servers.insert(server.to_owned(), ServerPins::first_seen(tools, clock::now()));
        tracing::info!(server, tools = definitions.len(), "pinned the tools of a hosted server");
        // The receiver lives as long as `self`.
        _ = self.unwritten.0.send(server.to_owned());
    }

    fn report(&self, server: &str, tool: &str, digest: Digest, standing: Standing) {
        let mut state = self.state.write();
        if state.reported.len() >= MAX_REPORTED {
            state.reported.clear();
        }
        let change = (server.to_owned(), tool.to_owned(), digest);
        if state.reported.contains(&change) {
            return;
        }

        let (standing, digest) = (standing.as_str(), change.2.as_str());
        metrics::counter!(TOOLS_UNAPPROVED.name, "standing" => standing).increment(1);
        tracing::warn!(
            server,
            tool,
            standing,
            digest,
            "a tool of a hosted server is not as pinned; look at it with `mcp-fleet servers pins diff`"
        );
        state.reported.insert(change);
    }
}

/// The definitions of tools by their own names. Of several tools with one name, the first is offered.
fn definitions_of(tools: &[Tool]) -> Vec<(String, Definition)> {
    let mut names = BTreeSet::new();
    let first = tools.iter().filter(|tool| names.insert(tool.name.clone()));
    first.map(|tool| (tool.name.to_string(), definition_of(tool))).collect()
}

fn definition_of(tool: &Tool) -> Definition {
    match serde_json::to_value(tool) {
        Ok(Value::Object(members)) => Definition::of(members),
        // What came as JSON becomes JSON again.
        _ => Definition::default(),
    }
}

impl Fleet {
    /// Keeps pins in a topic beside that of the registry. Must be called before servers are hosted.
    /// Tools of servers that have to be pinned are withheld until the topic has been read.
    pub fn keep_pins(self: &Arc<Self>, link: Link, registry: &str, stop: CancellationToken) {
        let topic = CompactedTopic::new(link, &pins_topic(registry), "pins");
        let topic = Arc::new(topic);
        *self.pins.topic.write() = Some(topic.clone());
        self.pins.is_read.send_replace(false);

        let this = self.clone();
        tokio::spawn(async move {
            let keep = async {
                // Whoever pins nothing needs no topic.
                while !this.policy().pins.is_on() {
                    this.pins.policy_changed.notified().await;
                }
                tokio::join!(this.follow_pins(&topic), this.write_first_sights(&topic));
            };
            tokio::select! {
                () = keep => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Waits until the pins have been read, if there are any to be read.
    pub async fn wait_for_pins(&self) {
        if self.policy().pins.is_on() {
            // The sender lives as long as `self`.
            _ = self.pins.is_read.subscribe().wait_for(|is_read| *is_read).await;
        }
    }

    async fn follow_pins(&self, topic: &CompactedTopic) {
        let reading = Reading { read: read_record, caught_up: |_| PinChange::CaughtUp };
        let mut changes = match topic.watch(reading) {
            Ok(changes) => changes,
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "could not follow the pins; pinned tools stay withheld");
                return;
            }
        };

        while let Some(change) = changes.next().await {
            match change {
                PinChange::Put(server, pins) => {
                    let mut state = self.pins.state.write();
                    if state.servers.len() < MAX_SERVERS || state.servers.contains_key(&server) {
                        state.servers.insert(server, pins);
                    }
                }
                PinChange::Removed(server) => _ = self.pins.state.write().servers.remove(&server),
                PinChange::CaughtUp => _ = self.pins.is_read.send_replace(true),
            }
            if self.pins.is_read() {
                self.rebuild_routes();
            }
        }
    }

    /// Writes the pins of servers that were seen for the first time.
    async fn write_first_sights(&self, topic: &CompactedTopic) {
        let mut unwritten = self.pins.unwritten.1.lock().await;
        while let Some(server) = unwritten.recv().await {
            let mut retry = Retry::new(RETRIES, rand::random());
            loop {
                let pins = self.pins.state.read().servers.get(&server).cloned();
                let Some(pins) = pins else { break };
                let Err(error) = write_pins(topic, &server, &pins).await else { break };
                tracing::warn!(server, error, "could not keep the pins of a server; trying again");
                tokio::time::sleep(retry.failed()).await;
            }
        }
    }

    /// Decides about the definition that a tool has now, if it is the one that was `seen`.
    ///
    /// # Errors
    ///
    /// Returns an error if it is another one, if there is nothing to decide, or if the decision
    /// can't be kept.
    pub async fn decide_pin(
        &self,
        server: &str,
        tool: &str,
        seen: &Digest,
        decision: PinDecision,
    ) -> Result<(), PinError> {
        let policy = self.policy();
        let _deciding = self.pins.deciding.lock().await;
        let definition = self.current_definition(server, tool)?;
        match policy.pins.mode_of(server) {
            PinMode::Off => return Err(PinError::Off),
            PinMode::Block => return Err(PinError::ByFile),
            _ if !policy.pins.digests_of(server, tool).is_empty() => return Err(PinError::ByFile),
            PinMode::Warn | PinMode::Approve => {}
        }
        if !self.pins.is_read() {
            return Err(PinError::Unread);
        }

        let pins = self.pins.state.read().servers.get(server).cloned();
        let mut pins = pins.unwrap_or_default();
        pins.decide(tool, &definition, seen, decision)?;
        let topic = self.pins.topic.read().clone();
        if let Some(topic) = topic {
            match timeout(WRITE, write_pins(&topic, server, &pins)).await {
                Ok(written) => written.map_err(PinError::Unwritten)?,
                Err(_) => return Err(PinError::Unwritten("no answer in time".to_owned())),
            }
        }
        self.pins.state.write().servers.insert(server.to_owned(), pins);
        self.rebuild_routes();
        Ok(())
    }

    /// The pins of a server's tools, and what differs from them; `None` if no such server is hosted.
    pub fn review_pins(&self, server: &str) -> Option<PinReview> {
        let catalog = self.catalog_of(server)?;
        let policy = self.policy();
        let mode = policy.pins.mode_of(server);
        let tools = definitions_of(&catalog.tools).into_iter().map(|(tool, definition)| {
            let (digest, of_file) = (definition.digest(), policy.pins.digests_of(server, &tool));
            let judged =
                self.pins.with_sight(server, |sight| judge(mode, sight, of_file, &tool, &digest));
            let pin = self
                .pins
                .state
                .read()
                .servers
                .get(server)
                .and_then(|pins| pins.tools().get(&tool).cloned());
            let old = pin.as_ref().and_then(|pin| pin.definition.clone()).unwrap_or_default();
            let changes = match judged.standing.is_unapproved() {
                true => find_changes(&old, definition.members()),
                false => Vec::new(),
            };
            ToolReview::new(tool, judged, digest, pin, !of_file.is_empty(), changes)
        });
        Some(PinReview { server: server.to_owned(), mode, tools: tools.collect() })
    }

    fn current_definition(&self, server: &str, tool: &str) -> Result<Definition, PinError> {
        let catalog = self.catalog_of(server).ok_or(PinError::NoServer)?;
        let found = catalog.tools.iter().find(|found| found.name == tool);
        found.map(definition_of).ok_or(PinError::NoTool)
    }
}

async fn write_pins(topic: &CompactedTopic, server: &str, pins: &ServerPins) -> Result<(), String> {
    let value = pins.encode().map_err(|error| chain(&error))?;
    topic.write(server, Some(value)).await.map_err(|error: KafkaError| chain(&error))
}

/// Reads a record of the topic. Anybody may write to the topic, so the record may be invalid; then
/// the one before it counts.
fn read_record(record: RawRecord) -> Option<PinChange> {
    let server = String::from_utf8(record.key?).ok()?;
    if tool_name::check_server(&server).is_err() {
        return None;
    }
    let Some(value) = record.value else { return Some(PinChange::Removed(server)) };
    match ServerPins::decode(&value) {
        Ok(pins) => Some(PinChange::Put(server, pins)),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(server, error, "ignoring an unreadable record of pins");
            None
        }
    }
}
