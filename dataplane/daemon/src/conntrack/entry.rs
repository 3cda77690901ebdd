//! One entry: attributes within attributes, numbers in network order.

use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};
use sluice_engine::flow::{FlowKey, Phase};
use sluice_engine::wire::proto;
use sluice_engine::worker::Known;

// enum ctattr_type
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const ZONE: u16 = 18;
// enum ctattr_tuple, ctattr_ip, ctattr_l4proto
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_SRC: u16 = 1;
const IP_DST: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SPORT: u16 = 2;
const PROTO_DPORT: u16 = 3;
const PROTO_ICMP_ID: u16 = 4;
const PROTO_ICMP_TYPE: u16 = 5;
// enum ctattr_protoinfo, ctattr_protoinfo_tcp
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// `IPS_SEEN_REPLY` of `enum ip_conntrack_status`.
const SEEN_REPLY: u32 = 2;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// The connection of an entry's attributes; none when it is of another zone, or none that the engine follows.
pub(super) fn read(attributes: &[u8]) -> Option<Known> {
    let (mut original, mut reply, mut status, mut tcp) = (None, None, 0, None);
    for (kind, value) in nested(attributes) {
        match kind {
            ORIGINAL => original = tuple(value),
            REPLY => reply = tuple(value),
            STATUS => status = u32::from_be_bytes(*value.first_chunk()?),
            PROTOINFO => tcp = find(value, PROTOINFO_TCP).and_then(|tcp| find(tcp, TCP_STATE)),
            // Another zone's addresses may be anybody's.
            ZONE if value.iter().any(|byte| *byte != 0) => return None,
            _ => {}
        }
    }
    let replied = status & SEEN_REPLY != 0;
    let (original, translated) = (original?, reply?.reversed());
    let phase = match original.proto() {
        proto::TCP => phase(*tcp?.first()?)?,
        proto::UDP if replied => Phase::UdpTwoWay,
        proto::UDP => Phase::UdpOneWay,
        proto::ICMP => Phase::Icmp,
        _ => Phase::Other,
    };
    Some(Known { original, translated, phase })
}

/// `enum tcp_conntrack`.
fn phase(state: u8) -> Option<Phase> {
    Some(match state {
        1 => Phase::SynSent,
        2 => Phase::SynReceived,
        3 => Phase::Established,
        4 => Phase::FinWait,
        5 => Phase::CloseWait,
        6 => Phase::LastAck,
        7 => Phase::TimeWait,
        8 => Phase::Close,
        9 => Phase::SynSent2,
        _ => return None,
    })
}

fn tuple(attributes: &[u8]) -> Option<FlowKey> {
    let ip = find(attributes, TUPLE_IP)?;
    let l4 = find(attributes, TUPLE_PROTO)?;
    let address = |kind| Some(u32::from_be_bytes(*find(ip, kind)?.first_chunk()?));
    let number = |kind| Some(u16::from_be_bytes(*find(l4, kind)?.first_chunk()?));
    let (src, dst) = (address(IP_SRC)?, address(IP_DST)?);
    let protocol = *find(l4, PROTO_NUM)?.first()?;
    if protocol == proto::ICMP {
        let id = number(PROTO_ICMP_ID)?;
        return match *find(l4, PROTO_ICMP_TYPE)?.first()? {
            ECHO_REQUEST => Some(FlowKey::echo_request(src, dst, id)),
            ECHO_REPLY => Some(FlowKey::echo_reply(src, dst, id)),
            _ => None,
        };
    }
    match protocol {
        proto::TCP | proto::UDP | proto::SCTP => {
            Some(FlowKey::new(src, dst, number(PROTO_SPORT)?, number(PROTO_DPORT)?, protocol))
        }
        // The kernel may track a key of theirs (GRE); the engine has none.
        _ => Some(FlowKey::new(src, dst, 0, 0, protocol)),
    }
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    nested(attributes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Attributes up to the first one that is cut.
fn nested(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes).map_while(Result::ok).map(|nla| {
        let (kind, len) = (nla.kind(), usize::from(nla.length()));
        (kind, nla.into_inner().get(NLA_HEADER_SIZE..len).unwrap_or(&[]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_of(kind: u16, src: [u8; 4], dst: [u8; 4], l4: &[(u16, &[u8])]) -> Vec<u8> {
        let ip = [nla(IP_SRC, &src), nla(IP_DST, &dst)].concat();
        let l4: Vec<u8> = l4.iter().flat_map(|(kind, value)| nla(*kind, value)).collect();
        nla(kind | 0x8000, &[nla(TUPLE_IP | 0x8000, &ip), nla(TUPLE_PROTO | 0x8000, &l4)].concat())
    }

    fn masqueraded(state: u8) -> Vec<u8> {
        let ports = |s: u16, d: u16| (s.to_be_bytes(), d.to_be_bytes());
        let ((a, b), (c, d)) = (ports(40_000, 80), ports(80, 45_001));
        let original = [(PROTO_NUM, &[6u8][..]), (PROTO_SPORT, &a), (PROTO_DPORT, &b)];
        let reply = [(PROTO_NUM, &[6u8][..]), (PROTO_SPORT, &c), (PROTO_DPORT, &d)];
        let state = nla(PROTOINFO | 0x8000, &nla(PROTOINFO_TCP | 0x8000, &nla(TCP_STATE, &[state])));
        [
            tuple_of(ORIGINAL, [10, 0, 1, 10], [203, 0, 113, 9], &original),
            tuple_of(REPLY, [203, 0, 113, 9], [10, 0, 9, 5], &reply),
            nla(STATUS, &0x18Eu32.to_be_bytes()),
            state,
        ]
        .concat()
    }

    #[test]
    fn a_masqueraded_connection_has_the_port_that_the_kernel_chose() {
        let known = read(&masqueraded(3)).unwrap();
        assert_eq!(known.original.to_string(), "10.0.1.10:40000>203.0.113.9:80 proto 6");
        assert_eq!(known.translated.to_string(), "10.0.9.5:45001>203.0.113.9:80 proto 6");
        assert_eq!(known.phase, Phase::Established);
    }

    #[test]
    fn an_echo_has_its_identifier_on_both_sides() {
        let id = 77u16.to_be_bytes();
        let query =
            |kind: u8| [(PROTO_NUM, vec![1u8]), (PROTO_ICMP_ID, id.to_vec()), (PROTO_ICMP_TYPE, vec![kind])];
        let (request, answer) = (query(ECHO_REQUEST), query(ECHO_REPLY));
        let of = |query: &[(u16, Vec<u8>); 3]| -> Vec<u8> {
            query.iter().flat_map(|(kind, value)| nla(*kind, value)).collect()
        };
        let ip = |a: [u8; 4], b: [u8; 4]| nla(TUPLE_IP, &[nla(IP_SRC, &a), nla(IP_DST, &b)].concat());
        let pod = [10, 0, 1, 10];
        let peer = [10, 0, 99, 7];
        let entry = [
            nla(ORIGINAL, &[ip(pod, peer), nla(TUPLE_PROTO, &of(&request))].concat()),
            nla(REPLY, &[ip(peer, pod), nla(TUPLE_PROTO, &of(&answer))].concat()),
        ]
        .concat();
        let known = read(&entry).unwrap();
        assert_eq!(known.original, FlowKey::echo_request(0x0A00_010A, 0x0A00_6307, 77));
        assert_eq!((known.translated, known.phase), (known.original, Phase::Icmp));
    }

    #[test]
    fn other_zones_and_cut_or_strange_entries_are_none() {
        let good = masqueraded(3);
        for cut in 0..good.len() {
            let _ = read(&good[..cut]);
        }
        assert!(read(&good[..40]).is_none());
        assert!(read(&masqueraded(0)).is_none() && read(&masqueraded(77)).is_none());
        assert!(read(&[good.clone(), nla(ZONE, &[0, 5])].concat()).is_none());
        assert!(read(&[good, nla(ZONE, &[0, 0])].concat()).is_some());
    }
}
