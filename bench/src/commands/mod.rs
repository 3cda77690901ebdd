//! The subcommands' arguments, and what they print.

pub(crate) mod cni;
pub(crate) mod engine;
pub(crate) mod forwarding;
pub(crate) mod policy;

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For machines
    Json,
}

/// Prints a report in the form asked for, and writes it as JSON to `file` where one is given.
pub(crate) fn deliver<T: Serialize>(
    report: &T,
    output: Output,
    table: impl FnOnce(&T) -> String,
    file: Option<&Path>,
) -> Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    if let Some(path) = file {
        write(path, &format!("{json}\n"))?;
    }
    match output {
        Output::Table => println!("{}", table(report)),
        Output::Json => println!("{json}"),
    }
    Ok(())
}

/// Writes a file and the directories above it.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    make_room(path)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the directories above a file.
pub(crate) fn make_room(path: &Path) -> Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
        }
        None => Ok(()),
    }
}
