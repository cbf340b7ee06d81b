//! Configurations in a form that may be shown.

use serde_json::Value;

/// Stands for a value that is not shown.
pub const HIDDEN: &str = "***";
/// The fields of a server's entry whose values tend to be secrets.
const SECRET_FIELDS: [&str; 2] = ["env", "headers"];

/// Replaces the values of environment variables and headers, wherever they are in a configuration:
/// it may be in the form of any program, and need not be valid. Names remain.
pub fn hide(config: &mut Value) {
    match config {
        Value::Object(object) => {
            for (name, value) in object {
                match SECRET_FIELDS.contains(&name.as_str()) {
                    true => hide_values(value),
                    false => hide(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}

/// Replaces all values below this one.
fn hide_values(value: &mut Value) {
    match value {
        Value::Object(object) => object.values_mut().for_each(hide_values),
        Value::Array(items) => items.iter_mut().for_each(hide_values),
        Value::Null => {}
        value => *value = HIDDEN.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_variables_and_headers_are_hidden_in_every_form() {
        let mut config = json!({
            "mcpServers": {
                "db": {"command": "db", "args": ["."], "env": {"TOKEN": "t", "PORT": 1}},
                "web": {"url": "https://a", "headers": {"Authorization": "Bearer b"}},
            },
            "list": [{"env": ["TOKEN=t"]}, {"env": null}],
        });
        hide(&mut config);
        assert_eq!(
            config,
            json!({
                "mcpServers": {
                    "db": {"command": "db", "args": ["."], "env": {"TOKEN": "***", "PORT": "***"}},
                    "web": {"url": "https://a", "headers": {"Authorization": "***"}},
                },
                "list": [{"env": ["***"]}, {"env": null}],
            })
        );
    }
}
