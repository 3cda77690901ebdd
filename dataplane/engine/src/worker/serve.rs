//! A pod's connection to a service: the endpoint is chosen here, and where an endpoint is decides how the flow gets there.
//!
//! ```text
//! endpoint is          leaves as                            by
//! the pod itself       node's address and a port of ours    its own veth (hairpin)
//! a pod of this node   the pod                              that pod's veth
//! the node's own       the pod                              the kernel, on the pod's own veth
//! outside the VPC      node's address and a port of ours    the primary ENI
//! inside the VPC       the pod                              the pod's own ENI
//! ```

use sluice_state::WithoutEndpoints;

use super::open::{Draft, Opening, Stance, stance};
use super::target::Exit;
use super::{Moment, Worker};
use crate::flow::{Dir, FlowKey, Origin};
use crate::frame::Frame;
use crate::service::{Backend, Place};
use crate::snapshot::{PodEntry, Snapshot};
use crate::verdict::Drop;
use crate::wire::{Parsed, Report, proto};

/// What a packet to a service that cannot be had is answered with: port unreachable, as kube-proxy's rules reject.
pub(super) const REJECTED: Report = Report::Unreachable { code: 3 };

impl<F: Frame> Worker<F> {
    /// What a pod's packet to a frontend leads to.
    pub(super) fn serve<'s>(
        &mut self,
        moment: Moment<'s>,
        pod: &'s PodEntry,
        place: &Place,
        parsed: &Parsed,
    ) -> Opening<'s> {
        let snapshot = moment.snapshot;
        let key = parsed.key;
        if !place.admits(key.src()) {
            return Opening::Refused(Drop::ServiceSourceRange);
        }
        // A connection that is under way is tried: with one endpoint it goes on, another one's reset tells the client.
        if matches!(stance(parsed), Stance::Stray | Stance::Answers) {
            return Opening::Refused(Drop::NoFlow);
        }
        let service = place.service();
        let choice = service.choose(key.src(), moment.now, &mut self.random, &self.table.affinity);
        let Some(choice) = choice else {
            return match service.without_endpoints() {
                WithoutEndpoints::Reject => Opening::Rejected(Drop::ServiceNoEndpoints),
                WithoutEndpoints::Drop => Opening::Refused(Drop::ServiceNoLocalEndpoints),
            };
        };
        let Backend { ip, port } = choice.backend;
        let draft = |out| Draft {
            original: key,
            aim: FlowKey::new(key.src(), ip, key.sport(), port, key.proto()),
            origin: Origin::Pod,
            egress: [out, Exit::Pod(pod)],
            dir: Dir::Forward,
            keep: choice.keep.map(|(client, seconds)| (client, choice.backend, seconds)),
        };
        let translated = |out| match key.proto() {
            // Replies to the node's address are told from the node's own by port sets, and there is none for SCTP.
            proto::SCTP => Opening::Refused(Drop::UnsupportedProtocol),
            _ => Opening::Translated(draft(out)),
        };
        if ip == pod.ip {
            return translated(Exit::Pod(pod));
        }
        if let Some(peer) = snapshot.pod(ip) {
            return Opening::Plain(draft(Exit::Pod(peer)));
        }
        if snapshot.is_local(ip) {
            let out = draft(Exit::KernelPod(pod));
            // Nobody listens on a node port. The kernel would translate it once more, and hide the pod from the policy of who
            // gets it.
            if snapshot.services.find(&out.aim, true).is_some() {
                return Opening::Rejected(Drop::ServiceNoEndpoints);
            }
            return Opening::Plain(out);
        }
        match &snapshot.snat {
            Some(snat) if snat.translates(ip) => match snapshot.egress(snat.address) {
                Some(eni) => translated(Exit::Eni(eni)),
                None => Opening::Refused(Drop::NoEgress),
            },
            _ => match snapshot.egress(key.src()) {
                Some(eni) => Opening::Plain(draft(Exit::Eni(eni))),
                None => Opening::Refused(Drop::NoEgress),
            },
        }
    }
}

/// Whether a pod's flow still goes where services would have it go. A connection of TCP stays with its endpoint for as long
/// as it lives, whatever becomes of the service: only that endpoint knows it.
pub(super) fn still_holds(snapshot: &Snapshot, original: &FlowKey, translated: &FlowKey) -> bool {
    if original.proto() == proto::TCP {
        return true;
    }
    let local = snapshot.is_local(original.dst());
    match snapshot.services.find(original, local) {
        Some(place) => {
            let backend = Backend { ip: translated.dst(), port: translated.dport() };
            place.admits(original.src()) && place.service().has(backend)
        }
        None => !is_served(original, translated) && !is_unserved(snapshot, original.dst()),
    }
}

/// Whether a flow's destination was translated.
pub(super) fn is_served(original: &FlowKey, translated: &FlowKey) -> bool {
    (original.dst(), original.dport()) != (translated.dst(), translated.dport())
}

/// Whether an address is one of the service range that belongs to nobody on this node: what is sent there is for a service
/// or for nobody, and is never sent out.
pub(super) fn is_unserved(snapshot: &Snapshot, address: u32) -> bool {
    snapshot.services.covers(address) && snapshot.pod(address).is_none() && !snapshot.is_local(address)
}
