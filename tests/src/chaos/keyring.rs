//! The keys of a fleet whose jobs are signed, and their replacement while jobs run.

use std::{
    fs, mem,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use fleet_access::{Principal, PrincipalKind, Via};
use fleet_job::{
    control::Control,
    decode,
    record::{Position, RawRecord},
    time::Timestamp,
};
use fleet_signing::{HEADER, SigningKeys, generate_key};

use crate::{bins::bin, topics::Outgoing};

/// How long servers and workers may take to read a changed file.
const READ_BY: Duration = Duration::from_secs(6);

/// Whoever submits jobs may have the tools called that are hosted, and nothing else.
const RULES: &str = "
    [access]
    default = 'deny'

    [[rule]]
    name = 'submitters'
    effect = 'allow'
    principals = ['subject:submitter']
    actions = ['tools.call']
    servers = ['chaos', 'remote']
    tools = ['work']
";

/// The keys in a directory. Jobs are signed here as a server does it, so that they can be written
/// whatever has become of the servers.
#[derive(Debug)]
pub struct Keyring {
    directory: PathBuf,
    topic: String,
    /// The key that signs.
    current: String,
    /// The key that will sign next, and when all were told of it.
    next: Option<(String, Instant)>,
    keys: SigningKeys,
    /// How many keys have signed.
    pub used: usize,
}

impl Keyring {
    /// Makes the keys of a fleet with this jobs topic.
    pub fn new(directory: &Path, topic: &str) -> Self {
        let directory = directory.join("access");
        let keys = directory.join("keys.toml");
        let made = Command::new(bin("mcp-fleet"))
            .args(["keys", "init", "--keys"])
            .arg(&keys)
            .arg("--out")
            .arg(&directory)
            .output()
            .expect("a process");
        assert!(made.status.success(), "{made:?}");
        fs::write(directory.join("policy.toml"), RULES).expect("a policy file");

        let current = fs::read_to_string(directory.join("signing.key")).expect("a key");
        let keys = SigningKeys::parse(current.as_bytes()).expect("a key");
        let topic = topic.to_owned();
        Self { directory, topic, current, next: None, keys, used: 1 }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// The environment of servers.
    pub fn of_servers(&self) -> Vec<(String, String)> {
        let settings = [
            // The harness itself asks without credentials.
            ("MCP_ACCESS", "local".to_owned()),
            ("MCP_ACCESS_KEYS_FILE", self.path("keys.toml")),
            ("MCP_POLICY_FILE", self.path("policy.toml")),
            ("MCP_SIGNING_KEY_FILE", self.path("signing.key")),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// The environment of workers.
    pub fn of_workers(&self) -> [(&'static str, String); 2] {
        [
            ("MCP_SERVER_TOKEN_FILE", self.path("worker.key")),
            ("MCP_SIGNING_PUBLIC_KEYS_FILE", self.path("signing.pub")),
        ]
    }

    /// Goes on with the replacement of the key: first all are told of the next one, and once they
    /// have had the time to read it, it signs.
    pub fn rotate(&mut self) {
        match mem::take(&mut self.next) {
            None => {
                let next = generate_key().expect("a key");
                self.write(&self.current, &next);
                self.next = Some((next, Instant::now()));
            }
            Some((next, told)) if told.elapsed() >= READ_BY => {
                let before = mem::replace(&mut self.current, next);
                self.write(&self.current, &before);
                self.keys = SigningKeys::parse(self.current.as_bytes()).expect("a key");
                self.used += 1;
            }
            waiting => self.next = waiting,
        }
    }

    /// Writes both files, as an operator does who adds to what is there: jobs that an earlier key
    /// has signed may still wait.
    fn write(&self, first: &str, second: &str) {
        let public = fs::read_to_string(self.path("signing.pub")).expect("the public keys");
        let both = format!("{first}{second}");
        let keys = SigningKeys::parse(both.as_bytes()).expect("keys");
        let known = SigningKeys::parse(public.as_bytes()).expect("public keys");
        let all = keys.and_verifiers_of(known).public_pem();
        for (name, text) in [("signing.pub", all.clone()), ("signing.key", both + &all)] {
            let next = self.path(&format!("{name}.next"));
            fs::write(&next, text).expect("a file");
            fs::rename(next, self.path(name)).expect("a file");
        }
    }

    /// A job's record with the signature of its submitter. What is no job stays as it is.
    pub fn sign_job(&self, record: Outgoing) -> Outgoing {
        let value = record.value.clone();
        let position = Position { topic: self.topic.clone(), partition: 0, offset: 0 };
        let raw = RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() };
        let Ok(envelope) = decode::decode(&raw, usize::MAX) else { return record };

        let via = Via::Key { id: "submitter".to_owned() };
        let submitter = Principal::new("keys", "submitter", PrincipalKind::Service, via);
        let value = raw.value.as_deref().unwrap_or_default();
        let signature =
            self.keys.sign_job(&self.topic, &envelope, value, &submitter, None, Timestamp::MIN);
        with_signature(record, signature)
    }

    /// The signed record of a request to cancel.
    pub fn sign_control(&self, control: &Control) -> Outgoing {
        let value = control.to_bytes();
        let signature = self.keys.sign_control(&self.topic, &value, None);
        with_signature(Outgoing::value(value).key(control.job_id.clone()), signature)
    }
}

fn with_signature(mut record: Outgoing, signature: Option<String>) -> Outgoing {
    let signature = signature.expect("a key that signs");
    record.headers.push((HEADER.to_owned(), Some(signature.into_bytes())));
    record
}
