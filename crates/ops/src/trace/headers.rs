//! The headers of exported spans, which may hold a credential, from a file.

use std::{collections::HashMap, path::Path};

use percent_encoding::percent_decode_str;

use crate::{config::read_secret_text, errors::chain};

/// The variables of the specification. They go before the file.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
/// Names a file with the value of the second one.
const FILE: &str = "OTEL_EXPORTER_OTLP_HEADERS_FILE";

/// Reads the headers from the file that the environment names; none if a variable has them.
///
/// # Errors
///
/// Returns what is wrong with the file, without its content.
pub(super) fn read_headers(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<HashMap<String, String>, String> {
    let Some(file) =
        variable(FILE).filter(|_| VARIABLES.iter().all(|name| variable(name).is_none()))
    else {
        return Ok(HashMap::new());
    };

    let text = read_secret_text(Path::new(&file)).map_err(|error| chain(&error))?;
    parse_headers(&text).ok_or_else(|| {
        format!("`{file}` ({FILE}) does not hold headers; expected name=value[,name=value]")
    })
}

/// Parses `name=value,name=value` with percent-encoded values, as the specification has it.
fn parse_headers(text: &str) -> Option<HashMap<String, String>> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let header = |entry: &str| {
        let (name, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = Some(name.trim()).filter(|name| !name.is_empty())?;
        Some((name.to_owned(), value.into_owned()))
    };
    entries.map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_parsed_as_those_of_the_variable() {
        let check = |text: &str, expected: Option<&[(&str, &str)]>| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let expected = expected.map(|all| all.iter().map(owned).collect());
            assert_eq!(parse_headers(text), expected, "{text}");
        };
        check("a=1", Some(&[("a", "1")]));
        check(
            " authorization=Basic%20aGk=, x = y ,",
            Some(&[("authorization", "Basic aGk="), ("x", "y")]),
        );
        check("", Some(&[]));
        check("hunter2", None);
        check("=hunter2", None);
    }

    #[test]
    fn a_variable_goes_before_the_file_and_errors_name_the_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("headers");
        let file = path.to_str().unwrap();
        let read = |set: &[(&str, &str)]| {
            read_headers(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };

        assert!(read(&[(FILE, file)]).unwrap_err().contains("headers"), "there is no file");
        std::fs::write(&path, "api-key=hunter2\n").unwrap();
        assert_eq!(read(&[(FILE, file)]).unwrap()["api-key"], "hunter2");
        for variable in VARIABLES {
            assert!(read(&[(FILE, file), (variable, "a=b")]).unwrap().is_empty());
        }
        std::fs::write(&path, "hunter2\n").unwrap();
        let error = read(&[(FILE, file)]).unwrap_err();
        assert!(error.contains(FILE) && !error.contains("hunter2"), "{error}");
    }
}
