//! Finds the names that a user may have meant. Pure.

/// The most names to suggest.
const SUGGESTIONS: usize = 5;
/// How many names are compared, and how much of each: the time that this takes is bounded.
const MAX_NAMES: usize = 10_000;
const MAX_LENGTH: usize = 128;
/// What separates a hosted server from its tool.
const SEPARATOR: &str = "__";

/// Returns the names that look like `wanted`, the nearest first. The tool of a server is also found
/// by its name without the server.
pub(crate) fn near_names<'a>(
    wanted: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    let wanted = folded(wanted);
    let mut near: Vec<_> = names
        .into_iter()
        .take(MAX_NAMES)
        .filter_map(|name| Some((distance(&wanted, &folded(name))?, name)))
        .collect();
    near.sort_unstable();
    near.dedup();
    // Beside a near name, a farther one is noise.
    let farthest = near.first().map_or(0, |(distance, _)| distance + 1);
    near.retain(|(distance, _)| *distance <= farthest);
    near.into_iter().map(|(_, name)| name).take(SUGGESTIONS).collect()
}

/// Returns the "did you mean" sentence of an error; empty if no name is near.
pub(crate) fn did_you_mean(near: &[&str]) -> String {
    match near {
        [] => String::new(),
        [only] => format!("; did you mean `{only}`?"),
        many => format!("; did you mean one of `{}`?", many.join("`, `")),
    }
}

/// Returns the distance of two names; `None` if they do not look alike.
fn distance(wanted: &str, name: &str) -> Option<usize> {
    let short = name.split_once(SEPARATOR).map(|(_, tool)| tool);
    let own = wanted.split_once(SEPARATOR).map_or(wanted, |(_, tool)| tool);

    let whole = alike(wanted, name);
    // A right name of a tool behind a wrong or missing name of its server is still a good guess.
    let tools = short.and_then(|short| alike(own, short)).map(|distance| distance + 1);
    let contained = (wanted.chars().count() >= 3 && name.contains(wanted)).then_some(2);
    [whole, tools, contained].into_iter().flatten().min()
}

/// Returns the number of typing errors between two texts, if it is small compared to their length.
fn alike(a: &str, b: &str) -> Option<usize> {
    let length = a.chars().count().max(b.chars().count());
    let distance = strsim::osa_distance(a, b);
    (distance <= (length / 3).max(1)).then_some(distance)
}

fn folded(name: &str) -> String {
    let plain = name.chars().take(MAX_LENGTH).map(|c| if c == '-' || c == '.' { '_' } else { c });
    plain.collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] =
        ["files__file_read", "files__file_list", "db__query", "server_list", "job_list", "echo"];

    #[test]
    fn near_names_come_first_and_far_ones_not_at_all() {
        let check = |wanted, expected: &[&str]| {
            let near = near_names(wanted, NAMES);
            assert!(near.starts_with(expected), "{wanted}: {near:?}");
        };
        check("files__file_raed", &["files__file_read"]);
        check("file-read", &["files__file_read"]);
        check("fs__file_read", &["files__file_read"]);
        check("DB__query", &["db__query"]);
        check("sever_list", &["server_list"]);
        check("ecko", &["echo"]);
        assert_eq!(near_names("server_lits", NAMES), ["server_list"], "and not `job_list`");
        assert!(near_names("make_coffee", NAMES).is_empty());
        assert!(near_names("", NAMES).is_empty());
    }

    #[test]
    fn the_work_is_bounded() {
        let long = "x".repeat(100_000);
        let many: Vec<_> = (0..20_000).map(|n| format!("tool_{n}")).collect();
        let names = many.iter().map(String::as_str).chain([long.as_str()]);
        assert_eq!(near_names("tool_1", names).len(), SUGGESTIONS);
        assert_eq!(near_names(&long, [long.as_str()]), [long.as_str()]);
    }

    #[test]
    fn suggestions_are_a_sentence() {
        assert_eq!(did_you_mean(&[]), "");
        assert_eq!(did_you_mean(&["a"]), "; did you mean `a`?");
        assert_eq!(did_you_mean(&["a", "b"]), "; did you mean one of `a`, `b`?");
    }
}
