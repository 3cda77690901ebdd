//! Environment variables as the VPC CNI reads them, but refused where it would fall back to a default.
//!
//! Who reads several of them reads all before saying what is wrong: an operator mends a DaemonSet once, not once for
//! each typo.

use std::fmt;
use std::ops::RangeInclusive;

/// One variable that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its name.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// What would be valid.
    pub valid: String,
}

/// The variables that are refused, all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refused(pub Vec<Refusal>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Refusal { variable, value, valid }) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n  " };
            write!(f, "{separator}{variable}: `{value}` is refused: {valid}")?;
        }
        Ok(())
    }
}

/// Reads variables through `lookup` and keeps what is refused.
pub struct Reader<F> {
    lookup: F,
    refused: Vec<Refusal>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// A reader that has read nothing.
    pub fn new(lookup: F) -> Self {
        Self { lookup, refused: Vec::new() }
    }

    /// The value of a variable; one that is set to nothing counts as not set, as in the VPC CNI.
    pub fn text(&self, variable: &'static str) -> Option<String> {
        (self.lookup)(variable).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    /// Refuses a variable.
    pub fn refuse(&mut self, variable: &'static str, value: String, valid: impl Into<String>) {
        self.refused.push(Refusal { variable, value, valid: valid.into() });
    }

    /// Whether a variable is on; `None` where it is not set or refused.
    pub fn flag(&mut self, variable: &'static str) -> Option<bool> {
        let value = self.text(variable)?;
        // The words of Go's strconv.ParseBool, which the VPC CNI reads flags with.
        match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => {
                self.refuse(variable, value, "true or false is valid");
                None
            }
        }
    }

    /// A number within `range`; `None` where the variable is not set or refused.
    pub fn number(&mut self, variable: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.text(variable)?;
        match value.parse() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let valid = format!("a whole number from {} to {} is valid", range.start(), range.end());
                self.refuse(variable, value, valid);
                None
            }
        }
    }

    /// `read`, unless something was refused.
    ///
    /// # Errors
    /// Everything that was refused.
    pub fn done<T>(self, read: T) -> Result<T, Refused> {
        if self.refused.is_empty() { Ok(read) } else { Err(Refused(self.refused)) }
    }
}
