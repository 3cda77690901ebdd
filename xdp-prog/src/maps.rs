//! Typed access to the maps. Values are laid out here as `src/bpf/sluice.h` has them; the tests of the verdicts would
//! fail if the two differed.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::time::{ClockId, clock_gettime};

use crate::shared::{
    HAS_FRONTENDS, LINK_ENI, LINK_POD, MAX_QUEUES, MAX_SLOTS, ON_FAILURE_KERNEL, PORTS_ICMP, PORTS_TCP,
    PORTS_UDP, TABLE,
};
use crate::{BpfError, Config, Endpoint, Link, LinkKind, Programs};

/// A map and the name to complain about it with.
#[derive(Debug)]
pub(crate) struct Map {
    name: &'static str,
    handle: MapHandle,
}

impl Map {
    fn error(&self, action: impl Into<String>, source: libbpf_rs::Error) -> BpfError {
        BpfError::Map { map: self.name, action: action.into(), source }
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        self.handle.update(key, value, MapFlags::ANY).map_err(|source| {
            let full = self.handle.max_entries();
            self.error(format!("write {key:?} (room for {full} entries)"), source)
        })
    }

    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BpfError> {
        self.handle.lookup(key, MapFlags::ANY).map_err(|source| self.error(format!("read {key:?}"), source))
    }

    /// True when there was something to take out.
    fn take(&self, key: &[u8]) -> Result<bool, BpfError> {
        match self.handle.delete(key) {
            Ok(()) => Ok(true),
            Err(source) if source.kind() == libbpf_rs::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.error(format!("delete {key:?}"), source)),
        }
    }
}

/// A map of which only the keys count, and what is in it as far as this process knows.
#[derive(Debug)]
struct Keys<const N: usize> {
    map: Map,
    present: Mutex<Option<BTreeSet<[u8; N]>>>,
}

impl<const N: usize> Keys<N> {
    fn of(map: Map) -> Self {
        Self { map, present: Mutex::new(None) }
    }

    /// Makes the wanted keys the ones that it has. Those that stay are never missing, and what is new is there before what
    /// is gone goes. The map is read once, for what an earlier process left, and again after a failure.
    fn set(&self, wanted: &BTreeSet<[u8; N]>) -> Result<(), BpfError> {
        let mut known = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let present =
            known.take().unwrap_or_else(|| self.map.handle.keys().map(|key| array(&key, 0)).collect());
        for key in wanted.difference(&present) {
            self.map.put(key, &1u32.to_ne_bytes())?;
        }
        for key in present.difference(wanted) {
            self.map.take(key)?;
        }
        *known = Some(wanted.clone());
        Ok(())
    }
}

/// Every map of the object.
#[derive(Debug)]
pub(crate) struct Maps {
    config: Map,
    heartbeat: Map,
    links: Map,
    pods: Map,
    local_addrs: Keys<4>,
    frontends: Keys<8>,
    node_endpoints: Keys<8>,
    ports: Map,
    xsks: Map,
    counters: Map,
}

impl Maps {
    pub(crate) fn of(
        mut open: impl FnMut(&'static str) -> Result<MapHandle, BpfError>,
    ) -> Result<Self, BpfError> {
        let mut map = |name| open(name).map(|handle| Map { name, handle });
        Ok(Self {
            config: map("config")?,
            heartbeat: map("heartbeat")?,
            links: map("links")?,
            pods: map("pods")?,
            local_addrs: Keys::of(map("local_addrs")?),
            frontends: Keys::of(map("frontends")?),
            node_endpoints: Keys::of(map("node_endpoints")?),
            ports: map("ports")?,
            xsks: map("xsks")?,
            counters: map("counters")?,
        })
    }

    /// The mark and the hand-back address, where an earlier process has not chosen them: random, so that neither a rule of
    /// the node's firewall nor a frame from the wire carries them by accident.
    pub(crate) fn choose_secrets(&self) -> Result<(), BpfError> {
        let mut config = RawConfig::read(&self.config)?;
        if config.mark == 0 {
            let random = RandomState::new().build_hasher().finish();
            let bytes = random.to_ne_bytes();
            config.mark = (random >> 32) as u32 | 1 << 31;
            // Locally administered, unicast.
            config.handback_mac = [0x06, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4] ^ bytes[7]];
            config.write(&self.config)?;
        }
        Ok(())
    }
}

/// `struct config`.
struct RawConfig {
    nat_ip: [u8; 4],
    trunk_ifindex: u32,
    mark: u32,
    flags: u32,
    handback_mac: [u8; 6],
}

impl RawConfig {
    fn read(map: &Map) -> Result<Self, BpfError> {
        let mut words = [0; 24];
        if let Some(value) = map.find(&0u32.to_ne_bytes())?
            && value.len() == words.len()
        {
            words.copy_from_slice(&value);
        }
        Ok(Self {
            nat_ip: array(&words, 0),
            trunk_ifindex: u32::from_ne_bytes(array(&words, 4)),
            mark: u32::from_ne_bytes(array(&words, 8)),
            flags: u32::from_ne_bytes(array(&words, 12)),
            handback_mac: array(&words, 16),
        })
    }

    fn write(&self, map: &Map) -> Result<(), BpfError> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.nat_ip);
        bytes.extend(self.trunk_ifindex.to_ne_bytes());
        bytes.extend(self.mark.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(self.handback_mac);
        bytes.extend([0; 2]);
        map.put(&0u32.to_ne_bytes(), &bytes)
    }
}

/// `N` bytes from `at` on; zeroes where `bytes` ends before (a map's value has the size of its definition).
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

fn encode_link(link: &Link) -> [u8; 24] {
    let (kind, slot) = match link.kind {
        LinkKind::Pod => (LINK_POD as u16, 0),
        LinkKind::Eni { slot } => (LINK_ENI as u16, slot),
    };
    let mut bytes = [0; 24];
    bytes[0..6].copy_from_slice(&link.mac);
    bytes[6..12].copy_from_slice(&link.peer_mac);
    bytes[12..16].copy_from_slice(&link.ip.octets());
    bytes[16..18].copy_from_slice(&kind.to_ne_bytes());
    bytes[18..20].copy_from_slice(&slot.to_ne_bytes());
    bytes
}

fn decode_link(bytes: &[u8]) -> Option<Link> {
    let kind = match u32::from(u16::from_ne_bytes(array(bytes, 16))) {
        LINK_POD => LinkKind::Pod,
        LINK_ENI => LinkKind::Eni { slot: u16::from_ne_bytes(array(bytes, 18)) },
        _ => return None,
    };
    let ip = Ipv4Addr::from(array::<4>(bytes, 12));
    Some(Link { kind, mac: array(bytes, 0), peer_mac: array(bytes, 6), ip })
}

fn encode_endpoint(endpoint: &Endpoint) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0..4].copy_from_slice(&endpoint.address.octets());
    bytes[4..6].copy_from_slice(&endpoint.port.to_be_bytes());
    bytes[6] = endpoint.protocol;
    bytes
}

fn socket_key(slot: u16, queue: u32) -> Result<[u8; 4], BpfError> {
    let slot = u32::from(slot);
    if slot >= MAX_SLOTS {
        return Err(BpfError::OutOfRange { what: "ENI slot", value: slot, maximum: MAX_SLOTS - 1 });
    }
    if queue >= MAX_QUEUES {
        return Err(BpfError::OutOfRange { what: "queue", value: queue, maximum: MAX_QUEUES - 1 });
    }
    Ok((slot * MAX_QUEUES + queue).to_ne_bytes())
}

impl Programs {
    /// Says what the node is. Takes effect at once on every interface.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_config(&self, config: &Config) -> Result<(), BpfError> {
        let mut raw = RawConfig::read(&self.maps.config)?;
        raw.nat_ip = config.nat_ip.octets();
        raw.trunk_ifindex = config.trunk_ifindex;
        raw.flags &= !ON_FAILURE_KERNEL;
        raw.flags |= if config.on_failure_kernel { ON_FAILURE_KERNEL } else { 0 };
        raw.write(&self.maps.config)
    }

    /// The configuration in force; the unspecified address while nothing was set.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn config(&self) -> Result<Config, BpfError> {
        let raw = RawConfig::read(&self.maps.config)?;
        Ok(Config {
            nat_ip: Ipv4Addr::from(raw.nat_ip),
            trunk_ifindex: raw.trunk_ifindex,
            on_failure_kernel: raw.flags & ON_FAILURE_KERNEL != 0,
        })
    }

    /// The mark by which our programs know what the engine sends through the trunk. It never leaves them.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn mark(&self) -> Result<u32, BpfError> {
        Ok(RawConfig::read(&self.maps.config)?.mark)
    }

    /// The source address of what is handed back to the kernel on an ENI.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn handback_mac(&self) -> Result<[u8; 6], BpfError> {
        Ok(RawConfig::read(&self.maps.config)?.handback_mac)
    }

    /// Says that the engine is alive and will say so again within `valid`. Asked for what may be the node's own, and for
    /// pods' packets with [`Config::on_failure_kernel`]; otherwise a trunk that nobody reads drops by itself. A process that
    /// never calls this is taken to be alive.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn keep_alive(&self, valid: Duration) -> Result<(), BpfError> {
        // CLOCK_MONOTONIC cannot fail on Linux; 0 would say "no heartbeat".
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let until = u64::try_from((now + valid).as_nanos()).unwrap_or(u64::MAX).max(1);
        self.maps.heartbeat.put(&0u32.to_ne_bytes(), &until.to_ne_bytes())
    }

    /// Says which TCP ports, UDP ports and ICMP echo identifiers on the SNAT address are ours: bit `value % 64` of word
    /// `value / 64`.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_ports(
        &self,
        tcp: &[u64; 1024],
        udp: &[u64; 1024],
        icmp: &[u64; 1024],
    ) -> Result<(), BpfError> {
        for (space, words) in [(PORTS_TCP, tcp), (PORTS_UDP, udp), (PORTS_ICMP, icmp)] {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.maps.ports.put(&space.to_ne_bytes(), &bytes)?;
        }
        Ok(())
    }

    /// Makes an interface known, or changes what is known of it.
    ///
    /// # Errors
    /// [`BpfError::OutOfRange`] for an ENI slot beyond the map, [`BpfError::Map`].
    pub fn upsert_link(&self, ifindex: u32, link: &Link) -> Result<(), BpfError> {
        if let LinkKind::Eni { slot } = link.kind {
            socket_key(slot, 0)?;
        }
        self.maps.links.put(&ifindex.to_ne_bytes(), &encode_link(link))
    }

    /// Forgets an interface: what a pod still sends by it is dropped. Not an error when it was not known.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_link(&self, ifindex: u32) -> Result<(), BpfError> {
        self.maps.links.take(&ifindex.to_ne_bytes()).map(drop)
    }

    /// Every interface that is known.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn links(&self) -> Result<Vec<(u32, Link)>, BpfError> {
        let mut links = Vec::new();
        for key in self.maps.links.handle.keys() {
            if let Some(link) = self.maps.links.find(&key)?.as_deref().and_then(decode_link) {
                links.push((u32::from_ne_bytes(array(&key, 0)), link));
            }
        }
        links.sort_unstable_by_key(|&(ifindex, _)| ifindex);
        Ok(links)
    }

    /// Says that an address is a pod's, behind this host veth.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn upsert_pod(&self, ip: Ipv4Addr, ifindex: u32) -> Result<(), BpfError> {
        self.maps.pods.put(&ip.octets(), &ifindex.to_ne_bytes())
    }

    /// Says that an address is no pod's any more. Not an error when it was none.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_pod(&self, ip: Ipv4Addr) -> Result<(), BpfError> {
        self.maps.pods.take(&ip.octets()).map(drop)
    }

    /// Every pod address that is known, with its host veth.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn pods(&self) -> Result<Vec<(Ipv4Addr, u32)>, BpfError> {
        let mut pods = Vec::new();
        for key in self.maps.pods.handle.keys() {
            if let Some(value) = self.maps.pods.find(&key)? {
                pods.push((Ipv4Addr::from(array::<4>(&key, 0)), u32::from_ne_bytes(array(&value, 0))));
            }
        }
        pods.sort_unstable();
        Ok(pods)
    }

    /// Says which addresses are the node's own. Only what changed is written: addresses that stay are never missing.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_local_addresses(&self, addresses: &[Ipv4Addr]) -> Result<(), BpfError> {
        let wanted = addresses.iter().map(Ipv4Addr::octets).collect();
        self.maps.local_addrs.set(&wanted)
    }

    /// Says which of the node's addresses and ports are services for pods: what a pod sends there is the engine's. The
    /// unspecified address stands for any of the node's. Only what changed is written.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_frontends(&self, frontends: &BTreeSet<Endpoint>) -> Result<(), BpfError> {
        let wanted: BTreeSet<[u8; 8]> = frontends.iter().map(encode_endpoint).collect();
        // With the first one a fragment may be a service's, until the last one is gone.
        if !wanted.is_empty() {
            self.set_flag(HAS_FRONTENDS, true)?;
        }
        self.maps.frontends.set(&wanted)?;
        self.set_flag(HAS_FRONTENDS, !wanted.is_empty())
    }

    /// Says which addresses and ports of the node itself are services' endpoints: what the node sends from there into a pod
    /// is the engine's. Only what changed is written.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_node_endpoints(&self, endpoints: &BTreeSet<Endpoint>) -> Result<(), BpfError> {
        let address_of = |endpoint: &Endpoint| Endpoint { port: 0, protocol: 0, ..*endpoint };
        let wanted = endpoints.iter().flat_map(|e| [encode_endpoint(e), encode_endpoint(&address_of(e))]);
        self.maps.node_endpoints.set(&wanted.collect())
    }

    fn set_flag(&self, flag: u32, on: bool) -> Result<(), BpfError> {
        let mut raw = RawConfig::read(&self.maps.config)?;
        let flags = if on { raw.flags | flag } else { raw.flags & !flag };
        if flags == raw.flags {
            return Ok(());
        }
        raw.flags = flags;
        raw.write(&self.maps.config)
    }

    /// Gives an AF_XDP socket the frames of one queue of an ENI. The kernel forgets it when the socket is closed.
    ///
    /// # Errors
    /// [`BpfError::OutOfRange`], [`BpfError::Map`].
    pub fn set_xsk(&self, slot: u16, queue: u32, fd: RawFd) -> Result<(), BpfError> {
        self.maps.xsks.put(&socket_key(slot, queue)?, &fd.to_ne_bytes())
    }

    /// Takes the socket of a queue out again: what is ours on it is dropped from then on.
    ///
    /// # Errors
    /// [`BpfError::OutOfRange`], [`BpfError::Map`].
    pub fn clear_xsk(&self, slot: u16, queue: u32) -> Result<(), BpfError> {
        self.maps.xsks.take(&socket_key(slot, queue)?).map(drop)
    }

    /// Every counter, summed over the CPUs. Each packet that a program sees moves exactly one of them.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, BpfError> {
        let map = &self.maps.counters;
        let mut counters = Vec::with_capacity(TABLE.len());
        for (index, &(name, _)) in (0u32..).zip(TABLE) {
            let per_cpu = map
                .handle
                .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| map.error(format!("read {name}"), source))?;
            let sum =
                per_cpu.unwrap_or_default().iter().map(|value| u64::from_ne_bytes(array(value, 0))).sum();
            counters.push((name, sum));
        }
        Ok(counters)
    }
}

/// Every counter of [`Programs::counters`] with what it means, in the same order.
#[must_use]
pub fn counter_meanings() -> &'static [(&'static str, &'static str)] {
    TABLE
}

/// What a counter of [`Programs::counters`] means, for people.
#[must_use]
pub fn counter_meaning(name: &str) -> Option<&'static str> {
    TABLE.iter().find(|&&(counter, _)| counter == name).map(|&(_, meaning)| meaning)
}
