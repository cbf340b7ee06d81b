//! Pins of tools: first sights, changes, decisions, and what there is room for.

use fleet_pins::MAX_BYTES;
use fleet_policy::Policy;
use serde_json::json;

use super::*;

fn catalog(tools: &[(&str, &str)]) -> Catalog {
    let tools = tools.iter().map(|(name, description)| {
        let tool =
            json!({"name": name, "description": description, "inputSchema": {"type": "object"}});
        serde_json::from_value(tool).unwrap()
    });
    Catalog { tools: Arc::new(tools.collect()), ..Catalog::default() }
}

fn policy(text: &str) -> PinPolicy {
    Policy::from_toml(&format!("[pins]\nmode = 'approve'\n{text}")).unwrap().pins
}

/// The tools that are withheld when servers offer these.
fn withheld(
    pins: &Pins,
    policy: &PinPolicy,
    servers: &[(&str, &Catalog)],
) -> Vec<(String, Standing)> {
    let servers: Vec<_> =
        servers.iter().map(|(name, catalog)| ((*name).to_owned(), (*catalog).clone())).collect();
    let found = pins.examine(policy, &servers).into_iter();
    found.map(|((server, tool), standing)| (format!("{server}.{tool}"), standing)).collect()
}

#[test]
fn a_server_with_too_many_tools_is_withheld_and_no_other() {
    let (pins, policy) = (Pins::default(), policy(""));
    let name = "x".repeat(MAX_BYTES);
    let (huge, small) = (catalog(&[(&name, "d")]), catalog(&[("get", "Gets.")]));
    let servers = [("huge", &huge), ("small", &small)];
    for _ in 0..2 {
        let found = withheld(&pins, &policy, &servers);
        assert_eq!(found, [(format!("huge.{name}"), Standing::Unkept)]);
    }
    // Only what can be written is to be written.
    let mut unwritten = pins.unwritten.1.try_lock().unwrap();
    assert_eq!(unwritten.try_recv().unwrap(), "small");
    assert!(unwritten.try_recv().is_err());

    // With fewer tools, it is seen for the first time.
    let mended = catalog(&[("get", "Gets.")]);
    assert_eq!(withheld(&pins, &policy, &[("huge", &mended), ("small", &small)]), []);
    assert_eq!(unwritten.try_recv().unwrap(), "huge");
    let changed = catalog(&[("get", "Sends.")]);
    let found = withheld(&pins, &policy, &[("huge", &changed)]);
    assert_eq!(found, [("huge.get".to_owned(), Standing::Changed)]);
}

#[test]
fn beyond_the_most_servers_tools_are_withheld() {
    let (pins, policy) = (Pins::default(), policy(""));
    let known = ServerPins::first_seen([("get", Definition::default())], clock::now());
    let names = (0..MAX_SERVERS).map(|number| (format!("s{number}"), known.clone()));
    pins.state.write().servers.extend(names);
    let found = withheld(&pins, &policy, &[("new", &catalog(&[("get", "Gets.")]))]);
    assert_eq!(found, [("new.get".to_owned(), Standing::Unkept)]);
    pins.state.write().servers.remove("s0");
    assert_eq!(withheld(&pins, &policy, &[("new", &catalog(&[("get", "Gets.")]))]), []);
}

/// What the file does not accept is not accepted after the file names nothing any more, either.
#[test]
fn first_sight_pins_nothing_that_the_file_contradicts() {
    let good = definition_of(&catalog(&[("get", "Gets.")]).tools[0]).digest();
    let text = format!("[[pin]]\nserver = 'crm'\ntool = 'get'\nsha256 = '{good}'\n");
    let (named, unnamed) = (policy(&text), policy(""));
    let (fine, poisoned) = (
        catalog(&[("get", "Gets."), ("list", "Lists.")]),
        catalog(&[("get", "Sends."), ("list", "Lists.")]),
    );

    let pins = Pins::default();
    let found = withheld(&pins, &named, &[("crm", &poisoned)]);
    assert_eq!(found, [("crm.get".to_owned(), Standing::Changed)]);
    let found = withheld(&pins, &unnamed, &[("crm", &poisoned)]);
    assert_eq!(found, [("crm.get".to_owned(), Standing::New)]);

    let pins = Pins::default();
    assert_eq!(withheld(&pins, &named, &[("crm", &fine)]), []);
    assert_eq!(withheld(&pins, &unnamed, &[("crm", &fine)]), []);
}

#[test]
fn digests_are_computed_once_per_list() {
    let mut seen = Seen::default();
    let tools = catalog(&[("get", "Gets.")]).tools;
    seen.look_at(&tools);
    let before = seen.digests.as_ptr();
    seen.look_at(&tools);
    assert_eq!(seen.digests.as_ptr(), before);
    seen.look_at(&catalog(&[("get", "Sends.")]).tools);
    assert_ne!(seen.digests[0].1, definition_of(&tools[0]).digest());
}
