//! What a decision is made from.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use cel::{
    Value as CelValue,
    common::{
        types::CelNull,
        value::{CowVal, Val},
    },
    context::VariableResolver,
    objects::Key,
};
use serde_json::{Map, Value};

use crate::{
    action::Action,
    principal::{Principal, Via},
    resource::{Arguments, Context, Resource},
};

/// What a decision is made from, and the variables of conditions, which are made when the first
/// condition asks for them.
pub(super) struct Facts<'a> {
    pub(super) principal: &'a Principal,
    pub(super) resource: &'a Resource<'a>,
    pub(super) arguments: Arguments<'a>,
    owner_names: &'a [&'a str],
    /// Whether the annotations count.
    pub(super) trusts_annotations: bool,
    variables: [OnceLock<Box<dyn Val>>; 4],
}

/// The variables of conditions, with the fields that they have. The fields of `args` are the
/// tool's business.
pub(super) const VARIABLES: [(&str, Option<&[&str]>); 4] = [
    (
        "principal",
        Some(&[
            "id",
            "issuer",
            "subject",
            "kind",
            "name",
            "tenant",
            "roles",
            "scopes",
            "attributes",
            "via",
            "key",
        ]),
    ),
    ("resource", Some(&["server", "tool", "prompt", "uri", "tenant", "owner", "own"])),
    ("annotations", Some(&["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"])),
    ("args", None),
];

impl<'a> Facts<'a> {
    pub(super) fn new(
        principal: &'a Principal,
        resource: &'a Resource<'a>,
        context: &Context<'a>,
        trusts_annotations: bool,
    ) -> Self {
        Self {
            principal,
            resource,
            arguments: context.arguments,
            owner_names: context.owner_names,
            trusts_annotations,
            variables: Default::default(),
        }
    }

    /// The tenant that an action is about: that of the job, `""` if it has none. `None` if the
    /// action is not about a tenant's things.
    pub(super) fn tenant_of(&self, action: Action) -> Option<&'a str> {
        if let Some(job) = self.resource.job {
            return Some(job.tenant.unwrap_or_default());
        }
        match self.resource.tenant {
            None if action == Action::SubmitJob => {
                Some(self.principal.tenant.as_deref().unwrap_or_default())
            }
            tenant => tenant,
        }
    }

    /// Returns whether the job is the principal's own.
    pub(super) fn is_own_job(&self) -> bool {
        let owner = self.resource.job.and_then(|job| job.owner);
        owner.is_some_and(|owner| {
            self.principal.id().is_owner(owner) || self.owner_names.contains(&owner)
        })
    }

    fn make_variable(&self, index: usize) -> Box<dyn Val> {
        let value = match index {
            0 => self.principal_value(),
            1 => self.resource_value(),
            2 => self.annotations_value(),
            _ => match self.arguments {
                Arguments::Known(arguments) => cel_map(arguments),
                Arguments::None | Arguments::NotYetKnown => map([]),
            },
        };
        // Only functions, opaque values and structs can't be converted, and none is made here.
        <Box<dyn Val>>::try_from(value).unwrap_or_else(|_| Box::new(CelNull))
    }

    fn principal_value(&self) -> CelValue {
        let principal = self.principal;
        let key = match &principal.via {
            Via::Key { id } => Some(id.as_str()),
            _ => None,
        };
        map([
            ("id", principal.id().to_string().into()),
            ("issuer", text(Some(&principal.issuer))),
            ("subject", text(Some(&principal.subject))),
            ("kind", text(Some(principal.kind.as_str()))),
            ("name", text(principal.name.as_deref())),
            ("tenant", text(principal.tenant.as_deref())),
            ("roles", principal.roles.clone().into()),
            ("scopes", principal.scopes.clone().into()),
            ("attributes", cel_map(&principal.attributes)),
            ("via", text(Some(principal.via.as_str()))),
            ("key", text(key)),
        ])
    }

    fn resource_value(&self) -> CelValue {
        let resource = self.resource;
        let job = resource.job.unwrap_or_default();
        map([
            ("server", text(resource.server)),
            ("tool", text(resource.tool)),
            ("prompt", text(resource.prompt)),
            ("uri", text(resource.uri)),
            ("tenant", text(job.tenant.or(resource.tenant))),
            ("owner", text(job.owner)),
            ("own", CelValue::Bool(self.is_own_job())),
        ])
    }

    /// The hints, or the worst that each could say if they don't count or are missing.
    fn annotations_value(&self) -> CelValue {
        let own = self.resource.annotations;
        let hint = |own: Option<bool>, worst: bool| {
            CelValue::Bool(own.filter(|_| self.trusts_annotations).unwrap_or(worst))
        };
        map([
            ("readOnlyHint", hint(own.read_only, false)),
            ("destructiveHint", hint(own.destructive, true)),
            ("idempotentHint", hint(own.idempotent, false)),
            ("openWorldHint", hint(own.open_world, true)),
        ])
    }
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let index = VARIABLES.iter().position(|(name, _)| *name == variable)?;
        let value = self.variables[index].get_or_init(|| self.make_variable(index));
        Some(CowVal::Borrowed(value.as_ref()))
    }
}

fn text(text: Option<&str>) -> CelValue {
    text.map_or(CelValue::Null, CelValue::from)
}

fn map<'n>(entries: impl IntoIterator<Item = (&'n str, CelValue)>) -> CelValue {
    let entries: HashMap<Key, CelValue> =
        entries.into_iter().map(|(name, value)| (Key::from(name), value)).collect();
    entries.into()
}

/// JSON as a value of CEL. A number becomes the first of `int`, `uint` and `double` that holds it.
fn cel_value(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(own) => CelValue::Bool(*own),
        Value::String(own) => own.as_str().into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => CelValue::Int(int),
            (None, Some(uint)) => CelValue::UInt(uint),
            // What is too large for a double becomes infinite, and compares as it should.
            (None, None) => CelValue::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        },
        Value::Array(values) => CelValue::List(Arc::new(values.iter().map(cel_value).collect())),
        Value::Object(members) => cel_map(members),
    }
}

fn cel_map(members: &Map<String, Value>) -> CelValue {
    map(members.iter().map(|(name, value)| (name.as_str(), cel_value(value))))
}
