//! The flow table as a list.

use std::net::Ipv4Addr;

use sluice_engine::flow::{FlowKey, FlowRecord};
use sluice_state::query::{FlowFilter, FlowRow, Flows, MAX_FLOWS, Tuple};

use super::Sources;
use crate::capture::same_pod;
use crate::clock;
use crate::view::View;

/// The flows that a filter lets through.
pub(super) fn list(sources: &Sources, view: &View, filter: &FlowFilter) -> Flows {
    let table = &sources.plane.table;
    let limit = filter.limit.unwrap_or(MAX_FLOWS).min(MAX_FLOWS) as usize;
    let mut rows = Vec::new();
    let mut matched = 0;
    for record in table.flows(clock::monotonic()) {
        let row = row(&record, view);
        if accepts(filter, &row) {
            matched += 1;
            if rows.len() < limit {
                rows.push(row);
            }
        }
    }
    Flows { rows, matched, live: table.live(), capacity: table.capacity() }
}

fn row(record: &FlowRecord, view: &View) -> FlowRow {
    let (original, translated) = (tuple(&record.original), tuple(&record.translated));
    FlowRow {
        id: u64::from(record.id.number()),
        protocol: record.original.proto(),
        original,
        translated,
        origin: record.origin.name().to_owned(),
        state: record.phase.name().to_owned(),
        idle_ms: record.forward.idle.min(record.reply.idle) / 1_000_000,
        packets: [record.forward.packets, record.reply.packets],
        bytes: [record.forward.bytes, record.reply.bytes],
        pods: [original.src, translated.dst].map(|address| view.owners.get(&address).cloned()),
    }
}

/// A key for people.
pub(crate) fn tuple(key: &FlowKey) -> Tuple {
    Tuple {
        src: Ipv4Addr::from_bits(key.src()),
        dst: Ipv4Addr::from_bits(key.dst()),
        sport: key.sport(),
        dport: key.dport(),
    }
}

fn accepts(filter: &FlowFilter, row: &FlowRow) -> bool {
    let sides = [&row.original, &row.translated];
    let pod = |wanted: &String| row.pods.iter().flatten().any(|pod| same_pod(wanted, pod));
    filter.pod.as_ref().is_none_or(pod)
        && filter.net.is_none_or(|net| sides.iter().any(|t| net.contains(&t.src) || net.contains(&t.dst)))
        && filter.port.is_none_or(|port| sides.iter().any(|t| t.sport == port || t.dport == port))
        && filter.protocol.is_none_or(|protocol| row.protocol == protocol)
        && filter.translated.is_none_or(|translated| (row.original != row.translated) == translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> FlowRow {
        let original =
            Tuple { src: [10, 0, 1, 10].into(), dst: [203, 0, 113, 9].into(), sport: 40_000, dport: 80 };
        FlowRow {
            id: 7,
            protocol: 6,
            original,
            translated: Tuple { src: [10, 0, 9, 5].into(), sport: 2_345, ..original },
            origin: "pod".into(),
            state: "established".into(),
            idle_ms: 0,
            packets: [1, 1],
            bytes: [60, 60],
            pods: [Some("default/a".into()), None],
        }
    }

    #[test]
    fn a_filter_looks_at_both_sides_of_the_translation() {
        let f = FlowFilter::default;
        for (filter, wanted) in [
            (f(), true),
            (FlowFilter { pod: Some("a".into()), ..f() }, true),
            (FlowFilter { pod: Some("b".into()), ..f() }, false),
            (FlowFilter { net: Some("10.0.9.5/32".parse().unwrap()), ..f() }, true),
            (FlowFilter { net: Some("10.7.0.0/16".parse().unwrap()), ..f() }, false),
            (FlowFilter { port: Some(2_345), protocol: Some(6), ..f() }, true),
            (FlowFilter { port: Some(2_345), protocol: Some(17), ..f() }, false),
            (FlowFilter { translated: Some(false), ..f() }, false),
        ] {
            assert_eq!(accepts(&filter, &flow()), wanted, "{filter:?}");
        }
    }
}
