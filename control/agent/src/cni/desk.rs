//! What is answered to the plugin's questions, whoever brings them.
//!
//! A [`Visit`] is one conversation. What it was given and did not bring to an end, it gives back when it ends: a plugin
//! that is killed leaves no lease behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sluice_cni::protocol::{
    Assigned, Attachment, Mac, Pod, Refusal, Reply, Request, Shown, ShownEni, ShownLease,
};
use sluice_ec2::pool::AssignError;
use sluice_ec2::store::{Eni, Lease, LeaseKey, Role};

use super::addresses::{Addresses, Reserve};
use super::book::{Book, Entry};
use super::counts::{Counts, name};
use crate::agent::{Attached, Event, NotAttached};
use crate::vpc_cni::host_interface;

/// How long the daemon has to acknowledge a pod's path.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest name of a network interface (`IFNAMSIZ` less its end).
const LONGEST_INTERFACE: usize = 15;
/// Longest name of anything else that is taken; Kubernetes' names have 253 at most.
const LONGEST: usize = 253;

/// What a veth must be.
#[derive(Debug, Clone)]
pub(super) struct Veth {
    /// How the host's end begins (`AWS_VPC_K8S_CNI_VETHPREFIX`).
    pub prefix: String,
    /// Bytes.
    pub mtu: u32,
}

/// Everything that answers are made of.
pub(super) struct Desk {
    addresses: Box<dyn Addresses>,
    book: Mutex<Book>,
    /// Attachments that have an address and no veth yet, each with the visit that asked last.
    open: Mutex<BTreeMap<Attachment, u64>>,
    veth: Veth,
    wait: Duration,
    ready: AtomicBool,
    agent: Mutex<Option<Sender<Event>>>,
    /// Asks for a pod that is not known yet; absent: there is nobody to ask.
    fetch: OnceLock<Box<Fetch>>,
    visits: AtomicU64,
    counts: Counts,
}

/// Asks for a pod by namespace and name: whether there is one, which is then told to the agent's loop.
pub(crate) type Fetch = dyn Fn(&str, &str) -> Result<bool, String> + Send + Sync;

/// One conversation with a plugin.
pub(super) struct Visit {
    desk: Arc<Desk>,
    number: u64,
    pending: BTreeMap<Attachment, Pending>,
}

/// An attachment that has an address and no veth yet.
struct Pending {
    asked: Instant,
    pod: Pod,
    netns: PathBuf,
    lease: Lease,
    assigned: Assigned,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves under these locks is put right by the next start.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(kind: Refusal, message: impl Into<String>) -> Reply {
    Reply::Refused { kind, message: message.into() }
}

fn key_of(attachment: &Attachment) -> LeaseKey {
    let Attachment { network, container, interface } = attachment.clone();
    LeaseKey { network, container, interface }
}

fn attachment_of(key: &LeaseKey) -> Attachment {
    let LeaseKey { network, container, interface } = key.clone();
    Attachment { network, container, interface }
}

fn pod_of(pod: &Pod) -> sluice_ec2::store::Pod {
    let Pod { namespace, name, uid } = pod.clone();
    sluice_ec2::store::Pod { namespace, name, uid }
}

impl Desk {
    pub(super) fn new(addresses: Box<dyn Addresses>, book: Book, veth: Veth, wait: Duration) -> Self {
        Self {
            addresses,
            book: Mutex::new(book),
            open: Mutex::default(),
            veth,
            wait,
            ready: AtomicBool::new(false),
            agent: Mutex::default(),
            fetch: OnceLock::new(),
            visits: AtomicU64::new(0),
            counts: Counts::default(),
        }
    }

    /// The agent's loop listens from now on.
    pub(super) fn connect(&self, agent: Sender<Event>) {
        *lock(&self.agent) = Some(agent);
    }

    /// A pod that nobody knows yet is asked for.
    pub(super) fn fetch_by(&self, fetch: Box<Fetch>) {
        // Once, before the first question.
        let _ = self.fetch.set(fetch);
    }

    /// The agent's loop has ended.
    pub(super) fn disconnect(&self) {
        *lock(&self.agent) = None;
    }

    /// The first ADD may come.
    pub(super) fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    pub(super) fn unusable(&self) -> Option<String> {
        self.addresses.unusable()
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.addresses.leases()
    }

    /// Gives an address back. A lease that cannot be written off is found to have no veth at the next start.
    pub(super) fn release(&self, attachment: &Attachment) -> Option<Lease> {
        match self.addresses.release(&key_of(attachment)) {
            Ok(lease) => lease,
            Err(error) => {
                tracing::error!(%error, container = attachment.container, "the lease of a pod that is gone cannot be written off: is the disk full?");
                None
            }
        }
    }

    /// Who asks begins here.
    pub(super) fn visit(self: &Arc<Self>) -> Visit {
        let number = self.visits.fetch_add(1, Ordering::Relaxed);
        Visit { desk: Arc::clone(self), number, pending: BTreeMap::new() }
    }

    fn tell(&self, event: Event) -> bool {
        lock(&self.agent).as_ref().is_some_and(|agent| agent.send(event).is_ok())
    }

    /// Waits until the daemon has a pod's path and policy.
    fn bring_into_force(&self, entry: &Entry) -> Attached {
        let (reply, answer) = sync_channel(1);
        if !self.tell(Event::Attach { pod: entry.pod(), uid: entry.pod.uid.clone(), reply }) {
            let why = "the agent is ending; another one will answer: try again".to_owned();
            return Err(NotAttached::NotInForce(why));
        }
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let seconds = PATIENCE.as_secs();
            Err(NotAttached::NotInForce(format!(
                "sluiced has not acknowledged the pod in {seconds} s: is it running?"
            )))
        })
    }

    /// An attachment's veth is no longer ours to lead to; gives what it was.
    fn unbind(&self, attachment: &Attachment) -> Option<Entry> {
        let entry = self.book().strike(attachment)?;
        self.tell(Event::Detach(entry.address));
        Some(entry)
    }

    /// Ends an attachment; gives the host's end of its veth, unless another attachment has it by now.
    fn end(&self, attachment: &Attachment) -> Option<String> {
        let entry = self.unbind(attachment);
        let lease = self.release(attachment);
        let name = match (&entry, &lease) {
            (Some(entry), _) => entry.host_interface.clone(),
            // Between assignment and attachment the veth may have been laid.
            (None, Some(lease)) => self.host_interface(&lease.pod.namespace, &lease.pod.name),
            (None, None) => return None,
        };
        tracing::info!(container = attachment.container, interface = name, "an attachment ends");
        let taken = self.book().uses(&name) || self.is_opening(&name);
        (!taken).then_some(name)
    }

    fn host_interface(&self, namespace: &str, name: &str) -> String {
        host_interface(&self.veth.prefix, namespace, name)
    }

    /// Whether an attachment that has no veth yet is about to lay one of this name.
    fn is_opening(&self, name: &str) -> bool {
        let open = lock(&self.open);
        let leases = self.addresses.leases();
        leases
            .iter()
            .filter(|lease| open.contains_key(&attachment_of(&lease.key)))
            .any(|lease| self.host_interface(&lease.pod.namespace, &lease.pod.name) == name)
    }

    fn status(&self) -> Reply {
        if self.ready.load(Ordering::Relaxed) {
            return Reply::Ready;
        }
        refused(
            Refusal::NotReady,
            "the agent has not been ready yet: it waits for the cluster's objects, for the ENIs and for sluiced; its log says which",
        )
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.clone()
    }

    pub(super) fn reserve(&self) -> Reserve {
        self.addresses.reserve()
    }

    pub(super) fn show(&self) -> Shown {
        let (leases, reserve) = (self.leases(), self.addresses.reserve());
        let eni = |eni: &Eni| ShownEni {
            id: eni.id.to_string(),
            link: self.addresses.link_of(eni),
            primary: eni.primary,
            subnet: eni.subnet.to_string(),
            idle: match (eni.draining, eni.role) {
                (true, _) => Some("it is about to be detached".to_owned()),
                (false, Role::Pods) => None,
                (false, role) => Some(format!("{role:?}")),
            },
            blocks: eni.blocks.keys().map(ToString::to_string).collect(),
            leased: leases.iter().filter(|lease| lease.eni == eni.id).count(),
        };
        let enis = self.addresses.enis().iter().map(eni).collect();
        let book = self.book();
        let shown = leases.iter().map(|lease| {
            let attachment = attachment_of(&lease.key);
            let entry = book.of(&attachment);
            let sluice_ec2::store::Pod { namespace, name, uid } = lease.pod.clone();
            ShownLease {
                pod: Pod { namespace, name, uid },
                address: lease.address,
                eni: lease.eni.to_string(),
                since: lease.since.to_string(),
                host_interface: entry.map(|entry| entry.host_interface.clone()),
                netns: entry.map(|entry| entry.netns.clone()),
                attachment,
            }
        });
        let leases = shown.collect();
        let addresses = [reserve.total, reserve.assigned, reserve.cooling];
        let ready = self.ready.load(Ordering::Relaxed);
        Shown { ready, addresses, troubles: reserve.troubles, enis, leases }
    }

    fn check(&self, attachment: &Attachment) -> Reply {
        let book = self.book();
        let Some(entry) = book.of(attachment) else {
            let message = format!(
                "no attachment of container {} is known: it was never added, or was deleted",
                attachment.container
            );
            return refused(Refusal::Unknown, message);
        };
        Reply::Checked(Assigned {
            address: entry.address,
            host_interface: entry.host_interface.clone(),
            mtu: self.veth.mtu,
            eni: entry.eni_link.clone(),
        })
    }

    fn collect(&self, network: &str, valid: &[Attachment]) -> Reply {
        let open: Vec<Attachment> = lock(&self.open).keys().cloned().collect();
        let gone: Vec<Attachment> = self
            .leases()
            .iter()
            .map(|lease| attachment_of(&lease.key))
            .filter(|a| a.network == network && !valid.contains(a) && !open.contains(a))
            .collect();
        Reply::Released {
            host_interfaces: gone.iter().filter_map(|attachment| self.end(attachment)).collect(),
        }
    }
}

impl Visit {
    /// The answer to a question.
    pub(super) fn answer(&mut self, request: Request) -> Reply {
        let asked = name(&request);
        let reply = self.serve(request);
        self.desk.counts.answered(asked, &reply);
        reply
    }

    fn serve(&mut self, request: Request) -> Reply {
        match request {
            Request::Assign { attachment, pod, netns } => {
                match check_names(&attachment).and_then(|()| check_pod(&pod)) {
                    Ok(()) => self.assign(attachment, pod, netns),
                    Err(message) => refused(Refusal::Invalid, message),
                }
            }
            Request::Attach { attachment, host_interface, host_ifindex, mac } => {
                tracing::debug!(host_ifindex, host_interface, "attach");
                self.attach(&attachment, &host_interface, mac)
            }
            Request::Release { attachment } => {
                // Whoever lays a veth for it now, lays it for nothing.
                self.pending.remove(&attachment);
                self.desk.counts.dels.inc();
                lock(&self.desk.open).remove(&attachment);
                Reply::Released { host_interfaces: self.desk.end(&attachment).into_iter().collect() }
            }
            Request::Check { attachment } => self.desk.check(&attachment),
            Request::Gc { network, valid } => self.desk.collect(&network, &valid),
            Request::Status => self.desk.status(),
            Request::Show => Reply::Shown(self.desk.show()),
        }
    }

    fn assign(&mut self, attachment: Attachment, pod: Pod, netns: PathBuf) -> Reply {
        let desk = Arc::clone(&self.desk);
        let asked = Instant::now();
        desk.counts.adds.inc();
        lock(&desk.open).insert(attachment.clone(), self.number);
        let assigned = match desk.addresses.assign(key_of(&attachment), pod_of(&pod), desk.wait) {
            Ok(assigned) => assigned,
            Err(error) => {
                self.close(&attachment);
                if matches!(error, AssignError::Empty { .. }) {
                    desk.counts.without_address.inc();
                }
                return refused(Refusal::TryAgain, error.to_string());
            }
        };
        // The runtime adds what it thinks is not there: a veth of before is none.
        desk.unbind(&attachment);
        if let Some(old) = &assigned.superseded {
            tracing::info!(pod = %pod_name(&pod), old = old.key.container, new = attachment.container, "another sandbox of a pod");
            desk.unbind(&attachment_of(&old.key));
        }
        let lease = assigned.lease;
        let Some(eni) = desk.addresses.link(&lease) else {
            self.close(&attachment);
            desk.release(&attachment);
            let message = format!("{} of address {} has no link on this node yet", lease.eni, lease.address);
            return refused(Refusal::TryAgain, message);
        };
        let host_interface = desk.host_interface(&pod.namespace, &pod.name);
        let assigned = Assigned { address: lease.address, host_interface, mtu: desk.veth.mtu, eni };
        let pending = Pending { asked, pod, netns, lease, assigned: assigned.clone() };
        self.pending.insert(attachment, pending);
        Reply::Assigned(assigned)
    }

    fn attach(&mut self, attachment: &Attachment, host_interface: &str, mac: Mac) -> Reply {
        let desk = Arc::clone(&self.desk);
        let Some(pending) = self.pending.get(attachment) else {
            let message =
                "no address was assigned in this conversation: the agent may have been restarted; try again";
            return refused(Refusal::TryAgain, message);
        };
        let Pending { pod, netns, lease, assigned, .. } = pending;
        if host_interface != assigned.host_interface {
            let message = format!(
                "the host's end is {host_interface}, it must be {}: are plugin and agent of one release?",
                assigned.host_interface
            );
            return refused(Refusal::Invalid, message);
        }
        let entry = Entry {
            attachment: attachment.clone(),
            pod: pod.clone(),
            address: lease.address,
            eni: lease.eni.clone(),
            eni_link: assigned.eni.clone(),
            host_interface: host_interface.to_owned(),
            mac,
            netns: netns.clone(),
        };
        let mut outcome = desk.bring_into_force(&entry);
        if let (Err(NotAttached::Unknown(name)), Some(fetch)) = (&outcome, desk.fetch.get()) {
            outcome = match fetch(&pod.namespace, &pod.name) {
                Ok(true) => desk.bring_into_force(&entry),
                Ok(false) => {
                    Err(NotAttached::NotInForce(format!("the API server has no pod {name}: it was deleted")))
                }
                Err(error) => Err(NotAttached::NotInForce(error)),
            };
        }
        let outcome = outcome.map_err(|error| error.to_string());
        let address = entry.address;
        let kept = outcome.and_then(|generation| {
            if !self.close(attachment) {
                return Err("it was deleted, or added again, while it was being added".to_owned());
            }
            let noted = desk.book().note(entry);
            noted.map(|()| generation).map_err(|error| {
                lock(&desk.open).insert(attachment.clone(), self.number);
                format!("the attachment cannot be written down: {error}; is the disk full?")
            })
        });
        match kept {
            Ok(generation) => {
                if let Some(pending) = self.pending.remove(attachment) {
                    desk.counts.added(pending.asked.elapsed());
                    tracing::info!(pod = %pod_name(&pending.pod), %address, generation, "a pod is attached");
                }
                Reply::Attached { generation }
            }
            Err(message) => {
                desk.tell(Event::Detach(address));
                refused(Refusal::TryAgain, message)
            }
        }
    }

    /// This visit no longer lays a veth for an attachment, if nobody has taken that over.
    fn close(&self, attachment: &Attachment) -> bool {
        let mut open = lock(&self.desk.open);
        let own = open.get(attachment) == Some(&self.number);
        if own {
            open.remove(attachment);
        }
        own
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        for (attachment, pending) in std::mem::take(&mut self.pending) {
            // The runtime may have begun anew meanwhile; then the address is that one's.
            if self.close(&attachment) {
                tracing::warn!(pod = %pod_name(&pending.pod), address = %pending.lease.address, "an ADD was broken off: its address is given back");
                self.desk.tell(Event::Detach(pending.lease.address));
                self.desk.release(&attachment);
            }
        }
    }
}

fn pod_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// Names that are file names, keys of files and words of logs.
fn check_names(attachment: &Attachment) -> Result<(), String> {
    let word = |what: &str, text: &str, longest: usize| {
        let fits = !text.is_empty()
            && text.len() <= longest
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && text != "."
            && text != "..";
        if fits {
            return Ok(());
        }
        Err(format!("{what}: {text:?} is refused: 1 to {longest} of a-z, A-Z, 0-9, ., _ and - are valid"))
    };
    word("the network's name", &attachment.network, LONGEST)?;
    word("CNI_CONTAINERID", &attachment.container, LONGEST)?;
    word("CNI_IFNAME", &attachment.interface, LONGEST_INTERFACE)
}

/// Only a pod has a policy.
fn check_pod(pod: &Pod) -> Result<(), String> {
    if pod.namespace.is_empty() || pod.name.is_empty() {
        return Err(
            "CNI_ARGS names no pod (K8S_POD_NAMESPACE and K8S_POD_NAME): only a pod of Kubernetes has a \
                    policy, so nothing else gets a network here"
                .to_owned(),
        );
    }
    let all = [&pod.namespace, &pod.name, &pod.uid];
    match all
        .into_iter()
        .find(|text| text.len() > LONGEST || text.chars().any(|c| c.is_control() || c == '/'))
    {
        Some(text) => Err(format!("CNI_ARGS: {text:?} is no name")),
        None => Ok(()),
    }
}
