//! References in `k8s/`: each must have a target that is rendered with it.

use serde_json::Value;

use super::{
    assert_no_problems, documents, file,
    kubernetes::{Render, renders},
    list,
    objects::{Object, Variable},
    standalone, text,
};

/// Checks every render, and every standalone file, with `check`, which returns the problems.
fn check_everywhere(check: impl Fn(&Render) -> Vec<String>) {
    let problems = renders().iter().chain(standalone::files()).flat_map(|render| {
        let found = check(render);
        found.into_iter().map(move |problem| format!("{}: {problem}", render.name))
    });
    assert_no_problems(&problems.collect::<Vec<_>>());
}

/// The labels of everything that makes pods.
fn pods(render: &Render) -> Vec<(&Object, &Value)> {
    let pods = render.objects.iter().filter_map(|object| Some((object, object.pod()?)));
    pods.map(|(object, pod)| (object, pod.pointer("/metadata/labels").unwrap_or(&Value::Null)))
        .collect()
}

/// The pods that a `matchLabels` map selects.
fn selected<'r>(render: &'r Render, selector: &Value) -> Vec<&'r Object> {
    let pods = pods(render).into_iter().filter(|(_, labels)| Object::selects(selector, labels));
    pods.map(|(object, _)| object).collect()
}

fn has_port(object: &Object, port: &Value) -> bool {
    let ports = || object.containers().iter().flat_map(|container| list(container, "/ports"));
    match port {
        Value::String(name) => ports().any(|own| own["name"] == name.as_str()),
        number => ports().any(|own| own["containerPort"] == *number),
    }
}

#[test]
fn selectors_match_objects() {
    check_everywhere(|render| {
        let mut problems = vec![];
        for object in &render.objects {
            let selector = match object.kind() {
                "Service" => object.0.pointer("/spec/selector"),
                "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor" => {
                    object.0.pointer("/spec/selector/matchLabels")
                }
                _ => continue,
            };
            let Some(selector) = selector else {
                problems.push(format!("{} has no selector", object.describe()));
                continue;
            };
            let found = selected(render, selector);
            if found.len() != 1
                || (object.pod().is_some() && found[0].describe() != object.describe())
            {
                problems.push(format!(
                    "{} selects {} sorts of pods",
                    object.describe(),
                    found.len()
                ));
            }
            if let Some(pod) = object.pod() {
                for spread in list(pod, "/spec/topologySpreadConstraints") {
                    if !Object::selects(
                        &spread["labelSelector"]["matchLabels"],
                        &pod["metadata"]["labels"],
                    ) {
                        problems
                            .push(format!("{} spreads other pods than its own", object.describe()));
                    }
                }
            }
        }
        problems
    });
}

#[test]
fn ports_match_those_of_the_containers() {
    check_everywhere(|render| {
        let mut problems = vec![];
        for service in render.of_kind("Service") {
            for port in list(&service.0, "/spec/ports") {
                let target = port.get("targetPort").unwrap_or(&port["port"]);
                for pod in selected(render, &service.0["spec"]["selector"]) {
                    if !has_port(pod, target) {
                        problems.push(format!(
                            "Service {}: {} has no port {target}",
                            service.name(),
                            pod.name()
                        ));
                    }
                }
            }
        }
        for object in render.objects.iter().filter(|object| object.pod().is_some()) {
            for container in object.containers() {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let Some(probe) = container.get(probe) else { continue };
                    let port = probe.pointer("/httpGet/port").or(probe.pointer("/tcpSocket/port"));
                    if !port.is_some_and(|port| has_port(object, port)) {
                        problems.push(format!("{}: a probe asks at no port", object.describe()));
                    }
                }
            }
        }
        for monitor in render.of_kind("ServiceMonitor") {
            let selector = &monitor.0["spec"]["selector"]["matchLabels"];
            let services: Vec<_> = render
                .of_kind("Service")
                .filter(|service| Object::selects(selector, &service.0["metadata"]["labels"]))
                .collect();
            if services.is_empty() {
                problems.push(format!("{} selects no Service", monitor.describe()));
            }
            for endpoint in list(&monitor.0, "/spec/endpoints") {
                let there = |service: &&Object| {
                    list(&service.0, "/spec/ports")
                        .iter()
                        .any(|port| port["name"] == endpoint["port"])
                };
                if !services.iter().all(there) {
                    problems.push(format!("{}: no port {}", monitor.describe(), endpoint["port"]));
                }
            }
        }
        for monitor in render.of_kind("PodMonitor") {
            for endpoint in list(&monitor.0, "/spec/podMetricsEndpoints") {
                for pod in selected(render, &monitor.0["spec"]["selector"]["matchLabels"]) {
                    if !has_port(pod, &endpoint["port"]) {
                        problems.push(format!(
                            "{}: no port {}",
                            monitor.describe(),
                            endpoint["port"]
                        ));
                    }
                }
            }
        }
        problems
    });
}

#[test]
fn network_policies_select_existing_pods() {
    check_everywhere(|render| {
        let mut problems = vec![];
        if standalone::files().iter().any(|file| file.name == render.name) {
            return problems;
        }
        for policy in render.of_kind("NetworkPolicy") {
            let own: Vec<_> = pods(render)
                .into_iter()
                .filter(|(_, labels)| is_about(&policy.0["spec"]["podSelector"], labels))
                .collect();
            if own.is_empty() {
                problems.push(format!("{} is about no pods", policy.describe()));
            }
            for (rules, peers) in [("/spec/ingress", "/from"), ("/spec/egress", "/to")] {
                for rule in list(&policy.0, rules) {
                    let here = |peer: &&Value| {
                        peer.get("podSelector").is_some() && peer.get("namespaceSelector").is_none()
                    };
                    for peer in list(rule, peers).iter().filter(here) {
                        let selector = &peer["podSelector"]["matchLabels"];
                        // Only the overlay has Kafka.
                        let elsewhere = selector["app.kubernetes.io/name"] == "kafka";
                        let others = selected(render, selector);
                        if others.is_empty() && !elsewhere {
                            problems
                                .push(format!("{}: no pod matches {selector}", policy.describe()));
                        }
                        for port in
                            list(rule, "/ports").iter().filter(|port| port["port"].is_string())
                        {
                            let open = match peers {
                                "/from" => own.iter().all(|(pod, _)| has_port(pod, &port["port"])),
                                _ => others.iter().all(|pod| has_port(pod, &port["port"])),
                            };
                            if !open {
                                problems.push(format!(
                                    "{}: no port {}",
                                    policy.describe(),
                                    port["port"]
                                ));
                            }
                        }
                    }
                }
            }
        }
        // The policy that denies selects every pod of the fleet.
        let deny = render.get("NetworkPolicy", "mcp-fleet-default-deny");
        for name in ["mcp-server", "kafka-worker", "mcp-fleet-topics", "mcp-fleet-keys"] {
            let (_, labels) =
                pods(render).into_iter().find(|(object, _)| object.name() == name).expect("a pod");
            if !is_about(&deny.0["spec"]["podSelector"], labels) {
                problems.push(format!("{name} is not denied anything"));
            }
        }
        problems
    });
}

fn is_about(selector: &Value, labels: &Value) -> bool {
    if let Some(wanted) = selector.get("matchLabels") {
        return Object::selects(wanted, labels);
    }
    let expressions = list(selector, "/matchExpressions");
    !expressions.is_empty()
        && expressions.iter().all(|expression| {
            let label = &labels[expression["key"].as_str().unwrap_or_default()];
            expression["operator"] == "In" && list(expression, "/values").contains(label)
        })
}

#[test]
fn secrets_configmaps_accounts_and_volumes_exist() {
    let example = documents(&file("k8s/secret.example.yaml"));
    let in_example = |name: &str, key: &str| {
        example.iter().any(|secret| {
            secret["metadata"]["name"] == name && secret["stringData"].get(key).is_some()
        })
    };
    check_everywhere(|render| {
        let mut problems = vec![];
        for object in render.objects.iter().filter(|object| object.pod().is_some()) {
            // A missing ConfigMap panics here.
            for (name, variable) in object.variables(render) {
                let Variable::Elsewhere(from) = variable else { continue };
                if let Some(secret) = from.get("secretKeyRef") {
                    let (of, key) = (text(secret, "/name"), text(secret, "/key"));
                    if !in_example(&of, &key) {
                        problems.push(format!(
                            "{}: {name} is of {of}/{key}, which the example lacks",
                            object.name()
                        ));
                    }
                } else if from.pointer("/fieldRef/fieldPath") != Some(&"metadata.name".into()) {
                    problems.push(format!("{}: {name} comes from {from}", object.name()));
                }
            }
            let pod = object.pod().expect("a pod");
            if let Some(account) = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str)
                && render.find("ServiceAccount", account).is_none()
            {
                problems.push(format!(
                    "{} has an unknown service account: {account}",
                    object.describe()
                ));
            }
            let claims = list(&object.0, "/spec/volumeClaimTemplates");
            let volumes = list(pod, "/spec/volumes").iter().map(|volume| text(volume, "/name"));
            let volumes: Vec<_> =
                volumes.chain(claims.iter().map(|claim| text(claim, "/metadata/name"))).collect();
            for mount in
                object.containers().iter().flat_map(|container| list(container, "/volumeMounts"))
            {
                if !volumes.contains(&text(mount, "/name")) {
                    problems.push(format!("{}: no volume {}", object.describe(), mount["name"]));
                }
            }
        }
        for authentication in render.of_kind("TriggerAuthentication") {
            for target in list(&authentication.0, "/spec/secretTargetRef") {
                if !in_example(&text(target, "/name"), &text(target, "/key")) {
                    problems.push(format!("{}: {target}", authentication.describe()));
                }
            }
        }
        problems
    });
}

/// The Secret of keys as `mcp-fleet keys init --kubernetes-secret` fills it.
const KEYS: &str = "mcp-fleet-keys";
const KEY_FIELDS: [&str; 7] = [
    "keys.toml",
    "keys.toml.pepper",
    "worker.key",
    "operator.key",
    "metrics.key",
    "signing.key",
    "signing.pub",
];

#[test]
fn every_pod_has_only_its_own_part_of_the_keys() {
    let code = ["init.rs", "init/cluster.rs", "init/signing.rs"]
        .map(|name| file(&format!("crates/cli/src/keys/{name}")))
        .concat();
    for field in KEY_FIELDS {
        let names = [field, field.strip_suffix(".key").unwrap_or(field)];
        let is_known = names.iter().any(|name| code.contains(&format!("\"{name}\"")));
        assert!(is_known, "the program knows no {field}");
    }

    let mounted = |object: &Object| -> Vec<String> {
        let volumes = object.pod().map_or(&[][..], |pod| list(pod, "/spec/volumes"));
        let secrets = volumes.iter().filter(|volume| volume.get("secret").is_some());
        secrets
            .flat_map(|volume| {
                assert_eq!(volume["secret"]["secretName"], KEYS, "{}", object.describe());
                let items = list(volume, "/secret/items");
                assert!(!items.is_empty(), "{} has all keys", object.describe());
                items.iter().map(|item| text(item, "/key"))
            })
            .collect()
    };
    check_everywhere(|render| {
        let mut problems = vec![];
        for object in render.objects.iter().filter(|object| object.pod().is_some()) {
            let expected: &[&str] = match object.name() {
                "mcp-server" => &["keys.toml", "keys.toml.pepper", "signing.key"],
                "kafka-worker" => &["worker.key", "signing.pub"],
                _ => &[],
            };
            if mounted(object) != expected {
                problems.push(format!("{} mounts {:?}", object.describe(), mounted(object)));
            }
        }
        for (name, variable, path) in [
            ("mcp-server", "MCP_ACCESS_KEYS_FILE", "keys.toml"),
            ("mcp-server", "MCP_SIGNING_KEY_FILE", "signing.key"),
            ("kafka-worker", "MCP_SIGNING_PUBLIC_KEYS_FILE", "signing.pub"),
            ("kafka-worker", "MCP_SERVER_TOKEN_FILE", "key"),
        ] {
            let Some(deployment) = render.find("Deployment", name) else { continue };
            let set = deployment.variable(render, variable).unwrap_or_default();
            let mounts = list(&deployment.containers()[0], "/volumeMounts");
            if !mounts.iter().any(|mount| format!("{}/{path}", text(mount, "/mountPath")) == set) {
                problems.push(format!("{name}: {variable} is {set}, where nothing is mounted"));
            }
        }
        for monitor in render.of_kind("ServiceMonitor") {
            let credentials = &monitor.0["spec"]["endpoints"][0]["authorization"]["credentials"];
            if *credentials != serde_json::json!({"name": KEYS, "key": "metrics.key"}) {
                problems.push(format!("{} has no key", monitor.describe()));
            }
        }
        problems
    });
}

#[test]
fn one_pod_may_do_one_thing_with_the_api_of_the_cluster() {
    check_everywhere(|render| {
        let mut problems = vec![];
        for object in render.objects.iter().filter(|object| object.pod().is_some()) {
            let has_token = object.0.to_string().contains("serviceAccountToken\":{");
            if has_token != (object.name() == KEYS) {
                problems.push(format!("{} has a token, or lacks it", object.describe()));
            }
        }
        for role in render.of_kind("Role") {
            let expected = serde_json::json!([{
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": [KEYS],
                "verbs": ["get", "patch"],
            }]);
            if role.0["rules"] != expected {
                problems.push(format!("{}: {}", role.describe(), role.0["rules"]));
            }
        }
        for binding in render.of_kind("RoleBinding") {
            let (role, subject) = (&binding.0["roleRef"], &binding.0["subjects"][0]);
            let exists = render.find("Role", &text(role, "/name")).is_some()
                && render.find("ServiceAccount", &text(subject, "/name")).is_some();
            if !exists || list(&binding.0, "/subjects").len() != 1 {
                problems.push(format!("{} binds something else", binding.describe()));
            }
        }
        problems.extend(render.of_kind("ClusterRole").map(Object::describe));
        problems.extend(render.of_kind("ClusterRoleBinding").map(Object::describe));

        if let Some(job) = render.find("Job", KEYS) {
            let args = list(&job.containers()[0], "/args");
            let secret = args.iter().position(|arg| arg == "--kubernetes-secret");
            if secret.map(|at| &args[at + 1]) != Some(&KEYS.into()) {
                problems.push(format!("{} fills another Secret: {args:?}", job.describe()));
            }
        }
        problems
    });
}

#[test]
fn pods_have_only_the_rights_that_they_need() {
    check_everywhere(|render| {
        let mut problems = vec![];
        for object in render.objects.iter().filter(|object| object.pod().is_some()) {
            let pod = object.pod().expect("a pod");
            let is_ours = object.name() != "kafka";
            let mut must = |pointer: &str, value: &Value, expected: Value| {
                if value.pointer(pointer) != Some(&expected) {
                    problems.push(format!("{}: {pointer} is not {expected}", object.describe()));
                }
            };
            must("/spec/automountServiceAccountToken", pod, false.into());
            // Variables generated from the names of Services would be taken for settings.
            must("/spec/enableServiceLinks", pod, false.into());
            must("/spec/securityContext/runAsNonRoot", pod, true.into());
            must("/spec/securityContext/seccompProfile/type", pod, "RuntimeDefault".into());
            for container in object.containers() {
                must("/securityContext/allowPrivilegeEscalation", container, false.into());
                must("/securityContext/capabilities/drop", container, serde_json::json!(["ALL"]));
                if is_ours {
                    must("/securityContext/readOnlyRootFilesystem", container, true.into());
                }
            }
            for container in object.containers() {
                for pointer in [
                    "/resources/limits/memory",
                    "/resources/requests/cpu",
                    "/resources/requests/memory",
                ] {
                    if container.pointer(pointer).is_none() {
                        problems.push(format!("{}: no {pointer}", object.describe()));
                    }
                }
            }
        }
        problems
    });
}
