//! Definitions of tools, and their digests.

use std::{fmt, str::FromStr};

use fleet_job::canonical::canonical_object;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// The members of a tool that a pin covers: all that clients are given of it. `_meta` is among them,
/// since it names the page that a host shows for the tool, and the like.
pub const COVERED: [&str; 9] = [
    "_meta",
    "name",
    "title",
    "description",
    "inputSchema",
    "outputSchema",
    "annotations",
    "icons",
    "execution",
];

/// What a tool says of itself, as far as a pin covers it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definition(Map<String, Value>);

/// The SHA-256 of a definition as canonical JSON.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct Digest(String);

/// A text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest, which has 64 lower-case hexadecimal digits")]
pub struct NoDigest(String);

impl Definition {
    /// The definition of a tool that a server has listed. A member that is `null` counts as missing.
    pub fn of(tool: Map<String, Value>) -> Self {
        let covered =
            |(name, value): &(String, Value)| COVERED.contains(&name.as_str()) && !value.is_null();
        Self(tool.into_iter().filter(covered).collect())
    }

    /// The members that the pin covers.
    pub fn members(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The digest, which does not depend on the order of members.
    pub fn digest(&self) -> Digest {
        let hash = Sha256::digest(canonical_object(&self.0));
        Digest(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Digest {
    /// The digest in hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.len() == 64 && text.bytes().all(is_hex) {
            true => Ok(Self(text.to_owned())),
            false => Err(NoDigest(text.chars().take(100).collect())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Self, NoDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(tool: Value) -> Digest {
        Definition::of(tool.as_object().unwrap().clone()).digest()
    }

    #[test]
    fn a_digest_covers_what_models_and_people_see() {
        let tool = json!({"name": "t", "description": "d", "inputSchema": {"type": "object"}});
        let same = json!({
            "inputSchema": {"type": "object"}, "description": "d", "name": "t", "title": null,
            "_meta": null, "unknown": "x",
        });
        assert_eq!(digest(tool.clone()), digest(same));
        for member in COVERED {
            let mut other = tool.clone();
            other[member] = json!({"changed": true});
            assert_ne!(digest(tool.clone()), digest(other), "{member}");
        }
        // Other implementations must agree with this: {"description":"d","name":"t"}.
        let known = "b9f15ebfa8bc28bcffb5a46b5a868e0d86c2664f18a2661e6573f8172e1ec05f";
        assert_eq!(digest(json!({"name": "t", "description": "d"})).as_str(), known);
    }

    #[test]
    fn other_texts_are_no_digests() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<Digest>().unwrap().as_str(), good);
        for bad in ["", "abc", &good.to_uppercase(), &good[1..], &format!("{good}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
