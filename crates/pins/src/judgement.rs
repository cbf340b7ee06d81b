//! What becomes of a tool whose definition is, or is not, the pinned one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Digest, ServerPins};

/// What to do with a tool that differs from its pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PinMode {
    /// Nothing is pinned.
    #[default]
    Off,
    /// It is offered, and the log and the metrics say so.
    Warn,
    /// It is withheld until somebody has looked at the change and approved it.
    Approve,
    /// It is withheld until the policy file names its digest.
    Block,
}

/// How a tool stands to its pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It is as pinned.
    Pinned,
    /// Its server is seen for the first time, so it is about to be pinned as it is.
    FirstSight,
    /// It has another definition than the pinned one.
    Changed,
    /// Its server is known, and the tool is new. It could say anything, so it is as good as changed.
    New,
    /// Somebody has looked at this definition and rejected it.
    Rejected,
    /// The pins have not been read yet.
    Unread,
    /// There is no room for its server's pins, so nobody could tell later whether it has changed.
    Unkept,
}

/// What is known of a server's pins.
#[derive(Debug, Clone, Copy)]
pub enum Sight<'a> {
    /// The pins have not been read yet.
    Unread,
    /// The server has no pins, and there is no room for them.
    Unkept,
    /// The pins of the server; `None` if it has none yet.
    Read(Option<&'a ServerPins>),
}

/// How a tool stands to its pin, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// How it stands.
    pub standing: Standing,
    /// Whether it is neither listed nor called.
    pub is_withheld: bool,
}

impl Standing {
    /// The standing as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::FirstSight => "first-sight",
            Self::Changed => "changed",
            Self::New => "new",
            Self::Rejected => "rejected",
            Self::Unread => "unread",
            Self::Unkept => "unkept",
        }
    }

    /// Returns whether somebody should look at the tool.
    pub fn is_unapproved(self) -> bool {
        matches!(self, Self::Changed | Self::New | Self::Rejected | Self::Unkept)
    }
}

/// Judges a tool. `of_file` are the digests that the policy file names for it; if there are any, only
/// they count.
pub fn judge(
    mode: PinMode,
    sight: Sight<'_>,
    of_file: &[Digest],
    tool: &str,
    digest: &Digest,
) -> Judgement {
    let standing = match sight {
        _ if of_file.contains(digest) => Standing::Pinned,
        _ if !of_file.is_empty() => Standing::Changed,
        Sight::Unread => Standing::Unread,
        Sight::Unkept => Standing::Unkept,
        Sight::Read(pins) => match pins.filter(|pins| !pins.is_empty()) {
            None => Standing::FirstSight,
            Some(pins) => pins.standing(tool, digest),
        },
    };

    let is_fine = matches!(standing, Standing::Pinned | Standing::FirstSight);
    let withholds = matches!(mode, PinMode::Approve | PinMode::Block);
    Judgement { standing, is_withheld: withholds && !is_fine }
}

#[cfg(test)]
mod tests {
    use fleet_job::time::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{Definition, PinDecision};

    fn definition(description: &str) -> Definition {
        let tool = json!({"name": "t", "description": description});
        Definition::of(tool.as_object().unwrap().clone())
    }

    #[test]
    fn what_is_not_as_pinned_is_withheld_where_somebody_has_to_look() {
        let [old, new, bad] = ["old", "new", "bad"].map(definition);
        let mut pins = ServerPins::first_seen([("t", old.clone())], Timestamp::MIN);
        let reject = PinDecision { approve: false, by: "me".to_owned(), at: Timestamp::MIN };
        pins.decide("t", &bad, &bad.digest(), reject).unwrap();
        let known = Sight::Read(Some(&pins));
        let (named, none) = (&[new.digest()][..], &[][..]);

        for (sight, of_file, tool, found, standing, withheld) in [
            (known, none, "t", &old, Standing::Pinned, false),
            (known, none, "t", &new, Standing::Changed, true),
            (known, none, "t", &bad, Standing::Rejected, true),
            (known, none, "u", &old, Standing::New, true),
            (Sight::Read(None), none, "t", &new, Standing::FirstSight, false),
            (Sight::Unread, none, "t", &old, Standing::Unread, true),
            (Sight::Unkept, none, "t", &old, Standing::Unkept, true),
            // The file goes before everything.
            (known, named, "t", &new, Standing::Pinned, false),
            (known, named, "t", &old, Standing::Changed, true),
            (Sight::Read(None), named, "t", &old, Standing::Changed, true),
            (Sight::Unread, named, "t", &new, Standing::Pinned, false),
            (Sight::Unkept, named, "t", &new, Standing::Pinned, false),
        ] {
            for (mode, is_withheld) in [
                (PinMode::Off, false),
                (PinMode::Warn, false),
                (PinMode::Approve, withheld),
                (PinMode::Block, withheld),
            ] {
                let judged = judge(mode, sight, of_file, tool, &found.digest());
                assert_eq!(judged, Judgement { standing, is_withheld }, "{mode:?} {tool}");
            }
        }
    }
}
