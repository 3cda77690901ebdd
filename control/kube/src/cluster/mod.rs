//! Kubernetes objects from an API server.
//!
//! ```text
//!  API server ══watch══► follow (one task a kind) ──► Gather: changes that wait, names that are known ──► News
//!      ▲                                                 ▲                                                 │
//!      └──────────── get ──── fetch: a pod that the watch has not got yet, for CNI ADD ┘                   ▼ tell
//! ```
//!
//! What is kept here is names alone: objects go to whoever is told. A relist is held against the names, so that what
//! went while nobody watched is told as gone. Nothing is told before every watch has been through its first list: half
//! of a cluster is another cluster, in which policies select pods that nobody knows and services have no endpoints.

mod follow;
mod gather;
mod herald;
mod slim;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Config};
use sluice_policy::Change;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

pub use gather::Watched;
use gather::{Gather, SharedGather};
use herald::Herald;
pub use herald::{CONDITION, EniConfigStanding, Standing, Unready};
pub use slim::{EniConfig, NodeFacts};
use slim::{SlimNode, SlimPod};

use crate::manifests::Finding;

/// How an API server is reached.
#[derive(Debug, Clone)]
pub enum Server {
    /// By a kubeconfig file, its current context.
    Kubeconfig(PathBuf),
    /// From a pod: its service account, and the variables that kubelet sets.
    InCluster,
    /// At a URL, without credentials.
    Url(String),
}

/// What is followed, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the server is reached.
    pub server: Server,
    /// A URL that takes the place of the configuration's (VPC CNI: `CLUSTER_ENDPOINT`), for nodes where nothing leads the
    /// cluster's own service yet.
    pub endpoint: Option<String>,
    /// This node's name.
    pub node: String,
    /// This agent's name in Events: its pod's, or the node's.
    pub instance: String,
    /// Seconds until a watch is opened anew; a stream that says nothing for so long and 5 s is given up.
    pub watch_seconds: u32,
}

/// Seconds that a watch lives: long enough that thousands of nodes cost the server little, short enough that a connection
/// that died without a word is noticed.
pub const WATCH_SECONDS: u32 = 240;

/// What has changed.
#[derive(Debug, Default)]
pub struct News {
    /// Every watch has been through its first list. Before that there are no changes; the first ones are everything.
    pub synced: bool,
    /// Changes, in the order in which they were seen.
    pub changes: Vec<Change>,
    /// What is wrong now, where that has changed.
    pub findings: Option<Vec<Finding>>,
    /// This node, where it has changed.
    pub node: Option<NodeFacts>,
    /// Every ENIConfig, where one has changed.
    pub eni_configs: Option<Vec<EniConfig>>,
}

/// Why an API server cannot be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The configuration makes no sense.
    #[error("{what}: {reason}")]
    Configuration {
        /// Which.
        what: String,
        /// Why.
        reason: String,
    },
    /// No thread can be had.
    #[error("no thread for watches: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a pod cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server does not answer, or refuses.
    #[error("the API server cannot be asked for the pod: {0}")]
    Server(String),
    /// It has not answered in time.
    #[error("the API server has not answered in {} s", .0.as_secs())]
    Late(Duration),
    /// What it answered cannot be understood.
    #[error("the API server's pod is refused: {0}")]
    Refused(String),
}

/// Watches of an API server, on a thread of their own. They end with this.
pub struct Cluster {
    gather: SharedGather,
    client: Client,
    runtime: Handle,
    standing: watch::Sender<Option<Standing>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Cluster {
    /// Begins to follow. An API server that is away is waited for, and `tell` hears of it as a finding; `tell` gives false
    /// when nobody listens any more.
    ///
    /// # Errors
    /// The configuration makes no sense, or no thread can be had.
    pub fn start(
        options: &Options,
        tell: impl FnMut(News) -> bool + Send + 'static,
    ) -> Result<Self, ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let client = runtime.block_on(client(options))?;
        let gather = Gather::shared(&options.node, tell);
        let (stop, stopped) = oneshot::channel();
        let (standing, told) = watch::channel(None);
        let herald = Herald::new(client.clone(), &options.node, &options.instance);
        let (watching, asked, seconds) = (Arc::clone(&gather), client.clone(), options.watch_seconds);
        std::thread::Builder::new().name("sluice-watch".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = watch_all(&asked, &watching, seconds) => {}
                    () = herald.run(told) => {}
                    // Whoever holds the other end has ended.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { gather, client, runtime: handle, standing, stop: Some(stop) })
    }

    /// Takes what holds now for the cluster to hear of: as Events, as this node's condition ([`CONDITION`]) and, where its
    /// definition has one, as the status of the node's `ENIConfig`. Returns at once; what the server does not take is tried
    /// again as long as it holds.
    pub fn announce(&self, standing: Standing) {
        self.standing.send_if_modified(|told| {
            let new = told.as_ref() != Some(&standing);
            *told = Some(standing);
            new
        });
    }

    /// Asks for a pod and tells it before this returns: false when there is none. What the watch says of the pod as it was
    /// before that is not told afterwards.
    ///
    /// # Errors
    /// The server cannot be asked, or does not answer within `patience`.
    pub fn fetch_pod(&self, namespace: &str, name: &str, patience: Duration) -> Result<bool, FetchError> {
        let api: Api<SlimPod> = Api::namespaced(self.client.clone(), namespace);
        let (tell, told) = sync_channel(1);
        let name = name.to_owned();
        let task = self.runtime.spawn(async move {
            // Whoever asked may have given up.
            let _ = tell.try_send(api.get_opt(&name).await);
        });
        match told.recv_timeout(patience) {
            Ok(Ok(Some(pod))) => match gather::lock(&self.gather).fetched(pod) {
                Ok(()) => Ok(true),
                Err(refusals) => Err(FetchError::Refused(refusals)),
            },
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => Err(FetchError::Server(trouble::words(&error))),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                task.abort();
                Err(FetchError::Late(patience))
            }
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("gather", &self.gather).finish_non_exhaustive()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
    }
}

async fn client(options: &Options) -> Result<Client, ClusterError> {
    let wrong = |what: &str, reason: String| ClusterError::Configuration { what: what.to_owned(), reason };
    let mut config = match &options.server {
        Server::Kubeconfig(path) => {
            let what = format!("the kubeconfig {}", path.display());
            let read = Kubeconfig::read_from(path).map_err(|e| wrong(&what, trouble::chain(&e)))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|e| wrong(&what, trouble::chain(&e)))?
        }
        Server::InCluster => Config::incluster().map_err(|e| {
            let reason = trouble::chain(&e);
            wrong("--in-cluster", format!("{reason}; outside of a pod, --kubeconfig FILE names the server"))
        })?,
        Server::Url(url) => {
            Config::new(url.parse().map_err(|e: http::uri::InvalidUri| wrong(url, e.to_string()))?)
        }
    };
    if let Some(endpoint) = &options.endpoint {
        config.cluster_url =
            endpoint.parse().map_err(|e: http::uri::InvalidUri| wrong("CLUSTER_ENDPOINT", e.to_string()))?;
    }
    config.connect_timeout = Some(Duration::from_secs(10));
    Client::try_from(config).map_err(|e| wrong("the API server", trouble::chain(&e)))
}

async fn watch_all(client: &Client, gather: &SharedGather, seconds: u32) {
    let all = || client.clone();
    let pods: Api<SlimPod> = Api::all(all());
    let nodes: Api<SlimNode> = Api::all(all());
    // Nothing but their labels is used.
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(all());
    let policies: Api<NetworkPolicy> = Api::all(all());
    let services: Api<Service> = Api::all(all());
    let slices: Api<EndpointSlice> = Api::all(all());
    let eni_configs: Api<EniConfig> = Api::all(all());
    tokio::join!(
        follow::follow(pods, gather, seconds),
        follow::follow(nodes, gather, seconds),
        follow::follow(namespaces, gather, seconds),
        follow::follow(policies, gather, seconds),
        follow::follow(services, gather, seconds),
        follow::follow(slices, gather, seconds),
        follow::follow(eni_configs, gather, seconds),
        gather::tell(gather),
    );
}
