//! What it costs to know who asks and whether they may: authentication by API key or by an access
//! token that was seen before, and a decision with 1,000 rules.
//!
//! `cargo bench -p fleet-access --bench decide`. The goal is 20 µs at p50 for both together. The
//! rules are those of a company: most name a role and tools, some have wildcards, some conditions on
//! arguments. `condition` is a call that several conditions have to be evaluated for, `list` the
//! filtering of a list of 100 tools, and `fresh token` a token that was not seen before.

#![expect(clippy::unwrap_used, reason = "a benchmark: a panic is the report")]

use std::{fmt::Write, hint::black_box, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use criterion::{Criterion, criterion_group, criterion_main};
use fleet_access::{
    AccessPolicy, Action, Annotations, Arguments, Authentication, Authenticator, Context,
    FetchKeys, KeyEntry, KeySource, KeysFile, Pepper, Presented, Principal, Resource,
    WithoutCredentials,
};
use fleet_job::time::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};

const RULES: usize = 1000;
const ISSUER: &str = "https://idp.example.com";
const RESOURCE: &str = "https://mcp.example.com/mcp";

fn now() -> Timestamp {
    Timestamp::from_millis_clamped(1_795_000_000_000)
}

/// A policy file of so many rules.
fn policy() -> AccessPolicy {
    let mut text = format!("[[issuer]]\nurl = '{ISSUER}'\nroles_claims = ['roles']\n");
    for number in 0..RULES {
        let (role, tool, server) = (number % 50, number % 200, number % 20);
        let effect = if number % 20 == 19 { "deny" } else { "allow" };
        let covered = match number % 10 {
            0..6 => {
                format!("principals = ['role:team-{role}']\ntools = ['tool-{tool}', 'get-{tool}']")
            }
            6 | 7 => format!(
                "principals = ['role:team-{role}']\nservers = ['srv-{server}']\ntools = ['*-{tool}']"
            ),
            8 => format!("principals = ['anyone']\nservers = ['srv-{server}-*']"),
            _ => format!(
                "principals = ['role:team-{role}', 'key:ci-*']\nservers = ['srv-{server}']\nwhen = \"args.path.startsWith('/data/{number}/')\""
            ),
        };
        writeln!(
            text,
            "[[rule]]\nname = 'rule-{number}'\neffect = '{effect}'\nactions = ['tools.call', 'jobs.submit']\n{covered}"
        )
        .unwrap();
    }
    AccessPolicy::parse(&text, Some(RESOURCE)).unwrap()
}

struct Setup {
    policy: AccessPolicy,
    authenticator: Authenticator,
    key: String,
    signing_key: EncodingKey,
}

impl Setup {
    fn new() -> Self {
        let policy = policy();
        let pepper = Pepper::new([1; 32]);
        let (key, mut entry) = KeyEntry::create("agent-1", &[2; 32], &pepper, now()).unwrap();
        entry.roles = (0..5).map(|role| format!("team-{role}")).collect();
        let keys = KeysFile { pepper: Some(pepper), keys: vec![entry] };
        let without = WithoutCredentials::Refused;
        let authenticator = policy.authenticator(&keys, None, without).unwrap();

        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let signing_key = EncodingKey::from_ec_der(pair.as_ref());
        let jwk = Jwk::from_encoding_key(&signing_key, Algorithm::ES256).unwrap();
        let set = json!({"keys": [jwk]}).to_string();
        let fetch = FetchKeys { issuer: ISSUER.to_owned(), source: KeySource::Discovery };
        authenticator.tokens().install_keys(&fetch, &set, now()).unwrap();

        Self { policy, authenticator, key, signing_key }
    }

    /// A token of about the size that identity providers make.
    fn token(&self, number: u64) -> String {
        let claims = json!({
            "iss": ISSUER, "sub": "3f0c8a52-7d64-4d0e-9f6b-0d4f7e1c2a90", "aud": [RESOURCE],
            "exp": now().as_millis() / 1000 + 3600, "jti": number, "name": "Ada Lovelace",
            "roles": (0..5).map(|role| format!("team-{role}")).collect::<Vec<_>>(),
            "groups": vec!["00000000-0000-0000-0000-000000000000"; 10], "scope": "a b c",
        });
        let header = Header::new(Algorithm::ES256);
        jsonwebtoken::encode(&header, &claims, &self.signing_key).unwrap()
    }

    fn authenticate(&self, header: &str) -> std::sync::Arc<Principal> {
        let values = [header.as_bytes()];
        let presented = Presented { authorization: &values, ..Presented::default() };
        match self.authenticator.authenticate(&presented, now()) {
            Authentication::Verified(principal) => principal,
            other => panic!("{other:?}"),
        }
    }

    fn decide(
        &self,
        principal: &Principal,
        server: &str,
        tool: &str,
        arguments: Arguments<'_>,
    ) -> bool {
        let resource = Resource::tool(Some(server), tool, Annotations::default());
        let context = Context { arguments, owner_names: &[] };
        self.policy.rules.decide(principal, Action::CallTool, &resource, &context).is_allowed()
    }
}

fn decide(c: &mut Criterion) {
    let setup = Setup::new();
    let arguments: Value = json!({
        "path": "/data/3/file", "query": "select 1", "limit": 10, "options": {"a": [1, 2, 3]},
    });
    let known = Arguments::Known(arguments.as_object().unwrap());
    let key = format!("Bearer {}", setup.key);
    let token = format!("Bearer {}", setup.token(0));
    let principal = setup.authenticate(&key);
    assert!(setup.decide(&principal, "srv-30", "tool-1", known));
    assert!(!setup.decide(&principal, "srv-30", "tool-19", known));

    let mut group = c.benchmark_group("decide");
    group.measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_secs(1));

    group.bench_function("key and decision", |b| {
        b.iter(|| {
            let principal = setup.authenticate(black_box(&key));
            setup.decide(&principal, black_box("srv-30"), black_box("tool-1"), known)
        });
    });
    group.bench_function("cached token and decision", |b| {
        b.iter(|| {
            let principal = setup.authenticate(black_box(&token));
            setup.decide(&principal, black_box("srv-30"), black_box("tool-1"), known)
        });
    });
    group.bench_function("decision allowed", |b| {
        b.iter(|| setup.decide(&principal, black_box("srv-30"), black_box("tool-1"), known));
    });
    group.bench_function("decision denied", |b| {
        b.iter(|| setup.decide(&principal, black_box("srv-30"), black_box("other"), known));
    });
    group.bench_function("condition", |b| {
        b.iter(|| setup.decide(&principal, black_box("srv-9"), black_box("other"), known));
    });
    group.bench_function("list of 100 tools", |b| {
        let names: Vec<_> = (0..100).map(|number| format!("tool-{number}")).collect();
        b.iter(|| {
            let visible = names.iter().filter(|name| {
                setup.decide(&principal, black_box("srv-30"), name, Arguments::NotYetKnown)
            });
            visible.count()
        });
    });
    group.bench_function("fresh token", |b| {
        let mut number = 0;
        b.iter_batched(
            || {
                number += 1;
                format!("Bearer {}", setup.token(number))
            },
            |token| setup.authenticate(&token),
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
