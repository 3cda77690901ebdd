//! One probe on one node: which of its halves this node has to judge, and whether the engine did.

use sluice_engine::testing::{read, verify};
use sluice_engine::{Drop, Ingress, Verdict};

use super::packets::{Ends, answer, opening};
use super::plane::{ENI, Plane};
use crate::networkpolicy::case::Assertion;
use crate::networkpolicy::{Cluster, Halves, Party};

/// How a probe came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judged {
    /// The engine judged it as expected.
    Passed,
    /// It never reaches the engine, and is allowed: to a pod from its own node, to a pod from itself.
    ByConstruction,
    /// Neither end is here: not this node's business.
    Elsewhere,
    /// Something else happened.
    Failed(String),
}

/// Where a probe goes as this node sees it.
#[derive(Debug, Clone, Copy)]
enum Path {
    /// Never through the engine.
    Around,
    /// Not through this node.
    Elsewhere,
    /// Through the engine: in here, out there, and the answer back.
    Through { ingress: Ingress, expected: Verdict, back: Option<(Ingress, Verdict)> },
}

/// Opens the connection and has it answered.
pub(crate) fn judge(plane: &mut Plane, cluster: &Cluster, assertion: &Assertion, sport: u16) -> Judged {
    attempt(plane, cluster, assertion, sport).unwrap_or_else(Judged::Failed)
}

fn attempt(
    plane: &mut Plane,
    cluster: &Cluster,
    assertion: &Assertion,
    sport: u16,
) -> Result<Judged, String> {
    let probe = &assertion.probe;
    let from = cluster.party(&probe.from).map_err(|e| e.to_string())?;
    let to = cluster.party(&probe.to).map_err(|e| e.to_string())?;
    let Path::Through { ingress, expected, back } = path(plane, from, to) else {
        let elsewhere = matches!(path(plane, from, to), Path::Elsewhere);
        return if elsewhere {
            Ok(Judged::Elsewhere)
        } else if assertion.allowed {
            Ok(Judged::ByConstruction)
        } else {
            Err("denied is expected, but this never passes the engine: it is always allowed".into())
        };
    };
    let no_address = |end| format!("{end} has no address: it cannot be probed");
    let src = from.ip.ok_or_else(|| no_address(&probe.from))?;
    let dst = to.ip.ok_or_else(|| no_address(&probe.to))?;
    let here = Halves { egress: plane.interface(from).is_some(), ingress: plane.interface(to).is_some() };
    let ends = Ends { src: (src, sport), dst: (dst, probe.port) };
    let before = plane.flows();
    let first = plane.send(ingress, opening(probe.protocol, ends))?;
    let flows = plane.flows() - before;
    let Some(wanted) = wanted(assertion, here) else { return Ok(Judged::Passed) };
    if let Verdict::Drop(reason) = first.verdict {
        if flows != 0 {
            return Err(format!("dropped as {reason}, yet it made a flow"));
        }
        let blamed = match reason {
            Drop::PolicyEgress => Halves { egress: false, ingress: true },
            Drop::PolicyIngress | Drop::PolicyUnknownPeer => Halves { egress: true, ingress: false },
            _ => return Err(format!("dropped as {reason}, which is no policy's doing")),
        };
        // The egress half is judged first, and of two that deny it is the one that is named.
        let right = match wanted {
            Wanted::Denied => true,
            Wanted::Halves(halves) if halves.egress => halves == blamed,
            Wanted::Halves(_) => !blamed.egress,
        };
        return if right {
            Ok(Judged::Passed)
        } else {
            Err(format!("dropped as {reason}, expected {wanted}"))
        };
    }
    if wanted != Wanted::Halves(Halves { egress: true, ingress: true }) {
        return Err(format!("passed, expected {wanted}"));
    }
    if first.verdict != expected {
        return Err(format!("passed to {:?}, expected {expected:?}", first.verdict));
    }
    let Some((ingress, expected)) = back else { return Ok(Judged::Passed) };
    if flows != 1 {
        return Err(format!("passed, and made {flows} flows instead of one"));
    }
    verify(&first.frame).map_err(|e| format!("passed with a wrong checksum: {e}"))?;
    let seen = read(&first.frame).key;
    if (seen.src(), seen.dst()) != (src.to_bits(), dst.to_bits()) {
        return Err("passed with other addresses".into());
    }
    let reply = plane.send(ingress, answer(probe.protocol, ends.reversed()))?;
    if reply.verdict == expected && plane.flows() == before + 1 {
        Ok(Judged::Passed)
    } else {
        Err(format!("passed, but its reply ended as {:?}, expected {expected:?}", reply.verdict))
    }
}

/// The local rules of DESIGN 4: what is decided in tc never comes to the engine.
fn path(plane: &Plane, from: Party<'_>, to: Party<'_>) -> Path {
    let wire = (Ingress::Eni(ENI), Verdict::Eni { ifindex: ENI });
    let pod = |ifindex| (Ingress::Pod(ifindex), Verdict::Pod { ifindex });
    match (plane.interface(from), plane.interface(to)) {
        (Some(a), Some(b)) if a == b => Path::Around,
        (Some(a), Some(b)) => {
            Path::Through { ingress: pod(a).0, expected: pod(b).1, back: Some((pod(b).0, pod(a).1)) }
        }
        // Should it come, the engine knows the node's addresses, too, and gives it to the kernel.
        (Some(a), None) if plane.is_this_node(to) => {
            Path::Through { ingress: pod(a).0, expected: Verdict::KernelPod { ifindex: a }, back: None }
        }
        (Some(a), None) => {
            Path::Through { ingress: pod(a).0, expected: wire.1, back: Some((wire.0, pod(a).1)) }
        }
        (None, Some(_)) if plane.is_this_node(from) => Path::Around,
        (None, Some(b)) => {
            Path::Through { ingress: wire.0, expected: pod(b).1, back: Some((pod(b).0, wire.1)) }
        }
        (None, None) => Path::Elsewhere,
    }
}

/// What this node's halves are to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Both halves are known; one that is another node's is allowed.
    Halves(Halves),
    /// Denied by a half that the case does not name.
    Denied,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Halves(Halves { egress: true, ingress: true }) => "allowed",
            Self::Halves(Halves { egress: false, ingress: true }) => "denied by the source's egress",
            Self::Halves(Halves { egress: true, ingress: false }) => "denied by the destination's ingress",
            Self::Halves(_) => "denied by both halves",
            Self::Denied => "denied",
        })
    }
}

fn wanted(assertion: &Assertion, here: Halves) -> Option<Wanted> {
    match assertion.halves {
        Some(halves) => Some(Wanted::Halves(Halves {
            egress: halves.egress || !here.egress,
            ingress: halves.ingress || !here.ingress,
        })),
        None if here.egress && here.ingress => Some(Wanted::Denied),
        // The half that denies may be another node's.
        None => None,
    }
}
