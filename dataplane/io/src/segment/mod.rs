//! Cutting what the trunk carries whole into what a wire carries: TCP and UDP super-packets into segments, packets above
//! the MTU into fragments, and partial checksums into full ones.
//!
//! A [`Cut`] is planned once per packet and then written piece by piece, straight into the memory that is sent, so that
//! every payload byte is copied once and summed once while it is in the cache.

#[cfg(test)]
mod tests;

use sluice_engine::wire::checksum::{add, pseudo, sum};
use sluice_engine::{Drop as Reason, GsoKind, Offload};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;
const OFFSET: u16 = 0x1FFF;
/// TCP flags that only the last segment carries: FIN and PSH.
const LAST_ONLY: u8 = 0x09;
/// TCP flag that only the first segment carries: CWR (RFC 3168 §6.1.2).
const FIRST_ONLY: u8 = 0x80;

/// What a cut makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The packet as it is, its checksum completed where it was partial.
    Whole,
    /// TCP segments of one super-packet.
    Tcp,
    /// UDP datagrams of one super-packet (`UDP_SEGMENT`).
    Udp,
    /// IPv4 fragments.
    Fragments,
}

/// How one packet is cut.
#[derive(Debug, Clone)]
pub struct Cut {
    kind: Kind,
    /// Bytes of all headers of the first piece; everything for [`Kind::Whole`].
    header: usize,
    /// Start of the L4 header.
    l4: usize,
    /// Payload bytes of each piece but the last.
    size: usize,
    /// Payload bytes in all.
    payload: usize,
    /// A checksum field to write into the first piece: offset and value.
    checksum: Option<(usize, u16)>,
    /// UDP without a checksum (RFC 768) stays so.
    unchecked: bool,
    /// The IP header of later fragments, without the options that are not copied (RFC 791 §3.1).
    later: [u8; 60],
    later_len: usize,
}

impl Cut {
    /// Plans how `bytes`, a whole Ethernet frame, goes out on a link of `mtu` bytes.
    ///
    /// # Errors
    /// [`Reason::FragNeeded`] when it does not fit and may not be cut; [`Reason::TxError`] when what `offload` says does
    /// not fit the packet.
    pub fn plan(bytes: &[u8], offload: Offload, mtu: usize) -> Result<Self, Reason> {
        match offload.gso {
            GsoKind::None if bytes.len() <= ETHERNET + mtu => Self::whole(bytes, offload),
            GsoKind::None => Self::fragments(bytes, offload, mtu),
            GsoKind::Tcp4 => Self::segments(bytes, offload, mtu, Kind::Tcp),
            GsoKind::Udp4 => Self::segments(bytes, offload, mtu, Kind::Udp),
        }
    }

    fn whole(bytes: &[u8], offload: Offload) -> Result<Self, Reason> {
        let checksum = completed(bytes, offload)?;
        Ok(Self {
            kind: Kind::Whole,
            header: bytes.len(),
            l4: 0,
            size: 1,
            payload: 0,
            checksum,
            unchecked: false,
            later: [0; 60],
            later_len: 0,
        })
    }

    fn segments(bytes: &[u8], offload: Offload, mtu: usize, kind: Kind) -> Result<Self, Reason> {
        let ip = ip_header(bytes)?;
        let l4 = ETHERNET + ip;
        let (protocol, fixed) = if kind == Kind::Tcp { (TCP, 20) } else { (UDP, 8) };
        if bytes[ETHERNET + 9] != protocol || bytes.len() < l4 + fixed || offload.gso_size == 0 {
            return Err(Reason::TxError);
        }
        if word(bytes, ETHERNET + 6) & (MORE_FRAGMENTS | OFFSET) != 0 {
            return Err(Reason::TxError);
        }
        let header = if kind == Kind::Tcp { l4 + usize::from(bytes[l4 + 12] >> 4) * 4 } else { l4 + 8 };
        if header < l4 + fixed || header > bytes.len() {
            return Err(Reason::TxError);
        }
        let size = usize::from(offload.gso_size);
        let payload = bytes.len() - header;
        if header + size.min(payload) > ETHERNET + mtu {
            return Err(Reason::FragNeeded);
        }
        let unchecked = kind == Kind::Udp && !offload.partial && word(bytes, l4 + 6) == 0;
        Ok(Self { kind, header, l4, size, payload, checksum: None, unchecked, later: [0; 60], later_len: 0 })
    }

    fn fragments(bytes: &[u8], offload: Offload, mtu: usize) -> Result<Self, Reason> {
        let ip = ip_header(bytes)?;
        let total = usize::from(word(bytes, ETHERNET + 2));
        if total < ip || ETHERNET + total > bytes.len() {
            return Err(Reason::TxError);
        }
        if total <= mtu {
            // Only padding behind the packet exceeds the MTU.
            return Self::whole(&bytes[..ETHERNET + total], offload);
        }
        if word(bytes, ETHERNET + 6) & DONT_FRAGMENT != 0 {
            return Err(Reason::FragNeeded);
        }
        let size = mtu.saturating_sub(ip) & !7;
        if size == 0 {
            return Err(Reason::FragNeeded);
        }
        let checksum = completed(&bytes[..ETHERNET + total], offload)?;
        let (later, later_len) = later_header(&bytes[ETHERNET..ETHERNET + ip]);
        Ok(Self {
            kind: Kind::Fragments,
            header: ETHERNET + ip,
            l4: ETHERNET + ip,
            size,
            payload: total - ip,
            checksum,
            unchecked: false,
            later,
            later_len,
        })
    }

    /// What the pieces are.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of pieces, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.size).max(1)
    }

    /// Bytes of the largest piece.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.piece_len(0)
    }

    /// Bytes of piece `index`, Ethernet header included.
    #[must_use]
    pub fn piece_len(&self, index: usize) -> usize {
        self.headers(index) + self.range(index).len()
    }

    fn headers(&self, index: usize) -> usize {
        if self.kind == Kind::Fragments && index > 0 { ETHERNET + self.later_len } else { self.header }
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let start = (index * self.size).min(self.payload);
        start..(start + self.size).min(self.payload)
    }

    /// Writes piece `index` of `bytes` into `out`, which has exactly its length.
    pub fn write(&self, bytes: &[u8], index: usize, out: &mut [u8]) {
        let headers = self.headers(index);
        let range = self.range(index);
        if self.kind == Kind::Fragments && index > 0 {
            out[..ETHERNET].copy_from_slice(&bytes[..ETHERNET]);
            out[ETHERNET..headers].copy_from_slice(&self.later[..self.later_len]);
        } else {
            out[..headers].copy_from_slice(&bytes[..headers]);
        }
        out[headers..].copy_from_slice(&bytes[self.header + range.start..self.header + range.end]);
        match self.kind {
            Kind::Whole => {}
            Kind::Fragments => self.finish_fragment(bytes, index, out),
            Kind::Tcp => self.finish_tcp(bytes, index, out),
            Kind::Udp => self.finish_udp(bytes, index, out),
        }
        if let Some((at, value)) = self.checksum {
            let within = if self.kind == Kind::Fragments {
                // The field may lie in any fragment's payload, in theory; it is in the first of any sane size.
                (index == 0 && at + 2 <= out.len()).then_some(at)
            } else {
                Some(at)
            };
            if let Some(at) = within {
                set_word(out, at, value);
            }
        }
    }

    fn finish_fragment(&self, bytes: &[u8], index: usize, out: &mut [u8]) {
        let range = self.range(index);
        let original = word(bytes, ETHERNET + 6);
        let last = range.end == self.payload;
        let more = if last { original & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let offset = (original & OFFSET) + (range.start / 8) as u16;
        set_word(out, ETHERNET + 6, more | offset);
        finish_ip(out, self.headers(index) - ETHERNET);
    }

    fn finish_tcp(&self, bytes: &[u8], index: usize, out: &mut [u8]) {
        self.number(bytes, index, out);
        let range = self.range(index);
        let l4 = self.l4;
        let sequence = u32::from_be_bytes([bytes[l4 + 4], bytes[l4 + 5], bytes[l4 + 6], bytes[l4 + 7]]);
        out[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add(range.start as u32).to_be_bytes());
        if range.end != self.payload {
            out[l4 + 13] &= !LAST_ONLY;
        }
        if index > 0 {
            out[l4 + 13] &= !FIRST_ONLY;
        }
        set_word(out, l4 + 16, 0);
        let checksum = l4_checksum(out, l4, TCP);
        set_word(out, l4 + 16, checksum);
    }

    fn finish_udp(&self, bytes: &[u8], index: usize, out: &mut [u8]) {
        self.number(bytes, index, out);
        let l4 = self.l4;
        set_word(out, l4 + 4, (out.len() - l4) as u16);
        set_word(out, l4 + 6, 0);
        if !self.unchecked {
            let checksum = l4_checksum(out, l4, UDP);
            set_word(out, l4 + 6, if checksum == 0 { 0xFFFF } else { checksum });
        }
    }

    /// The IP header of a segment: its length, an identification of its own, its checksum.
    fn number(&self, bytes: &[u8], index: usize, out: &mut [u8]) {
        set_word(out, ETHERNET + 4, word(bytes, ETHERNET + 4).wrapping_add(index as u16));
        finish_ip(out, self.l4 - ETHERNET);
    }
}

/// The checksum field that `offload` asks to be completed: where it is and its final value.
///
/// # Errors
/// [`Reason::TxError`] when its place is not in the packet.
pub fn completed(bytes: &[u8], offload: Offload) -> Result<Option<(usize, u16)>, Reason> {
    if !offload.partial {
        return Ok(None);
    }
    let (start, at) =
        (usize::from(offload.csum_start), usize::from(offload.csum_start + offload.csum_offset));
    if at + 2 > bytes.len() || start < ETHERNET {
        return Err(Reason::TxError);
    }
    // The field holds the pseudo header's sum, so the sum over everything is the whole.
    let value = !sum(&bytes[start..]);
    let is_udp = bytes.get(ETHERNET + 9) == Some(&UDP) && offload.csum_offset == 6;
    Ok(Some((at, if value == 0 && is_udp { 0xFFFF } else { value })))
}

/// Checksum of the L4 segment `frame[l4..]` whose field is zero.
fn l4_checksum(frame: &[u8], l4: usize, protocol: u8) -> u16 {
    let source = u32::from_be_bytes([frame[26], frame[27], frame[28], frame[29]]);
    let target = u32::from_be_bytes([frame[30], frame[31], frame[32], frame[33]]);
    let header = pseudo(source, target, protocol, (frame.len() - l4) as u16);
    !add(header, sum(&frame[l4..]))
}

fn finish_ip(out: &mut [u8], ip: usize) {
    set_word(out, ETHERNET + 2, (out.len() - ETHERNET) as u16);
    set_word(out, ETHERNET + 10, 0);
    let checksum = !sum(&out[ETHERNET..ETHERNET + ip]);
    set_word(out, ETHERNET + 10, checksum);
}

/// Bytes of the IPv4 header of a frame.
fn ip_header(bytes: &[u8]) -> Result<usize, Reason> {
    let ip = bytes.get(ETHERNET).map_or(0, |first| usize::from(first & 0x0F) * 4);
    let is_ipv4 = bytes.len() >= ETHERNET + 20 && word(bytes, 12) == 0x0800 && bytes[ETHERNET] >> 4 == 4;
    if is_ipv4 && ip >= 20 && bytes.len() >= ETHERNET + ip { Ok(ip) } else { Err(Reason::TxError) }
}

/// The header of fragments after the first: options without the copy flag are left out.
fn later_header(header: &[u8]) -> ([u8; 60], usize) {
    let mut later = [0; 60];
    later[..20].copy_from_slice(&header[..20]);
    let mut len = 20;
    let mut options = &header[20..];
    while let [kind, rest @ ..] = options {
        match *kind {
            0 => break,
            1 => options = rest,
            kind => {
                let option = rest.first().map_or(0, |l| usize::from(*l));
                if option < 2 || option > options.len() {
                    break;
                }
                if kind & 0x80 != 0 {
                    later[len..len + option].copy_from_slice(&options[..option]);
                    len += option;
                }
                options = &options[option..];
            }
        }
    }
    len = len.next_multiple_of(4);
    later[0] = 0x40 | (len / 4) as u8;
    (later, len)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
