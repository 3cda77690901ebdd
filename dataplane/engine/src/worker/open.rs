//! The first packet of a flow: who may open what, what is translated, where both directions go.

use sluice_state::RandomizeSnat;

use super::serve::{REJECTED, is_unserved};
use super::target::{Exit, ttl_between};
use super::{End, Matched, Moment, Worker, segment};
use crate::counters::Event;
use crate::flow::{Dir, FlowKey, FlowTable, InsertError, Local, NewFlow, Origin, Start};
use crate::frame::{Frame, Ingress, Packet};
use crate::nat::Attempt;
use crate::service::{Backend, Client, second};
use crate::snapshot::{EniEntry, Link, PodEntry, Snapshot};
use crate::verdict::Drop;
use crate::wire::{self, Kind, Parsed, Rewrite, Ttl, proto, sctp};

/// Ports that are tried for a connection whose replies would be another one's. A client has few to one endpoint.
const PORTS_BESIDE: usize = 32;

/// What a packet without a flow leads to.
pub(super) enum Opening<'s> {
    /// A flow as it is.
    Plain(Draft<'s>),
    /// A flow whose source is translated to the node's address.
    Translated(Draft<'s>),
    /// No flow: the packet goes on unchanged.
    Stateless(Exit<'s>, Ttl),
    /// Nothing.
    Refused(Drop),
    /// Nothing, and its sender is told that there is nobody.
    Rejected(Drop),
}

/// A flow before it has its translation.
pub(super) struct Draft<'s> {
    /// As its originator sends.
    pub(super) original: FlowKey,
    /// The same with the endpoint's address and port where it is for a service. Policy judges this.
    pub(super) aim: FlowKey,
    pub(super) origin: Origin,
    /// Where its originator's packets go, and where the replies go.
    pub(super) egress: [Exit<'s>; 2],
    /// The direction of the packet that opens it.
    pub(super) dir: Dir,
    /// The client that keeps its endpoint, and for how many seconds.
    pub(super) keep: Option<(Client, Backend, u32)>,
}

impl<F: Frame> Worker<F> {
    /// A packet that no flow is known for.
    #[cold]
    pub(super) fn open(&mut self, moment: Moment<'_>, packet: &mut Packet<F>, parsed: &Parsed) -> End {
        match self.still_the_kernels(moment, packet.ingress, &parsed.key) {
            Some(Ok(exit)) => {
                let rewrite = Rewrite::identity(&parsed.key);
                return self.forward(moment, packet, parsed, &rewrite, exit, Ttl::Keep, None);
            }
            Some(Err(reason)) => return End::drop(reason),
            None => {}
        }
        let opening = self.opening(moment, packet.ingress, parsed);
        let keep = match &opening {
            Opening::Plain(draft) | Opening::Translated(draft) => draft.keep,
            _ => None,
        };
        let matched = match opening {
            Opening::Refused(reason) => Err(reason),
            Opening::Rejected(reason) => return End::Tell { reason, report: REJECTED, matched: None },
            Opening::Stateless(exit, ttl) => {
                if let Err(reason) = judge_stray(moment.snapshot, packet.ingress, exit, &parsed.key) {
                    return End::drop(reason);
                }
                let rewrite = Rewrite::identity(&parsed.key);
                return self.forward(moment, packet, parsed, &rewrite, exit, ttl, None);
            }
            Opening::Plain(_) | Opening::Translated(_) if !checksum_holds(packet, parsed) => {
                Err(Drop::BadL4Checksum)
            }
            Opening::Plain(draft) => judge(moment.snapshot, draft, stance(parsed))
                .and_then(|draft| self.insert_plain(moment, &draft, start(packet, parsed))),
            Opening::Translated(draft) => moment
                .snapshot
                .judge(&draft.aim, draft.origin)
                .and_then(|()| self.insert_translated(moment, &draft, start(packet, parsed))),
        };
        match matched {
            Ok(matched) => {
                if matched.opened {
                    self.counters.add(Event::FlowsOpened, 1);
                    if let Some((client, backend, seconds)) = keep {
                        self.table.affinity.keep(client, backend, second(moment.now), seconds);
                    }
                }
                self.carry(moment, packet, parsed, matched)
            }
            Err(reason) => End::drop(reason),
        }
    }

    /// Decides what a packet without a flow leads to. VPC CNI's rules are in the branch of the pods.
    fn opening<'s>(&mut self, moment: Moment<'s>, ingress: Ingress, parsed: &Parsed) -> Opening<'s> {
        let snapshot = moment.snapshot;
        match (ingress, snapshot.link(ingress.ifindex())) {
            (Ingress::Pod(_), Some(Link::Pod(pod))) => self.sent_by_pod(moment, pod, parsed),
            (Ingress::ToPod(_), Some(Link::Pod(pod))) => from_kernel(pod, parsed),
            (Ingress::FromNode(_), Some(Link::Pod(pod))) => from_node(pod, parsed),
            (Ingress::Host(_), Some(Link::Eni(eni))) => from_host(snapshot, eni, parsed),
            (Ingress::Eni(_), Some(Link::Eni(eni))) => from_wire(snapshot, eni, parsed),
            _ => Opening::Refused(Drop::UnknownInterface),
        }
    }

    fn sent_by_pod<'s>(&mut self, moment: Moment<'s>, pod: &'s PodEntry, parsed: &Parsed) -> Opening<'s> {
        let snapshot = moment.snapshot;
        let key = parsed.key;
        if key.src() != pod.ip {
            return Opening::Refused(Drop::Spoof);
        }
        if is_broadcast(key.dst()) {
            return Opening::Stateless(Exit::KernelPod(pod), Ttl::Keep);
        }
        let local = snapshot.is_local(key.dst());
        if let Some(place) = snapshot.services.find(&key, local) {
            return self.serve(moment, pod, place, parsed);
        }
        if local {
            return Opening::Stateless(Exit::KernelPod(pod), Ttl::Keep);
        }
        if is_unserved(snapshot, key.dst()) {
            return Opening::Rejected(Drop::ServiceUnknown);
        }
        let stance = stance(parsed);
        if let Some(peer) = snapshot.pod(key.dst()) {
            if peer.ip == pod.ip {
                return Opening::Refused(Drop::Hairpin);
            }
            return untranslated(key, stance, Origin::Pod, Exit::Pod(peer), Exit::Pod(pod));
        }
        match &snapshot.snat {
            Some(snat) if snat.translates(key.dst()) => {
                let Some(eni) = snapshot.egress(snat.address) else {
                    return Opening::Refused(Drop::NoEgress);
                };
                match (parsed.kind, stance) {
                    (Kind::Other(_) | Kind::Sctp { .. }, _) => Opening::Refused(Drop::UnsupportedProtocol),
                    (_, Stance::Opens) => Opening::Translated(Draft::new(
                        key,
                        Origin::Pod,
                        [Exit::Eni(eni), Exit::Pod(pod)],
                        Dir::Forward,
                    )),
                    // Which port the connection had is not known, and its peer knows no other.
                    _ => Opening::Refused(Drop::NoFlow),
                }
            }
            _ => match snapshot.egress(key.src()) {
                Some(eni) => untranslated(key, stance, Origin::Pod, Exit::Eni(eni), Exit::Pod(pod)),
                None => Opening::Refused(Drop::NoEgress),
            },
        }
    }

    fn insert_plain(&mut self, moment: Moment<'_>, draft: &Draft<'_>, start: Start) -> Result<Matched, Drop> {
        let new = draft.flow(draft.aim, start, moment.snapshot);
        match insert(&mut self.local, &self.table, &new, draft.dir, moment.now) {
            Ok(matched) => Ok(matched),
            // A host's connection whose reply key a pod's mapping holds gets another port, as the kernel's NAT would.
            Err(InsertError::ReplyExists) if draft.origin == Origin::Host => {
                self.insert_translated(moment, draft, start)
            }
            Err(InsertError::ReplyExists) if draft.may_change_port(&start) => {
                self.insert_beside(moment, draft, start)
            }
            Err(InsertError::Full) => Err(Drop::TableFull),
            Err(_) => Err(Drop::TableContended),
        }
    }

    /// A pod's connection whose replies would be taken for another one's: the same client's port, once to an endpoint itself
    /// and once by its service, or by two services. Another port of the client's tells them apart, as nf_nat does it.
    #[cold]
    fn insert_beside(
        &mut self,
        moment: Moment<'_>,
        draft: &Draft<'_>,
        start: Start,
    ) -> Result<Matched, Drop> {
        let aim = draft.aim;
        for _ in 0..PORTS_BESIDE {
            let port = 1024 + self.random.below(65_536 - 1024) as u16;
            let translated = FlowKey::new(aim.src(), aim.dst(), port, aim.dport(), aim.proto());
            let new = draft.flow(translated, start, moment.snapshot);
            match insert(&mut self.local, &self.table, &new, draft.dir, moment.now) {
                Err(InsertError::ReplyExists) => {}
                Err(InsertError::Full) => return Err(Drop::TableFull),
                other => return other.map_err(|_| Drop::TableContended),
            }
        }
        Err(Drop::TableContended)
    }

    fn insert_translated(
        &mut self,
        moment: Moment<'_>,
        draft: &Draft<'_>,
        start: Start,
    ) -> Result<Matched, Drop> {
        let Moment { now, snapshot } = moment;
        let Some(snat) = &snapshot.snat else { return Err(Drop::NoEgress) };
        let ports = match draft.original.proto() {
            proto::TCP => &snapshot.ports[0],
            proto::UDP => &snapshot.ports[1],
            _ => &snapshot.ports[2],
        };
        // A host's port that clashed cannot be kept.
        let mode = if draft.origin == Origin::Host { RandomizeSnat::Prng } else { snat.randomize };
        let (local, table) = (&mut self.local, &*self.table);
        let attempt = |translated: FlowKey| {
            let reply = translated.reversed();
            let hash = table.hash(&reply);
            table.prefetch_both(hash);
            if table.lookup(&reply, hash, now).is_some() {
                return Attempt::Taken;
            }
            let new = draft.flow(translated, start, snapshot);
            match insert(local, table, &new, draft.dir, now) {
                Ok(matched) => Attempt::Settled(Ok(matched)),
                Err(InsertError::ReplyExists) => Attempt::Taken,
                Err(InsertError::Full) => Attempt::Settled(Err(Drop::TableFull)),
                Err(_) => Attempt::Settled(Err(Drop::TableContended)),
            }
        };
        let before = self.ports.scans();
        let chosen = self.ports.choose(now, &mut self.random, ports, mode, &draft.aim, snat.address, attempt);
        self.counters.add(Event::PortScans, self.ports.scans() - before);
        let matched = chosen.unwrap_or(Err(Drop::PortsExhausted))?;
        if matched.opened {
            self.counters.add(Event::PortsTaken, 1);
        }
        Ok(matched)
    }
}

impl<'s> Draft<'s> {
    /// A flow whose destination stays what it is.
    fn new(original: FlowKey, origin: Origin, egress: [Exit<'s>; 2], dir: Dir) -> Self {
        Self { original, aim: original, origin, egress, dir, keep: None }
    }

    /// Whether its source port may be another one where it clashes: a pod opens it, and not one that is under way.
    fn may_change_port(&self, start: &Start) -> bool {
        let opens = match start {
            Start::Tcp(segment) => segment.is_syn(),
            _ => matches!(self.original.proto(), proto::UDP | proto::SCTP),
        };
        opens && self.origin == Origin::Pod && self.dir == Dir::Forward
    }

    /// Who opened the flow if it is the other way round; none where only one of the ends can be told.
    fn other_origin(&self) -> Option<Origin> {
        match self.egress[0] {
            // A service is opened by its client.
            _ if self.aim != self.original => None,
            Exit::Pod(_) if matches!(self.origin, Origin::Pod | Origin::Wire) => Some(Origin::Pod),
            Exit::Eni(_) if self.origin == Origin::Pod => Some(Origin::Wire),
            _ => None,
        }
    }

    fn flow(&self, translated: FlowKey, start: Start, snapshot: &Snapshot) -> NewFlow {
        NewFlow {
            original: self.original,
            translated,
            origin: self.origin,
            start,
            egress: self.egress.map(|exit| exit.target().word()),
            policy_generation: snapshot.policy.generation(),
        }
    }
}

/// What policy judges a flow by: its source before SNAT, its destination after service DNAT.
pub(super) fn judged(original: &FlowKey, translated: &FlowKey) -> FlowKey {
    FlowKey::new(original.src(), translated.dst(), original.sport(), translated.dport(), original.proto())
}

/// Judges a flow that is not translated, and says which way round it is.
///
/// Who opened a connection that is under way already nobody knows: the pod that seems to send to a client's port may be the
/// server. It may be picked up when it may be either way round. That lets no connection come to be which policy denies:
/// every one begins with a SYN, and a SYN has one direction only.
fn judge<'s>(snapshot: &Snapshot, draft: Draft<'s>, stance: Stance) -> Result<Draft<'s>, Drop> {
    let denied = match snapshot.judge(&draft.aim, draft.origin) {
        Ok(()) => return Ok(draft),
        Err(denied) => denied,
    };
    if !matches!(stance, Stance::UnderWay | Stance::Answers) {
        return Err(denied);
    }
    let Some(origin) = draft.other_origin() else { return Err(denied) };
    let [out, back] = draft.egress;
    let turned = Draft::new(draft.original.reversed(), origin, [back, out], draft.dir.opposite());
    snapshot.judge(&turned.original, turned.origin).map(|()| turned).map_err(|_| denied)
}

/// Judges a packet that no flow is known for and that makes none. As for a connection under way: nobody knows which way round
/// it is. What goes to the kernel, or the node itself sends, is not policy's.
fn judge_stray(snapshot: &Snapshot, ingress: Ingress, exit: Exit<'_>, key: &FlowKey) -> Result<(), Drop> {
    let origin = match ingress {
        _ if exit.target().is_kernel() => return Ok(()),
        Ingress::Pod(_) => Origin::Pod,
        Ingress::Eni(_) => Origin::Wire,
        Ingress::ToPod(_) => Origin::Kernel,
        Ingress::Host(_) | Ingress::FromNode(_) => return Ok(()),
    };
    let denied = match snapshot.judge(key, origin) {
        Ok(()) => return Ok(()),
        Err(denied) => denied,
    };
    let turned = if origin == Origin::Kernel { origin } else { Origin::Pod };
    snapshot.judge(&key.reversed(), turned).map_err(|_| denied)
}

/// Inserts a flow that a packet of direction `dir` opens; one that another worker inserted meanwhile is as good.
fn insert(
    local: &mut Local,
    table: &FlowTable,
    new: &NewFlow,
    dir: Dir,
    now: u64,
) -> Result<Matched, InsertError> {
    match local.insert(table, new, now) {
        Ok(id) => Ok(Matched { id, dir, opened: true }),
        Err(InsertError::ForwardExists(id, found)) if dir == Dir::Forward => {
            Ok(Matched { id, dir: found, opened: false })
        }
        // The packet is a reply of the flow only where that is its key: answers of a service's endpoint have this key, too,
        // and what the client sends it there has another one.
        Err(InsertError::ForwardExists(id, found)) => {
            let matched = Matched { id, dir: found.opposite(), opened: false };
            let same = table.flow(id).key(matched.dir) == new.translated.reversed();
            if same { Ok(matched) } else { Err(InsertError::ReplyExists) }
        }
        Err(error) => Err(error),
    }
}

/// What the kernel forwards into a pod after its own NAT: a client of a NodePort, a hostPort, a load balancer.
fn from_kernel<'s>(pod: &'s PodEntry, parsed: &Parsed) -> Opening<'s> {
    if parsed.key.dst() != pod.ip {
        return Opening::Refused(Drop::PodUnreachable);
    }
    untranslated(parsed.key, stance(parsed), Origin::Kernel, Exit::Pod(pod), Exit::KernelPod(pod))
}

/// What a process of the node sends to a pod and is no service's answer. It is never judged: a pod's own node may always.
fn from_node<'s>(pod: &'s PodEntry, parsed: &Parsed) -> Opening<'s> {
    if parsed.key.dst() != pod.ip {
        return Opening::Refused(Drop::PodUnreachable);
    }
    Opening::Stateless(Exit::Pod(pod), Ttl::Keep)
}

/// What the kernel sends from the node's address with a port that is ours.
fn from_host<'s>(snapshot: &'s Snapshot, eni: &'s EniEntry, parsed: &Parsed) -> Opening<'s> {
    if snapshot.snat.as_ref().is_none_or(|snat| snat.address != parsed.key.src()) {
        return Opening::Refused(Drop::NotOurs);
    }
    let (out, back) = (Exit::Eni(eni), Exit::KernelEni(eni));
    match stance(parsed) {
        // The host answers with a reset, or with a reply to a packet that was handed to it: nothing to remember.
        Stance::Stray => Opening::Stateless(out, Ttl::Keep),
        _ => Opening::Plain(Draft::new(parsed.key, Origin::Host, [out, back], Dir::Forward)),
    }
}

fn from_wire<'s>(snapshot: &'s Snapshot, eni: &'s EniEntry, parsed: &Parsed) -> Opening<'s> {
    let key = parsed.key;
    // Neither a local pod nor the node itself is out there, nor a service: who says so wants to be taken for its endpoint.
    let src = key.src();
    if snapshot.pod(src).is_some() || snapshot.is_local(src) || snapshot.services.covers(src) {
        return Opening::Refused(Drop::Spoof);
    }
    if let Some(pod) = snapshot.pod(key.dst()) {
        // Replies leave by the ENI that owns the pod's address, whichever the packet came by.
        let Some(own) = snapshot.egress(pod.ip) else { return Opening::Refused(Drop::NoEgress) };
        return untranslated(key, stance(parsed), Origin::Wire, Exit::Pod(pod), Exit::Eni(own));
    }
    if snapshot.is_local(key.dst()) {
        // Nobody's mapping: it may be the node's own, and the kernel knows.
        return Opening::Stateless(Exit::KernelEni(eni), Ttl::Keep);
    }
    Opening::Refused(Drop::NotOurs)
}

/// A flow without translation. One that is under way already is picked up: after a restart neither end has done wrong.
fn untranslated<'s>(
    key: FlowKey,
    stance: Stance,
    origin: Origin,
    out: Exit<'s>,
    back: Exit<'s>,
) -> Opening<'s> {
    match stance {
        // The other side opened it, so that what we see is its reply.
        Stance::Answers if origin == Origin::Pod => {
            Opening::Plain(Draft::new(key.reversed(), Origin::Wire, [back, out], Dir::Reply))
        }
        Stance::Opens | Stance::UnderWay | Stance::Answers => {
            Opening::Plain(Draft::new(key, origin, [out, back], Dir::Forward))
        }
        Stance::Stray => Opening::Stateless(out, ttl_between(out.target(), back.target())),
    }
}

/// What a packet without a flow says about the connection that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stance {
    /// It opens one.
    Opens,
    /// It answers an opening.
    Answers,
    /// It belongs to one that is under way.
    UnderWay,
    /// It cannot make one: a reset, an echo reply.
    Stray,
}

/// Whether its protocol has connections that a packet in the middle of one makes a flow of.
pub(super) const fn may_be_under_way(parsed: &Parsed) -> bool {
    matches!(parsed.kind, Kind::Tcp { .. } | Kind::Sctp { .. })
}

pub(super) fn stance(parsed: &Parsed) -> Stance {
    match parsed.kind {
        Kind::Tcp { flags } if flags.rst() => Stance::Stray,
        Kind::Tcp { flags } if flags.opens() => Stance::Opens,
        Kind::Tcp { flags } if flags.syn() => Stance::Answers,
        Kind::Tcp { .. } => Stance::UnderWay,
        Kind::IcmpQuery { reply: true } => Stance::Stray,
        Kind::Sctp { chunk } => match chunk {
            sctp::INIT => Stance::Opens,
            sctp::INIT_ACK => Stance::Answers,
            sctp::ABORT | sctp::SHUTDOWN_COMPLETE => Stance::Stray,
            _ => Stance::UnderWay,
        },
        _ => Stance::Opens,
    }
}

/// Multicast (RFC 1112 §4) or limited broadcast: the kernel's.
fn is_broadcast(address: u32) -> bool {
    address >> 28 == 0xE || address == u32::MAX
}

/// A packet that opens a flow must be whole: a corrupt one could open a mapping that its sender never asked for. What the
/// kernel has not summed yet it vouches for, and the sum of a fragment is nobody's to check here.
fn checksum_holds<F: Frame>(packet: &Packet<F>, parsed: &Parsed) -> bool {
    wire::l4_checksum(packet.frame.bytes(), parsed, packet.offload.partial) != wire::L4Checksum::Bad
}

/// Where the protocol of a new flow begins.
fn start<F: Frame>(packet: &Packet<F>, parsed: &Parsed) -> Start {
    match parsed.kind {
        Kind::Udp => Start::Udp,
        Kind::IcmpQuery { .. } => Start::Icmp,
        _ => segment(packet.frame.bytes(), parsed).map_or(Start::Other, Start::Tcp),
    }
}
