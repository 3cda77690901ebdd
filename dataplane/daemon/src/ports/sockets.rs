//! The sockets of this network namespace, as `/proc/net/{tcp,udp}{,6}` list them.

use std::net::Ipv4Addr;
use std::{fs, io};

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A socket that holds a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Its protocol.
    pub protocol: Protocol,
    /// The local IPv4 address, unspecified for every address; `None` for one that is bound to an IPv6 address.
    pub address: Option<Ipv4Addr>,
    /// The local port.
    pub port: u16,
}

impl Socket {
    /// Whether it holds its port on the node's address. When that is not known, every address counts.
    #[must_use]
    pub fn concerns(&self, node: Option<Ipv4Addr>) -> bool {
        match (self.address, node) {
            (None, _) => false,
            (Some(own), None) => !own.is_loopback(),
            (Some(own), Some(node)) => own.is_unspecified() || own == node,
        }
    }
}

/// Reads all four lists. A kernel without IPv6 has only two.
pub(super) fn read() -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (file, protocol) in
        [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("tcp6", Protocol::Tcp), ("udp6", Protocol::Udp)]
    {
        match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => sockets.extend(text.lines().skip(1).filter_map(|line| parse(line, protocol))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// One line: `sl local_address rem_address st ...`, addresses as `0100007F:0016`, in the machine's byte order.
fn parse(line: &str, protocol: Protocol) -> Option<Socket> {
    const TIME_WAIT: &str = "06";
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let port = u16::from_str_radix(port, 16).ok().filter(|port| *port > 0)?;
    // A connection in TIME_WAIT holds no port against a new one, and there may be thousands.
    if protocol == Protocol::Tcp && state == TIME_WAIT {
        return None;
    }
    Some(Socket { protocol, address: ipv4(address), port })
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok();
    let last = match text.len() {
        8 => word(0)?,
        32 => {
            let upper = [word(0)?, word(8)?, word(16)?];
            let mapped = [0, 0, 0xffff_u32.to_be()];
            let last = word(24)?;
            // `::` takes IPv4 packets too unless IPV6_V6ONLY is set, which is not shown here: the port counts as taken.
            if upper != mapped && (upper != [0; 3] || last != 0) {
                return None;
            }
            last
        }
        _ => return None,
    };
    Some(Ipv4Addr::from(last.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn lines_of_both_families_are_read() {
        let at = |line: &str| parse(line, Protocol::Tcp);
        let v4 = "   0: 0100007F:2710 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 0 1";
        assert_eq!(
            at(v4).unwrap(),
            Socket { protocol: Protocol::Tcp, address: Some(Ipv4Addr::LOCALHOST), port: 10_000 }
        );
        let any6 = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0";
        assert_eq!(at(any6).unwrap().address, Some(Ipv4Addr::UNSPECIFIED));
        let mapped =
            "   0: 0000000000000000FFFF00000509000A:0050 0000000000000000FFFF000001020304:0001 01 0:0";
        assert_eq!(at(mapped).unwrap().address, Some(Ipv4Addr::new(10, 0, 9, 5)));
        let v6 = "   0: 000080FE00000000FF005450:0050 0:0 0A 0:0";
        assert_eq!(at(v6).unwrap().address, None);
        assert_eq!(at("   0: 0100007F:2710 0100007F:0001 06 0:0"), None, "TIME_WAIT");
        assert_eq!(at("nonsense"), None);
    }

    #[test]
    fn sockets_of_this_process_are_found() {
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let all = read().unwrap();
        let (tcp, udp) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let node = Some(Ipv4Addr::new(10, 0, 9, 5));
        assert!(all.iter().any(|s| s.protocol == Protocol::Tcp && s.port == tcp && s.concerns(node)));
        let bound = all.iter().find(|s| s.protocol == Protocol::Udp && s.port == udp).unwrap();
        assert!(!bound.concerns(node), "a loopback address is not the node's");
    }
}
