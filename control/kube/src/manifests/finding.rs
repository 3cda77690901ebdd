//! What is said about a directory: never fatal, always with the place and the way out.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong: what was left alone, and why.
    Note,
    /// It is in force, but may not mean what its author thinks.
    Warning,
    /// It is not in force; where there was a good version before, that one is.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Finding {
    /// The file; absent where it is about no single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<Path>>,
    /// Line, from 1; 0 where no line is to blame.
    pub line: usize,
    /// Column, from 1; 0 where only the line is known.
    pub column: usize,
    /// How much it matters.
    pub severity: Severity,
    /// What was found and what would work.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            if self.column > 0 {
                write!(f, "{}:", self.column)?;
            }
            f.write_str(" ")?;
        }
        write!(f, "{}: {}", self.severity, self.message)
    }
}
