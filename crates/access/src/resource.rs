//! Resources: what an action is about.

use serde_json::{Map, Value};

/// What an action is about. Empty fields do not apply to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resource<'a> {
    /// The hosted server that has the tool, prompt or resource; `None` if it is our own.
    pub server: Option<&'a str>,
    /// The tool's name, without that of its server.
    pub tool: Option<&'a str>,
    /// What the tool says of itself.
    pub annotations: Annotations,
    /// The prompt's name, without that of its server.
    pub prompt: Option<&'a str>,
    /// The URI of the resource that is read.
    pub uri: Option<&'a str>,
    /// The method of an extension that is called.
    pub method: Option<&'a str>,
    /// The job that is read or cancelled. A list of jobs is decided job by job.
    pub job: Option<JobOwner<'a>>,
    /// The tenant of the job that is submitted; the principal's own if there is none.
    pub tenant: Option<&'a str>,
}

/// Whose a job is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobOwner<'a> {
    /// The `owner` in its events: a principal's id, or an older name.
    pub owner: Option<&'a str>,
    /// Its tenant.
    pub tenant: Option<&'a str>,
}

/// What a tool says of itself (`ToolAnnotations` of the protocol). A hint that is missing means the
/// worse of the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Annotations {
    /// The tool changes nothing.
    pub read_only: Option<bool>,
    /// What it changes may be lost.
    pub destructive: Option<bool>,
    /// Calling it again has no further effect.
    pub idempotent: Option<bool>,
    /// It reaches systems outside.
    pub open_world: Option<bool>,
}

/// What is known of a request beyond principal, action and resource.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The arguments of the call.
    pub arguments: Arguments<'a>,
    /// Owners of jobs that are this caller, too: what its credentials were called before there were
    /// principals, or are called where nobody verifies them.
    pub owner_names: &'a [&'a str],
}

/// The arguments of a call.
#[derive(Debug, Clone, Copy, Default)]
pub enum Arguments<'a> {
    /// The action has none.
    #[default]
    None,
    /// These.
    Known(&'a Map<String, Value>),
    /// They are not known yet, since a list is made of what may be called: conditions on arguments
    /// are taken to allow and not to deny.
    NotYetKnown,
}

impl<'a> Resource<'a> {
    /// A tool: one of a hosted server, or one of our own.
    pub fn tool(server: Option<&'a str>, tool: &'a str, annotations: Annotations) -> Self {
        Self { server, tool: Some(tool), annotations, ..Self::default() }
    }

    /// A job.
    pub fn job(owner: Option<&'a str>, tenant: Option<&'a str>) -> Self {
        Self { job: Some(JobOwner { owner, tenant }), ..Self::default() }
    }
}
