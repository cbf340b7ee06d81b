//! The files of `k8s/` that are applied without kustomize. Each is complete by itself and equals
//! the base.

use std::{collections::BTreeSet, sync::OnceLock};

use serde_json::{Value, json};

use super::{
    documents, file,
    kubernetes::{Render, renders},
    objects::Object,
};

const FILES: [&str; 2] = ["k8s/mcp-server-deployment.yaml", "k8s/kafka-worker-deployment.yaml"];
/// The number of workers in the file; the base leaves it to an autoscaler.
const WORKERS: u32 = 3;

/// The objects of each file.
pub(crate) fn files() -> &'static [Render] {
    static READ: OnceLock<Vec<Render>> = OnceLock::new();
    READ.get_or_init(|| {
        let read = |path: &&str| {
            let objects = documents(&file(path)).into_iter().map(Object).collect();
            Render { name: (*path).to_owned(), objects }
        };
        FILES.iter().map(read).collect()
    })
}

/// The rendered base, with the original names of ConfigMaps.
fn base() -> Option<Render> {
    let base = renders().iter().find(|render| render.name == "base")?;
    let mut text =
        json!(base.objects.iter().map(|object| &object.0).collect::<Vec<_>>()).to_string();
    for map in base.of_kind("ConfigMap") {
        let (name, _digest) = map.name().rsplit_once('-').expect("a digest of the content");
        text = text.replace(map.name(), name);
    }
    let objects: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    Some(Render { name: base.name.clone(), objects: objects.into_iter().map(Object).collect() })
}

#[test]
fn a_standalone_file_equals_the_base() {
    let Some(base) = base() else { return };
    for file in files() {
        for object in &file.objects {
            let mut expected = base.get(object.kind(), object.name()).0.clone();
            if (object.kind(), object.name()) == ("Deployment", "kafka-worker") {
                expected["spec"]["replicas"] = WORKERS.into();
            }
            assert_eq!(object.0, expected, "{}: {}", file.name, object.describe());
        }
    }

    // NetworkPolicies deny traffic that a namespace without our labels needs, so they are only
    // available with kustomize.
    let named = |object: &Object| (object.kind().to_owned(), object.name().to_owned());
    let there: BTreeSet<_> =
        files().iter().flat_map(|file| file.objects.iter().map(named)).collect();
    let wanted = base.objects.iter().filter(|object| object.kind() != "NetworkPolicy");
    assert_eq!(there, wanted.map(named).collect());
}
