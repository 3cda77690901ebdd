//! Connections that the kernel has tracked so far, taken over so that none is cut when Sluice begins on a node in use.
//!
//! The kernel knows a connection by two keys, as the engine does: how its originator sends, and how that leaves after the
//! kernel's NAT. Who its ends are decides what it becomes here:
//!
//! ```text
//!  originator            leaves to          becomes a flow of
//!  a pod                 anywhere           the pod, with the kernel's translation: the peer knows no other port
//!  somebody elsewhere    a pod, unchanged   the wire
//!  anybody, translated   a pod              the kernel's: it goes on translating (NodePort, hostPort), the engine judges
//!  the node, or what it  elsewhere, from    the host: a pod must not be given that port towards that peer
//!   masquerades           a port of ours
//!  all others            -                  nothing: they never pass the engine
//! ```
//!
//! An imported flow is judged by policy at its first packet, as every flow is after a change. Until the programs are on a
//! pod's interface the kernel goes on forwarding what was imported already; such packets pass as the kernel has made them
//! (`Worker::still_the_kernels`).

use super::open::judged;
use super::target::{Exit, Target};
use super::{Moment, Worker};
use crate::counters::Event;
use crate::flow::{Dir, FlowKey, InsertError, NewFlow, Origin, Phase, Start};
use crate::frame::{Frame, Ingress};
use crate::snapshot::Snapshot;
use crate::verdict::Drop;
use crate::wire::proto;

/// Attempts for a connection that workers are in the middle of.
const ATTEMPTS: usize = 4;

/// A connection as another tracker knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// As its originator sends.
    pub original: FlowKey,
    /// The same as it leaves, after NAT.
    pub translated: FlowKey,
    /// Where its protocol is.
    pub phase: Phase,
}

/// Why a connection of a pod's was not taken over. It goes on where both ends can do without what the tracker knew, and
/// otherwise it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Left {
    /// It leaves from an address that no ENI has, or goes to where none leads.
    NoEgress,
    /// It is translated to an address that is not the SNAT address.
    OtherAddress,
    /// It is translated, and its protocol is none that the engine translates.
    Protocol,
    /// Another flow has the key of its replies.
    Taken,
    /// The flow table is full.
    Full,
}

impl Left {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 5] = [Self::NoEgress, Self::OtherAddress, Self::Protocol, Self::Taken, Self::Full];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEgress => "no_egress",
            Self::OtherAddress => "other_address",
            Self::Protocol => "protocol",
            Self::Taken => "taken",
            Self::Full => "table_full",
        }
    }
}

/// What became of the connections of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imports {
    /// Flows made.
    pub taken: u64,
    /// Those that were flows already.
    pub had: u64,
    /// Those that never pass the engine.
    pub elsewhere: u64,
    /// Those of pods that were not taken over, by [`Left`].
    pub left: [u64; Left::ALL.len()],
}

impl Imports {
    /// Adds what became of others.
    pub fn add(&mut self, other: &Self) {
        self.taken += other.taken;
        self.had += other.had;
        self.elsewhere += other.elsewhere;
        for (sum, more) in self.left.iter_mut().zip(other.left) {
            *sum += more;
        }
    }
}

/// What a connection is to the engine.
enum Place {
    Flow(NewFlow),
    Elsewhere,
    Left(Left),
}

impl<F: Frame> Worker<F> {
    /// Takes connections over as flows, between two steps. One that is a flow already stays as it is.
    pub fn import(&mut self, now: u64, snapshot: &Snapshot, known: &[Known]) -> Imports {
        let mut imports = Imports::default();
        for connection in known {
            match place(snapshot, connection) {
                Place::Elsewhere => imports.elsewhere += 1,
                Place::Left(reason) => imports.left[reason as usize] += 1,
                Place::Flow(new) => match self.take_over(&new, now) {
                    Ok(true) => imports.taken += 1,
                    Ok(false) => imports.had += 1,
                    Err(reason) => imports.left[reason as usize] += 1,
                },
            }
        }
        self.counters.add(Event::FlowsImported, imports.taken);
        imports
    }

    /// True when a flow was made, false when there is one.
    fn take_over(&mut self, new: &NewFlow, now: u64) -> Result<bool, Left> {
        for _ in 0..ATTEMPTS {
            match self.local.insert(&self.table, new, now) {
                Ok(_) => return Ok(true),
                Err(InsertError::ForwardExists(..)) => return Ok(false),
                Err(InsertError::Full) => return Err(Left::Full),
                Err(InsertError::Contended) => {}
                Err(InsertError::ReplyExists) => {
                    let reply = new.translated.reversed();
                    let holder = self.table.lookup(&reply, self.table.hash(&reply), now);
                    // The kernel has sent for this connection since its port is steered: then it passed for the host's.
                    let holder = holder.filter(|(id, _)| {
                        let flow = self.table.flow(*id);
                        flow.origin() == Origin::Host && flow.original() == new.translated
                    });
                    match holder {
                        Some((id, _)) => self.local.remove(&self.table, id),
                        None => return Err(Left::Taken),
                    };
                }
            }
        }
        Err(Left::Taken)
    }

    /// Where a packet goes on to that the kernel has forwarded for a connection that is a flow by now: the programs were not
    /// on the pod's interface yet, or its replies' port was not steered yet.
    pub(super) fn still_the_kernels<'s>(
        &self,
        moment: Moment<'s>,
        ingress: Ingress,
        key: &FlowKey,
    ) -> Option<Result<Exit<'s>, Drop>> {
        let Moment { now, snapshot } = moment;
        if !matches!(ingress, Ingress::Host(_) | Ingress::ToPod(_)) {
            return None;
        }
        let reversed = key.reversed();
        let (id, dir) = self.table.lookup(&reversed, self.table.hash(&reversed), now)?;
        let flow = self.table.flow(id);
        let (original, translated) = (flow.original(), flow.translated());
        // A pod's connection to itself is not judged, so nobody may join it.
        if flow.origin() != Origin::Pod || original == translated || original.src() == translated.dst() {
            return None;
        }
        let exit = |dir| Target::from_word(flow.egress(dir)).exit(snapshot);
        let on = match (ingress, dir, exit(dir.opposite())?) {
            // What the pod has sent. Once a packet of the pod's itself has come by, this would be another connection.
            (Ingress::Host(_), Dir::Reply, out @ Exit::Eni(_)) if flow.is_unused(Dir::Forward) => out,
            // What the pod gets, with the kernel's translation taken back.
            (Ingress::ToPod(ifindex), Dir::Forward, back @ Exit::Pod(pod))
                if pod.ifindex == ifindex && pod.ip == key.dst() =>
            {
                back
            }
            _ => return None,
        };
        Some(snapshot.judge(&judged(&original, &translated), Origin::Pod).map(|()| on))
    }
}

fn place(snapshot: &Snapshot, connection: &Known) -> Place {
    let Known { original, translated, .. } = *connection;
    match snapshot.pod(original.src()) {
        // A service of the kernel's on the node itself, which the engine does not know: what comes of it is the kernel's.
        Some(_) if snapshot.is_local(original.dst()) && snapshot.services.find(&original, true).is_none() => {
            into_a_pod(snapshot, connection)
        }
        Some(_) => from_a_pod(snapshot, connection),
        None if snapshot.pod(translated.dst()).is_some() => into_a_pod(snapshot, connection),
        None => from_the_node(snapshot, connection),
    }
}

fn from_a_pod(snapshot: &Snapshot, connection: &Known) -> Place {
    let Known { original, translated, .. } = *connection;
    let Some(pod) = snapshot.pod(original.src()) else { return Place::Elsewhere };
    if translated.src() != original.src() {
        if snapshot.snat.as_ref().is_none_or(|snat| snat.address != translated.src()) {
            return Place::Left(Left::OtherAddress);
        }
        if !matches!(original.proto(), proto::TCP | proto::UDP | proto::ICMP) {
            return Place::Left(Left::Protocol);
        }
    }
    let out = if let Some(peer) = snapshot.pod(translated.dst()) {
        Exit::Pod(peer)
    } else if snapshot.is_local(translated.dst()) {
        if original == translated {
            return Place::Elsewhere;
        }
        Exit::KernelPod(pod)
    } else {
        match snapshot.egress(translated.src()) {
            Some(eni) => Exit::Eni(eni),
            None => return Place::Left(Left::NoEgress),
        }
    };
    flow(connection, Origin::Pod, [out, Exit::Pod(pod)])
}

fn into_a_pod(snapshot: &Snapshot, connection: &Known) -> Place {
    let Known { original, translated, phase } = *connection;
    let Some(pod) = snapshot.pod(translated.dst()) else { return Place::Elsewhere };
    if original != translated {
        // The engine sees it between the kernel's translation and the pod.
        let seen = Known { original: translated, translated, phase };
        return flow(&seen, Origin::Kernel, [Exit::Pod(pod), Exit::KernelPod(pod)]);
    }
    if snapshot.is_local(original.src()) {
        return Place::Elsewhere;
    }
    match snapshot.egress(pod.ip) {
        Some(eni) => flow(connection, Origin::Wire, [Exit::Pod(pod), Exit::Eni(eni)]),
        None => Place::Left(Left::NoEgress),
    }
}

fn from_the_node(snapshot: &Snapshot, connection: &Known) -> Place {
    let Known { translated, phase, .. } = *connection;
    let ports = match translated.proto() {
        proto::TCP => &snapshot.ports[0],
        proto::UDP => &snapshot.ports[1],
        proto::ICMP => &snapshot.ports[2],
        _ => return Place::Elsewhere,
    };
    let ours = snapshot.snat.as_ref().is_some_and(|snat| snat.address == translated.src())
        && ports.set.contains(translated.sport())
        && !snapshot.is_local(translated.dst());
    match snapshot.egress(translated.src()) {
        Some(eni) if ours => {
            let seen = Known { original: translated, translated, phase };
            flow(&seen, Origin::Host, [Exit::Eni(eni), Exit::KernelEni(eni)])
        }
        _ => Place::Elsewhere,
    }
}

fn flow(connection: &Known, origin: Origin, egress: [Exit<'_>; 2]) -> Place {
    Place::Flow(NewFlow {
        original: connection.original,
        translated: connection.translated,
        origin,
        start: Start::Imported(connection.phase),
        egress: egress.map(|exit| exit.target().word()),
        // Zero is no generation: its first packet is judged.
        policy_generation: 0,
    })
}

#[cfg(test)]
mod tests;
