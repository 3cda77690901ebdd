//! The resources that this API server has. A table and not a trait: what differs between two of them is a handful of
//! facts, and a reader wants to see these side by side.

/// One resource of the API.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Kind of its objects.
    pub kind: &'static str,
    /// Do its objects live in namespaces?
    pub namespaced: bool,
    /// Does it have a `/status`?
    pub status: bool,
    /// Defined by a CRD: other rules for PUT, for patches and for lists.
    pub custom: bool,
    /// Does the server count `metadata.generation`, a step for every change of the specification?
    pub generation: bool,
    /// Fields that a field selector may name, besides `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
    /// What a bookmark's object holds besides its metadata, as JSON.
    pub skeleton: &'static str,
}

impl Resource {
    /// `v1`, `networking.k8s.io/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Its place in [`RESOURCES`].
    #[must_use]
    pub(super) fn index(&self) -> usize {
        RESOURCES.iter().position(|r| (r.group, r.plural) == (self.group, self.plural)).unwrap_or_default()
    }

    /// The plural with its group, as errors name it: `leases.coordination.k8s.io`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The kind with its group, as validation names it: `NetworkPolicy.networking.k8s.io`.
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.into() } else { format!("{}.{}", self.kind, self.group) }
    }
}

const NONE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    kind: "",
    namespaced: true,
    status: false,
    custom: false,
    generation: false,
    fields: &[],
    skeleton: "{}",
};
const RBAC: Resource = Resource { group: "rbac.authorization.k8s.io", ..NONE };

/// Every resource.
pub static RESOURCES: &[Resource] = &[
    Resource {
        plural: "namespaces",
        kind: "Namespace",
        namespaced: false,
        status: true,
        fields: &["status.phase"],
        skeleton: r#"{"spec":{},"status":{}}"#,
        ..NONE
    },
    Resource {
        plural: "nodes",
        kind: "Node",
        namespaced: false,
        status: true,
        fields: &["spec.unschedulable"],
        skeleton: r#"{"spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","operatingSystem":"","architecture":""}}}"#,
        ..NONE
    },
    Resource {
        plural: "pods",
        kind: "Pod",
        status: true,
        generation: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        skeleton: r#"{"spec":{"containers":null},"status":{}}"#,
        ..NONE
    },
    Resource {
        plural: "services",
        kind: "Service",
        status: true,
        fields: &["spec.clusterIP", "spec.type"],
        skeleton: r#"{"spec":{},"status":{"loadBalancer":{}}}"#,
        ..NONE
    },
    Resource { plural: "configmaps", kind: "ConfigMap", ..NONE },
    Resource { plural: "limitranges", kind: "LimitRange", skeleton: r#"{"spec":{"limits":null}}"#, ..NONE },
    Resource {
        group: "networking.k8s.io",
        plural: "networkpolicies",
        kind: "NetworkPolicy",
        generation: true,
        skeleton: r#"{"spec":{"podSelector":{}}}"#,
        ..NONE
    },
    Resource {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        kind: "EndpointSlice",
        generation: true,
        skeleton: r#"{"addressType":"","endpoints":null,"ports":null}"#,
        ..NONE
    },
    Resource {
        group: "crd.k8s.amazonaws.com",
        version: "v1alpha1",
        plural: "eniconfigs",
        kind: "ENIConfig",
        namespaced: false,
        status: true,
        custom: true,
        generation: true,
        ..NONE
    },
    Resource {
        group: "coordination.k8s.io",
        plural: "leases",
        kind: "Lease",
        skeleton: r#"{"spec":{}}"#,
        ..NONE
    },
    Resource {
        group: "events.k8s.io",
        plural: "events",
        kind: "Event",
        fields: &[
            "reason",
            "reportingController",
            "regarding.kind",
            "regarding.name",
            "regarding.namespace",
            "type",
        ],
        skeleton: r#"{"eventTime":null,"regarding":{},"deprecatedSource":{},"deprecatedFirstTimestamp":null,"deprecatedLastTimestamp":null}"#,
        ..NONE
    },
    Resource {
        plural: "clusterroles",
        kind: "ClusterRole",
        namespaced: false,
        skeleton: r#"{"rules":null}"#,
        ..RBAC
    },
    Resource {
        plural: "clusterrolebindings",
        kind: "ClusterRoleBinding",
        namespaced: false,
        skeleton: r#"{"roleRef":{"apiGroup":"","kind":"","name":""}}"#,
        ..RBAC
    },
    Resource { plural: "roles", kind: "Role", skeleton: r#"{"rules":null}"#, ..RBAC },
    Resource {
        plural: "rolebindings",
        kind: "RoleBinding",
        skeleton: r#"{"roleRef":{"apiGroup":"","kind":"","name":""}}"#,
        ..RBAC
    },
];

/// The resource of a path.
#[must_use]
pub fn of_path(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| (r.group, r.version, r.plural) == (group, version, plural))
}

/// The resource that a manifest is of.
#[must_use]
pub fn of_manifest(api_version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.api_version() == api_version)
}
