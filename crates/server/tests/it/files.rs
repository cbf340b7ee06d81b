//! The `file_*` tools of the real binary.

use crate::common::{Server, tree};
use serde_json::{Value, json};

fn paths(listing: &Value) -> Vec<&str> {
    listing["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["path"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn files_are_listed_read_and_digested() {
    let tree = tree();
    let server = Server::start(&["--root", tree.root.to_str().unwrap()]).await;

    let listing = server.call_ok("file_list", json!({})).await;
    assert_eq!(
        paths(&listing),
        ["big.txt", "binary.bin", "escape", "hello.txt", "inside", "sub", "up"],
        "{listing}"
    );
    assert_eq!(listing["entries"][2]["type"], "symlink");
    assert_eq!(listing["entries"][5]["type"], "directory");
    assert_eq!(listing["entries"][3]["size"], json!(13));

    let listing = server.call_ok("file_list", json!({"recursive": true, "glob": "*.rs"})).await;
    assert_eq!(paths(&listing), ["sub/a.rs", "sub/deep/b.rs"]);
    let listing =
        server.call_ok("file_list", json!({"path": "sub", "recursive": true, "max": 2})).await;
    assert_eq!(
        (paths(&listing).len(), &listing["truncated"], &listing["path"]),
        (2, &json!(true), &json!("sub"))
    );

    let text = server.call_ok("file_read", json!({"path": "hello.txt"})).await;
    assert_eq!((&text["encoding"], &text["content"]), (&json!("utf-8"), &json!("hello\nwörld\n")));
    assert_eq!((&text["size"], &text["eof"]), (&json!(13), &json!(true)));

    let part =
        server.call_ok("file_read", json!({"path": "inside", "offset": 1, "limit": 3})).await;
    assert_eq!((&part["content"], &part["eof"]), (&json!("ell"), &json!(false)));

    let binary = server.call_ok("file_read", json!({"path": "binary.bin"})).await;
    assert_eq!((&binary["encoding"], &binary["content"]), (&json!("base64"), &json!("//4AAQ==")));
    let beyond = server.call_ok("file_read", json!({"path": "hello.txt", "offset": 100})).await;
    assert_eq!((&beyond["content"], &beyond["eof"]), (&json!(""), &json!(true)));

    let far = server.call_ok("file_read", json!({"path": "hello.txt", "offset": i64::MAX})).await;
    assert_eq!((&far["content"], &far["eof"]), (&json!(""), &json!(true)));
    for offset in [1_u64 << 63, u64::MAX] {
        let arguments = json!({"path": "hello.txt", "offset": offset});
        let (message, is_final) = server.call_error("file_read", arguments).await;
        assert!(is_final && message.contains("below 2^63"), "{message}");
    }

    let digest = server.call_ok("file_digest", json!({"path": "sub/../hello.txt"})).await;
    let absolute = tree.root.join("hello.txt");
    let again = server.call_ok("file_digest", json!({"path": absolute})).await;
    assert_eq!(digest, again);

    let empty = tree.root.join("empty");
    std::fs::write(empty, "").unwrap();
    let digest = server.call_ok("file_digest", json!({"path": "empty"})).await;
    assert_eq!(
        digest["sha256"],
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[tokio::test]
async fn nothing_outside_the_root_is_accessible() {
    let tree = tree();
    let server = Server::start(&["--root", tree.root.to_str().unwrap()]).await;
    let secret = tree.dir.path().join("secret.txt");
    std::os::unix::fs::symlink(tree.dir.path().join("no-such-file"), tree.root.join("dangling"))
        .unwrap();
    let outside = [
        "../secret.txt",
        "sub/../../secret.txt",
        "escape",
        "up/secret.txt",
        "up/no-such-file",
        "up/no-such-directory/x",
        "escape/x",
        "dangling",
        "/etc/passwd",
        "/etc/no-such-file",
        "../no-such-file",
        secret.to_str().unwrap(),
    ];
    for path in outside {
        for tool in ["file_read", "file_digest", "file_list"] {
            let (message, is_final) = server.call_error(tool, json!({ "path": path })).await;
            assert!(is_final, "{tool} {path}: {message}");
            assert!(message.contains("outside the allowed roots"), "{tool} {path}: {message}");
        }
    }

    let check = async |path: &str, expected: &str| {
        let (message, is_final) = server.call_error("file_read", json!({ "path": path })).await;
        assert!(is_final && message.contains(expected), "{path:?}: {message}");
    };
    check("missing", "does not exist").await;
    check("sub", "is a directory").await;
    check("hello.txt/x", "Not a directory").await;
    check("a\0b", "zero byte").await;
    check("", "is a directory").await;
}

#[tokio::test]
async fn an_error_names_the_size_limit() {
    let tree = tree();
    let root = tree.root.to_str().unwrap();
    let server = Server::start(&["--root", root, "--files-max-read", "1000"]).await;
    let (message, is_final) = server.call_error("file_read", json!({"path": "big.txt"})).await;
    assert!(is_final && message.contains("limit of 1000 bytes"), "{message}");

    let part = server
        .call_ok("file_read", json!({"path": "big.txt", "offset": 2500, "limit": 1000}))
        .await;
    assert_eq!((&part["length"], &part["eof"]), (&json!(500), &json!(true)));
    assert_eq!(
        server.call_ok("file_digest", json!({"path": "big.txt"})).await["size"],
        json!(3000)
    );
}

#[tokio::test]
async fn special_files_are_not_opened() {
    let tree = tree();
    let pipe = tree.root.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(tree.root.join("socket")).unwrap();
    let server = Server::start(&["--root", tree.root.to_str().unwrap()]).await;
    for (path, what) in [("pipe", "a named pipe"), ("socket", "a socket")] {
        for tool in ["file_read", "file_digest"] {
            let (message, is_final) = server.call_error(tool, json!({ "path": path })).await;
            assert!(
                is_final && message.contains(what) && message.contains("not a regular file"),
                "{message}"
            );
        }
    }
}

#[tokio::test]
async fn without_a_root_there_are_no_file_tools() {
    let server = Server::start(&[]).await;
    assert!(!server.tool_names().await.iter().any(|name| name.starts_with("file_")));
    let tree = tree();
    let two =
        format!("{}:{}", tree.root.join("sub").display(), tree.root.join("sub/deep").display());
    let server = Server::start_with(&[], &[("MCP_FILES_ROOTS", &two)]).await;
    assert_eq!(server.call_ok("file_read", json!({"path": "b.rs"})).await["path"], "deep/b.rs");

    let output =
        crate::common::command(&["--port", "0", "--root", "/no/such/dir"]).output().await.unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/dir"));
}
