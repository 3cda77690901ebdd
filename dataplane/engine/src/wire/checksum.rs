//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A *sum* here is a folded, not complemented one's complement sum; a *field* is what stands in a header, its complement.
//! A *delta* is the sum of `new - old` over what a rewrite changes. Deltas are computed once per flow and added once per
//! packet, so that a corrupt packet stays exactly as corrupt as it was.

/// Folds a wide sum to 16 bits, end-around carry included.
#[inline]
#[must_use]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum as u16
}

/// Sum of `bytes` as big-endian 16-bit words, an odd last byte being the high half of a word.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    // One's complement addition does not care for byte order (RFC 1071 §2B): add native words, swap once at the end.
    let mut acc: u64 = 0;
    let (wide, rest) = bytes.as_chunks::<32>();
    for block in wide {
        let (words, _) = block.as_chunks::<8>();
        for word in words {
            let word = u64::from_ne_bytes(*word);
            acc += (word & 0xFFFF_FFFF) + (word >> 32);
        }
    }
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        acc += u64::from(u32::from_ne_bytes(*word));
    }
    let (pairs, last) = rest.as_chunks::<2>();
    for pair in pairs {
        acc += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [byte] = last {
        acc += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    u16::from_be(fold(acc))
}

/// One's complement addition.
#[inline]
#[must_use]
pub const fn add(a: u16, b: u16) -> u16 {
    let sum = a as u32 + b as u32;
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// One's complement subtraction, `a - b`.
#[inline]
#[must_use]
pub const fn sub(a: u16, b: u16) -> u16 {
    add(a, !b)
}

/// Sum of the two halves of a 32-bit value, such as an address.
#[inline]
#[must_use]
pub const fn sum32(value: u32) -> u16 {
    add((value >> 16) as u16, value as u16)
}

/// Delta of a 32-bit value that changes from `old` to `new`.
#[inline]
#[must_use]
pub const fn delta32(old: u32, new: u32) -> u16 {
    sub(sum32(new), sum32(old))
}

/// Delta of a 16-bit value that changes from `old` to `new`.
#[inline]
#[must_use]
pub const fn delta16(old: u16, new: u16) -> u16 {
    sub(new, old)
}

/// A checksum field after what it covers changed by `delta` (RFC 1624, equation 3).
#[inline]
#[must_use]
pub const fn update(field: u16, delta: u16) -> u16 {
    !add(!field, delta)
}

/// As [`update`] for a UDP checksum: zero means "none" and stays (RFC 768), a computed zero is sent as 0xFFFF.
#[inline]
#[must_use]
pub const fn update_udp(field: u16, delta: u16) -> u16 {
    if field == 0 {
        return 0;
    }
    let updated = update(field, delta);
    if updated == 0 { 0xFFFF } else { updated }
}

/// A partial checksum field, which holds the pseudo header's sum itself, after the addresses changed by `delta`.
#[inline]
#[must_use]
pub const fn update_partial(field: u16, delta: u16) -> u16 {
    add(field, delta)
}

/// Sum of the pseudo header of TCP and UDP over IPv4; `len` is that of the L4 header and payload in bytes.
#[inline]
#[must_use]
pub const fn pseudo(src: u32, dst: u32, proto: u8, len: u16) -> u16 {
    fold(
        (src >> 16) as u64
            + (src & 0xFFFF) as u64
            + (dst >> 16) as u64
            + (dst & 0xFFFF) as u64
            + proto as u64
            + len as u64,
    )
}
