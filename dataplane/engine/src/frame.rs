//! What a packet is to the engine: bytes that somebody else owns the memory of, where they came from, and what the
//! kernel promised about their checksums and size.
//!
//! The engine never copies a payload and never needs one: the first buffer of a frame holds every header, what follows
//! in further buffers stays where it is. Who owns the memory is the type behind [`Frame`]; the engine moves it, by value,
//! from the input to an output or into one of its bounded waiting rooms, and so cannot lose or double it.

/// A frame's memory, owned.
pub trait Frame {
    /// The first buffer, from the Ethernet header on. It holds all headers that there are.
    fn bytes(&self) -> &[u8];

    /// The first buffer, writable.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Bytes of the whole frame, further buffers included. Never below `bytes().len()`.
    fn len(&self) -> usize;

    /// True for a frame without a byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes to which [`Frame::resize`] can grow the first buffer; at least 1,024 for a frame that a port delivers.
    fn capacity(&self) -> usize;

    /// Cuts or grows the frame to `len` bytes in its first buffer and gives further buffers back. New bytes are
    /// unspecified. `len` above the capacity is cut to it.
    fn resize(&mut self, len: usize);
}

impl Frame for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn capacity(&self) -> usize {
        65_536 + 256
    }

    fn resize(&mut self, len: usize) {
        self.resize(len, 0);
    }
}

/// Where a packet entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// A pod sent it: the index of the host's end of its veth, as tc saw it.
    Pod(u32),
    /// The kernel is forwarding it into a pod (NodePort, hostPort): the index of the host's end of the pod's veth.
    ToPod(u32),
    /// The kernel is sending it by an ENI with a source port or ICMP id of our set: the ENI's interface index.
    Host(u32),
    /// It came from the wire: the ENI's interface index.
    Eni(u32),
    /// A process of the node that may be a service's endpoint sent it to a pod: the index of the host's end of the pod's veth.
    FromNode(u32),
}

impl Ingress {
    /// Index of the interface.
    #[must_use]
    pub fn ifindex(self) -> u32 {
        match self {
            Self::Pod(i) | Self::ToPod(i) | Self::Host(i) | Self::Eni(i) | Self::FromNode(i) => i,
        }
    }
}

/// The kinds of super-packet that the trunk carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GsoKind {
    /// An ordinary packet.
    #[default]
    None,
    /// TCP over IPv4, to be cut into segments.
    Tcp4,
    /// UDP over IPv4, to be cut into datagrams (`UDP_SEGMENT`), never resized.
    Udp4,
}

/// What virtio-net's header says of a packet (virtio 1.2 §5.1.6); all zero for an ordinary packet with full checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The L4 checksum field holds the folded, not complemented sum of the pseudo header only; hardware would complete it.
    pub partial: bool,
    /// Offset from the start of the frame where the sum begins, valid with `partial`.
    pub csum_start: u16,
    /// Offset of the checksum field from there, valid with `partial`.
    pub csum_offset: u16,
    /// How the packet is to be cut.
    pub gso: GsoKind,
    /// Payload bytes of each piece, valid when `gso` is not `None`.
    pub gso_size: u16,
    /// TCP: the CWR flag stands in the first segment only.
    pub ecn: bool,
}

/// One packet on its way in.
#[derive(Debug)]
pub struct Packet<F> {
    /// Its memory.
    pub frame: F,
    /// Where it entered.
    pub ingress: Ingress,
    /// What the kernel promised about it.
    pub offload: Offload,
}
