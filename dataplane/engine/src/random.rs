//! Entropy that was handed in, stretched.
//!
//! Ports must not be guessable by a peer (RFC 6056), and every run of the engine must be repeatable: the seed is an
//! argument, the rest is a generator whose state does not show in its output (wyrand's mixing over a 64-bit Weyl sequence).

/// A worker's random numbers.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
    secret: u64,
}

impl Random {
    /// A generator from a seed. Two workers get different seeds.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let secret = mix(seed ^ 0x2D35_8DCC_AA6C_78A5, 0x8BB8_4B93_962E_ACC9) | 1;
        Self { state: mix(seed, secret), secret }
    }

    /// The next number.
    #[inline]
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0xA076_1D64_78BD_642F);
        mix(self.state, self.state ^ self.secret)
    }

    /// The next number, 32 bits of it.
    #[inline]
    pub const fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// A number below `bound`; 0 for a bound of 0.
    #[inline]
    pub const fn below(&mut self, bound: u32) -> u32 {
        ((self.next_u32() as u64 * bound as u64) >> 32) as u32
    }

    /// A number that depends on the seed and on a connection's addresses and ports only.
    #[inline]
    #[must_use]
    pub const fn keyed(&self, src: u32, dst: u32, sport: u16, dport: u16) -> u32 {
        let addresses = (src as u64) << 32 | dst as u64;
        let ports = (sport as u64) << 16 | dport as u64;
        (mix(addresses ^ self.secret, mix(ports ^ self.secret, 0xE703_7ED1_A0B4_28DB)) >> 32) as u32
    }
}

const fn mix(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    (product as u64) ^ (product >> 64) as u64
}
