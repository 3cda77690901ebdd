//! What is said about a directory: never fatal, always with the place and the way out.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use sluice_policy::ObjectId;

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

/// An object of the cluster that a finding is about: it is told there too, as an Event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Topic {
    /// What is found, in one word (an Event's `reason`).
    pub reason: &'static str,
    /// The object's kind.
    pub kind: &'static str,
    /// Its namespace; empty for a cluster's own objects.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It is this node's to tell, and not something that every node finds.
    #[serde(skip)]
    pub local: bool,
}

impl Topic {
    /// Something that every node finds about an object.
    #[must_use]
    pub fn of(reason: &'static str, object: &ObjectId) -> Self {
        Self {
            reason,
            kind: object.kind.name(),
            namespace: object.namespace.to_string(),
            name: object.name.to_string(),
            local: false,
        }
    }

    /// Something about this node.
    #[must_use]
    pub fn node(reason: &'static str, name: &str) -> Self {
        Self { reason, kind: "Node", namespace: String::new(), name: name.to_owned(), local: true }
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
    /// The object that it is about, where the cluster is to hear of it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Topic>,
}

impl Finding {
    /// One that is about no file.
    #[must_use]
    pub fn new(severity: Severity, message: impl Into<String>) -> Self {
        Self { file: None, line: 0, column: 0, severity, message: message.into(), topic: None }
    }

    /// One that is about a file.
    #[must_use]
    pub fn at(
        file: Option<Arc<Path>>,
        (line, column): (usize, usize),
        severity: Severity,
        message: impl Into<String>,
    ) -> Self {
        Self { file, line, column, severity, message: message.into(), topic: None }
    }

    /// The same, told about an object.
    #[must_use]
    pub fn about(self, topic: Topic) -> Self {
        Self { topic: Some(topic), ..self }
    }
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
