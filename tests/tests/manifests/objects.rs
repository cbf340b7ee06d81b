//! A Kubernetes object, with the queries that tests need.

use serde_json::Value;

use super::{kubernetes::Render, list};

/// A rendered object.
#[derive(Debug, Clone)]
pub(crate) struct Object(pub(crate) Value);

impl Object {
    pub(crate) fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.0.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// The template of the object's pods.
    pub(crate) fn pod(&self) -> Option<&Value> {
        matches!(self.kind(), "Deployment" | "StatefulSet" | "Job")
            .then(|| &self.0["spec"]["template"])
    }

    pub(crate) fn containers(&self) -> &[Value] {
        self.pod().map_or(&[], |pod| list(pod, "/spec/containers"))
    }

    /// The variables of its first container with their sources: a value, or a reference to a Secret
    /// or field.
    pub(crate) fn variables(&self, render: &Render) -> Vec<(String, Variable)> {
        let Some(container) = self.containers().first() else { return vec![] };
        let mut variables = vec![];
        for source in list(container, "/envFrom") {
            let name = super::text(source, "/configMapRef/name");
            let data =
                render.get("ConfigMap", &name).0["data"].as_object().cloned().unwrap_or_default();
            variables.extend(data.into_iter().map(|(name, value)| (name, Variable::of(&value))));
        }

        for entry in list(container, "/env") {
            let variable = match entry.get("value") {
                Some(value) => Variable::of(value),
                None => Variable::Elsewhere(entry["valueFrom"].clone()),
            };
            variables.push((super::text(entry, "/name"), variable));
        }

        variables
    }

    /// The value of one variable; the last one counts, as for the kubelet.
    pub(crate) fn variable(&self, render: &Render, name: &str) -> Option<String> {
        let variables = self.variables(render);
        let found = variables.into_iter().rev().find(|(own, _)| own == name)?;
        match found.1 {
            Variable::Is(value) => Some(value),
            Variable::Elsewhere(_) => None,
        }
    }

    /// Whether `labels`, of a pod or an object, match `selector` (a `matchLabels` map).
    pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
        let selector = selector.as_object().expect("matchLabels");
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// The source of a variable's value.
#[derive(Debug, Clone)]
pub(crate) enum Variable {
    /// A value in the manifests.
    Is(String),
    /// A reference that is resolved when the pod starts.
    Elsewhere(Value),
}

impl Variable {
    fn of(value: &Value) -> Self {
        Self::Is(value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned())
    }
}
