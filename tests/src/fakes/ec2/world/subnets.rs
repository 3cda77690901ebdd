//! The addresses of a subnet. EC2 keeps the first four and the last for itself, scatters single addresses over the rest, and
//! needs sixteen free ones in a row, on a boundary, for a prefix: a subnet with hundreds of free addresses may have no
//! prefix left.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::super::call::Refusal;
use super::super::objects::Tags;

/// Addresses of a prefix.
const PREFIX: u32 = 16;

/// A subnet and what is taken of it.
#[derive(Debug, Clone)]
pub struct Subnet {
    /// `subnet-...`
    pub id: String,
    /// Its VPC.
    pub vpc: String,
    /// Its zone.
    pub zone: String,
    /// Its block.
    pub cidr: Ipv4Net,
    /// Tags.
    pub tags: Tags,
    used: BTreeSet<u32>,
    prefixes: BTreeSet<u32>,
    seed: u64,
}

impl Subnet {
    /// A subnet of which nothing is taken.
    #[must_use]
    pub fn new(id: &str, vpc: &str, zone: &str, cidr: Ipv4Net, tags: Tags) -> Self {
        let seed = u64::from(u32::from(cidr.network())) | 1;
        Self {
            id: id.to_owned(),
            vpc: vpc.to_owned(),
            zone: zone.to_owned(),
            cidr,
            tags,
            used: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            seed,
        }
    }

    fn first(&self) -> u32 {
        u32::from(self.cidr.network())
    }

    fn last(&self) -> u32 {
        u32::from(self.cidr.broadcast())
    }

    fn size(&self) -> u32 {
        self.last() - self.first() + 1
    }

    /// EC2's AvailableIpAddressCount.
    #[must_use]
    pub fn free(&self) -> u32 {
        let prefixes = u32::try_from(self.prefixes.len()).unwrap_or(u32::MAX);
        let used = u32::try_from(self.used.len()).unwrap_or(u32::MAX);
        self.size().saturating_sub(5).saturating_sub(used).saturating_sub(prefixes.saturating_mul(PREFIX))
    }

    fn is_free(&self, address: u32) -> bool {
        address >= self.first() + 4
            && address < self.last()
            && !self.used.contains(&address)
            && !self.prefixes.contains(&(address / PREFIX * PREFIX))
    }

    fn draw(&mut self) -> u64 {
        // xorshift64: scattered, and the same in every run.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// Takes an address, as scattered as EC2's are.
    pub(super) fn take(&mut self) -> Result<Ipv4Addr, Refusal> {
        if self.free() == 0 {
            return Err(self.full());
        }
        let size = self.size();
        let start = u32::try_from(self.draw() % u64::from(size)).unwrap_or(0);
        let found = (0..size).map(|i| self.first() + (start + i) % size).find(|a| self.is_free(*a));
        let address = found.ok_or_else(|| self.full())?;
        self.used.insert(address);
        Ok(address.into())
    }

    /// Takes several addresses or none.
    pub(super) fn take_many(&mut self, count: u32) -> Result<Vec<Ipv4Addr>, Refusal> {
        if count > self.free() {
            return Err(self.full());
        }
        (0..count).map(|_| self.take()).collect()
    }

    /// Takes a certain address.
    pub(super) fn take_this(&mut self, address: Ipv4Addr) -> Result<(), Refusal> {
        if !self.cidr.contains(&address) {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("Address {address} does not fall within the subnet's address range"),
            ));
        }
        if !self.is_free(address.into()) {
            return Err(Refusal::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
        }
        self.used.insert(address.into());
        Ok(())
    }

    fn open(&self) -> impl Iterator<Item = u32> {
        let start = self.first().next_multiple_of(PREFIX);
        let end = self.last();
        (start..=end)
            .step_by(PREFIX as usize)
            .filter(move |base| end - base >= PREFIX - 1 && (*base..base + PREFIX).all(|a| self.is_free(a)))
    }

    /// How many prefixes could still be had.
    #[must_use]
    pub fn free_prefixes(&self) -> usize {
        self.open().count()
    }

    /// Takes several prefixes or none.
    pub(super) fn take_prefixes(&mut self, count: u32) -> Result<Vec<Ipv4Net>, Refusal> {
        let bases: Vec<u32> = self.open().take(count as usize).collect();
        if bases.len() < count as usize {
            return Err(Refusal::new(
                "InsufficientCidrBlocks",
                format!(
                    "The specified subnet does not have enough free cidr blocks to satisfy the request: {}",
                    self.id
                ),
            ));
        }
        self.prefixes.extend(&bases);
        Ok(bases.into_iter().map(prefix).collect())
    }

    /// Takes a certain prefix.
    pub(super) fn take_this_prefix(&mut self, wanted: Ipv4Net) -> Result<(), Refusal> {
        let base = u32::from(wanted.network());
        if wanted.prefix_len() != 28 || !self.open().any(|b| b == base) {
            return Err(Refusal::new("InvalidParameterValue", format!("Prefix {wanted} is not available.")));
        }
        self.prefixes.insert(base);
        Ok(())
    }

    /// Gives an address back.
    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&address.into());
    }

    /// Gives a prefix back.
    pub(super) fn give_back_prefix(&mut self, prefix: Ipv4Net) {
        self.prefixes.remove(&prefix.network().into());
    }

    fn full(&self) -> Refusal {
        Refusal::new(
            "InsufficientFreeAddressesInSubnet",
            format!(
                "The specified subnet does not have enough free addresses to satisfy the request: {}",
                self.id
            ),
        )
    }
}

fn prefix(base: u32) -> Ipv4Net {
    Ipv4Net::new_assert(base.into(), 28)
}
