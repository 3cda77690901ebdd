//! SCTP (RFC 9260): which chunk a packet begins with, and its checksum.
//!
//! The checksum is a CRC32c over the whole SCTP packet, without a pseudo header: an address may change without it, a port
//! may not. A CRC is linear, so that what a changed port does to it depends on the change and on its distance from the
//! packet's end only. Updating it that way needs no look at the payload, which may lie in further buffers, and leaves a
//! corrupt packet as corrupt as it was.

/// Bytes of the common header.
pub(super) const HEADER_LEN: usize = 12;
/// Bytes of the common header and of the header of the first chunk, which no packet is without (RFC 9260 §3).
pub(super) const SHORTEST: usize = HEADER_LEN + 4;
/// Where the checksum stands in the common header.
pub(super) const CHECKSUM: usize = 8;

/// The chunk that opens an association.
pub(crate) const INIT: u8 = 1;
/// Its answer.
pub(crate) const INIT_ACK: u8 = 2;
/// The chunk that ends an association at once.
pub(crate) const ABORT: u8 = 6;
/// The last chunk of an association.
pub(crate) const SHUTDOWN_COMPLETE: u8 = 14;

/// The polynomial of CRC32c, its lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The CRC of every byte.
const BYTES: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = times_x(crc);
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// What 1, 2, 4, .. zero bytes behind a CRC multiply it by.
const ZEROS: [u32; 16] = {
    let mut table = [0x8000_0000 >> 8; 16];
    let mut power = 1;
    while power < 16 {
        table[power] = product(table[power - 1], table[power - 1]);
        power += 1;
    }
    table
};

/// A polynomial times x, modulo the CRC's.
const fn times_x(value: u32) -> u32 {
    value >> 1 ^ if value & 1 == 0 { 0 } else { POLYNOMIAL }
}

/// The product of two polynomials modulo the CRC's.
const fn product(a: u32, mut b: u32) -> u32 {
    let mut sum = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 == 1 {
            sum ^= b;
        }
        b = times_x(b);
    }
    sum
}

/// A CRC that has reached `crc`, after `bytes`.
fn over(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ BYTES[usize::from(crc as u8 ^ byte)])
}

/// The checksum field of a packet that changes in its ports by `ports` (old XOR new, as they stand in the header), `len`
/// bytes from the common header to its end. A field of zero means "none" (RFC 9653) and stays.
#[must_use]
pub(super) fn update(field: [u8; 4], ports: [u8; 4], len: u16) -> [u8; 4] {
    if ports == [0; 4] || field == [0; 4] {
        return field;
    }
    let mut change = over(0, &ports);
    let behind = len.saturating_sub(4);
    for (power, zeros) in ZEROS.iter().enumerate() {
        if behind >> power & 1 == 1 {
            change = product(change, *zeros);
        }
    }
    (u32::from_le_bytes(field) ^ change).to_le_bytes()
}

/// The checksum of a whole packet, as it stands in the header (RFC 9260, appendix A), whatever stands there.
#[must_use]
pub(super) fn checksum(packet: &[u8]) -> Option<[u8; 4]> {
    let (head, rest) = packet.split_first_chunk::<HEADER_LEN>()?;
    let crc = over(over(!0, &head[..CHECKSUM]), &[0; 4]);
    Some((!over(crc, rest)).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::{CHECKSUM, checksum, over, update};

    #[test]
    fn it_is_castagnolis() {
        // RFC 3720, appendix B.4, and the check value that catalogues give.
        assert_eq!(!over(!0, b"123456789"), 0xE306_9283);
        assert_eq!((!over(!0, &[0; 32])).to_le_bytes(), [0xAA, 0x36, 0x91, 0x8A]);
        assert_eq!((!over(!0, &[0xFF; 32])).to_le_bytes(), [0x43, 0xAB, 0xA8, 0x62]);
    }

    #[test]
    fn without_a_change_or_a_checksum_nothing_changes() {
        assert_eq!(update([1, 2, 3, 4], [0; 4], 40), [1, 2, 3, 4]);
        assert_eq!(update([0; 4], [1, 2, 3, 4], 40), [0; 4]);
    }

    proptest! {
        #[test]
        fn an_update_is_what_summing_anew_gives(
            mut packet in vec(any::<u8>(), 16..3000),
            ports: [u8; 4],
            damage: [u8; 4],
        ) {
            let right = checksum(&packet).unwrap();
            let field: [u8; 4] = std::array::from_fn(|i| right[i] ^ damage[i]);
            prop_assume!(field != [0; 4]);
            packet[CHECKSUM..CHECKSUM + 4].copy_from_slice(&field);
            let change: [u8; 4] = std::array::from_fn(|i| packet[i] ^ ports[i]);
            packet[..4].copy_from_slice(&ports);
            let updated = update(field, change, packet.len() as u16);
            let summed = checksum(&packet).unwrap();
            // As far from right as it was.
            prop_assert_eq!(std::array::from_fn::<u8, 4, _>(|i| updated[i] ^ summed[i]), damage);
        }
    }
}
