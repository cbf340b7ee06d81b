//! `mcp-fleet keys`: the API keys of a server, in a file that the server follows.
//!
//! The file has a digest of each key and never a key. The digests are made with a pepper, which is
//! kept in a file of its own, so that the keys file alone does not even allow guessing.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use fleet_access::{KeyEntry, KeysFile, PrincipalKind, check_key_id};
use fleet_job::time::Timestamp;
use fleet_ops::config::parse_duration;
use serde_json::{Value, json};

use crate::{error::CliError, output};

mod init;
mod store;

pub(crate) use init::ClusterError;
#[cfg(feature = "fleet")]
pub(crate) use init::make_first_keys;
use store::{PRIVATE, Store};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make the keys that a fleet needs at its first start, each in a file of its own
    Init(init::Init),
    /// Make a key, and print it this one time
    Create(Create),
    /// List the keys, without their secrets
    List(List),
    /// Revoke a key; servers refuse it within seconds
    Revoke(Revoke),
}

/// The files.
#[derive(Debug, clap::Args)]
struct Files {
    /// The keys file, which a server reads with --access-keys
    #[arg(
        help_heading = "Files",
        long = "keys",
        env = "MCP_ACCESS_KEYS_FILE",
        default_value = "keys.toml",
        value_name = "FILE"
    )]
    keys: PathBuf,

    /// The pepper's file; FILE.pepper beside the keys file by default, made if missing
    #[arg(
        help_heading = "Files",
        long = "pepper-file",
        env = "MCP_ACCESS_PEPPER_FILE",
        value_name = "FILE"
    )]
    pepper: Option<PathBuf>,
}

const CREATE_EXAMPLES: &str = "Examples:
  Make a key for a CI, and keep it in a variable; nothing else goes to standard output:
    CI_KEY=$(mcp-fleet keys create ci --keys keys.toml)

  Make a key for a person that expires:
    mcp-fleet keys create alice-laptop --subject alice --kind person --name Alice --expires 90d

  Replace a key: make a second one for the same subject, which sees the same jobs, and revoke the
  first one once nobody uses it:
    mcp-fleet keys create ci-2 --subject ci
    mcp-fleet keys revoke ci

  The same where the key is in a file, which workers read again when it changes:
    mcp-fleet keys create worker-2 --subject worker --role fleet-worker --out access/worker.key

  Serve callers with these keys:
    mcp-server --access-keys keys.toml";

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct Create {
    /// The key's id: lower-case letters, digits and `-`; it is not secret
    #[arg(value_name = "ID", value_parser = parse_id)]
    id: String,

    #[command(flatten)]
    files: Files,

    /// Whom the key stands for; the id by default
    ///
    /// Keys of one subject are one principal: they see the same jobs.
    #[arg(help_heading = "Principal", long, value_name = "TEXT")]
    subject: Option<String>,

    /// What the subject is: person, service or node
    #[arg(
        help_heading = "Principal",
        long,
        default_value = "service",
        value_parser = parse_kind,
        value_name = "KIND"
    )]
    kind: PrincipalKind,

    /// A name for people to read
    #[arg(help_heading = "Principal", long, value_name = "TEXT")]
    name: Option<String>,

    /// The tenant that the principal belongs to
    #[arg(help_heading = "Principal", long, value_name = "TENANT")]
    tenant: Option<String>,

    /// A role of the principal; may be repeated
    #[arg(help_heading = "Principal", long = "role", value_name = "ROLE")]
    roles: Vec<String>,

    /// A scope of the key; may be repeated
    #[arg(help_heading = "Principal", long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,

    /// When the key stops working: after a duration such as 90d, or at 2027-01-31T00:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = Expiry::parse)]
    expires: Option<Expiry>,

    /// Write the key to this file, in place of what it holds, and don't print it
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Print one JSON object, with the key in it unless it is in a file
    #[arg(help_heading = "Output", long)]
    json: bool,
}

const LIST_EXAMPLES: &str = "Examples:
  mcp-fleet keys list
  mcp-fleet keys list --keys /etc/mcp-fleet/keys.toml --json";

#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct List {
    #[command(flatten)]
    files: Files,

    /// Print one JSON object per key
    #[arg(help_heading = "Output", long)]
    json: bool,
}

const REVOKE_EXAMPLES: &str = "Examples:
  mcp-fleet keys revoke ci
  mcp-fleet keys revoke ci --keys /etc/mcp-fleet/keys.toml --json";

#[derive(Debug, clap::Args)]
#[command(after_help = REVOKE_EXAMPLES)]
pub(crate) struct Revoke {
    /// The key's id
    #[arg(value_name = "ID", value_parser = parse_id)]
    id: String,

    #[command(flatten)]
    files: Files,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// When a key stops working, as a user writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expiry {
    At(Timestamp),
    After(Duration),
}

impl Expiry {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(after) = parse_duration(text) {
            return Ok(Self::After(after));
        }
        text.parse()
            .map(Self::At)
            .map_err(|error| format!("{error}, or a duration such as 12h or 90d"))
    }

    fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::After(after) => now.plus(after),
        }
    }
}

/// What a key is good for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyState {
    Valid,
    Expired,
    Revoked,
}

impl KeyState {
    fn of(entry: &KeyEntry, now: Timestamp) -> Self {
        match (entry.revoked, entry.expires) {
            (Some(_), _) => Self::Revoked,
            (None, Some(expires)) if expires <= now => Self::Expired,
            (None, _) => Self::Valid,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

fn parse_id(text: &str) -> Result<String, String> {
    check_key_id(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn parse_kind(text: &str) -> Result<PrincipalKind, String> {
    let kind = PrincipalKind::parse(text).filter(|kind| *kind != PrincipalKind::Anonymous);
    kind.ok_or_else(|| "expected person, service or node".to_owned())
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Init(args) => init::run(&args).await,
        Command::Create(args) => create(args),
        Command::List(args) => list(&args),
        Command::Revoke(args) => revoke(&args),
    }
}

fn create(args: Create) -> Result<ExitCode, CliError> {
    let now = fleet_ops::clock::now();
    let expires = args.expires.map(|expires| expires.resolve(now));
    if expires.is_some_and(|expires| expires <= now) {
        return Err(CliError::Usage("--expires is in the past; choose a later time".to_owned()));
    }

    let mut store = Store::open(&args.files)?;
    if store.file.keys.iter().any(|entry| entry.id == args.id) {
        let message = format!(
            "there is a key `{}` in {} already, and ids are never used twice; choose another id, \
             and pass --subject {0} if both are to be one principal",
            args.id,
            store.path.display()
        );
        return Err(CliError::Usage(message));
    }

    let pepper = store.pepper_for_new_key()?;
    let (key, entry) = KeyEntry::create(&args.id, &rand::random(), &pepper, now)
        .map_err(|error| CliError::Usage(error.to_string()))?;
    let entry = KeyEntry {
        subject: args.subject,
        kind: args.kind,
        name: args.name,
        tenant: args.tenant,
        roles: args.roles,
        scopes: args.scopes,
        expires,
        ..entry
    };
    store.file.keys.push(entry.clone());
    // A server must know the key before anybody finds it in its file.
    store.save()?;
    if let Some(path) = &args.out {
        store::write_atomically(path, key.as_bytes(), PRIVATE).map_err(|error| {
            store::failed("revoke the new key: could not write its secret to", path, error)
        })?;
    }

    match (args.json, &args.out) {
        (true, out) => {
            let mut object = describe(&entry, now);
            if out.is_none() {
                object["key"] = key.into();
            }
            output::json(&object);
        }
        (false, Some(path)) => {
            output::line(&format!("made key {}; its secret is in {}", entry.id, path.display()));
        }
        (false, None) => {
            output::line(&key);
            output::note(&format!(
                "The key is shown only now. Its digest is in {}; a server reads it with \
                 --access-keys.",
                store.path.display()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &List) -> Result<ExitCode, CliError> {
    let now = fleet_ops::clock::now();
    let file = store::read(&args.files)?;
    if args.json {
        file.keys.iter().for_each(|entry| output::json(&describe(entry, now)));
    } else {
        output::line(&table(&file, now));
    }
    Ok(ExitCode::SUCCESS)
}

fn revoke(args: &Revoke) -> Result<ExitCode, CliError> {
    let now = fleet_ops::clock::now();
    let mut store = Store::open(&args.files)?;
    let is_new = store.file.revoke(&args.id, now);
    let Some(entry) = store.file.keys.iter().find(|entry| entry.id == args.id) else {
        let message = format!(
            "there is no key `{}` in {}; `mcp-fleet keys list` shows all keys",
            args.id,
            store.path.display()
        );
        return Err(CliError::Usage(message));
    };
    let entry = entry.clone();
    if is_new {
        store.save()?;
    }

    match (args.json, is_new) {
        (true, _) => output::json(&describe(&entry, now)),
        (false, true) => output::line(&format!("revoked key {}", args.id)),
        (false, false) => output::line(&format!("key {} was revoked before", args.id)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A key as JSON, without its digest.
fn describe(entry: &KeyEntry, now: Timestamp) -> Value {
    let mut object = json!({
        "id": entry.id,
        "subject": entry.subject.as_ref().unwrap_or(&entry.id),
        "kind": entry.kind.as_str(),
        "state": KeyState::of(entry, now).as_str(),
    });
    let texts = [("name", &entry.name), ("tenant", &entry.tenant)];
    for (field, text) in texts {
        if let Some(text) = text {
            object[field] = text.as_str().into();
        }
    }
    for (field, list) in [("roles", &entry.roles), ("scopes", &entry.scopes)] {
        if !list.is_empty() {
            object[field] = json!(list);
        }
    }
    let times =
        [("created", entry.created), ("expires", entry.expires), ("revoked", entry.revoked)];
    for (field, time) in times {
        if let Some(time) = time {
            object[field] = time.to_string().into();
        }
    }
    object
}

fn table(file: &KeysFile, now: Timestamp) -> String {
    if file.keys.is_empty() {
        return "no keys".to_owned();
    }

    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "ID", "SUBJECT", "NAME", "KIND", "TENANT", "ROLES", "STATE", "CREATED", "EXPIRES",
    ]);
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
    for entry in &file.keys {
        table.add_row([
            entry.id.clone(),
            entry.subject.clone().unwrap_or_else(|| entry.id.clone()),
            entry.name.clone().unwrap_or_default(),
            entry.kind.as_str().to_owned(),
            entry.tenant.clone().unwrap_or_default(),
            entry.roles.join(","),
            KeyState::of(entry, now).as_str().to_owned(),
            time(entry.created),
            time(entry.expires),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests;
