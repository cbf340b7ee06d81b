//! The pins of one server, as they are kept: JSON by the server's name.

use std::collections::BTreeMap;

use fleet_job::time::Timestamp;
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Definition, Digest, Standing};

/// The largest record that is read or written, in bytes. Brokers take 1 MB by default.
pub const MAX_BYTES: usize = 768 * 1024;

/// The pins of a hosted server's tools.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Pins of a hosted server")]
pub struct ServerPins {
    /// The pins by the tools' own names.
    tools: BTreeMap<String, ToolPin>,
    /// When the record was written.
    written_at: Timestamp,
}

/// The pin of a tool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolPin {
    /// The digest of the definition that is accepted; missing if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The definition, to show what has changed; missing if it is too large to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Map<String, Value>>,
    /// The digest of the definition that was rejected last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Digest>,
    /// The principal who decided last; missing if the tool was pinned at first sight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// When it was pinned or decided on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
}

/// What somebody decides about a changed tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinDecision {
    /// Whether the definition is accepted.
    pub approve: bool,
    /// The principal who decides.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Why nothing was decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// The tool has changed since it was looked at.
    #[error("the tool has changed again: its digest is {now}; look at it once more")]
    ChangedAgain {
        /// The digest that it has now.
        now: Digest,
    },
    /// The tool is as pinned.
    #[error("the tool is as pinned, so there is nothing to decide")]
    AsPinned,
}

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PinRecordError {
    /// The record is too large.
    #[error("the record has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// The record is not JSON of the expected shape.
    #[error("the record can't be read")]
    Json(#[from] serde_json::Error),
}

/// Returns the schema of a record's value.
pub fn schema() -> Schema {
    schema_for!(ServerPins)
}

impl ServerPins {
    /// The pins of a server that is seen for the first time. Of several tools with one name, the
    /// first counts.
    pub fn first_seen<'a>(
        tools: impl IntoIterator<Item = (&'a str, Definition)>,
        at: Timestamp,
    ) -> Self {
        let mut pins = Self { tools: BTreeMap::new(), written_at: at };
        for (tool, definition) in tools {
            pins.tools.entry(tool.to_owned()).or_insert_with(|| ToolPin::of(&definition, None, at));
        }
        pins
    }

    /// Accepts no definition of a tool so far, which is known from now on.
    pub fn accept_none(&mut self, tool: &str) {
        let pin = ToolPin { decided_at: Some(self.written_at), ..ToolPin::default() };
        self.tools.insert(tool.to_owned(), pin);
    }

    /// Returns whether no tool is known.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The pins by the tools' own names.
    pub fn tools(&self) -> &BTreeMap<String, ToolPin> {
        &self.tools
    }

    /// How a tool with this digest stands to its pin.
    pub fn standing(&self, tool: &str, digest: &Digest) -> Standing {
        let Some(pin) = self.tools.get(tool) else { return Standing::New };
        match (&pin.digest, &pin.rejected) {
            (Some(pinned), _) if pinned == digest => Standing::Pinned,
            (_, Some(rejected)) if rejected == digest => Standing::Rejected,
            (Some(_), _) => Standing::Changed,
            (None, _) => Standing::New,
        }
    }

    /// Decides about the definition that a tool has now, if it is the one that was `seen`. To reject
    /// the one that is pinned withdraws the pin.
    ///
    /// # Errors
    ///
    /// Returns an error if it is another one, or if there is nothing to decide.
    pub fn decide(
        &mut self,
        tool: &str,
        now: &Definition,
        seen: &Digest,
        decision: PinDecision,
    ) -> Result<(), DecideError> {
        let digest = now.digest();
        if digest != *seen {
            return Err(DecideError::ChangedAgain { now: digest });
        }
        let PinDecision { approve, by, at } = decision;
        let is_pinned = self.standing(tool, &digest) == Standing::Pinned;
        if approve && is_pinned {
            return Err(DecideError::AsPinned);
        }

        self.written_at = at;
        let pin = self.tools.entry(tool.to_owned()).or_default();
        if approve {
            *pin = ToolPin::of(now, Some(by), at);
        } else {
            if is_pinned {
                (pin.digest, pin.definition) = (None, None);
            }
            pin.rejected = Some(digest);
            (pin.decided_by, pin.decided_at) = (Some(by), Some(at));
        }
        Ok(())
    }

    /// Encodes the record's value. If it would be too large, the definitions are left out, so that
    /// changes are still noticed but can't be shown.
    ///
    /// # Errors
    ///
    /// Returns an error if the record is too large even so.
    pub fn encode(&self) -> Result<Vec<u8>, PinRecordError> {
        let whole = serde_json::to_vec(self)?;
        if whole.len() <= MAX_BYTES {
            return Ok(whole);
        }

        let mut short = self.clone();
        short.tools.values_mut().for_each(|pin| pin.definition = None);
        let short = serde_json::to_vec(&short)?;
        if short.len() > MAX_BYTES { Err(PinRecordError::TooLarge) } else { Ok(short) }
    }

    /// Decodes the value of a record.
    ///
    /// # Errors
    ///
    /// Returns an error if the value is invalid.
    pub fn decode(value: &[u8]) -> Result<Self, PinRecordError> {
        if value.len() > MAX_BYTES {
            return Err(PinRecordError::TooLarge);
        }
        Ok(serde_json::from_slice(value)?)
    }
}

impl ToolPin {
    fn of(definition: &Definition, by: Option<String>, at: Timestamp) -> Self {
        Self {
            digest: Some(definition.digest()),
            definition: Some(definition.members().clone()),
            rejected: None,
            decided_by: by,
            decided_at: Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(description: &str) -> Definition {
        let tool = json!({"name": "t", "description": description});
        Definition::of(tool.as_object().unwrap().clone())
    }

    fn decision(approve: bool) -> PinDecision {
        PinDecision { approve, by: "alice".to_owned(), at: Timestamp::MIN }
    }

    #[test]
    fn a_decision_is_about_the_digest_that_was_seen() {
        let [old, seen, later] = ["old", "seen", "later"].map(definition);
        let mut pins = ServerPins::first_seen([("t", old.clone())], Timestamp::MIN);
        let before = pins.clone();

        let late = pins.decide("t", &later, &seen.digest(), decision(true));
        assert_eq!(late, Err(DecideError::ChangedAgain { now: later.digest() }));
        let idle = pins.decide("t", &old, &old.digest(), decision(true));
        assert_eq!((idle, &pins), (Err(DecideError::AsPinned), &before));

        pins.decide("t", &seen, &seen.digest(), decision(true)).unwrap();
        assert_eq!(pins.standing("t", &seen.digest()), Standing::Pinned);
        assert_eq!(pins.standing("t", &old.digest()), Standing::Changed, "the old one is over");

        pins.decide("t", &later, &later.digest(), decision(false)).unwrap();
        assert_eq!(pins.standing("t", &later.digest()), Standing::Rejected);
        assert_eq!(pins.standing("t", &seen.digest()), Standing::Pinned);
        pins.decide("t", &later, &later.digest(), decision(true)).unwrap();
        assert_eq!(pins.standing("t", &later.digest()), Standing::Pinned, "after all");

        pins.decide("t", &later, &later.digest(), decision(false)).unwrap();
        assert_eq!(pins.standing("t", &later.digest()), Standing::Rejected, "its pin is withdrawn");
        assert_eq!(pins.standing("t", &seen.digest()), Standing::New);

        pins.decide("u", &old, &old.digest(), decision(false)).unwrap();
        assert_eq!(pins.standing("u", &old.digest()), Standing::Rejected);
        assert_eq!(pins.standing("u", &seen.digest()), Standing::New);
    }

    #[test]
    fn a_tool_without_an_accepted_definition_is_known() {
        let seen = definition("d");
        let mut pins = ServerPins::first_seen([("t", seen.clone())], Timestamp::MIN);
        pins.accept_none("t");
        assert!(!pins.is_empty());
        assert_eq!(pins.standing("t", &seen.digest()), Standing::New);
        assert_eq!(ServerPins::decode(&pins.encode().unwrap()).unwrap(), pins);
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut pins = ServerPins::first_seen([("t", definition("d"))], Timestamp::MIN);
        let seen = definition("x");
        pins.decide("u", &seen, &seen.digest(), decision(false)).unwrap();
        assert_eq!(ServerPins::decode(&pins.encode().unwrap()).unwrap(), pins);
        for bad in ["", "[]", r#"{"tools":{"t":{"digest":"x"}},"writtenAt":0}"#] {
            assert!(ServerPins::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn large_definitions_are_pinned_without_their_text() {
        let large = definition(&"x".repeat(MAX_BYTES));
        let pins = ServerPins::first_seen([("t", large.clone())], Timestamp::MIN);
        let kept = ServerPins::decode(&pins.encode().unwrap()).unwrap();
        assert_eq!(kept.tools()["t"].definition, None);
        assert_eq!(kept.standing("t", &large.digest()), Standing::Pinned);

        let names: Vec<_> = (0..8_000).map(|number| format!("tool {number}")).collect();
        let many = names.iter().map(|name| (name.as_str(), definition("d")));
        let many = ServerPins::first_seen(many, Timestamp::MIN);
        assert!(matches!(many.encode(), Err(PinRecordError::TooLarge)));
    }
}
