//! Which packets a capture wants.

use std::net::Ipv4Addr;

use sluice_state::query::CaptureFilter;

/// Bytes of a packet that a capture copies when nothing else is asked for.
const SNAPLEN: u32 = 65_535;
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A filter that can be asked about packets.
#[derive(Debug, Clone, Default)]
pub struct Filter(CaptureFilter);

/// What of a packet's headers a filter looks at.
#[derive(Debug, PartialEq, Eq)]
struct Headers {
    protocol: u8,
    addresses: [Ipv4Addr; 2],
    ports: Option<[u16; 2]>,
}

impl Filter {
    /// A filter.
    #[must_use]
    pub fn new(filter: CaptureFilter) -> Self {
        Self(filter)
    }

    /// Bytes of each packet to copy.
    #[must_use]
    pub fn snaplen(&self) -> usize {
        self.0.snaplen.unwrap_or(SNAPLEN).min(SNAPLEN) as usize
    }

    /// Whether a packet is wanted. `pods` are the `namespace/name` of the pods that it comes from and goes to, `sides`
    /// its bytes before and after; one of the two sides matching is enough, so that a translated packet is found by
    /// either of its faces.
    #[must_use]
    pub fn accepts(&self, dropped: bool, pods: [Option<&str>; 2], sides: [Option<&[u8]>; 2]) -> bool {
        let f = &self.0;
        if f.drops && !dropped {
            return false;
        }
        let named = |wanted: &String| pods.iter().flatten().any(|pod| same_pod(wanted, pod));
        if !f.pods.is_empty() && !f.pods.iter().any(named) {
            return false;
        }
        if f.nets.is_empty() && f.ports.is_empty() && f.protocols.is_empty() {
            return true;
        }
        sides.into_iter().flatten().filter_map(headers).any(|h| self.matches(&h))
    }

    fn matches(&self, headers: &Headers) -> bool {
        let f = &self.0;
        let net =
            f.nets.is_empty() || f.nets.iter().any(|net| headers.addresses.iter().any(|a| net.contains(a)));
        let ports = headers.ports.unwrap_or_default();
        let in_range = |port: &u16| f.ports.iter().any(|range| (range.first..=range.last).contains(port));
        let port = f.ports.is_empty() || (headers.ports.is_some() && ports.iter().any(in_range));
        let protocol = f.protocols.is_empty() || f.protocols.contains(&headers.protocol);
        net && port && protocol
    }
}

/// `namespace/name`, or the name alone.
pub(crate) fn same_pod(wanted: &str, pod: &str) -> bool {
    wanted == pod || pod.split_once('/').is_some_and(|(_, name)| name == wanted)
}

fn headers(frame: &[u8]) -> Option<Headers> {
    if frame.get(12..14)? != IPV4 {
        return None;
    }
    let ip = frame.get(ETHERNET..)?;
    let address =
        |at: usize| ip.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
    let protocol = *ip.get(9)?;
    let later_fragment = (u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff) != 0;
    let l4 = usize::from(ip.first()? & 15) * 4;
    let port = |at: usize| ip.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let ports = match protocol {
        TCP | UDP if !later_fragment => port(l4).zip(port(l4 + 2)).map(|(a, b)| [a, b]),
        _ => None,
    };
    Some(Headers { protocol, addresses: [address(12)?, address(16)?], ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(src: [u8; 4], dst: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 28];
        frame[12..14].copy_from_slice(&IPV4);
        let ip = &mut frame[ETHERNET..];
        ip[0] = 0x45;
        ip[9] = UDP;
        ip[12..16].copy_from_slice(&src);
        ip[16..20].copy_from_slice(&dst);
        ip[20..22].copy_from_slice(&ports[0].to_be_bytes());
        ip[22..24].copy_from_slice(&ports[1].to_be_bytes());
        frame
    }

    fn filter(f: CaptureFilter) -> Filter {
        Filter::new(f)
    }

    #[test]
    fn a_translated_packet_is_found_by_either_face() {
        let before = udp([10, 0, 1, 10], [203, 0, 113, 9], [40_000, 53]);
        let after = udp([10, 0, 9, 5], [203, 0, 113, 9], [2_345, 53]);
        let sides = [Some(&before[..]), Some(&after[..])];
        for (net, port, wanted) in [
            ("10.0.9.5/32", "53", true),
            ("10.0.1.0/24", "40000", true),
            ("203.0.113.9/32", "2000-3000", true),
            ("10.0.1.0/24", "2345", false),
            ("10.7.0.0/16", "53", false),
        ] {
            let f = CaptureFilter {
                nets: vec![net.parse().unwrap()],
                ports: vec![port.parse().unwrap()],
                protocols: vec![UDP],
                ..CaptureFilter::default()
            };
            assert_eq!(filter(f).accepts(false, [None, None], sides), wanted, "{net} {port}");
        }
    }

    #[test]
    fn pods_go_by_full_or_short_name_and_drops_by_their_end() {
        let pods = [Some("default/a"), None];
        let by = |name: &str| filter(CaptureFilter { pods: vec![name.into()], ..CaptureFilter::default() });
        assert!(by("a").accepts(false, pods, [None, None]));
        assert!(by("default/a").accepts(false, pods, [None, None]));
        assert!(!by("kube-system/a").accepts(false, pods, [None, None]));
        let drops = filter(CaptureFilter { drops: true, ..CaptureFilter::default() });
        assert!(!drops.accepts(false, pods, [None, None]) && drops.accepts(true, pods, [None, None]));
    }

    #[test]
    fn nothing_short_or_foreign_matches_an_address() {
        let f =
            filter(CaptureFilter { nets: vec!["0.0.0.0/0".parse().unwrap()], ..CaptureFilter::default() });
        let frame = udp([1, 2, 3, 4], [5, 6, 7, 8], [1, 2]);
        for len in 0..ETHERNET + 20 {
            assert!(!f.accepts(false, [None, None], [Some(&frame[..len]), None]), "{len} bytes");
        }
        assert!(f.accepts(false, [None, None], [Some(&frame[..ETHERNET + 20]), None]));
        let mut later = udp([1, 2, 3, 4], [5, 6, 7, 8], [1, 2]);
        later[ETHERNET + 7] = 1;
        assert_eq!(headers(&later).unwrap().ports, None);
    }
}
