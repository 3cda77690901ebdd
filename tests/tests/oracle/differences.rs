//! Where Sluice differs from the kernel, and why. The list is exact: what is not here must be the same, what is here must
//! differ.

/// Probe and reason.
pub(crate) const ALL: &[(&str, &str)] = &[];

pub(crate) fn reason(probe: &str) -> Option<&'static str> {
    ALL.iter().find(|(name, _)| *name == probe).map(|(_, reason)| *reason)
}
