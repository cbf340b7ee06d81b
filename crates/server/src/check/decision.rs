//! `policy check` for a principal and what it wants to do: the decision, and the rules behind it.

use std::io::{self, Write};

use fleet_access::{
    Action, Annotations, Applies, Arguments, CERTIFICATES_ISSUER, Context, Explanation,
    KEYS_ISSUER, Principal, PrincipalKind, Resource, Rules, Via,
};
use fleet_job::tool_name;
use serde::Serialize;
use serde_json::{Map, Value};

/// A principal, and what it wants to do.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "A principal and what it wants to do")]
pub struct DecisionArgs {
    /// The tool to be called, by the name that clients see
    #[arg(long, value_name = "TOOL")]
    pub call: Option<String>,
    /// What is to be done instead of a call, such as `jobs.submit`
    #[arg(long, value_parser = parse_action)]
    pub action: Option<Action>,
    /// The hosted server that it is about, if no tool names it
    #[arg(long)]
    pub server: Option<String>,
    /// The prompt
    #[arg(long)]
    pub prompt: Option<String>,
    /// The URI of the resource
    #[arg(long)]
    pub uri: Option<String>,
    /// The tenant of the job
    #[arg(long, value_name = "TENANT")]
    pub job_tenant: Option<String>,
    /// The tool says `readOnlyHint`
    #[arg(long)]
    pub read_only: bool,
    /// The arguments of the call, as JSON
    #[arg(long, value_name = "JSON", value_parser = parse_arguments)]
    pub arguments: Option<Map<String, Value>>,
    /// Who vouches for the principal: an issuer's URL, `keys` or `certificates`
    #[arg(long, default_value = KEYS_ISSUER)]
    pub issuer: String,
    /// The principal's subject
    #[arg(long, default_value = "somebody")]
    pub subject: String,
    /// The id of its API key; its subject by default
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
    /// `person`, `service`, `node` or `anonymous`
    #[arg(long, default_value = "service", value_parser = parse_kind)]
    pub kind: PrincipalKind,
    /// Its tenant
    #[arg(long)]
    pub tenant: Option<String>,
    /// A role of it; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// A scope of its token; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
}

fn parse_action(text: &str) -> Result<Action, String> {
    match Action::parse(text) {
        Action::Unknown => {
            let known: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
            Err(format!("it must be one of {}", known.join(", ")))
        }
        action => Ok(action),
    }
}

fn parse_kind(text: &str) -> Result<PrincipalKind, String> {
    let kind = PrincipalKind::parse(text);
    kind.ok_or_else(|| "it must be person, service, node or anonymous".to_owned())
}

fn parse_arguments(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it must be a JSON object: {error}"))
}

/// What would be decided, and why.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DecisionReport {
    /// `allow`, `approve` or `deny`.
    decision: fleet_access::RuleEffect,
    /// The rule that decides.
    rule: String,
    action: &'static str,
    /// What the caller would be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// All scopes that are needed, if only some of them are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    /// The rules that cover the principal and the action, in the order of the file.
    rules: Vec<RuleReport>,
}

/// A rule that covers the principal and the action.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleReport {
    name: String,
    effect: fleet_access::RuleEffect,
    applies: bool,
    /// The field because of which it does not apply, or why its condition failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl DecisionArgs {
    /// Whether there is anything to decide.
    pub(super) fn is_given(&self) -> bool {
        self.call.is_some() || self.action.is_some()
    }

    pub(super) fn explain(&self, rules: &Rules) -> DecisionReport {
        let action = self.action.unwrap_or(Action::CallTool);
        let (server, tool) = match self.call.as_deref().map(|call| (call, tool_name::split(call))) {
            Some((_, Some((server, tool)))) => (Some(server), Some(tool)),
            Some((tool, None)) => (None, Some(tool)),
            None => (None, None),
        };
        let resource = Resource {
            server: server.or(self.server.as_deref()),
            tool,
            annotations: Annotations {
                read_only: self.read_only.then_some(true),
                ..Annotations::default()
            },
            prompt: self.prompt.as_deref(),
            uri: self.uri.as_deref(),
            tenant: self.job_tenant.as_deref(),
            ..Resource::default()
        };

        let arguments = match &self.arguments {
            Some(arguments) => Arguments::Known(arguments),
            None => Arguments::NotYetKnown,
        };
        let context = Context { arguments, ..Context::default() };
        DecisionReport::new(action, rules.explain(&self.principal(), action, &resource, &context))
    }

    fn principal(&self) -> Principal {
        let via = match self.issuer.as_str() {
            KEYS_ISSUER => {
                Via::Key { id: self.key.clone().unwrap_or_else(|| self.subject.clone()) }
            }
            CERTIFICATES_ISSUER => Via::Certificate,
            _ => Via::Token,
        };
        let mut principal = Principal::new(&*self.issuer, &*self.subject, self.kind, via);
        principal.tenant.clone_from(&self.tenant);
        principal.add_roles(self.roles.iter().cloned());
        principal.add_scopes(self.scopes.iter().cloned());
        principal
    }
}

impl DecisionReport {
    fn new(action: Action, explanation: Explanation) -> Self {
        let Explanation { decision, rules } = explanation;
        let rules = rules.into_iter().map(|rule| RuleReport {
            name: rule.name.to_string(),
            effect: rule.effect,
            applies: rule.applies == Applies::Yes,
            why: match rule.applies {
                Applies::Yes => None,
                Applies::No(field) => Some(format!("`{field}` does not cover it")),
                Applies::ConditionFailed(error) => Some(format!("`when` failed: {error}")),
            },
        });
        Self {
            decision: decision.verdict,
            rule: decision.rule.as_str().to_owned(),
            action: action.as_str(),
            message: decision.message(action.as_str()),
            rules: rules.collect(),
            scopes: decision.scopes,
        }
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.decision == fleet_access::RuleEffect::Allow
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}: {} by rule {}", self.action, self.decision.as_str(), self.rule)?;
        if let Some(message) = &self.message {
            writeln!(out, "  the caller is told: {message}")?;
        }
        for rule in &self.rules {
            let why = rule.why.as_deref().unwrap_or("applies");
            writeln!(out, "  {} {}: {why}", rule.effect.as_str(), rule.name)?;
        }
        Ok(())
    }
}
