//! A large cluster, made faster than requests could, and changes in it at a rate: what a watch of a real large cluster is to
//! be measured against. Pods are as long as real ones (6 to 10 kB each with what controllers write into them) and everything
//! comes from a seed, so that two runs see the same cluster.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::clock::Lots;
use super::kinds::{self, Resource};
use super::server::Shared;
use super::status::Refusal;
use super::store::key;
use super::world::World;

/// How large a cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowd {
    /// Pods; all have a node and an address.
    pub pods: usize,
    /// Nodes, over which the pods are spread: `node-0`, `node-1`, …
    pub nodes: usize,
    /// Namespaces, over which the pods are spread: `team-0`, …; each has a policy, and a service with its slices.
    pub namespaces: usize,
    /// Bytes of a pod's JSON, without its version.
    pub pod_bytes: RangeInclusive<usize>,
    /// Where the lots start.
    pub seed: u64,
}

impl Default for Crowd {
    fn default() -> Self {
        Self { pods: 1_000, nodes: 50, namespaces: 20, pod_bytes: 6_000..=10_000, seed: 1 }
    }
}

/// Endpoints that one slice has at most, as the real controller's.
const SLICE: usize = 100;

impl Crowd {
    /// Puts the cluster into a world.
    ///
    /// # Errors
    /// A namespace, a node, a policy, a service or a slice is refused: one of that name is there and differs in what cannot
    /// change.
    pub fn fill(&self, world: &mut World) -> Result<(), Refusal> {
        for i in 0..self.namespaces.max(1) {
            world.load(&json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": namespace(i), "labels": { "team": format!("t{}", i % 7) } },
            }))?;
        }
        for i in 0..self.nodes.max(1) {
            world.load(&node(i))?;
        }
        if let Some(pods) = pods() {
            let mut lots = Lots::new(self.seed);
            for i in 0..self.pods {
                world.put_raw(pods, self.pod(i, &mut lots));
            }
        }
        for i in 0..self.namespaces.max(1) {
            world.load(&policy(i))?;
            world.load(&service(i))?;
            let backends: Vec<usize> = (i..self.pods).step_by(self.namespaces.max(1)).collect();
            for (n, backends) in backends.chunks(SLICE).enumerate() {
                world.load(&self.slice(i, n, backends))?;
            }
        }
        Ok(())
    }

    fn node_of(&self, pod: usize) -> String {
        format!("node-{}", pod % self.nodes.max(1))
    }

    fn namespace_of(&self, pod: usize) -> String {
        namespace(pod % self.namespaces.max(1))
    }

    /// A pod as it is stored once it runs. The same number gives the same name, address and node.
    fn pod(&self, i: usize, lots: &mut Lots) -> Value {
        let app = format!("app-{}", i % 40);
        let containers: Vec<Value> = (0..1 + i % 2).map(|n| container(n, &app)).collect();
        let statuses: Vec<Value> = (0..1 + i % 2).map(container_status).collect();
        let conditions =
            ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
                .map(condition);
        let mut pod = json!({
            "metadata": {
                "name": name(i), "namespace": self.namespace_of(i), "generation": 1,
                "uid": lots.uid(), "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "app": app, "pod-template-hash": format!("{:x}", i % 4_096),
                    "topology.kubernetes.io/zone": zone(i % self.nodes.max(1)),
                },
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "" },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{}-rs", i % 40),
                    "uid": lots.uid(), "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {
                "nodeName": self.node_of(i), "containers": containers,
                "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "conf", "configMap": { "name": "conf", "defaultMode": 420 } }],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "serviceAccountName": "default", "securityContext": {}, "schedulerName": "default-scheduler",
                "tolerations": [
                    { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                    { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                ],
                "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
            },
            "status": {
                "phase": "Running", "hostIP": node_address(i % self.nodes.max(1)), "podIP": address(i),
                "podIPs": [{ "ip": address(i) }], "startTime": "2026-01-01T00:00:01Z", "qosClass": "Burstable",
                "conditions": conditions,
                "containerStatuses": statuses,
            },
        });
        let span = self.pod_bytes.end().saturating_sub(*self.pod_bytes.start()) as u64 + 1;
        let wanted = self.pod_bytes.start() + usize::try_from(lots.draw() % span).unwrap_or(0);
        let missing = wanted.saturating_sub(pod.to_string().len());
        pod["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
            json!("x".repeat(missing));
        pod
    }

    fn slice(&self, i: usize, n: usize, backends: &[usize]) -> Value {
        let endpoints: Vec<Value> = backends
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [address(*pod)], "nodeName": self.node_of(*pod), "zone": zone(pod % self.nodes.max(1)),
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "targetRef": { "kind": "Pod", "name": name(*pod), "namespace": namespace(i) },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("all-{n}"), "namespace": namespace(i), "labels": { "kubernetes.io/service-name": "all" },
            },
            "endpoints": endpoints,
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        })
    }
}

fn pods() -> Option<&'static Resource> {
    kinds::of_path("", "v1", "pods")
}

fn name(pod: usize) -> String {
    format!("pod-{pod:06}")
}

fn namespace(i: usize) -> String {
    format!("team-{i}")
}

/// 10.0.0.0/8 has room for all.
fn address(pod: usize) -> String {
    let pod = pod + 256;
    format!("10.{}.{}.{}", pod >> 16 & 255, pod >> 8 & 255, pod & 255)
}

fn node_address(node: usize) -> String {
    format!("172.16.{}.{}", node >> 8 & 255, node & 255)
}

fn zone(node: usize) -> String {
    format!("us-west-2{}", ["a", "b", "c"][node % 3])
}

fn node(i: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": format!("node-{i}"),
            "labels": {
                "kubernetes.io/hostname": format!("node-{i}"), "node.kubernetes.io/instance-type": "m6i.4xlarge",
                "topology.kubernetes.io/region": "us-west-2", "topology.kubernetes.io/zone": zone(i),
            },
        },
        "spec": { "providerID": format!("aws:///{}/i-{i:017x}", zone(i)) },
        "status": { "addresses": [{ "type": "InternalIP", "address": node_address(i) }] },
    })
}

fn policy(i: usize) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "from-friends", "namespace": namespace(i) },
        "spec": {
            "podSelector": { "matchLabels": { "app": format!("app-{}", i % 40) } },
            "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": format!("t{}", i % 7) } } }] }],
        },
    })
}

fn service(i: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "all", "namespace": namespace(i) },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

fn container(n: usize, app: &str) -> Value {
    let env: Vec<Value> = (0..12)
        .map(|i| json!({ "name": format!("SETTING_{i}"), "value": "a value of some length" }))
        .collect();
    let probe = json!({
        "httpGet": { "path": "/healthz", "port": 8080, "scheme": "HTTP" },
        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
    });
    json!({
        "name": format!("c{n}"), "image": format!("registry.example.com/team/{app}:v1.2.3"), "env": env,
        "ports": [{ "name": "http", "containerPort": 8080 + n, "protocol": "TCP" }],
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
        "volumeMounts": [{ "name": "data", "mountPath": "/data" }, { "name": "conf", "mountPath": "/conf", "readOnly": true }],
        "livenessProbe": probe, "readinessProbe": probe, "imagePullPolicy": "IfNotPresent",
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    })
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:05Z" })
}

fn container_status(n: usize) -> Value {
    json!({
        "name": format!("c{n}"), "ready": true, "restartCount": 0, "started": true,
        "image": "registry.example.com/team/app:v1.2.3",
        "imageID": "registry.example.com/team/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "containerID": "containerd://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "state": { "running": { "startedAt": "2026-01-01T00:00:04Z" } }, "lastState": {},
    })
}

/// Changes of pods that go on until this is dropped: half of them turn readiness, a quarter labels, and a quarter are pods
/// that go and others that come.
#[derive(Debug)]
pub struct Churn {
    done: Arc<AtomicU64>,
    late: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    /// Changes that were made.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Microseconds that a change was made after its time, at worst: what the fake itself is behind.
    #[must_use]
    pub fn late_micros(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    pub(super) fn start(shared: Arc<Shared>, crowd: Crowd, per_second: u32) -> std::io::Result<Self> {
        let (done, late, stop) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, behind, over) = (done.clone(), late.clone(), stop.clone());
        let run = move || {
            let begun = Instant::now();
            let mut changer = Changer { lots: Lots::new(!crowd.seed), first: 0, next: crowd.pods, crowd };
            for n in 0_u32.. {
                let at = begun + Duration::from_secs(1) * n / per_second.max(1);
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                if over.load(Ordering::Relaxed) {
                    return;
                }
                shared.world(|world| changer.change(world));
                let behind_now = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
                behind.fetch_max(behind_now, Ordering::Relaxed);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("fake-churn".into()).spawn(run)?;
        Ok(Self { done, late, stop, thread: Some(thread) })
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _joined = thread.join();
        }
    }
}

/// Pods `first..next` are there.
struct Changer {
    crowd: Crowd,
    lots: Lots,
    first: usize,
    next: usize,
}

impl Changer {
    fn change(&mut self, world: &mut World) {
        let Some(pods) = pods().filter(|_| self.next > self.first) else { return };
        let lot = self.lots.draw();
        let span = (self.next - self.first) as u64;
        let pod = self.first + usize::try_from(lot / 8 % span).unwrap_or(0);
        let stored = world.object(pods, &self.crowd.namespace_of(pod), &name(pod));
        match (lot % 8, stored) {
            (0, _) => {
                let gone = key(&self.crowd.namespace_of(self.first), &name(self.first));
                world.store.remove(pods, &gone, None);
                self.first += 1;
            }
            (1, _) => {
                let pod = self.crowd.pod(self.next, &mut self.lots);
                world.put_raw(pods, pod);
                self.next += 1;
            }
            (2 | 3, Ok(stored)) => {
                let mut value = stored.value(pods);
                value["metadata"]["labels"]["turn"] = json!(lot.to_string());
                world.put_raw(pods, value);
            }
            (_, Ok(stored)) => {
                let mut value = stored.value(pods);
                let ready = &mut value["status"]["conditions"][2]["status"];
                *ready = json!(if ready == "True" { "False" } else { "True" });
                world.put_raw(pods, value);
            }
            // Someone else has deleted it.
            (_, Err(_)) => {}
        }
    }
}
