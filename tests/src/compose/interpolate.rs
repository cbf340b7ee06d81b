//! Variables in Compose files: `$NAME`, `${NAME}` and the operators of a shell in `${NAME…}`, as in
//! the Compose specification.

use std::collections::BTreeMap;

/// Replaces the variables in `text`. Returns an error if a required variable is not set, or if the
/// syntax is invalid.
pub fn interpolate(text: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| format!("no end of ${{ in {text:?}"))?;
            result.push_str(&braced(&after[..end], variables)?);
            &after[end + 1..]
        } else {
            let name = name(after);
            if name.is_empty() {
                return Err(format!("a single $ in {text:?}; $$ means $"));
            }
            result.push_str(variables.get(name).map(String::as_str).unwrap_or_default());
            &after[name.len()..]
        };
    }

    result.push_str(rest);
    Ok(result)
}

/// The value of an expression in braces.
fn braced(inner: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let name = name(inner);
    let is_set = variables.get(name);
    let is_full = is_set.filter(|value| !value.is_empty());
    let rest = &inner[name.len()..];
    let (counts, operator) = match rest.strip_prefix(':') {
        Some(operator) => (is_full, operator),
        None => (is_set, rest),
    };
    let other = || interpolate(operator.get(1..).unwrap_or_default(), variables);
    match (operator.chars().next(), counts) {
        _ if name.is_empty() => Err(format!("${{{inner}}} has no name")),
        (None, _) if rest.is_empty() => Ok(is_set.cloned().unwrap_or_default()),
        (Some('-' | '?'), Some(value)) => Ok(value.clone()),
        (Some('-'), None) | (Some('+'), Some(_)) => other(),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => Err(format!("{name} has to be set: {}", other()?)),
        _ => Err(format!("${{{inner}}} is not understood")),
    }
}

fn name(text: &str) -> &str {
    let is_of_name = |(index, byte): &(usize, u8)| {
        byte.is_ascii_alphabetic() || *byte == b'_' || (*index > 0 && byte.is_ascii_digit())
    };
    &text[..text.bytes().enumerate().take_while(is_of_name).count()]
}

/// The position of the brace that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(index);
        }
    }

    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_a_shell_does() {
        let variables = [("A", "a"), ("EMPTY", "")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let check = |text: &str, expected: Result<&str, &str>| {
            let result = interpolate(text, &variables);
            match expected {
                Ok(expected) => assert_eq!(result.as_deref(), Ok(expected), "{text}"),
                Err(why) => {
                    assert!(
                        result.as_ref().is_err_and(|error| error.contains(why)),
                        "{text}: {result:?}"
                    )
                }
            }
        };

        check("$A-${A}b$$A ${NONE}$NONE.", Ok("a-ab$A ."));
        check("${A:-x}${NONE:-x}${EMPTY:-x}", Ok("axx"));
        check("${A-x}${NONE-x}${EMPTY-x}", Ok("ax"));
        check("${A:+x}${NONE:+x}${EMPTY:+x}${EMPTY+x}", Ok("xx"));
        check("${NONE:-${A}:${NONE:-8080}}!", Ok("a:8080!"));
        check("${A:?no}${EMPTY?no}", Ok("a"));
        check("${EMPTY:?it is empty}", Err("EMPTY has to be set: it is empty"));
        check("${NONE?}", Err("NONE"));
        check("${A", Err("no end"));
        check("100$", Err("single $"));
        check("${A!x}", Err("not understood"));
        check("${:-x}", Err("no name"));
    }
}
