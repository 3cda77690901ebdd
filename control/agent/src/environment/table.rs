//! The variables: every one that the VPC CNI's documentation or code names, in its documentation's order.

/// A variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name, as the VPC CNI spells it.
    pub name: &'static str,
    /// What counts where it is not set, in Sluice; a dash: nothing.
    pub default: &'static str,
    /// What Sluice does about it.
    pub standing: Standing,
    /// What it decides, or why nothing comes of it, in sentences.
    pub does: &'static str,
}

/// What Sluice does about a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is read and in force.
    Honoured,
    /// It changes nothing, and need not.
    Ignored,
    /// Any value but this one stops the agent.
    Refused {
        /// The value that is no request for what is missing.
        only: bool,
    },
}

impl Standing {
    /// One word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Ignored => "ignored",
            Self::Refused { .. } => "refused",
        }
    }
}

const fn row(name: &'static str, default: &'static str, standing: Standing, does: &'static str) -> Variable {
    Variable { name, default, standing, does }
}

use Standing::{Honoured, Ignored, Refused};

/// Every variable.
pub const VARIABLES: &[Variable] = &[
    row(
        "AWS_MANAGE_ENIS_NON_SCHEDULABLE",
        "false",
        Honoured,
        "Whether ENIs and addresses of a cordoned node still change.",
    ),
    row(
        "AWS_VPC_CNI_NODE_PORT_SUPPORT",
        "true",
        Ignored,
        "Replies of node ports find their way by the connection, not by a mark: there is nothing to switch.",
    ),
    row(
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
        "false",
        Honoured,
        "Whether pods' ENIs take subnet and security groups from an ENIConfig.",
    ),
    row(
        "ENI_CONFIG_ANNOTATION_DEF",
        "k8s.amazonaws.com/eniConfig",
        Honoured,
        "The node annotation that names the ENIConfig.",
    ),
    row(
        "ENI_CONFIG_LABEL_DEF",
        "k8s.amazonaws.com/eniConfig",
        Honoured,
        "The node label that names the ENIConfig.",
    ),
    row(
        "HOST_CNI_BIN_PATH",
        "/host/opt/cni/bin",
        Ignored,
        "The chart's `cni.binDir` says where the plugin is put.",
    ),
    row(
        "HOST_CNI_CONFDIR_PATH",
        "/host/etc/cni/net.d",
        Ignored,
        "The chart's `cni.confDir`, and --cni-conf-dir, say where the conflist is put.",
    ),
    row(
        "AWS_VPC_ENI_MTU",
        "as the link has it",
        Honoured,
        "MTU of ENIs that the agent makes, 576 to 9001 bytes.",
    ),
    row(
        "POD_MTU",
        "AWS_VPC_ENI_MTU, then the primary ENI's",
        Honoured,
        "MTU of pods' interfaces that the CNI plugin lays, 576 bytes to the ENIs' MTU.",
    ),
    row(
        "AWS_VPC_K8S_CNI_EXTERNALSNAT",
        "false",
        Honoured,
        "True: nothing is translated; a NAT gateway does it. Goes over the inventory's `nat.external_snat`.",
    ),
    row(
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
        "prng",
        Honoured,
        "How a source port is chosen: prng, hashrandom or none. Goes over the inventory's `nat.randomize`. Another word is \
         refused; the VPC CNI takes it for prng.",
    ),
    row(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        "-",
        Honoured,
        "Destinations outside the VPC that are not translated either, by commas. Goes over the inventory's \
         `nat.exclude_cidrs`. An item that is no range is refused; the VPC CNI skips it.",
    ),
    row(
        "AWS_EXTERNAL_SERVICE_CIDRS",
        "-",
        Ignored,
        "It sends ranges by the node's main route table; pods' packets to them go where the connection belongs without it.",
    ),
    row(
        "AWS_VPC_K8S_CNI_CONNMARK",
        "0x80",
        Ignored,
        "Sluice marks no connection: this bit is free for others.",
    ),
    row(
        "AWS_VPC_K8S_CNI_VETHPREFIX",
        "eni",
        Honoured,
        "How names of pods' interfaces on the node begin, up to 4 characters.",
    ),
    row("WARM_ENI_TARGET", "1", Honoured, "Spare ENIs."),
    row("WARM_IP_TARGET", "-", Honoured, "Spare addresses."),
    row("MINIMUM_IP_TARGET", "-", Honoured, "Addresses in all, used or not."),
    row("WARM_PREFIX_TARGET", "1", Honoured, "Spare /28, with prefix delegation."),
    row("MAX_ENI", "-", Honoured, "ENIs at most, beside the instance type's limit."),
    row("ENABLE_PREFIX_DELEGATION", "false", Honoured, "Whether addresses come as /28."),
    row(
        "IP_COOLDOWN_PERIOD",
        "30",
        Honoured,
        "Seconds before a freed address is given out again, 0 to 86400.",
    ),
    row(
        "ENABLE_SUBNET_DISCOVERY",
        "true",
        Honoured,
        "Whether ENIs are made in any subnet that is tagged for it.",
    ),
    row("ADDITIONAL_ENI_TAGS", "{}", Honoured, "Further tags of ENIs, a JSON object."),
    row("CLUSTER_NAME", "-", Honoured, "The cluster, for tags and for what the sweeper may remove."),
    row(
        "CLUSTER_ENDPOINT",
        "-",
        Honoured,
        "The API server's URL, where no kube-proxy leads to it, in place of the service account's or the kubeconfig's.",
    ),
    row("DISABLE_LEAKED_ENI_CLEANUP", "false", Honoured, "True: leaked ENIs are left alone."),
    row(
        "DISABLE_NETWORK_RESOURCE_PROVISIONING",
        "false",
        Honoured,
        "True: ENIs and addresses are only those that the instance metadata shows.",
    ),
    row("ENABLE_IMDS_ONLY_MODE", "false", Honoured, "True: no call to EC2 at all."),
    row("MANAGE_UNTAGGED_ENI", "true", Honoured, "Whether ENIs without the CNI's tags are used."),
    row(
        "AWS_VPC_K8S_CNI_BACKING_STORE",
        "/var/run/aws-node/ipam.json",
        Honoured,
        "Where the VPC CNI kept its leases: `sluice-agent adopt` takes them over from there, `restore-vpc-cni` writes them back.",
    ),
    row("AWS_EC2_ENDPOINT", "-", Honoured, "The address of EC2's API, where it is not the region's."),
    row("HTTP_TIMEOUT", "10", Honoured, "Seconds that a call to EC2 may take."),
    row(
        "INTROSPECTION_BIND_ADDRESS",
        "127.0.0.1:61679",
        Honoured,
        "Where introspection listens: ADDRESS:PORT or unix:/PATH.",
    ),
    row("DISABLE_INTROSPECTION", "false", Honoured, "True: no introspection, and no /healthz."),
    row("DISABLE_METRICS", "false", Honoured, "True: no metrics on port 61678."),
    row("AWS_VPC_K8S_CNI_LOGLEVEL", "-", Ignored, "SLUICE_LOG says what is logged."),
    row("AWS_VPC_K8S_CNI_LOG_FILE", "-", Ignored, "Logs go to standard error: `kubectl logs` has them."),
    row(
        "AWS_VPC_K8S_PLUGIN_LOG_LEVEL",
        "-",
        Ignored,
        "The plugin's errors are kubelet's: they are in the pod's events.",
    ),
    row(
        "AWS_VPC_K8S_PLUGIN_LOG_FILE",
        "-",
        Ignored,
        "The plugin's errors are kubelet's: they are in the pod's events.",
    ),
    row(
        "NETWORK_POLICY_ENFORCING_MODE",
        "standard",
        Honoured,
        "What becomes of a pod that no policy selects: nothing (standard), or it is denied both ways but for its own node \
         (strict). `--enforcing-mode` goes over it. Policy is always on.",
    ),
    row("ENABLE_IPv4", "true", Refused { only: true }, "Sluice gives pods IPv4 addresses."),
    row(
        "ENABLE_IPv6",
        "false",
        Refused { only: false },
        "Sluice does no IPv6: keep the VPC CNI in an IPv6 cluster.",
    ),
    row("ENABLE_V4_EGRESS", "true", Ignored, "It concerns IPv6 clusters."),
    row(
        "ENABLE_V6_EGRESS",
        "false",
        Refused { only: false },
        "Sluice does no IPv6: pods that need it need the VPC CNI.",
    ),
    row("DISABLE_POD_V6", "false", Ignored, "Pods have no IPv6 addresses."),
    row(
        "ENABLE_POD_ENI",
        "false",
        Refused { only: false },
        "Sluice gives pods no ENI of their own: pods with security groups need the VPC CNI, on nodes without Sluice.",
    ),
    row("POD_SECURITY_GROUP_ENFORCING_MODE", "strict", Ignored, "It concerns pods with an ENI of their own."),
    row("DISABLE_TCP_EARLY_DEMUX", "false", Ignored, "It concerns pods with an ENI of their own."),
    row(
        "ENABLE_BANDWIDTH_PLUGIN",
        "false",
        Refused { only: false },
        "Sluice limits no pod's rate: the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth would do nothing.",
    ),
    row(
        "ANNOTATE_POD_IP",
        "false",
        Ignored,
        "Sluice knows its node's pods by their leases, and needs no annotation.",
    ),
    row(
        "ENABLE_MULTI_NIC",
        "false",
        Refused { only: false },
        "Sluice gives a pod one interface: workloads with several network cards need the VPC CNI.",
    ),
    row(
        "ENABLE_NFTABLES",
        "-",
        Ignored,
        "It does nothing in the VPC CNI either; Sluice lays no rules for pods.",
    ),
    row("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "-", Ignored, "It does nothing in the VPC CNI either."),
    row("MY_NODE_NAME", "-", Honoured, "This node's name where no inventory says it; the chart sets it."),
    row("MY_POD_NAME", "-", Honoured, "Who Events are from, as they say; the chart sets it."),
    row("VPC_CNI_VERSION", "-", Ignored, "Sluice has its own version: `sluice-agent --version`."),
    row("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "-", Ignored, "There is no egress plugin."),
    row("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", "-", Ignored, "There is no egress plugin."),
    row("AWS_CLUSTER_ID", "-", Ignored, "It is the VPC CNI's metrics helper's."),
    row("USE_CLOUDWATCH", "-", Ignored, "It is the VPC CNI's metrics helper's."),
    row("USE_PROMETHEUS", "-", Ignored, "It is the VPC CNI's metrics helper's."),
    row("METRIC_UPDATE_INTERVAL", "-", Ignored, "It is the VPC CNI's metrics helper's."),
];
