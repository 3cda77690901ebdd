//! TCP options: walking them whatever a peer put there, and lowering the maximum segment size.
//!
//! An ENI whose MTU is below the pods' drops what peers send by the pods' MSS, and a VPC sends no ICMP about it. So the MSS
//! of SYN and SYN/ACK through such an ENI is lowered to what fits. It is never raised, and nothing else is touched.

use super::checksum;
use super::parse::Parsed;
use super::tcp::TcpFlags;

/// The largest segment whose packet, without IP or TCP options, fits `mtu` bytes of IP.
#[must_use]
pub const fn mss_for(mtu: u16) -> u16 {
    mtu.saturating_sub(40)
}

/// Lowers the MSS that a SYN or SYN/ACK announces to `limit` bytes; true when it was above.
///
/// `partial` is the frame's [`Offload::partial`](crate::Offload::partial): such a checksum does not cover the options yet.
/// A segment without the option is left alone: its sender expects 536 bytes (RFC 9293 §3.7.1), which fits everything.
pub fn clamp_mss(bytes: &mut [u8], parsed: &Parsed, limit: u16, partial: bool) -> bool {
    if !parsed.tcp_flags().is_some_and(TcpFlags::syn) || parsed.l4_header_len <= 20 {
        return false;
    }
    let start = usize::from(parsed.l4_offset());
    let Some(header) = bytes.get_mut(start..start + usize::from(parsed.l4_header_len)) else { return false };
    let mut delta = 0;
    let mut lowered = false;
    let mut at = 20;
    while let Some((kind, len)) = option_at(header, at) {
        // Were it there twice, Linux would believe the last: lower each.
        if let (MSS, Some([high, low])) = (kind, header.get_mut(at + 2..at + len)) {
            let old = u16::from_be_bytes([*high, *low]);
            if old > limit {
                [*high, *low] = limit.to_be_bytes();
                let change = checksum::delta16(old, limit);
                // At an odd offset the halves fall into two words, the other way round (RFC 1071 §2B).
                delta = checksum::add(delta, if at % 2 == 1 { change.swap_bytes() } else { change });
                lowered = true;
            }
        }
        at += len;
    }
    if lowered && !partial {
        let field = u16::from_be_bytes([header[16], header[17]]);
        header[16..18].copy_from_slice(&checksum::update(field, delta).to_be_bytes());
    }
    lowered
}

/// The options of a segment that the engine asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// Maximum segment size in bytes.
    pub mss: Option<u16>,
    /// Shift of the window, at most 14 (RFC 7323 §2.3).
    pub window_scale: Option<u8>,
}

/// Reads the options of a segment. A malformed option ends the list, as in Linux.
#[must_use]
pub fn tcp_options(bytes: &[u8], parsed: &Parsed) -> TcpOptions {
    let mut found = TcpOptions::default();
    let start = usize::from(parsed.l4_offset());
    if parsed.tcp_flags().is_none() {
        return found;
    }
    let Some(header) = bytes.get(start..start + usize::from(parsed.l4_header_len)) else { return found };
    let mut at = 20;
    while let Some((kind, len)) = option_at(header, at) {
        match (kind, header.get(at + 2..at + len)) {
            (MSS, Some(&[high, low])) => found.mss = Some(u16::from_be_bytes([high, low])),
            (WINDOW_SCALE, Some(&[shift])) => found.window_scale = Some(shift.min(14)),
            _ => {}
        }
        at += len;
    }
    found
}

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;

/// Kind and length of the option at `at`, none at the end of the list or where it is malformed.
fn option_at(header: &[u8], at: usize) -> Option<(u8, usize)> {
    match *header.get(at)? {
        END => None,
        NOP => Some((NOP, 1)),
        kind => {
            let len = usize::from(*header.get(at + 1)?);
            (len >= 2 && at + len <= header.len()).then_some((kind, len))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{read, tcp, verify};
    use proptest::collection::vec;
    use proptest::prelude::*;

    const FROM: &str = "10.0.1.10:40000";
    const TO: &str = "203.0.113.9:80";

    #[test]
    fn lowers_and_never_raises() {
        for flags in ["S", "SA", "SEC"] {
            let builder = tcp(FROM, TO).flags(flags).mss(8961).tcp_options(&[4, 2]).window_scale(7);
            let before = builder.build();
            let mut frame = before.clone();
            assert!(clamp_mss(&mut frame, &read(&before), 1460, false));
            assert_eq!(
                tcp_options(&frame, &read(&frame)),
                TcpOptions { mss: Some(1460), window_scale: Some(7) }
            );
            assert_eq!(verify(&frame), Ok(()));
            let lower = tcp(FROM, TO).flags(flags).mss(1460).tcp_options(&[4, 2]).window_scale(7).build();
            assert_eq!(frame, lower);
            for limit in [1460, 1461, 9000, u16::MAX] {
                assert!(!clamp_mss(&mut frame, &read(&lower), limit, false));
                assert_eq!(frame, lower);
            }
        }
    }

    #[test]
    fn only_segments_that_open_announce_it() {
        for flags in ["A", "PA", "R", "FA"] {
            let before = tcp(FROM, TO).flags(flags).mss(8961).build();
            let mut frame = before.clone();
            assert!(!clamp_mss(&mut frame, &read(&before), 1460, false));
            assert_eq!(frame, before);
        }
    }

    #[test]
    fn a_partial_checksum_does_not_cover_it_yet() {
        let (before, offload) = tcp(FROM, TO).flags("S").mss(8961).payload(b"fast open").build_partial();
        let mut frame = before.clone();
        assert!(clamp_mss(&mut frame, &read(&before), 1460, offload.partial));
        assert_eq!(frame[50..52], before[50..52]);
        let (lower, _) = tcp(FROM, TO).flags("S").mss(1460).payload(b"fast open").build_partial();
        assert_eq!(frame, lower);
    }

    #[test]
    fn an_odd_offset_keeps_the_checksum_right() {
        let mut frame =
            tcp(FROM, TO).flags("S").tcp_options(&[1]).mss(9001).tcp_options(&[1, 1]).mss(8000).build();
        let p = read(&frame);
        assert!(clamp_mss(&mut frame, &p, 1234, false));
        assert_eq!(verify(&frame), Ok(()));
        assert_eq!(
            frame,
            tcp(FROM, TO).flags("S").tcp_options(&[1]).mss(1234).tcp_options(&[1, 1]).mss(1234).build()
        );
    }

    proptest! {
        #[test]
        fn any_options_keep_every_other_byte(options in vec(prop_oneof![0u8..6, any::<u8>()], 0..=40), limit: u16) {
            let before = tcp(FROM, TO).flags("S").tcp_options(&options).payload(b"data").build();
            let p = read(&before);
            let mut frame = before.clone();
            let lowered = clamp_mss(&mut frame, &p, limit, false);
            prop_assert_eq!(verify(&frame), Ok(()));
            prop_assert_eq!(lowered, frame != before);
            prop_assert_eq!(frame.len(), before.len());
            // All but the checksum and the values of MSS options.
            let mut at = 20;
            let header = &before[34..34 + usize::from(p.l4_header_len)];
            let mut masked = before.clone();
            while let Some((kind, len)) = option_at(header, at) {
                if kind == MSS && len == 4 {
                    masked[34 + at + 2..34 + at + 4].copy_from_slice(&frame[34 + at + 2..34 + at + 4]);
                }
                at += len;
            }
            masked[50..52].copy_from_slice(&frame[50..52]);
            prop_assert_eq!(&masked, &frame);
            match (tcp_options(&before, &p).mss, tcp_options(&frame, &p).mss) {
                (Some(before), Some(after)) => prop_assert_eq!(after, before.min(limit)),
                (before, after) => prop_assert_eq!(before, after),
            }
        }
    }
}
