//! Which jobs a pause covers.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::check_text;
use crate::{
    envelope::{Envelope, JobType, MAX_ID_BYTES, ToolCall, Work},
    filter::has_metadata,
    glob::Glob,
    mcp_servers::roots,
};

/// The largest number of members of `metadata` in a scope.
pub const MAX_METADATA: usize = 16;

/// The tool that a `server-init` job calls.
const INITIALIZE: &str = "server_initialize";
/// Separates server and tool in the name of a hosted tool.
const SEPARATOR: &str = "__";

/// Which jobs a pause covers: those for which all that is given holds. An empty scope covers every
/// job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseScope {
    /// Jobs that call a tool of this hosted server, or start this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Jobs that call a tool whose name matches this pattern (`docs/wildcards.md`). If a server is
    /// given, the name may be that of the tool on that server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Jobs of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Jobs of this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_type: Option<JobType>,
    /// Jobs whose id begins with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_prefix: Option<String>,
    /// Jobs whose metadata has all of these members. A value that is not a string is compared with
    /// its JSON text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// Reads a scope. An array would otherwise be read as the fields in their order, and `[]` as all
/// jobs.
pub(super) fn from_object<'de, D: Deserializer<'de>>(from: D) -> Result<PauseScope, D::Error> {
    let fields = serde_json::Map::deserialize(from)?;
    PauseScope::deserialize(serde_json::Value::Object(fields)).map_err(D::Error::custom)
}

impl PauseScope {
    /// Returns whether the scope covers every job.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the bounds of a scope.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with which field.
    pub fn check(&self) -> Result<(), String> {
        let texts = [
            ("server", &self.server),
            ("tool", &self.tool),
            ("tenant", &self.tenant),
            ("idPrefix", &self.id_prefix),
        ];
        for (name, text) in texts {
            text.as_ref().map_or(Ok(()), |text| check_text(name, text, MAX_ID_BYTES))?;
        }

        if self.metadata.len() > MAX_METADATA {
            return Err(format!("`metadata` may have at most {MAX_METADATA} members"));
        }
        for (name, value) in &self.metadata {
            check_text("metadata", name, MAX_ID_BYTES)?;
            if value.len() > MAX_ID_BYTES {
                return Err(format!("`metadata`: a value may have at most {MAX_ID_BYTES} bytes"));
            }
        }
        Ok(())
    }

    /// Returns whether a job is covered. `tool` is the compiled pattern.
    pub(super) fn matches(&self, tool: Option<&Glob>, job: &Envelope) -> bool {
        let is_tenant = self.tenant.is_none() || self.tenant == job.tenant;
        let is_type = self.job_type.is_none_or(|wanted| wanted == job.work.job_type());
        let is_id = self.id_prefix.as_deref().is_none_or(|prefix| job.job_id.starts_with(prefix));

        is_tenant
            && is_type
            && is_id
            && has_metadata(&self.metadata, &job.metadata)
            && self.matches_calls(tool, &job.work)
    }

    /// Whether any call of the job is of the wanted server and tool.
    fn matches_calls(&self, tool: Option<&Glob>, work: &Work) -> bool {
        if self.server.is_none() && tool.is_none() {
            return true;
        }

        let of_call = |call: &ToolCall| self.matches_call(tool, &Called::by(call));
        match work {
            Work::ToolCall(call) => of_call(call),
            Work::ToolBatch(batch) => batch.calls.iter().any(of_call),
            Work::ServerInit(payload) => {
                let servers = roots::find(payload).map(|found| found.entries.keys());
                servers.into_iter().flatten().any(|server| {
                    let name = Cow::Borrowed(INITIALIZE);
                    self.matches_call(tool, &Called { server: Some(server), name, bare: None })
                })
            }
        }
    }

    fn matches_call(&self, tool: Option<&Glob>, call: &Called<'_>) -> bool {
        let is_server = self.server.is_none() || self.server.as_deref() == call.server;
        let bare = call.bare.filter(|_| self.server.is_some());

        is_server
            && tool.is_none_or(|tool| {
                tool.matches(&call.name) || bare.is_some_and(|bare| tool.matches(bare))
            })
    }
}

impl fmt::Display for PauseScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("all jobs");
        }

        let texts = [
            ("server", self.server.as_deref()),
            ("tool", self.tool.as_deref()),
            ("tenant", self.tenant.as_deref()),
            ("type", self.job_type.map(JobType::as_str)),
            ("ids from", self.id_prefix.as_deref()),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some(format!("{name} {}", text?)));
        let members = self.metadata.iter().map(|(name, value)| format!("{name}={value}"));
        f.write_str(&texts.chain(members).collect::<Vec<_>>().join(", "))
    }
}

/// What a call calls.
struct Called<'a> {
    server: Option<&'a str>,
    /// The name under which the tool is offered.
    name: Cow<'a, str>,
    /// The name that the tool has on its server.
    bare: Option<&'a str>,
}

impl<'a> Called<'a> {
    fn by(call: &'a ToolCall) -> Self {
        match &call.server {
            Some(server) => Self {
                server: Some(server),
                name: call.exposed_name().into(),
                bare: Some(&call.tool),
            },
            None => {
                let parts = call.tool.split_once(SEPARATOR);
                let (server, bare) = (parts.map(|parts| parts.0), parts.map(|parts| parts.1));
                Self { server, name: Cow::Borrowed(&call.tool), bare }
            }
        }
    }
}
