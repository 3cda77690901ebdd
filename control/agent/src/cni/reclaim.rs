//! At the agent's start: which attachments still have their veth, and what the others give back.
//!
//! While no agent answers, a DEL succeeds (a pod must be able to go), and nobody writes it down. So an attachment is
//! believed only where the node's kernel still has its veth, by name and by the address of the other end.

use sluice_ec2::moment::Clock;
use sluice_ec2::store::{Lease, LeaseKey, Pod};

use super::book::{Book, Entry};
use super::desk::Desk;
use crate::vpc_cni::Host;

/// The leases that live veths show, for when the checkpoint is lost.
pub(super) fn live(book: &Book, host: &Host) -> Vec<Lease> {
    let since = Clock::system().now();
    let entries = book.entries().filter(|entry| is_live(entry, host));
    entries
        .map(|entry| {
            let (attachment, pod) = (entry.attachment.clone(), entry.pod.clone());
            Lease {
                key: LeaseKey {
                    network: attachment.network,
                    container: attachment.container,
                    interface: attachment.interface,
                },
                pod: Pod { namespace: pod.namespace, name: pod.name, uid: pod.uid },
                address: entry.address,
                eni: entry.eni.clone(),
                since,
            }
        })
        .collect()
}

/// Ends what has no veth any more; gives the pods that have.
pub(super) fn settle(desk: &Desk, host: &Host) -> Vec<sluice_state::Pod> {
    let leases = desk.leases();
    let lease_of = |entry: &Entry| {
        leases.iter().find(|lease| {
            let (key, attachment) = (&lease.key, &entry.attachment);
            key.network == attachment.network
                && key.container == attachment.container
                && key.interface == attachment.interface
                && lease.address == entry.address
        })
    };
    let entries: Vec<Entry> = desk.book().entries().cloned().collect();
    let (stay, go): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| is_live(entry, host) && lease_of(entry).is_some());
    for entry in go {
        tracing::info!(
            namespace = entry.pod.namespace, pod = entry.pod.name, address = %entry.address,
            "an attachment has gone while no agent was there"
        );
        desk.book().strike(&entry.attachment);
    }
    for lease in &leases {
        let attached = stay.iter().any(|entry| entry.address == lease.address);
        if !attached {
            tracing::info!(container = lease.key.container, address = %lease.address, "a lease without a veth ends");
            let LeaseKey { network, container, interface } = lease.key.clone();
            desk.release(&sluice_cni::protocol::Attachment { network, container, interface });
        }
    }
    stay.iter().map(Entry::pod).collect()
}

fn is_live(entry: &Entry, host: &Host) -> bool {
    host.named(&entry.host_interface).is_some_and(|link| link.peer_mac == Some(entry.mac))
}
