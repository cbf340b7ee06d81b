//! `k8s/` as kustomize renders it: the objects, every combination of components, and the schemas of
//! Kubernetes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use fleet_tests::{bins, cache, go, python::Python};
use serde_json::Value;

use super::{assert_no_problems, documents, objects::Object};

/// The objects of one kustomization.
pub(crate) struct Render {
    pub(crate) name: String,
    pub(crate) objects: Vec<Object>,
}

impl Render {
    pub(crate) fn of_kind<'s, 'k>(
        &'s self,
        kind: &'k str,
    ) -> impl Iterator<Item = &'s Object> + use<'s, 'k> {
        self.objects.iter().filter(move |object| object.kind() == kind)
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Object> {
        self.of_kind(kind).find(|object| object.name() == name)
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> &Object {
        self.find(kind, name).unwrap_or_else(|| panic!("{}: there is no {kind} {name}", self.name))
    }
}

const COMPONENTS: [&str; 3] = ["keda", "monitoring", "spot"];

/// Base, overlays, and both with every combination of components; empty without Go.
pub(crate) fn renders() -> &'static [Render] {
    static RENDERS: OnceLock<Vec<Render>> = OnceLock::new();
    RENDERS
        .get_or_init(|| go::kustomize().map(|kustomize| render_all(&kustomize)).unwrap_or_default())
}

fn render_all(kustomize: &Path) -> Vec<Render> {
    // A kustomization can refer to others only by relative paths, so the generated ones are next to
    // copies.
    let directory = bins::scratch("k8s");
    cache::run(Command::new("cp").arg("-r").arg(bins::repository().join("k8s")).arg(&directory));
    let k8s = directory.join("k8s");
    let mut renders = vec![];
    for (root, namespace) in [("base", "mcp-fleet"), ("overlays/dev", "mcp-fleet-dev")] {
        renders.push(render(kustomize, root, k8s.join(root)));
        for set in 1..1 << COMPONENTS.len() {
            let components = COMPONENTS.iter().enumerate().filter(|(bit, _)| set & (1 << bit) != 0);
            let names: Vec<_> = components.map(|(_, name)| *name).collect();
            renders.push(combine(kustomize, &k8s, root, namespace, &names));
        }
    }
    renders.push(render(kustomize, "overlays/production", k8s.join("overlays/production")));
    renders.push(combine(kustomize, &k8s, "overlays/production", "mcp-fleet", &["spot"]));
    renders
}

/// An overlay of `root` with `components`, as people write their own.
fn combine(
    kustomize: &Path,
    k8s: &Path,
    root: &str,
    namespace: &str,
    components: &[&str],
) -> Render {
    let name = format!("{root}+{}", components.join("+"));
    let directory = k8s.join("overlays").join(name.replace('/', "-"));
    fs::create_dir_all(&directory).expect("a directory for an overlay");
    let components: String =
        components.iter().map(|name| format!("- ../../components/{name}\n")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {namespace}\n\
         resources:\n- ../../{root}\ncomponents:\n{components}"
    );
    fs::write(directory.join("kustomization.yaml"), text).expect("an overlay");
    render(kustomize, &name, directory)
}

fn render(kustomize: &Path, name: &str, directory: PathBuf) -> Render {
    let output = Command::new(kustomize).arg("build").arg(&directory).output().expect("kustomize");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "kustomize build {name}: {stderr}");
    assert_eq!(stderr, "", "kustomize build {name} has something to say");
    Render { name: name.to_owned(), objects: documents(&stdout).into_iter().map(Object).collect() }
}

#[test]
fn all_requested_objects_are_rendered() {
    for render in renders() {
        for (kind, name) in [
            ("Deployment", "mcp-server"),
            ("Deployment", "kafka-worker"),
            ("Service", "mcp-server"),
            ("Job", "mcp-fleet-topics"),
            ("Job", "mcp-fleet-keys"),
            ("Secret", "mcp-fleet-keys"),
            ("PodDisruptionBudget", "mcp-server"),
            ("PodDisruptionBudget", "kafka-worker"),
            ("NetworkPolicy", "mcp-fleet-default-deny"),
        ] {
            render.get(kind, name);
        }
        let production = render.name.contains("production");
        for (component, kind, name) in [
            ("keda", "ScaledObject", "kafka-worker"),
            ("keda", "TriggerAuthentication", "mcp-fleet-kafka"),
            ("monitoring", "ServiceMonitor", "mcp-server"),
            ("monitoring", "PodMonitor", "kafka-worker"),
            ("monitoring", "PrometheusRule", "mcp-fleet"),
        ] {
            let expected = production || render.name.contains(component);
            assert_eq!(
                render.find(kind, name).is_some(),
                expected,
                "{}: {kind} {name}",
                render.name
            );
        }
        assert_eq!(render.find("HorizontalPodAutoscaler", "mcp-server").is_some(), production);
    }
}

#[test]
fn names_are_unique_and_in_one_namespace() {
    for render in renders() {
        let mut seen = BTreeSet::new();
        let mut namespaces = BTreeSet::new();
        for object in &render.objects {
            assert!(
                seen.insert((object.kind(), object.name())),
                "{}: {} twice",
                render.name,
                object.describe()
            );
            if object.kind() != "Namespace" {
                namespaces.insert(object.0.pointer("/metadata/namespace").and_then(Value::as_str));
            }
        }
        assert_eq!(namespaces.len(), 1, "{}: {namespaces:?}", render.name);
    }
}

/// Checks the objects of Kubernetes itself against its schemas; an unknown property is an error.
#[test]
fn every_object_matches_the_schemas_of_kubernetes() {
    let Some(python) = Python::manifests() else { return };
    let all = renders().iter().chain(super::standalone::files());
    let objects: Vec<_> = all.flat_map(|render| &render.objects).collect();
    let own = objects.iter().filter(|object| !super::crds::is_custom(object));
    let distinct: BTreeSet<String> = own.map(|object| object.0.to_string()).collect();
    validate(&python, &distinct).unwrap_or_else(|report| panic!("{report}"));

    // Verify that the validator refuses invalid objects.
    let Some(deployment) = renders().first().map(|render| render.get("Deployment", "kafka-worker"))
    else {
        return;
    };
    let mut wrong = deployment.0.clone();
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = Value::Null;
    let report =
        validate(&python, &BTreeSet::from([wrong.to_string()])).expect_err("a misspelt property");
    assert!(report.contains("livenesProbe"), "{report}");
}

fn validate(python: &Python, objects: &BTreeSet<String>) -> Result<(), String> {
    // JSON is YAML, and the validator reads a stream of documents.
    let stream: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    let path = bins::scratch("kubernetes-validate").join("objects.yaml");
    fs::write(&path, stream).expect("the objects");
    let mut command = Command::new(python.interpreter());
    command.args(["-m", "kubernetes_validate", "--strict", "-k", "1.37"]).arg(&path);
    let output = command.output().expect("kubernetes-validate");
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();

    // The validator skips objects without a schema, and says so.
    let passed =
        said.lines().filter(|line| line.contains("INFO") && line.contains("passed")).count();
    if output.status.success() && passed == objects.len() {
        return Ok(());
    }

    Err(format!("{passed} of {} objects are valid\n{said}", objects.len()))
}

#[test]
fn no_secret_has_data_and_the_example_has_no_real_ones() {
    let mut problems = vec![];
    for secret in documents(&super::file("k8s/secret.example.yaml")) {
        for (key, value) in secret["stringData"].as_object().expect("stringData") {
            let value = value.as_str().unwrap_or_default();
            if !(value.starts_with('<') && value.ends_with('>')) {
                problems.push(format!("{key} has a value"));
            }
        }
    }

    // Data would be in the repository, and each time that it is applied it would replace the keys of
    // the cluster.
    for render in renders().iter().chain(super::standalone::files()) {
        for secret in render.of_kind("Secret") {
            if ["data", "stringData"].iter().any(|field| secret.0.get(field).is_some()) {
                problems.push(format!("{}: {} has data", render.name, secret.describe()));
            }
        }
    }

    assert_no_problems(&problems);
}
