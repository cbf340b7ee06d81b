//! The Dockerfiles: hadolint's rules, and rules of our own.

use std::process::Command;

use fleet_tests::{bins, python::Python};

use super::{assert_no_problems, file};

const FILES: [(&str, &str); 3] = [
    ("Dockerfile.server", "mcp-server"),
    ("Dockerfile.worker", "kafka-worker"),
    ("Dockerfile.cli", "mcp-fleet"),
];

/// The instructions of a Dockerfile without comments, each on one line.
fn instructions(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}

/// Whether an image is named by a version, for people, and by a digest, which decides.
fn is_pinned(image: &str) -> bool {
    let Some((name, digest)) = image.split_once("@sha256:") else { return false };
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest && name.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest")
}

/// The problems of the Dockerfile `text` for the image of `program`.
fn problems(text: &str, program: &str) -> Vec<String> {
    let all = instructions(text);
    let mut problems = vec![];
    let mut stages = vec![];

    let syntax = text.lines().next().and_then(|line| line.strip_prefix("# syntax="));
    if !syntax.is_some_and(is_pinned) {
        problems.push(format!("the frontend has no version with a digest: {syntax:?}"));
    }

    for instruction in all.iter().filter(|instruction| instruction.starts_with("FROM ")) {
        let words: Vec<_> = instruction.split(' ').collect();
        let image = words[1];
        if image != "scratch" && !is_pinned(image) && !stages.contains(&image) {
            problems.push(format!("{instruction}: no version with a digest"));
        }
        stages.extend(words.get(3));
    }
    for instruction in all.iter().filter(|instruction| instruction.starts_with("COPY --from=")) {
        let from = instruction["COPY --from=".len()..].split(' ').next().unwrap_or_default();
        if !stages.contains(&from) {
            problems.push(format!("{instruction}: no such stage"));
        }
    }
    let builds: Vec<_> = all
        .iter()
        .filter_map(|instruction| instruction.split_once("cargo build "))
        .map(|(_, args)| args.split(" && ").next().unwrap_or_default())
        .collect();
    if builds.len() != 2 || builds[0] != builds[1] {
        problems
            .push(format!("the dependencies are built differently than the program: {builds:?}"));
    }
    if !builds.iter().all(|build| {
        build.contains("--profile dist --locked")
            && build.contains(&format!("-p {program} --bin {program}"))
    }) {
        problems.push(format!("it builds something else: {builds:?}"));
    }
    let shipped = format!("scripts/image-root /image target/dist/{program} ");
    if !all.iter().any(|instruction| instruction.contains(&shipped)) {
        problems.push("it ships another build".into());
    }

    let last =
        all.iter().rposition(|instruction| instruction.starts_with("FROM ")).expect("a stage");
    let end = &all[last..];
    let find = |name: &str| {
        end.iter().find_map(|instruction| instruction.strip_prefix(name)).map(str::trim)
    };
    match find("USER ").and_then(|user| user.split(':').next()?.parse::<u32>().ok()) {
        Some(1..) => {}
        _ => problems.push("the user is root, or has no number".into()),
    }
    if find("STOPSIGNAL ") != Some("SIGTERM") {
        problems.push("it is not stopped by SIGTERM".into());
    }
    let path = format!("/usr/local/bin/{program}");
    if find("ENTRYPOINT ") != Some(&format!("[\"{path}\"]")) {
        problems.push("it starts something else".into());
    }
    if !end.iter().any(|instruction| instruction == "COPY --from=build /image /") {
        problems.push("the program is not in it".into());
    }
    let health = find("HEALTHCHECK ").unwrap_or_default();
    let expected = match program {
        "mcp-fleet" => "NONE".to_owned(),
        _ => format!("CMD [\"{path}\", \"--healthcheck\"]"),
    };
    if !health.ends_with(&expected) {
        problems.push(format!("its health is not asked for by itself: {health}"));
    }
    for word in ["PASSWORD", "SECRET", "TOKEN"] {
        if all.iter().any(|instruction| {
            (instruction.starts_with("ENV ") || instruction.starts_with("ARG "))
                && instruction.contains(word)
        }) {
            problems.push(format!("{word} in the image"));
        }
    }
    for label in ["title", "description", "licenses", "version", "revision"] {
        if !find("LABEL ")
            .is_some_and(|labels| labels.contains(&format!("org.opencontainers.image.{label}=")))
        {
            problems.push(format!("no label {label}"));
        }
    }
    problems
}

#[test]
fn dockerfiles_keep_the_rules() {
    for (name, program) in FILES {
        let found = problems(&file(name), program);
        assert_no_problems(
            &found.into_iter().map(|problem| format!("{name}: {problem}")).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn every_rule_finds_its_violations() {
    let good = file("Dockerfile.worker");
    for (from, to) in [
        ("FROM rust:1.95-bookworm", "FROM rust:latest"),
        ("rust:1.95-bookworm@sha256:", "rust:1.95-bookworm@sha256:0"),
        ("rust:1.95-bookworm@", "rust@"),
        ("dockerfile:1.7@sha256:", "dockerfile:1.7@"),
        ("image target/dist/", "image target/release/"),
        ("COPY --from=manifests", "COPY --from=manifest"),
        ("-p kafka-worker --bin kafka-worker\nCOPY", "-p kafka-worker\nCOPY"),
        ("USER 65532:65532", "USER nonroot"),
        ("USER 65532:65532", "USER 0:0"),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL"),
        ("ENTRYPOINT [\"/usr", "ENTRYPOINT [\"/opt"),
        ("CMD [\"/usr/local/bin/kafka-worker\"", "CMD [\"/usr/local/bin/mcp-server\""),
        ("COPY --from=build /image /", "COPY --from=build /images /"),
        ("ENV MCP_HOST", "ENV MCP_SERVER_TOKEN=x MCP_HOST"),
        ("image.licenses", "image.license"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(!problems(&good.replacen(from, to, 1), "kafka-worker").is_empty(), "{to}");
    }
}

#[test]
fn hadolint_finds_no_problems() {
    let Some(python) = Python::manifests() else { return };
    let lint = |path: &std::path::Path| {
        let mut command = python.program("hadolint");
        let output =
            command.args(["--failure-threshold", "style"]).arg(path).output().expect("hadolint");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };

    for (name, _) in FILES {
        let (good, said) = lint(&bins::repository().join(name));
        assert!(good && said.is_empty(), "{said}");
    }

    let path = bins::scratch("hadolint").join("Dockerfile");
    let text = file("Dockerfile.cli");
    let (_, image) = text.split_once("FROM ").expect("an image");
    let (image, _) = image.split_once(' ').expect("the image's end");
    std::fs::write(&path, text.replace(image, "rust:latest")).expect("a file");
    assert!(!lint(&path).0, "hadolint takes anything");
}

/// Runs the builder's commands that need neither a network nor a container on the context that a
/// builder would get.
#[test]
fn the_context_has_all_files_for_the_build() {
    let context = bins::scratch("context");
    let ignore = file(".dockerignore");
    assert!(ignore.lines().any(|line| line == "*"), "everything is let in");
    for entry in ignore.lines().filter_map(|line| line.strip_prefix('!')) {
        let source = bins::repository().join(entry);
        assert!(source.exists(), ".dockerignore names {entry}");
        let target = context.join(entry);
        std::fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
        fleet_tests::cache::run(Command::new("cp").arg("-r").arg(source).arg(target));
    }

    // This is `COPY . .` of both stages, and the commands of each.
    let skeleton = bins::scratch("skeleton");
    fleet_tests::cache::run(Command::new(context.join("scripts/image-skeleton")).arg(&skeleton));
    let targets = |directory: &std::path::Path| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]);
        let output = command.current_dir(directory).output().expect("cargo metadata");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut found = vec![];
        for package in super::list(&metadata, "/packages") {
            for target in super::list(package, "/targets") {
                let kind = super::text(target, "/kind/0");
                if matches!(kind.as_str(), "lib" | "bin" | "bench") {
                    found.push(format!(
                        "{} {kind} {}",
                        super::text(package, "/name"),
                        super::text(target, "/name")
                    ));
                }
            }
        }
        found.sort();
        found
    };
    let expected = targets(bins::repository());
    assert!(expected.contains(&"kafka-worker bin kafka-worker".to_owned()));
    assert_eq!(targets(&context), expected);
    assert_eq!(targets(&skeleton), expected);
}

/// Asks cargo for the build of each image: the embedded broker is only for laptops, and only a
/// program of its own links it.
#[test]
fn the_embedded_broker_is_in_no_image() {
    let linked = |args: &str| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"]);
        let output = command
            .args(args.split(' '))
            .current_dir(bins::repository())
            .output()
            .expect("cargo tree");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let crates = String::from_utf8(output.stdout).expect("text");
        assert!(crates.contains("tokio "), "{crates}");
        crates.lines().any(|line| line.starts_with("tansu-"))
    };

    for (name, program) in FILES {
        let text = file(name);
        let (_, args) = text.split_once(&format!("-p {program} --bin {program}")).expect("a build");
        let flags = args.lines().next().unwrap_or_default().trim_end_matches('\\').trim();
        assert!(!linked(format!("-p {program} {flags}").trim()), "{name}");
    }

    assert!(!linked("-p mcp-fleet"), "with all commands");
    assert!(linked("-p mcp-fleet-broker"), "the check finds nothing");
}
