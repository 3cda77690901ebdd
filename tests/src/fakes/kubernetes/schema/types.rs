//! The structs of the kinds, one a line: `Struct: field type, field type`.
//!
//! `*` may be absent, `!` is written even when it is empty, `~` is a string with a name of its own. A struct within a struct
//! is always written. What no client of ours reads is `any`: kept as it came.

pub(super) const TYPES: &str = "\
ObjectMeta: name string, generateName string, namespace string, uid string, resourceVersion string, generation int64, creationTimestamp *Time, deletionTimestamp *Time, deletionGracePeriodSeconds *int64, labels map[string]string, annotations map[string]string, ownerReferences []OwnerReference, finalizers []string, managedFields []any
OwnerReference: apiVersion string!, kind string!, name string!, uid string!, controller *bool, blockOwnerDeletion *bool
LabelSelector: matchLabels map[string]string, matchExpressions []LabelSelectorRequirement
LabelSelectorRequirement: key string!, operator string!, values []string
ObjectReference: kind string, namespace string, name string, uid string, apiVersion string, resourceVersion string, fieldPath string
Condition: type string!, status string!, observedGeneration int64, lastTransitionTime Time, reason string!, message string!
Namespace: metadata ObjectMeta, spec NamespaceSpec, status NamespaceStatus
NamespaceSpec: finalizers []string
NamespaceStatus: phase string, conditions []any
Node: metadata ObjectMeta, spec NodeSpec, status NodeStatus
NodeSpec: podCIDR string, podCIDRs []string, providerID string, unschedulable bool, taints []Taint, configSource any, externalID string
Taint: key string!, value string, effect string!, timeAdded *Time
NodeStatus: capacity map[string]Quantity, allocatable map[string]Quantity, phase string, conditions []NodeCondition, addresses []NodeAddress, daemonEndpoints NodeDaemonEndpoints, nodeInfo NodeSystemInfo, images []any, volumesInUse []string, volumesAttached []any, config any, runtimeHandlers []any, features any, declaredFeatures []string
NodeCondition: type string!, status string!, lastHeartbeatTime Time, lastTransitionTime Time, reason string, message string
NodeAddress: type string!, address string!
NodeDaemonEndpoints: kubeletEndpoint DaemonEndpoint
DaemonEndpoint: Port int32!
NodeSystemInfo: machineID string!, systemUUID string!, bootID string!, kernelVersion string!, osImage string!, containerRuntimeVersion string!, kubeletVersion string!, kubeProxyVersion string!, operatingSystem string!, architecture string!, swap any
Pod: metadata ObjectMeta, spec PodSpec, status PodStatus
PodSpec: volumes []any, initContainers []Container, containers []Container!, ephemeralContainers []any, restartPolicy string, terminationGracePeriodSeconds *int64, activeDeadlineSeconds *int64, dnsPolicy string, nodeSelector map[string]string, serviceAccountName string, serviceAccount string, automountServiceAccountToken *bool, nodeName string, hostNetwork bool, hostPID bool, hostIPC bool, shareProcessNamespace *bool, securityContext any, imagePullSecrets []any, hostname string, subdomain string, affinity any, schedulerName string, tolerations []Toleration, hostAliases []any, priorityClassName string, priority *int32, dnsConfig any, readinessGates []any, runtimeClassName *string, enableServiceLinks *bool, preemptionPolicy *string, overhead map[string]Quantity, topologySpreadConstraints []any, setHostnameAsFQDN *bool, os any, hostUsers *bool, schedulingGates []any, resourceClaims []any, resources any, hostnameOverride *string
Toleration: key string, operator string, value string, effect string, tolerationSeconds *int64
Container: name string!, image string, command []string, args []string, workingDir string, ports []ContainerPort, envFrom []any, env []any, resources ResourceRequirements, resizePolicy []any, restartPolicy *string, volumeMounts []any, volumeDevices []any, livenessProbe any, readinessProbe any, startupProbe any, lifecycle any, terminationMessagePath string, terminationMessagePolicy string, imagePullPolicy string, securityContext any, stdin bool, stdinOnce bool, tty bool
ContainerPort: name string, hostPort int32, containerPort int32!, protocol string, hostIP string
ResourceRequirements: limits map[string]Quantity, requests map[string]Quantity, claims []any
PodStatus: observedGeneration int64, phase string, conditions []PodCondition, message string, reason string, nominatedNodeName string, hostIP string, hostIPs []HostIP, podIP string, podIPs []PodIP, startTime *Time, initContainerStatuses []any, containerStatuses []any, qosClass string, ephemeralContainerStatuses []any, resize string, resourceClaimStatuses []any, allocatedResources map[string]Quantity, resources any
PodCondition: type string!, observedGeneration int64, status string!, lastProbeTime Time, lastTransitionTime Time, reason string, message string
HostIP: ip string!
PodIP: ip string!
Service: metadata ObjectMeta, spec ServiceSpec, status ServiceStatus
ServiceSpec: ports []ServicePort, selector map[string]string, clusterIP string, clusterIPs []string, type string, externalIPs []string, sessionAffinity string, loadBalancerIP string, loadBalancerSourceRanges []string, externalName string, externalTrafficPolicy string, healthCheckNodePort int32, publishNotReadyAddresses bool, sessionAffinityConfig *SessionAffinityConfig, ipFamilies []string, ipFamilyPolicy *string, allocateLoadBalancerNodePorts *bool, loadBalancerClass *string, internalTrafficPolicy *string, trafficDistribution *string
SessionAffinityConfig: clientIP *ClientIPConfig
ClientIPConfig: timeoutSeconds *int32
ServicePort: name string, protocol string, appProtocol *string, port int32!, targetPort IntOrString, nodePort int32
ServiceStatus: loadBalancer LoadBalancerStatus, conditions []Condition
LoadBalancerStatus: ingress []LoadBalancerIngress
LoadBalancerIngress: ip string, hostname string, ipMode *string, ports []any
ConfigMap: metadata ObjectMeta, immutable *bool, data map[string]string, binaryData map[string]string
LimitRange: metadata ObjectMeta, spec LimitRangeSpec
LimitRangeSpec: limits []any!
NetworkPolicy: metadata ObjectMeta, spec NetworkPolicySpec
NetworkPolicySpec: podSelector LabelSelector, ingress []NetworkPolicyIngressRule, egress []NetworkPolicyEgressRule, policyTypes []~PolicyType
NetworkPolicyIngressRule: ports []NetworkPolicyPort, from []NetworkPolicyPeer
NetworkPolicyEgressRule: ports []NetworkPolicyPort, to []NetworkPolicyPeer
NetworkPolicyPort: protocol *string, port *IntOrString, endPort *int32
NetworkPolicyPeer: podSelector *LabelSelector, namespaceSelector *LabelSelector, ipBlock *IPBlock
IPBlock: cidr string!, except []string
EndpointSlice: metadata ObjectMeta, addressType string!, endpoints []Endpoint!, ports []EndpointPort!
Endpoint: addresses []string!, conditions EndpointConditions, hostname *string, targetRef *ObjectReference, deprecatedTopology map[string]string, nodeName *string, zone *string, hints any
EndpointConditions: ready *bool, serving *bool, terminating *bool
EndpointPort: name *string, protocol *string, port *int32, appProtocol *string
Lease: metadata ObjectMeta, spec LeaseSpec
LeaseSpec: holderIdentity *string, leaseDurationSeconds *int32, acquireTime *MicroTime, renewTime *MicroTime, leaseTransitions *int32, strategy *string, preferredHolder *string
Event: metadata ObjectMeta, eventTime MicroTime, series *EventSeries, reportingController string, reportingInstance string, action string, reason string, regarding ObjectReference, related *ObjectReference, note string, type string, deprecatedSource EventSource, deprecatedFirstTimestamp Time, deprecatedLastTimestamp Time, deprecatedCount int32
EventSource: component string, host string
EventSeries: count int32!, lastObservedTime MicroTime
ClusterRole: metadata ObjectMeta, rules []PolicyRule!, aggregationRule any
Role: metadata ObjectMeta, rules []PolicyRule!
PolicyRule: verbs []string!, apiGroups []string, resources []string, resourceNames []string, nonResourceURLs []string
ClusterRoleBinding: metadata ObjectMeta, subjects []Subject, roleRef RoleRef
RoleBinding: metadata ObjectMeta, subjects []Subject, roleRef RoleRef
Subject: kind string!, apiGroup string, name string!, namespace string
RoleRef: apiGroup string!, kind string!, name string!
";
