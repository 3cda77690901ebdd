//! Limits of instance types, as DescribeInstanceTypes tells them: a few of each kind that an allocator meets (burstable,
//! usual, many interfaces, several network cards, Xen). The product has a table of its own; this one must not be made from it.

/// What EC2 allows an instance of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Name, such as `m5.large`.
    pub name: &'static str,
    /// Most ENIs, over all cards.
    pub interfaces: u32,
    /// Most IPv4 slots of one ENI: the primary address, each secondary address and each prefix takes one.
    pub addresses: u32,
    /// `nitro` or `xen`; Xen knows no prefixes.
    pub hypervisor: &'static str,
    /// Most ENIs of each network card.
    pub cards: &'static [u32],
}

const fn nitro(name: &'static str, interfaces: u32, addresses: u32, cards: &'static [u32]) -> Shape {
    Shape { name, interfaces, addresses, hypervisor: "nitro", cards }
}

const fn xen(name: &'static str, interfaces: u32, addresses: u32, cards: &'static [u32]) -> Shape {
    Shape { name, interfaces, addresses, hypervisor: "xen", cards }
}

/// Every type that the world can run.
pub const SHAPES: &[Shape] = &[
    nitro("t3.nano", 2, 2, &[2]),
    nitro("t3.micro", 2, 2, &[2]),
    nitro("t3.small", 3, 4, &[3]),
    nitro("t3.medium", 3, 6, &[3]),
    nitro("t3.large", 3, 12, &[3]),
    nitro("m5.large", 3, 10, &[3]),
    nitro("m5.xlarge", 4, 15, &[4]),
    nitro("m5.2xlarge", 4, 15, &[4]),
    nitro("m5.4xlarge", 8, 30, &[8]),
    nitro("m5.8xlarge", 8, 30, &[8]),
    nitro("m5.24xlarge", 15, 50, &[15]),
    nitro("c5.large", 3, 10, &[3]),
    nitro("c5.4xlarge", 8, 30, &[8]),
    nitro("m6g.large", 3, 10, &[3]),
    nitro("c6in.32xlarge", 16, 50, &[8, 8]),
    nitro("p4d.24xlarge", 60, 50, &[15, 15, 15, 15]),
    xen("t2.medium", 3, 6, &[3]),
    xen("m4.large", 2, 10, &[2]),
    xen("m4.xlarge", 4, 15, &[4]),
];

/// The limits of a type.
#[must_use]
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|s| s.name == name)
}
