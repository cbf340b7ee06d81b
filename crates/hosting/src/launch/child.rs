//! Turns the configuration of a child into one that may be started.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use fleet_job::mcp_servers::{StdioServer, dotenv};
use fleet_policy::{CommandRule, LaunchRequest, NamedPath, Policy, Refusal};

use super::{
    ChildSpec, Environment, LaunchError, named_file::NamedFile, pick_error, read_secrets, to_hide,
};
use crate::{secret_store::SecretStore, secrets::Secrets};

/// The largest `envFile` that is read, in bytes.
const MAX_ENV_FILE: u64 = 256 * 1024;
/// The variables that every child gets from the server's own environment.
const BASE_ENV: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// Resolves a child under the first rule that allows all of it.
pub(super) async fn resolve_child<'a>(
    server: &StdioServer,
    policy: &'a Policy,
    store: &SecretStore,
) -> Result<(ChildSpec, &'a CommandRule), LaunchError> {
    let mut argv = Vec::with_capacity(1 + server.args.len());
    argv.push(server.command.clone());
    argv.extend(server.args.iter().cloned());

    let mut error = None;
    for rule in policy.rules_for(&argv)? {
        match resolve_under(rule, server, store).await {
            Ok(spec) => return Ok((spec, rule)),
            Err(other) => error = Some(pick_error(error, other)),
        }
    }
    Err(error.unwrap_or_else(|| Refusal::command(&argv).into()))
}

/// Resolves a child under one rule that covers its command line.
async fn resolve_under(
    rule: &CommandRule,
    written: &StdioServer,
    store: &SecretStore,
) -> Result<ChildSpec, LaunchError> {
    let used = written.secrets();
    let values = read_secrets(&used, &rule.secrets, &rule.argv, store).await?;
    let (server, mut secrets) = {
        let environment = Environment::new(&rule.expand, values);
        let server = written.expand(&|reference| environment.look_up(reference))?;
        let (mut hidden, values) = environment.into_used();
        hidden.extend(to_hide(&values));
        (server, hidden)
    };

    let cwd = match &server.cwd {
        Some(path) => Some(NamedFile::open(PathBuf::from(path)).await),
        None => None,
    };
    let env_file = match &server.env_file {
        // Like in editors, a relative `envFile` is relative to the child's working directory.
        Some(path) => {
            let base = cwd.as_ref().map_or(Path::new(""), |cwd| &cwd.path);
            Some(NamedFile::open(base.join(path)).await)
        }
        None => None,
    };

    let request = LaunchRequest {
        cwd: named_path(&cwd, &written.cwd),
        env_file: named_path(&env_file, &written.env_file),
        env: &server.env,
    };
    // Checked once before the file is read, for its location, and once with its variables.
    rule.check(request)?;
    check_exists("cwd", &cwd, &written.cwd)?;
    check_exists("envFile", &env_file, &written.env_file)?;

    let cwd_path = cwd.as_ref().map(|cwd| cwd.path.clone());
    let mut wanted = match (env_file, &written.env_file) {
        (Some(file), Some(name)) => read_env_file(file, name).await?,
        _ => BTreeMap::new(),
    };
    secrets.extend(wanted.clone());
    wanted.extend(server.env.clone());
    let cwd_request = named_path(&cwd, &written.cwd);
    rule.check(LaunchRequest { cwd: cwd_request, env_file: None, env: &wanted })?;

    let own = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
    let passed: BTreeMap<String, String> =
        rule.env_passthrough.iter().filter_map(|name| own(name)).collect();
    secrets.extend(passed.clone());
    let mut env: BTreeMap<String, String> = BASE_ENV.into_iter().filter_map(own).collect();
    env.extend(passed);
    env.extend(wanted);

    let program = find_program(&server.command)
        .await
        .ok_or_else(|| LaunchError::NoProgram(written.command.clone()))?;
    Ok(ChildSpec {
        program,
        args: server.args,
        cwd: cwd_path,
        env,
        confinement: rule.confinement.clone(),
        secrets: Secrets::new(secrets),
        used,
    })
}

fn named_path<'a>(
    file: &'a Option<NamedFile>,
    written: &'a Option<String>,
) -> Option<NamedPath<'a>> {
    Some(NamedPath { written: written.as_deref()?, path: &file.as_ref()?.path })
}

fn check_exists(
    field: &'static str,
    file: &Option<NamedFile>,
    written: &Option<String>,
) -> Result<(), LaunchError> {
    match (file.as_ref().and_then(NamedFile::error), written) {
        (Some(error), Some(path)) => Err(LaunchError::Path { field, path: path.clone(), error }),
        _ => Ok(()),
    }
}

async fn read_env_file(
    file: NamedFile,
    written: &str,
) -> Result<BTreeMap<String, String>, LaunchError> {
    let text = file.read(MAX_ENV_FILE).await.map_err(|error| LaunchError::Path {
        field: "envFile",
        path: written.to_owned(),
        error,
    })?;
    dotenv::parse(&text).map_err(|error| LaunchError::EnvFile { path: written.to_owned(), error })
}

/// Finds the program: a bare name in `PATH`, a path as written. Relative paths are relative to the
/// server's own working directory, never to the child's, which a message may choose.
async fn find_program(command: &str) -> Option<PathBuf> {
    let candidates = if command.contains('/') {
        vec![PathBuf::from(command)]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join(command)).collect()
    };

    for candidate in candidates {
        let is_executable = tokio::fs::metadata(&candidate).await.is_ok_and(|metadata| {
            use std::os::unix::fs::PermissionsExt;
            metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
        });
        if is_executable {
            return std::path::absolute(&candidate).ok();
        }
    }
    None
}
