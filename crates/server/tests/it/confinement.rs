//! What a hosted child can access of the server, of its siblings and of the machine.

use std::{net::TcpListener, path::Path};

use serde_json::json;

use crate::common::{
    ANSWER_TEXT, Server, binary, command, legacy_server, open_to_all, ordinary_command, quiet,
    script,
};

/// The variable with the secrets of these tests. No other test has it, so that its values come
/// from no other process.
const SECRET: &str = "CONFINEMENT_SECRET";

/// A policy file that allows one program, with additional keys in its rule.
fn policy(dir: &Path, program: &str, keys: &str) -> String {
    let path = dir.join("policy.toml");
    std::fs::write(
        &path,
        format!("[[command]]\nargv = [{program:?}]\nenv = [{SECRET:?}]\n{keys}\n"),
    )
    .unwrap();
    path.to_str().unwrap().to_owned()
}

/// Whether this kernel can isolate children. Prints a note if it can't.
fn kernel_separates() -> bool {
    let available = fleet_launcher::can_separate_children();
    if !available {
        eprintln!("not tested: this kernel has no Landlock");
    }
    available
}

#[tokio::test]
async fn a_child_reads_no_secret_of_the_server_or_a_sibling() {
    if !kernel_separates() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());

    // The child reads the environments of all processes; finding its own shows that it looks in
    // the right place.
    let look = format!(
        "text=$(cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | sed -n 's/^{SECRET}=//p' | sort -u | tr '\\n' ' ')"
    );
    let program =
        script(dir.path(), "server", &legacy_server("look", &format!("{look}; {ANSWER_TEXT}")));
    let file = policy(dir.path(), &program, "");
    let arguments = ["--policy", &file];

    // As root, too, where the tests run as root.
    for command in [ordinary_command(&arguments), command(&arguments)] {
        let server = Server::start_command(command, &[(SECRET, "the-servers")]).await;
        let config = |secret: &str| json!({"command": program, "env": {SECRET: secret}});
        server.initialize("first", config("the-firsts")).await;
        server.initialize("second", config("the-seconds")).await;

        for (name, own) in [("first", "the-firsts"), ("second", "the-seconds")] {
            let seen = server.call(&format!("{name}__look"), json!({})).await;
            let seen = seen["content"][0]["text"].as_str().unwrap();
            assert_eq!(seen.trim_end(), own, "{name}");
        }
    }
}

/// Whoever starts the server may have files open that are none of a child's business.
#[tokio::test]
async fn a_child_has_no_file_that_the_server_inherited() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "hidden").unwrap();
    let body = format!("text=$(cat <&9 2>/dev/null || echo none); {ANSWER_TEXT}");
    let program = script(dir.path(), "server", &legacy_server("read", &body));
    let file = policy(dir.path(), &program, "");

    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", "exec 9<\"$0\"; exec \"$@\""]).arg(&secret).arg(binary());
    let server = Server::start_command(quiet(shell, &["--policy", &file]), &[]).await;
    server.initialize("x", json!({"command": program})).await;

    let answer = server.call("x__read", json!({})).await;
    assert_eq!(answer["content"][0]["text"], "none");
}

#[tokio::test]
async fn a_child_can_not_signal_other_processes() {
    if !kernel_separates() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let body = format!("kill -0 $PPID 2>/dev/null && text=reached || text=refused; {ANSWER_TEXT}");
    let program = script(dir.path(), "server", &legacy_server("kill", &body));
    let server = Server::start(&["--policy", &policy(dir.path(), &program, "")]).await;
    server.initialize("x", json!({"command": program})).await;

    let answer = server.call("x__kill", json!({})).await;
    assert_eq!(answer["content"][0]["text"], "refused");
}

#[tokio::test]
async fn a_rule_limits_files_and_connections() {
    if !kernel_separates() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["readable", "writable", "other"] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("f"), name).unwrap();
    }
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [open, closed] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());

    let root = dir.path().display();
    let attempts = format!(
        "text=$(for d in readable writable other; do cat {root}/$d/f; touch {root}/$d/new && echo +$d; done 2>/dev/null; \
         for p in {open} {closed}; do bash -c \"exec 3<>/dev/tcp/127.0.0.1/$p\" && echo =$p; done 2>/dev/null); \
         text=$(echo $text)"
    );
    let program =
        script(dir.path(), "server", &legacy_server("try", &format!("{attempts}; {ANSWER_TEXT}")));
    let keys = format!(
        "read_files = [\"{root}/readable\"]\nwrite_files = [\"{root}/writable\"]\nconnect_ports = [{open}]"
    );
    let server = Server::start(&["--policy", &policy(dir.path(), &program, &keys)]).await;
    server.initialize("x", json!({"command": program})).await;

    let answer = server.call("x__try", json!({})).await;
    assert_eq!(answer["content"][0]["text"], format!("readablewritable+writable ={open}"));
}
