//! The settings for containers in the last stage of a Dockerfile.

use std::collections::BTreeMap;

/// An image, as far as it determines what runs in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments that a command replaces.
    pub command: Vec<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The user that runs it.
    pub user: Option<String>,
    /// The signal that asks it to stop.
    pub stop_signal: Option<String>,
}

impl Image {
    /// Reads a Dockerfile. Commands must be in exec form (a JSON array), because the shell form
    /// needs a shell, which would hide the signal from the program.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut image = Self::default();
        for (instruction, rest) in instructions(text) {
            match instruction.as_str() {
                "FROM" => image = Self::default(),
                "ENTRYPOINT" => image.entrypoint = exec_form(&rest)?,
                "CMD" => image.command = exec_form(&rest)?,
                "USER" => image.user = Some(rest),
                "STOPSIGNAL" => image.stop_signal = Some(rest),
                "ENV" => {
                    for pair in rest.split_whitespace() {
                        let (name, value) =
                            pair.split_once('=').ok_or_else(|| format!("ENV {rest}"))?;
                        image.env.insert(name.to_owned(), value.trim_matches('"').to_owned());
                    }
                }
                _ => {}
            }
        }

        if image.entrypoint.is_empty() { Err("no ENTRYPOINT".to_owned()) } else { Ok(image) }
    }
}

fn exec_form(rest: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(rest).map_err(|_| format!("not in exec form: {rest}"))
}

/// The instructions with their arguments, without comments, each on one line.
fn instructions(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut instructions = Vec::new();
    let mut line = String::new();
    for part in lines {
        match part.trim_end().strip_suffix('\\') {
            Some(part) => line.push_str(part),
            None => {
                line.push_str(part);
                if let Some((instruction, rest)) = line.trim().split_once(char::is_whitespace) {
                    instructions.push((instruction.to_ascii_uppercase(), rest.trim().to_owned()));
                }
                line.clear();
            }
        }
    }

    instructions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_counts() {
        let text = "# a comment\nFROM rust AS build\nENV A=1 B=2\nENTRYPOINT [\"cargo\"]\nRUN a \\\n  # in between\n  && b\n\
            FROM scratch\nenv HOST=0.0.0.0 \\\n    PORT=\"8081\"\nUSER 65532:65532\nSTOPSIGNAL SIGTERM\n\
            ENTRYPOINT [\"/usr/local/bin/x\", \"--y\"]\nCMD [\"--help\"]\n";
        let image = Image::parse(text).expect("an image");
        let env = [("HOST", "0.0.0.0"), ("PORT", "8081")];
        assert_eq!(
            image,
            Image {
                entrypoint: vec!["/usr/local/bin/x".to_owned(), "--y".to_owned()],
                command: vec!["--help".to_owned()],
                env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                user: Some("65532:65532".to_owned()),
                stop_signal: Some("SIGTERM".to_owned()),
            }
        );
    }

    #[test]
    fn a_shell_form_is_refused() {
        assert!(Image::parse("FROM scratch\nENTRYPOINT x --y\n").is_err());
        assert!(Image::parse("FROM scratch\nENTRYPOINT [\"x\"]\nFROM scratch\n").is_err());
    }
}
