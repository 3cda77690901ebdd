//! A capture as a stream of records.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_engine::flow::FlowKey;
use sluice_engine::trace::Note;
use sluice_engine::{Ingress, Verdict};
use sluice_state::framing::{FramingError, write_message};
use sluice_state::query::{Answer, CaptureFilter, CaptureRecord, Point};

use super::Sources;
use crate::capture::{Filter, MAX_CAPTURES, Raw, Session};
use crate::clock;
use crate::plane::Plane;
use crate::socket::Connection;
use crate::view::View;

/// How often an empty queue is looked at, and how often the client hears of the state.
const POLL: Duration = Duration::from_millis(5);
const STATUS: Duration = Duration::from_secs(1);

/// Streams until either side ends it.
pub(super) fn stream(
    connection: &mut Connection,
    sources: &Sources,
    filter: CaptureFilter,
) -> Result<(), FramingError> {
    let Some(session) = sources.plane.captures.start(Filter::new(filter)) else {
        let refused = format!("{MAX_CAPTURES} captures run already: end one of them");
        return write_message(&mut connection.stream, &Answer::Refused(refused));
    };
    let running = Running { plane: &sources.plane, session };
    let points = sources.view.load().all_points();
    write_message(&mut connection.stream, &Answer::Capturing { points })?;
    let offset = clock::offset();
    let (mut sent, mut told) = (0, Instant::now());
    while !connection.ended() {
        let view = sources.view.load();
        let mut idle = true;
        while let Some(raw) = running.session.next() {
            idle = false;
            let record = record(&raw, &view, offset);
            write_message(&mut connection.stream, &Answer::Record(Box::new(record)))?;
            sent += 1;
            if told.elapsed() >= STATUS {
                break;
            }
        }
        if told.elapsed() >= STATUS {
            told = Instant::now();
            let lost = running.session.lost();
            write_message(&mut connection.stream, &Answer::CaptureStatus { sent, lost })?;
        }
        if idle {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Ends the capture however the stream ends.
struct Running<'a> {
    plane: &'a Plane,
    session: Arc<Session>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.plane.captures.stop(&self.session);
    }
}

fn record(raw: &Raw, view: &View, offset: u64) -> CaptureRecord {
    let flow = raw.note.and_then(|note| note.flow);
    let drop = raw.note.and_then(|note| match note.verdict {
        Verdict::Drop(reason) => Some(reason.name().to_owned()),
        _ => None,
    });
    CaptureRecord {
        time_ns: raw.time.wrapping_add(offset),
        worker: raw.worker,
        point: raw.ifindex.map_or(Point::Drop, |ifindex| view.point(ifindex)),
        inbound: raw.inbound,
        len: u32::try_from(raw.len).unwrap_or(u32::MAX),
        bytes: raw.bytes.to_vec(),
        verdict: raw.note.as_ref().map_or_else(|| "held".to_owned(), |note| verdict(note, view)),
        flow: flow.map(|flow| u64::from(flow.id.number())),
        mapping: flow.filter(|f| f.original != f.translated).map(|f| mapping(&f.original, &f.translated)),
        drop,
    }
}

/// What happened to a packet, in a few words.
fn verdict(note: &Note, view: &View) -> String {
    let name = |ifindex| match view.point(ifindex) {
        Point::Pod(name) | Point::Eni(name) => name,
        Point::Drop => "drop".to_owned(),
    };
    let text = match note.verdict {
        Verdict::Pod { ifindex } => format!("pod {}", name(ifindex)),
        Verdict::Eni { ifindex } => format!("eni {}", name(ifindex)),
        Verdict::KernelPod { ifindex } | Verdict::KernelEni { ifindex } => {
            format!("kernel by {}", name(ifindex))
        }
        Verdict::Handoff { worker } => format!("worker {worker}"),
        Verdict::Drop(reason) => format!("drop {}", reason.name()),
    };
    let from = match note.ingress {
        Ingress::Pod(i) => format!("from pod {}", name(i)),
        Ingress::ToPod(i) => format!("from the kernel for pod {}", name(i)),
        Ingress::FromNode(i) => format!("from the node for pod {}", name(i)),
        Ingress::Host(i) => format!("from the node by {}", name(i)),
        Ingress::Eni(i) => format!("from eni {}", name(i)),
    };
    let how = match (note.generated, note.held) {
        (true, _) => ", made by the engine",
        (false, true) => ", after waiting",
        (false, false) => "",
    };
    format!("{text}, {from}{how}")
}

fn mapping(original: &FlowKey, translated: &FlowKey) -> String {
    format!("{} as {}", tuple(original), tuple(translated))
}

fn tuple(key: &FlowKey) -> String {
    let (src, dst) = (Ipv4Addr::from_bits(key.src()), Ipv4Addr::from_bits(key.dst()));
    format!("{src}:{} > {dst}:{}", key.sport(), key.dport())
}
