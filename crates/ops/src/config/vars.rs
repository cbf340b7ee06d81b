//! Declarations of environment variables, from which the documentation and the startup log line are
//! generated.

use super::{Env, redact};

/// One environment variable of a binary. Each binary declares its variables once, in a constant
/// table.
#[derive(Debug, Clone, Copy)]
pub struct Var {
    /// The name of the variable.
    pub name: &'static str,
    /// The default, in the form that a user would write; empty if there is none.
    pub default: &'static str,
    /// What the variable does, in one sentence.
    pub help: &'static str,
}

/// Renders the declarations as one Markdown table, in the given order, for the documentation.
pub fn markdown(vars: &[Var]) -> String {
    let mut text = String::from("| Variable | Default | Meaning |\n|---|---|---|\n");
    for Var { name, default, help } in vars {
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        text.push_str(&format!("| `{name}` | {default} | {} |\n", help.replace('|', "\\|")));
    }
    text
}

/// Returns the effective settings as `NAME=value`, redacted and in table order, for the log line at
/// startup.
pub fn effective(env: &Env, vars: &[Var]) -> Vec<String> {
    let value = |var: &Var| redact(var.name, env.get(var.name).unwrap_or(var.default)).into_owned();
    vars.iter()
        .filter(|var| env.get(var.name).is_some() || !var.default.is_empty())
        .map(|var| format!("{}={}", var.name, value(var)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_declaration_serves_documentation_and_log() {
        let vars = [
            Var { name: "PORT", default: "8080", help: "Port." },
            Var { name: "MCP_TOKEN", default: "", help: "Token a|b." },
            Var { name: "UNSET", default: "", help: "Nothing." },
        ];
        let text = markdown(&vars);
        assert!(text.contains("| `PORT` | `8080` | Port. |"), "{text}");
        assert!(text.contains("| `MCP_TOKEN` |  | Token a\\|b. |"), "{text}");
        let env = Env::of([("MCP_TOKEN", "hunter2")]);
        assert_eq!(effective(&env, &vars), ["PORT=8080", "MCP_TOKEN=***"]);
    }
}
