//! The text of a configuration: JSON with comments and trailing commas, with or without a byte
//! order mark.

use std::collections::BTreeMap;

use jsonc_parser::{CollectOptions, ParseOptions, ast, parse_to_ast, parse_to_serde_value};
use serde_json::Value;

/// Allows comments and trailing commas, as editors do, but no other deviations from JSON.
const JSONC: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_trailing_commas: true,
    allow_loose_object_property_names: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// Why a text is not a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The bytes are neither UTF-8 nor UTF-16 with a byte order mark.
    #[error("the text is not UTF-8; save it as UTF-8")]
    Encoding,
    /// The text is empty.
    #[error("the text is empty; expected JSON with an `mcpServers` object")]
    Empty,
    /// The text is in another format.
    #[error("the text looks like {0}; expected JSON with an `mcpServers` object")]
    OtherFormat(&'static str),
    /// The text is not JSON, even with comments and trailing commas allowed.
    #[error("not JSON: {message}{hint}")]
    Syntax {
        /// What is wrong, with line and column.
        message: String,
        /// A likely cause, starting with a semicolon; may be empty.
        hint: &'static str,
    },
    /// A key has two values, of which parsers would silently drop one.
    #[error("`{path}` is defined twice, in lines {first} and {second}; remove one of the two")]
    Duplicate {
        /// The path of the key.
        path: String,
        /// The line of the first definition.
        first: usize,
        /// The line of the second definition.
        second: usize,
    },
}

/// Parses a configuration as JSON with comments, trailing commas and byte order marks.
///
/// # Errors
///
/// Returns an error if the bytes are not text, if the text is not JSON, with line and column, or if
/// an object has two values for one key.
pub fn parse(bytes: &[u8]) -> Result<Value, TextError> {
    let text = decode(bytes)?;
    if let Some(duplicate) = find_duplicate(&text) {
        return Err(duplicate);
    }

    // Most texts are plain JSON, which serde_json parses faster and with exact numbers.
    if let Ok(value) = serde_json::from_str(&text) {
        return Ok(value);
    }
    if text.trim().is_empty() {
        return Err(TextError::Empty);
    }

    parse_to_serde_value(&text, &JSONC).map_err(|error| match guess_format(&text) {
        Some(format) => TextError::OtherFormat(format),
        None => TextError::Syntax { message: error.to_string(), hint: guess_cause(&text) },
    })
}

/// Finds the first key that has two values, if the text can be parsed.
fn find_duplicate(text: &str) -> Option<TextError> {
    let parsed = parse_to_ast(text, &CollectOptions::default(), &JSONC).ok()?;
    let (path, first, second) = duplicate_in(&parsed.value?, "")?;

    let line = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    Some(TextError::Duplicate { path, first: line(first), second: line(second) })
}

/// Finds the first key in or below `value`, which is at `path`, that has two values. Returns its
/// path and the offsets of its definitions.
fn duplicate_in(value: &ast::Value<'_>, path: &str) -> Option<(String, usize, usize)> {
    match value {
        ast::Value::Object(object) => {
            let mut seen = BTreeMap::new();
            object.properties.iter().find_map(|property| {
                let (name, offset) = (property.name.as_str(), property.range.start);
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{name}");

                match seen.insert(name, offset) {
                    Some(first) => Some((path, first, offset)),
                    None => duplicate_in(&property.value, &path),
                }
            })
        }
        ast::Value::Array(array) => (array.elements.iter().enumerate())
            .find_map(|(index, element)| duplicate_in(element, &format!("{path}[{index}]"))),
        _ => None,
    }
}

/// Decodes UTF-8, or UTF-16 if it has a byte order mark. The mark itself is removed.
///
/// # Errors
///
/// Returns an error if the bytes are neither.
pub fn decode(bytes: &[u8]) -> Result<String, TextError> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks::<2>();
        let text = String::from_utf16(&units.iter().copied().map(unit).collect::<Vec<_>>());
        text.ok().filter(|_| rest.is_empty()).ok_or(TextError::Encoding)
    };

    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            std::str::from_utf8(rest).map(str::to_owned).map_err(|_| TextError::Encoding)
        }
    }
}

/// Returns the probable format of the text, if other programs keep their servers in that format.
fn guess_format(text: &str) -> Option<&'static str> {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(['#', ';']))?;

    let is_table = first.starts_with('[') && first.ends_with(']') && text.contains('=');
    if is_table {
        Some("TOML")
    } else if first == "---" || (first.ends_with(':') && !first.starts_with(['"', '{'])) {
        Some("YAML")
    } else {
        None
    }
}

/// Returns a likely cause of a syntax error.
fn guess_cause(text: &str) -> &'static str {
    if text.contains(['“', '”', '‘', '’', '„']) {
        "; are there typographic quotes (“ ”)? write \" instead"
    } else if text.contains('\\') {
        "; in JSON, write a backslash as \\\\, as in \"C:\\\\node\\\\node.exe\""
    } else {
        ""
    }
}
