//! The table for people and programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Standing, VARIABLES, Variable};

/// A variable as `sluice-agent env --output json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Printed {
    /// Its name.
    pub name: &'static str,
    /// What counts where it is not set.
    pub default: &'static str,
    /// honoured, ignored or refused.
    pub standing: &'static str,
    /// What it decides, or why nothing comes of it.
    pub does: String,
    /// What it is set to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Printed {
    /// Every variable, with what it is set to.
    pub fn all(lookup: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let print = |variable: &Variable| Self {
            name: variable.name,
            default: variable.default,
            standing: variable.standing.word(),
            does: meaning(variable),
            value: lookup(variable.name),
        };
        VARIABLES.iter().map(print).collect()
    }
}

fn meaning(variable: &Variable) -> String {
    match variable.standing {
        Standing::Refused { only } => format!("Only {only} is valid. {}", variable.does),
        Standing::Honoured | Standing::Ignored => variable.does.to_owned(),
    }
}

/// The table of docs/environment.md.
#[must_use]
pub fn markdown() -> String {
    let mut text = "| variable | default | standing | what Sluice does |\n|---|---|---|---|\n".to_owned();
    for printed in Printed::all(|_| None) {
        let default = if printed.default == "-" { "-".to_owned() } else { format!("`{}`", printed.default) };
        let does = printed.does.replace('|', "\\|");
        // A string takes everything.
        let _ = writeln!(text, "| `{}` | {default} | {} | {does} |", printed.name, printed.standing);
    }
    text
}
