//! Tests of the settings: what is refused, and what goes before what.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(extra: &[&str]) -> Args {
    let base = ["kafka-worker", "--brokers", "b:1", "--server-url", "http://s"];
    Cli::parse_from(base.iter().chain(extra)).args
}

#[test]
fn a_token_goes_before_its_file_and_what_is_empty_is_unset() {
    let check = |extra: &[&str], token: Option<&str>, file: Option<&str>| {
        let args = args(extra);
        assert_eq!((args.token(), args.token_file()), (token, file.map(Path::new)));
    };
    check(&[], None, None);
    check(&["--server-token-file", "f"], None, Some("f"));
    check(&["--server-token", "t", "--server-token-file", "f"], Some("t"), None);
    check(&["--server-token", "", "--server-token-file", "f"], None, Some("f"));
    check(&["--server-token-file", ""], None, None);
}

#[test]
fn jobs_are_not_sent_round_for_less_than_a_second() {
    assert_eq!(args(&["--max-park", "1s"]).max_park, Duration::from_secs(1));
    let base = ["kafka-worker", "--brokers", "b:1", "--server-url", "http://s", "--max-park", "0s"];
    assert!(Cli::try_parse_from(base).is_err());
}

#[test]
fn reply_topics_are_denied_unless_listed() {
    let default = args(&[]);
    assert!(default.may_reply_to("mcp-replies.team-a"));
    for denied in ["orders", "mcp-jobs", "mcp-jobs.dlq"] {
        assert!(!default.may_reply_to(denied), "{denied}");
    }

    let ends = args(&["--reply-topics", "*.replies"]);
    assert!(ends.may_reply_to("team-a.replies") && !ends.may_reply_to("team-a.replies.old"));

    let wide = args(&["--reply-topics", "orders, *"]);
    assert!(wide.may_reply_to("anything"));
    for own in ["mcp-jobs.events", "mcp-jobs.pool.x", "mcp-servers", "__consumer_offsets"] {
        assert!(!wide.may_reply_to(own), "the fleet's own topics are never reply topics: {own}");
    }

    let renamed = args(&["--reply-topics", "*", "--registry-topic", "our-servers"]);
    assert!(!renamed.may_reply_to("our-servers"));
}
