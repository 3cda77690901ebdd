//! What the CNI plugin asks of the agent: an address for a pod, and its path and policy in force before ADD returns.
//!
//! ```text
//!  sluice-cni ──socket──► Server: a thread a connection
//!                           │ Assign                     Attach                          Release
//!                           ▼                              ▼                               ▼
//!                        Desk ──lease──► Addresses   ──pod and veth──► Agent ──► sluiced
//!                           │            (the pool, its checkpoint)     one generation for all that wait
//!                           └──attachments──► Book (which veth an attachment has)
//! ```
//!
//! Leases and attachments survive the agent: they are read back, held against the veths that are there, and what has
//! lost its veth gives its address back ([`reclaim`]).

mod addresses;
mod book;
mod conflist;
mod counts;
mod desk;
mod reclaim;
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use clap::Args;
use sluice_cni::protocol::Shown;
use sluice_ec2::cloud::EniId;
use sluice_ec2::store::Lease;
use sluice_state::Pod;

pub use addresses::{Addresses, AddressesError, Pooled, Reserve};
pub(crate) use addresses::{boot, of_inventory, open, runtime, seed};
use book::{Book, BookError};
use conflist::{Conflist, NETWORK};
pub(crate) use counts::Counts;
use desk::{Desk, Veth};

use crate::agent::Event;
use crate::environment::Environment;
use crate::inventory::Inventory;
use crate::vpc_cni::names::PREFIX;
use crate::vpc_cni::{self, Host, HostError, LEASES};

/// Beside the socket: there was an agent that was ready.
const MARKER: &str = "ready";

/// Whether and how the plugin is answered.
#[derive(Debug, Clone, Args)]
pub struct CniArgs {
    /// Answer the CNI plugin here; its directory also keeps leases and attachments, and is root's alone
    #[arg(long, value_name = "PATH", conflicts_with_all = ["once", "dry_run"])]
    cni_socket: Option<PathBuf>,
    /// Where the CNI configuration goes once the agent is ready for the first time, and stays
    #[arg(long, value_name = "DIR", requires = "cni_socket")]
    cni_conf_dir: Option<PathBuf>,
    /// How long an ADD waits for a free address before the runtime is told to try again
    #[arg(long, value_name = "SECONDS", default_value_t = 5, requires = "cni_socket")]
    cni_wait: u64,
}

/// Why the plugin cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A file or a directory of ours.
    #[error("{}: {source} (--cni-socket names the socket; its directory must be writable)", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The socket's place is taken.
    #[error("another agent answers at {}: one node has one agent", .0.display())]
    Taken(PathBuf),
    /// The addresses.
    #[error(transparent)]
    Addresses(#[from] AddressesError),
    /// The node's kernel.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl CniError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Who has addresses before the pool begins: none of them may go to another pod, or back to EC2.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// Leases that the live veths show, for when there is no checkpoint.
    pub live: Vec<Lease>,
    /// Leases of the VPC CNI's that are taken over.
    pub adopted: Vec<Lease>,
}

/// The plugin's counterpart, before it answers.
pub(crate) struct Cni {
    socket: PathBuf,
    desk: Arc<Desk>,
    conflist: Option<Conflist>,
    /// Pods that were attached before this agent began, and still are.
    pub restored: Vec<Pod>,
}

/// The plugin's counterpart, answering. The socket goes with it.
pub(crate) struct Answering {
    _server: server::Server,
    desk: Arc<Desk>,
}

impl CniArgs {
    /// Reads back what is known of pods, and drops what is gone; nothing where no socket is asked for.
    ///
    /// # Errors
    /// The socket is another agent's, or leases cannot be kept.
    pub(crate) fn open(
        &self,
        environment: &Environment,
        from: impl FnOnce(&Path, &Before) -> anyhow::Result<(Box<dyn Addresses>, Inventory)>,
    ) -> anyhow::Result<Option<(Cni, Inventory)>> {
        let Some(socket) = &self.cni_socket else { return Ok(None) };
        let directory = socket.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        server::make_directory(directory).map_err(CniError::file(directory))?;
        // Before anything is read: two agents with one set of leases would give an address out twice.
        server::take(socket)?;
        let prefix = environment.veth_prefix.clone().unwrap_or_else(|| PREFIX.to_owned());
        let mut book = Book::open(directory.join("attachments.json")).unwrap_or_else(|error| {
            let BookError { book, why } = error;
            tracing::error!("{why}");
            book
        });
        let host = Host::read()?;
        let backing = environment.backing_store.as_deref().unwrap_or(Path::new(LEASES));
        let taken = vpc_cni::import(backing, &host, &prefix)?;
        let before = Before {
            live: reclaim::live(&book, &host),
            // Which ENI has which address, the pool finds out.
            adopted: taken.iter().map(|pod| pod.allocation.lease(NETWORK, EniId::unknown())).collect(),
        };
        let (addresses, inventory) = from(&directory.join("leases.json"), &before)?;
        reclaim::adopt(&mut book, &addresses.leases(), taken).map_err(CniError::file(directory))?;
        let mtu =
            environment.pod_mtu.or(environment.eni_mtu).map_or_else(|| mtu_of(&inventory, &host), u32::from);
        let veth = Veth { prefix, mtu };
        let desk = Desk::new(addresses, book, veth, Duration::from_secs(self.cni_wait));
        if socket.with_file_name(MARKER).exists() {
            // An agent that restarts makes no node NotReady.
            desk.ready();
        }
        let restored = reclaim::settle(&desk, &host);
        let conflist =
            self.cni_conf_dir.clone().map(|directory| Conflist { directory, socket: socket.clone() });
        Ok(Some((Cni { socket: socket.clone(), desk: Arc::new(desk), conflist, restored }, inventory)))
    }
}

/// The MTU of the node's primary ENI, which a pod's frames must fit.
fn mtu_of(inventory: &Inventory, host: &Host) -> u32 {
    let primary = inventory.state.primary_eni().and_then(|eni| host.named(&eni.name));
    primary.and_then(|link| link.mtu).unwrap_or(1500)
}

impl Cni {
    /// For who wants to look.
    pub(crate) fn window(&self) -> Window {
        Window(Arc::clone(&self.desk))
    }

    /// Pods that are not known yet are asked for.
    pub(crate) fn fetch_by(
        &self,
        fetch: impl Fn(&str, &str) -> Result<bool, String> + Send + Sync + 'static,
    ) {
        self.desk.fetch_by(Box::new(fetch));
    }

    /// Begins to answer; `tell` reaches the agent's loop.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn answer(self, tell: Sender<Event>) -> Result<(Answering, impl FnOnce() + Send), CniError> {
        let Self { socket, desk, conflist, .. } = self;
        desk.connect(tell);
        let server = server::Server::start(&socket, Arc::clone(&desk))?;
        let marker = socket.with_file_name(MARKER);
        let ready = Arc::clone(&desk);
        let on_ready = move || {
            let mut said = None;
            while let Some(why) = ready.unusable() {
                if said.as_ref() != Some(&why) {
                    tracing::error!("the node is not ready: {why}");
                    said = Some(why);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            ready.ready();
            if let Err(error) = std::fs::write(&marker, "") {
                tracing::warn!(file = %marker.display(), %error, "cannot be written: a plugin without an agent will say that the node is not ready");
            }
            if let Some(conflist) = conflist
                && let Err(error) = conflist.write()
            {
                tracing::error!(directory = %conflist.directory.display(), %error, "the CNI configuration cannot be written: kubelet will not use Sluice; --cni-conf-dir names its place");
            }
        };
        Ok((Answering { _server: server, desk }, on_ready))
    }
}

/// A look at what the plugin is answered, for pages.
#[derive(Clone)]
pub(crate) struct Window(Arc<Desk>);

impl Window {
    /// ENIs and leases.
    pub(crate) fn shown(&self) -> Shown {
        self.0.show()
    }

    /// What was asked.
    pub(crate) fn counts(&self) -> Counts {
        self.0.counts()
    }

    /// What there is for pods.
    pub(crate) fn reserve(&self) -> Reserve {
        self.0.reserve()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.desk.disconnect();
    }
}
