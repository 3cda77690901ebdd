//! At the agent's start: which attachments still have their veth, and what the others give back.
//!
//! While no agent answers, a DEL succeeds (a pod must be able to go), and nobody writes it down. So an attachment is
//! believed only where the node's kernel still has its veth, by name and by the address of the other end.

use std::io;
use std::path::PathBuf;

use sluice_cni::protocol::Attachment;
use sluice_ec2::moment::Clock;
use sluice_ec2::store::{Lease, LeaseKey, Pod};

use super::book::{Book, Entry};
use super::desk::Desk;
use crate::vpc_cni::{Host, Taken};

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

/// Notes the veths of pods of the VPC CNI that were leased their addresses.
pub(super) fn adopt(book: &mut Book, leases: &[Lease], taken: Vec<Taken>) -> io::Result<()> {
    for pod in taken {
        let allocation = pod.allocation;
        let lease = leases.iter().find(|lease| {
            lease.address == allocation.address
                && lease.key.container == allocation.container
                && lease.key.interface == allocation.interface
        });
        let Some(lease) = lease else {
            tracing::warn!(pod = allocation.pod(), address = %allocation.address, "is no longer the VPC CNI's: it stays as it is");
            continue;
        };
        let attachment = Attachment {
            network: lease.key.network.clone(),
            container: allocation.container,
            interface: allocation.interface,
        };
        if book.of(&attachment).is_some() {
            continue;
        }
        tracing::info!(namespace = allocation.namespace, pod = allocation.name, address = %lease.address, "is taken over from the VPC CNI");
        book.note(Entry {
            attachment,
            pod: sluice_cni::protocol::Pod {
                namespace: allocation.namespace,
                name: allocation.name,
                uid: String::new(),
            },
            address: lease.address,
            eni: lease.eni.clone(),
            eni_link: pod.eni,
            host_interface: pod.host_interface,
            mac: pod.mac,
            netns: PathBuf::new(),
        })?;
    }
    Ok(())
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
            desk.release(&Attachment { network, container, interface });
        }
    }
    stay.iter().map(Entry::pod).collect()
}

fn is_live(entry: &Entry, host: &Host) -> bool {
    host.named(&entry.host_interface).is_some_and(|link| link.peer_mac == Some(entry.mac))
}
