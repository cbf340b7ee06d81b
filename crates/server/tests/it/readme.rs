//! What the README shows is what is compiled.

#[test]
fn the_tool_in_the_readme_is_the_example() {
    let readme = include_str!("../../../../README.md");
    let example = include_str!("../../examples/word_count.rs");
    let shown = format!("```rust\n{example}```\n");
    assert!(
        readme.contains(&shown),
        "README.md shows another tool than crates/server/examples/word_count.rs"
    );
}
