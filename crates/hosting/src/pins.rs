//! Pins of hosted servers' tools in this process: judges what servers offer, and keeps the pins in a
//! compacted topic that replicas share, or in memory.
//!
//! What is decided is in [`fleet_pins`], which does no IO. The judgement is made whenever the routes
//! are built: a tool that is withheld has none, so it is neither listed nor called, and keeps its
//! name, so that no other tool gets its calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_ops::{clock, errors::chain};
use fleet_pins::{
    DecideError, Definition, Digest, PinDecision, PinMode, ServerPins, Sight, Standing,
    diff::find_changes, judge,
};
use fleet_policy::pins::PinPolicy;
use parking_lot::RwLock;
use rmcp::model::Tool;
use serde_json::Value;
use tokio::{
    sync::{Mutex, Notify, mpsc, watch},
    time::timeout,
};

use super::{
    Fleet,
    catalog::Catalog,
    compacted::CompactedTopic,
    metrics::{TOOLS_UNAPPROVED, TOOLS_WITHHELD},
};

mod keeping;
mod replay;
mod reports;
mod review;

use keeping::write_pins;
use reports::{ReportLine, Reports, Unapproved};
pub use review::{PinReview, ToolReview};

/// How long a decision may wait for its record to be kept.
const WRITE: Duration = Duration::from_secs(10);
/// The most servers whose pins are kept, as many as the registry has.
const MAX_SERVERS: usize = 1000;

/// The pins of all servers.
#[derive(Debug)]
pub(crate) struct Pins {
    state: RwLock<State>,
    /// The tools of the hosted servers. Locked before `state`.
    seen: parking_lot::Mutex<BTreeMap<String, Seen>>,
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
    /// Servers whose tools are too many to be pinned.
    too_large: BTreeSet<String>,
}

/// The tools of a server as they were seen last.
#[derive(Debug, Default)]
struct Seen {
    tools: Arc<Vec<Tool>>,
    /// The digests by the tools' own names, computed once per list.
    digests: Vec<(String, Digest)>,
    reports: Reports,
}

impl Seen {
    /// Takes a list of tools. Returns whether it is another one than before.
    fn look_at(&mut self, tools: &Arc<Vec<Tool>>) -> bool {
        if Arc::ptr_eq(&self.tools, tools) {
            return false;
        }
        let definitions = definitions_of(tools).into_iter();
        self.digests = definitions.map(|(tool, known)| (tool, known.digest())).collect();
        self.tools = tools.clone();
        true
    }
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
    /// The pins of too many servers are kept already.
    #[error(
        "the pins of {MAX_SERVERS} servers are kept already, so there is no room for this one's"
    )]
    NoRoom,
    /// The decision could not be kept.
    #[error("the decision could not be kept: {0}")]
    Unwritten(String),
}

impl Default for Pins {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            state: RwLock::default(),
            seen: parking_lot::Mutex::default(),
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
        let mut seen = self.seen.lock();
        seen.retain(|server, _| catalogs.iter().any(|(name, _)| name == server));
        for (server, catalog) in catalogs {
            let mode = policy.mode_of(server);
            if mode == PinMode::Off {
                continue;
            }

            let seen = seen.entry(server.clone()).or_default();
            let is_other_list = seen.look_at(&catalog.tools);
            // What could not be pinned can't be now, either.
            if is_other_list || !self.state.read().too_large.contains(server) {
                self.pin_first_sight(policy, server, seen);
            }
            let mut unapproved = BTreeMap::new();
            for (tool, digest) in &seen.digests {
                let of_file = policy.digests_of(server, tool);
                let judged =
                    self.with_sight(server, |sight| judge(mode, sight, of_file, tool, digest));
                if judged.standing.is_unapproved() {
                    unapproved.insert((tool.clone(), digest.clone()), judged.standing);
                }
                if judged.is_withheld {
                    withheld.insert((server.clone(), tool.clone()), judged.standing);
                }
            }
            report(server, &mut seen.reports, unapproved);
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
            None if state.servers.len() >= MAX_SERVERS => look(Sight::Unkept),
            None if state.too_large.contains(server) => look(Sight::Unkept),
            pins => look(Sight::Read(pins)),
        }
    }

    /// Pins the tools of a server that is seen for the first time as they are, unless the policy file
    /// wants others.
    fn pin_first_sight(&self, policy: &PinPolicy, server: &str, seen: &Seen) {
        if seen.digests.is_empty() || !self.is_read() {
            return;
        }
        let mut state = self.state.write();
        let is_known = state.servers.get(server).is_some_and(|pins| !pins.is_empty());
        if is_known || state.servers.len() >= MAX_SERVERS {
            return;
        }

        let definitions = definitions_of(&seen.tools);
        let tools = definitions.iter().map(|(tool, known)| (tool.as_str(), known.clone()));
        let mut pins = ServerPins::first_seen(tools, clock::now());
        for (tool, digest) in &seen.digests {
            let of_file = policy.digests_of(server, tool);
            if !of_file.is_empty() && !of_file.contains(digest) {
                pins.accept_none(tool);
            }
        }

        if let Err(error) = pins.encode() {
            if state.too_large.insert(server.to_owned()) {
                let (error, tools) = (chain(&error), seen.digests.len());
                tracing::warn!(
                    server,
                    tools,
                    error,
                    "cannot pin the tools of a hosted server: there are too many"
                );
            }
            return;
        }
        state.too_large.remove(server);
        state.servers.insert(server.to_owned(), pins);
        tracing::info!(server, tools = seen.digests.len(), "pinned the tools of a hosted server");
        // The receiver lives as long as `self`.
        _ = self.unwritten.0.send(server.to_owned());
    }
}

/// Reports the tools of a server that are not as pinned: each once, but in few lines.
fn report(server: &str, reports: &mut Reports, unapproved: Unapproved) {
    let noted = reports.note(unapproved, Instant::now());
    for standing in &noted.new {
        metrics::counter!(TOOLS_UNAPPROVED.name, "standing" => standing.as_str()).increment(1);
    }
    let Some(due) = noted.due else { return };

    let ReportLine { tools, tool, digest, standing } = due;
    tracing::warn!(
        server,
        tools,
        tool,
        standing = standing.as_str(),
        digest = digest.as_str(),
        "tools of a hosted server are not as pinned; look at them with `mcp-fleet servers pins diff`"
    );
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

        let pins = {
            let state = self.pins.state.read();
            let pins = state.servers.get(server).cloned();
            if pins.is_none() && state.servers.len() >= MAX_SERVERS {
                return Err(PinError::NoRoom);
            }
            pins
        };
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

#[cfg(test)]
mod tests;
