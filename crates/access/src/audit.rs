//! Audit records: who did what, and which rule decided.
//!
//! A record is one line of JSON. It never holds credentials, and the arguments of a call only as a
//! digest, unless the caller adds their redacted values.

mod canonical;
mod log;
mod pace;
mod redaction;
mod values;

use fleet_job::{size, time::Timestamp};
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use canonical::digest_arguments;
pub use fleet_job::canonical::canonical_json;
pub use log::{AuditGap, AuditLog, AuditSink, Keeping, OpenRecord};
pub use redaction::Redaction;
pub(crate) use values::AuditTable;
pub use values::{AuditTableError, AuditedValues};

use crate::{
    action::Action,
    principal::{Principal, PrincipalKind, Via},
    refusal::AuthRefusal,
    resource::Resource,
    rules::{Decision, RuleEffect},
};

/// A text that somebody else chose is cut after so many characters.
const MAX_TEXT_CHARS: usize = 512;
/// The most bytes of arguments that a record has, as JSON.
const MAX_VALUES_BYTES: u64 = 16 * 1024;
/// The action of a record about credentials that were refused, before anybody knows what was to be
/// done.
const AUTHENTICATE: &str = "authenticate";
/// The action of a record about a secret that a hosted server was given. The server itself uses it,
/// under its policy for hosted servers, so no rule about principals decides.
const USE_SECRET: &str = "secrets.use";

/// One decision or one call, as the audit log has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet audit record")]
pub struct AuditRecord {
    /// When it ended; of the outcome `started`, when it began.
    pub time: Timestamp,
    /// Who asked; missing if nobody was authenticated, or the server itself did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<AuditPrincipal>,
    /// The address that the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What was to be done, such as `tools.call`; `authenticate` if the credentials were refused;
    /// `secrets.use` if the server gave a secret to a hosted server.
    pub action: String,
    /// What it was about.
    #[serde(default, skip_serializing_if = "AuditResource::is_empty")]
    pub resource: AuditResource,
    /// The view in which it was asked for, if it was in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// The rule that decided; missing if there is no principal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What was decided.
    pub verdict: RuleEffect,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// The code of the error, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What was wrong with the credentials, if nobody was authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The SHA-256 of the arguments as canonical JSON, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_digest: Option<String>,
    /// The arguments, redacted; only where configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Map<String, Value>>,
    /// The job that the call belongs to, according to the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// The trace that the request belongs to, according to the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// How many records of refusals were left out before this one, since there were very many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditPrincipal {
    /// The principal's id, as `owner` of its jobs has it.
    pub id: String,
    /// Who vouches for the subject.
    pub issuer: String,
    /// The subject.
    pub subject: String,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What sort of subject it is.
    pub kind: PrincipalKind,
    /// The tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// How the principal proved who it is: `key`, `token`, `certificate`, `loopback` or `open`.
    pub via: String,
    /// The id of the API key, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The id of the principal that presented the job, if that was another one, such as a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presented_by: Option<String>,
}

/// What it was about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditResource {
    /// The hosted server; missing for what is our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The method of an extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The name of the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The tenant of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// What became of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuditOutcome {
    /// It was not done.
    Refused,
    /// It was begun, and its end has a record of its own.
    Started,
    /// It was done.
    Succeeded,
    /// It was tried and failed.
    Failed,
    /// It was begun, and its end is unknown, because its caller stopped waiting.
    Abandoned,
}

impl AuditOutcome {
    /// All outcomes.
    pub const ALL: [Self; 5] =
        [Self::Refused, Self::Started, Self::Succeeded, Self::Failed, Self::Abandoned];

    /// The outcome as it is written in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Started => "started",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
}

impl AuditRecord {
    /// The record of a decision. An action that is not allowed counts as refused, any other one as
    /// begun.
    pub fn of_decision(
        time: Timestamp,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
        decision: &Decision,
    ) -> Self {
        Self {
            time,
            principal: Some(AuditPrincipal::new(principal)),
            peer: None,
            action: action.as_str().to_owned(),
            resource: AuditResource::new(resource),
            rule: Some(decision.rule.as_str().to_owned()),
            verdict: decision.verdict,
            outcome: match decision.is_allowed() {
                true => AuditOutcome::Started,
                false => AuditOutcome::Refused,
            },
            code: decision.code().map(|code| code.to_string()),
            view: None,
            fault: None,
            arguments_digest: None,
            arguments: None,
            job_id: None,
            trace_id: None,
            left_out: None,
        }
    }

    /// The record of a request that nobody was authenticated for.
    pub fn of_refusal(time: Timestamp, refusal: &AuthRefusal) -> Self {
        Self {
            time,
            principal: None,
            peer: None,
            action: AUTHENTICATE.to_owned(),
            resource: AuditResource::default(),
            rule: None,
            verdict: RuleEffect::Deny,
            outcome: AuditOutcome::Refused,
            code: Some(refusal.code().to_string()),
            view: None,
            fault: Some(refusal.fault().as_str().to_owned()),
            arguments_digest: None,
            arguments: None,
            job_id: None,
            trace_id: None,
            left_out: None,
        }
    }

    /// The record of a secret that a hosted server is given. It has the secret's name and never its
    /// value.
    pub fn of_secret_use(time: Timestamp, server: &str, secret: &str) -> Self {
        let resource = AuditResource {
            server: Some(cut(server)),
            secret: Some(cut(secret)),
            ..AuditResource::default()
        };
        Self {
            time,
            principal: None,
            peer: None,
            action: USE_SECRET.to_owned(),
            resource,
            rule: None,
            verdict: RuleEffect::Allow,
            outcome: AuditOutcome::Started,
            code: None,
            view: None,
            fault: None,
            arguments_digest: None,
            arguments: None,
            job_id: None,
            trace_id: None,
            left_out: None,
        }
    }

    /// Adds the digest of the arguments, and their values as far as `redaction` leaves them. Values
    /// that are longer than 16 KiB as JSON are left out.
    pub fn add_arguments(&mut self, arguments: &Map<String, Value>, redaction: Option<&Redaction>) {
        self.arguments_digest = Some(digest_arguments(arguments));
        self.arguments = redaction
            .map(|redaction| redaction.apply_to_object(arguments))
            .filter(|values| size::json_bytes(values) <= MAX_VALUES_BYTES);
    }

    /// The record as one line of JSON, without the line's end.
    pub fn to_line(&self) -> String {
        #[expect(clippy::expect_used, reason = "texts, numbers and maps with names are all JSON")]
        serde_json::to_string(self).expect("texts, numbers and maps with names are all JSON")
    }
}

impl AuditPrincipal {
    /// What a record says of a principal.
    pub fn new(principal: &Principal) -> Self {
        Self {
            id: principal.id().to_string(),
            issuer: cut(&principal.issuer),
            subject: cut(&principal.subject),
            name: principal.name.as_deref().map(cut),
            kind: principal.kind,
            tenant: principal.tenant.as_deref().map(cut),
            via: principal.via.as_str().to_owned(),
            key: match &principal.via {
                Via::Key { id } => Some(id.clone()),
                _ => None,
            },
            presented_by: None,
        }
    }
}

impl AuditResource {
    fn new(resource: &Resource<'_>) -> Self {
        let tenant = resource.job.and_then(|job| job.tenant).or(resource.tenant);
        Self {
            server: resource.server.map(cut),
            tool: resource.tool.map(cut),
            prompt: resource.prompt.map(cut),
            uri: resource.uri.map(cut),
            method: resource.method.map(cut),
            secret: None,
            tenant: tenant.map(cut),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Cuts a text that somebody else chose.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The JSON Schema of audit records, with the name of its file below `schemas/`.
pub fn schema() -> (&'static str, Schema) {
    ("audit.schema.json", schema_for!(AuditRecord))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        resource::{Annotations, Context},
        rules::Rules,
    };

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn record() -> AuditRecord {
        let mut principal = Principal::new(
            "keys",
            "ci",
            PrincipalKind::Service,
            Via::Key { id: "ci-1".to_owned() },
        );
        principal.name = Some("CI\nmain".to_owned());
        let resource = Resource::tool(Some("db"), "query", Annotations::default());
        let action = Action::CallTool;
        let decision = Rules::default().decide(&principal, action, &resource, &Context::default());
        let time = Timestamp::from_millis_clamped(1_795_000_000_123);

        let mut record = AuditRecord::of_decision(time, &principal, action, &resource, &decision);
        record.add_arguments(&object(json!({"sql": "select 1", "password": "x"})), None);
        record
    }

    #[test]
    fn a_record_is_one_line() {
        let line = record().to_line();
        let id = record().principal.unwrap().id;
        let digest = record().arguments_digest.unwrap();
        let expected = format!(
            r#"{{"time":"2026-11-18T11:06:40.123Z","principal":{{"id":"{id}","issuer":"keys","subject":"ci","name":"CI\nmain","kind":"service","via":"key","key":"ci-1"}},"action":"tools.call","resource":{{"server":"db","tool":"query"}},"rule":"default:no-rule","verdict":"deny","outcome":"refused","code":"FLEET-DENIED","argumentsDigest":"{digest}"}}"#
        );
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<AuditRecord>(&line).unwrap(), record());
    }

    #[test]
    fn the_use_of_a_secret_has_its_name_and_no_principal() {
        let time = Timestamp::from_millis_clamped(1_795_000_000_123);
        let line = AuditRecord::of_secret_use(time, "db", "db-password").to_line();
        let expected = r#"{"time":"2026-11-18T11:06:40.123Z","action":"secrets.use","resource":{"server":"db","secret":"db-password"},"verdict":"allow","outcome":"started"}"#;
        assert_eq!(line, expected);
    }

    #[test]
    fn outcomes_are_written_as_they_are_named() {
        for outcome in AuditOutcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
    }

    #[test]
    fn values_are_in_a_record_only_where_configured() {
        let arguments = object(json!({"sql": "select 1", "password": "hunter2"}));
        let mut record = record();
        assert_eq!(record.arguments, None);
        record.add_arguments(&arguments, Some(&Redaction::default()));
        let redacted = object(json!({"sql": "select 1", "password": "[redacted]"}));
        assert_eq!(record.arguments, Some(redacted));

        let many = (0..5_000).map(|number| (number.to_string(), json!("value"))).collect();
        record.add_arguments(&many, Some(&Redaction::default()));
        assert_eq!(record.arguments, None, "a record is not as large as whatever somebody sends");
    }

    #[test]
    fn what_others_chose_is_cut() {
        assert_eq!(cut("é"), "é");
        assert_eq!(cut(&"é".repeat(1000)).chars().count(), MAX_TEXT_CHARS + 1);
    }

    #[test]
    fn the_schema_accepts_records() {
        let schema = serde_json::to_value(schema().1).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let line = serde_json::from_str(&record().to_line()).unwrap();
        assert!(validator.is_valid(&line), "{:?}", validator.validate(&line));
        assert!(!validator.is_valid(&json!({"action": "tools.call"})));
    }

    #[test]
    fn the_checked_in_schema_is_that_of_the_type() {
        let (name, schema) = schema();
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas").join(name);
        let expected = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap_or_default() == expected,
            "schemas/{name} differs from the type: run UPDATE_SCHEMAS=1 cargo test -p fleet-access"
        );
    }
}
