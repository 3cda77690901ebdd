//! Whether a row holds: pure, from what the far side said and what the fabric saw.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::Result;
use serde::Serialize;

use super::rows::{Judged, Row, Way};
use super::sniff::Seen;

/// What a row came to.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    pub(super) external_snat: bool,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) protocol: String,
    /// The sources that the peer saw: one, when all is well.
    pub(super) seen: Vec<Ipv4Addr>,
    /// The ENIs that it left by; empty when it never left.
    pub(super) enis: Vec<String>,
    pub(super) expected_source: Ipv4Addr,
    /// `eni0`, or `never leaves`.
    pub(super) expected_way: String,
    pub(super) ok: bool,
    /// Why it failed, or what the row stands for.
    pub(super) note: String,
}

/// Judges a row. Every packet of the judged direction counts, the first and the retransmitted too: one with another source
/// or by another ENI is a leak, whatever the far side answered in the end.
pub(super) fn judge(
    row: &Row,
    external_snat: bool,
    said: &Result<Option<Ipv4Addr>>,
    packets: &[Seen],
) -> Outcome {
    let peer = match row.judged {
        Judged::Request => row.address,
        Judged::Reply(client) => client,
    };
    let mut enis = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let by_eni = |p: &&Seen| !p.outgoing && p.from_eni && p.dst == peer && p.protocol == row.probe.protocol();
    for packet in packets.iter().filter(by_eni) {
        enis.insert(packet.link.clone());
        seen.insert(packet.src);
    }
    if row.judged == Judged::Request {
        seen.extend(said.as_ref().ok().copied().flatten());
    }
    let way = match &row.way {
        Way::Local => enis.is_empty(),
        Way::Eni(name) => enis.iter().eq([name]),
    };
    let (exchanged, note) = match said {
        Ok(_) => (!row.dropped, row.note.to_owned()),
        Err(_) if row.dropped => (true, row.note.to_owned()),
        Err(e) => (false, format!("{e:#}")),
    };
    Outcome {
        external_snat,
        from: row.from.clone(),
        to: row.to.clone(),
        protocol: row.probe.to_string(),
        ok: exchanged && way && seen.iter().eq([&row.source]),
        seen: seen.into_iter().collect(),
        enis: enis.into_iter().collect(),
        expected_source: row.source,
        expected_way: row.way.to_string(),
        note,
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::Probe;
    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 20);
    const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);
    const X: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    fn row() -> Row {
        Row {
            from: "pod-c".into(),
            namespace: "lab-pod-c".into(),
            bind: None,
            to: "host-x".into(),
            address: X,
            probe: Probe::Tcp,
            judged: Judged::Request,
            source: NODE,
            way: Way::Eni("eni0".into()),
            dropped: false,
            note: "",
        }
    }

    fn seen(link: &str, src: Ipv4Addr) -> Seen {
        Seen { link: link.into(), from_eni: true, outgoing: false, src, dst: X, protocol: 6 }
    }

    #[test]
    fn one_source_by_the_right_eni_is_what_passes() {
        assert!(judge(&row(), false, &Ok(Some(NODE)), &[seen("eni0", NODE)]).ok);
        assert!(!judge(&row(), false, &Ok(Some(NODE)), &[seen("eni1", NODE)]).ok, "by the wrong ENI");
        assert!(!judge(&row(), false, &Ok(Some(NODE)), &[]).ok, "never seen to leave");
        assert!(!judge(&row(), false, &Ok(Some(POD)), &[seen("eni0", POD)]).ok, "untranslated");
        assert!(
            !judge(&row(), false, &Err(anyhow::anyhow!("no answer")), &[seen("eni0", NODE)]).ok,
            "no answer"
        );
    }

    #[test]
    fn a_single_leaked_packet_fails_a_row_that_worked() {
        let packets = [seen("eni1", POD), seen("eni0", NODE), seen("eni0", NODE)];
        let outcome = judge(&row(), false, &Ok(Some(NODE)), &packets);
        assert!(!outcome.ok);
        assert_eq!(outcome.enis, ["eni0", "eni1"]);
        assert_eq!(outcome.seen, [POD, NODE]);
    }

    #[test]
    fn what_stays_on_the_node_is_seen_nowhere() {
        let local = Row { way: Way::Local, source: POD, ..row() };
        assert!(judge(&local, false, &Ok(Some(POD)), &[]).ok);
        assert!(!judge(&local, false, &Ok(Some(POD)), &[seen("eni0", POD)]).ok);
    }

    #[test]
    fn a_reply_is_judged_by_what_reached_the_client() {
        let reply = Row {
            judged: Judged::Reply(X),
            address: POD,
            source: POD,
            way: Way::Eni("eni1".into()),
            ..row()
        };
        // The far side says whom it saw; of the reply's source it knows nothing.
        assert!(judge(&reply, false, &Ok(Some(X)), &[seen("eni1", POD)]).ok);
        assert!(!judge(&reply, false, &Ok(Some(X)), &[seen("eni0", NODE)]).ok);
    }

    #[test]
    fn what_ec2_drops_must_not_work() {
        let dropped = Row { dropped: true, way: Way::Eni("eni1".into()), ..row() };
        assert!(judge(&dropped, false, &Err(anyhow::anyhow!("no connection")), &[seen("eni1", NODE)]).ok);
        assert!(!judge(&dropped, false, &Ok(Some(NODE)), &[seen("eni1", NODE)]).ok);
    }
}
