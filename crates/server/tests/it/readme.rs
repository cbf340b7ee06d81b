//! Keeps the example in the documentation equal to the compiled example.

#[test]
fn the_tool_in_the_docs_equals_the_example() {
    let page = include_str!("../../../../docs/tools.md");
    let example = include_str!("../../examples/word_count.rs");
    let shown = format!("```rust\n{example}```\n");
    assert!(
        page.contains(&shown),
        "docs/tools.md shows a tool other than crates/server/examples/word_count.rs"
    );
}
