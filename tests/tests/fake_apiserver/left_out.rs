//! What of the recordings the fake is not held against, each by its name and with the reason.

/// Not sent to the fake at all.
pub(crate) const LEFT_OUT: &[(&str, &str)] = &[
    ("crd-badname", "the fake serves no CRD objects: ENIConfig is there or is not"),
    ("crd-noschema", "the fake serves no CRD objects"),
    ("crd-create", "the fake serves no CRD objects; here ENIConfig appears"),
    ("crd-established", "the fake serves no CRD objects"),
    ("crd-del", "the fake serves no CRD objects; here ENIConfig goes away"),
    ("crd-after", "the fake serves no CRD objects"),
    ("watch-crd", "the fake serves no CRD objects"),
    ("eni-too-early", "a race of the real server: it answers 404, 429 or 200"),
    ("ssa-conflict-2", "the fake knows owners by apply alone, not those of fields that came by an update"),
    ("eni-ssa", "the fake knows owners by apply alone, not those of fields that came by an update"),
];

/// Compared but for the body.
pub(crate) const BODY_LEFT_OUT: &[(&str, &str)] = &[
    ("version", "the build of the real server"),
    ("disc-core", "a real server has many more resources"),
    ("disc-netpol", "a real server has many more resources"),
    (
        "eni-disc",
        "the fake tells neither storage hashes nor what a resource's short names and categories are",
    ),
];

/// Where the recordings show who owns what. Here the managers that applied are compared, as the fake knows no others.
pub(crate) const OWNERS: &[&str] =
    &["ssa-1", "ssa-force", "ssa-drop", "ssa-create", "eni-ssa-force", "eni-ssa-status"];

/// Events that must differ.
pub(crate) const EVENTS_LEFT_OUT: &[(&str, &str)] = &[(
    "watch-svc event 14",
    "a service becomes an ExternalName: the real server shows its internalTrafficPolicy in this event, and in no answer",
)];
