//! The filter of `sluice capture`, a small part of pcap-filter(7) that knows translation.
//!
//! ```text
//! EXPR  := TERM { ("or" | "||") TERM }
//! TERM  := UNARY { ["and" | "&&"] UNARY }
//! UNARY := ("not" | "!") UNARY | "(" EXPR ")" | ATOM
//! ATOM  := [ "src" | "dst" ] ( "host" ADDRESS | "net" CIDR | "port" PORT | "portrange" FIRST-LAST )
//!        | [ "src" | "dst" ] ADDRESS | "proto" PROTOCOL | "tcp" | "udp" | "icmp" | "sctp"
//! ```
//!
//! `host`, `net` and `port` hold for a packet when they hold for its own addresses **or for its flow's on the other side of
//! the translation**: `host 10.0.1.10` shows a pod's packets on the ENI too, where they carry the node's address.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnet::Ipv4Net;

use super::protocol_number;

/// A parsed filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// One of them holds.
    Or(Box<Self>, Box<Self>),
    /// Both hold.
    And(Box<Self>, Box<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// An address lies in the network.
    Net(Side, Ipv4Net),
    /// A port (for ICMP echo: the identifier) lies in the range.
    Port(Side, RangeInclusive<u16>),
    /// The IP protocol has this number.
    Protocol(u8),
}

/// Which end an atom looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// Either.
    Either,
}

/// A packet as a filter sees it: its protocol, and its ends on this and on the other side of the translation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    protocol: Option<u8>,
    ends: Vec<Ends>,
}

/// Two ends, the sender's first; a port that is not there (a later fragment) matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    addresses: [Ipv4Addr; 2],
    ports: [Option<u16>; 2],
}

impl View {
    /// Reads a frame, and the mapping of its flow as a capture record tells it.
    #[must_use]
    pub fn new(frame: &[u8], mapping: Option<&str>) -> Self {
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return Self::default() };
        let Some(LaxNetSlice::Ipv4(ip)) = packet.net else { return Self::default() };
        let header = ip.header();
        let own = Ends {
            addresses: [header.source_addr(), header.destination_addr()],
            ports: packet.transport.as_ref().map_or([None; 2], ports),
        };
        let mut view = Self { protocol: Some(header.protocol().0), ends: vec![own] };
        view.ends.extend(mapping.and_then(mapped).into_iter().flat_map(|sides| oriented(sides, own)));
        view
    }

    /// Where it comes from and goes to, as text.
    #[must_use]
    pub fn summary(&self) -> String {
        let (Some(ends), Some(protocol)) = (self.ends.first(), self.protocol) else {
            return "not IPv4".into();
        };
        let end = |i: usize| match ends.ports[i] {
            Some(port) => format!("{}:{port}", ends.addresses[i]),
            None => ends.addresses[i].to_string(),
        };
        format!("{} > {} {}", end(0), end(1), super::protocol_name(protocol))
    }
}

fn ports(transport: &TransportSlice<'_>) -> [Option<u16>; 2] {
    match transport {
        TransportSlice::Tcp(tcp) => [Some(tcp.source_port()), Some(tcp.destination_port())],
        TransportSlice::Udp(udp) => [Some(udp.source_port()), Some(udp.destination_port())],
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            etherparse::Icmpv4Type::EchoRequest(echo) | etherparse::Icmpv4Type::EchoReply(echo) => {
                [Some(echo.id); 2]
            }
            _ => [None; 2],
        },
        TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => [None; 2],
    }
}

/// `10.0.1.10:40000 > 203.0.113.9:80 as 10.0.9.5:2345 > 203.0.113.9:80`: the flow before and after translation.
fn mapped(text: &str) -> Option<[Ends; 2]> {
    let (original, translated) = text.split_once(" as ")?;
    Some([ends(original)?, ends(translated)?])
}

fn ends(text: &str) -> Option<Ends> {
    let (from, to) = text.split_once(" > ")?;
    let end = |text: &str| {
        let (address, port) = text.trim().rsplit_once(':')?;
        Some((address.parse().ok()?, port.parse().ok()?))
    };
    let ((from, sport), (to, dport)) = (end(from)?, end(to)?);
    Some(Ends { addresses: [from, to], ports: [Some(sport), Some(dport)] })
}

/// The flow's two sides in the packet's direction: a mapping is told in its originator's.
fn oriented(sides: [Ends; 2], own: Ends) -> [Ends; 2] {
    let reversed =
        |e: Ends| Ends { addresses: [e.addresses[1], e.addresses[0]], ports: [e.ports[1], e.ports[0]] };
    let backwards = sides.iter().any(|side| reversed(*side).addresses == own.addresses)
        && !sides.iter().any(|side| side.addresses == own.addresses);
    if backwards { sides.map(reversed) } else { sides }
}

impl Filter {
    /// Whether the filter holds for a packet.
    #[must_use]
    pub fn matches(&self, view: &View) -> bool {
        match self {
            Self::Or(a, b) => a.matches(view) || b.matches(view),
            Self::And(a, b) => a.matches(view) && b.matches(view),
            Self::Not(a) => !a.matches(view),
            Self::Protocol(number) => view.protocol == Some(*number),
            Self::Net(side, net) => view.ends.iter().any(|e| side.any(e.addresses, |a| net.contains(&a))),
            Self::Port(side, range) => {
                view.ends.iter().any(|e| side.any(e.ports, |p| p.is_some_and(|p| range.contains(&p))))
            }
        }
    }
}

impl Side {
    fn any<T: Copy>(self, ends: [T; 2], holds: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Source => holds(ends[0]),
            Self::Destination => holds(ends[1]),
            Self::Either => holds(ends[0]) || holds(ends[1]),
        }
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let spaced = ["(", ")", "!", "&&", "||"]
            .iter()
            .fold(text.to_owned(), |text, sign| text.replace(sign, &format!(" {sign} ")));
        let words: Vec<_> = spaced.split_whitespace().collect();
        let mut parser = Parser { words: &words, depth: 0 };
        let filter = parser.expression()?;
        match parser.words.first() {
            None => Ok(filter),
            Some(word) => {
                Err(format!("`{word}` was not expected here; join conditions by and, or, not, ( and )"))
            }
        }
    }
}

/// Nesting that no human writes, and a bound on the stack.
const DEPTH: usize = 64;

struct Parser<'a> {
    words: &'a [&'a str],
    depth: usize,
}

impl Parser<'_> {
    fn expression(&mut self) -> Result<Filter, String> {
        let mut filter = self.term()?;
        while self.take(&["or", "||"]) {
            filter = Filter::Or(Box::new(filter), Box::new(self.term()?));
        }
        Ok(filter)
    }

    fn term(&mut self) -> Result<Filter, String> {
        let mut filter = self.unary()?;
        loop {
            let joined = self.take(&["and", "&&"]);
            let ends = matches!(self.words.first(), None | Some(&("or" | "||" | ")")));
            if !joined && ends {
                return Ok(filter);
            }
            filter = Filter::And(Box::new(filter), Box::new(self.unary()?));
        }
    }

    fn unary(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(format!("the filter is nested deeper than {DEPTH}"));
        }
        let filter = if self.take(&["not", "!"]) {
            self.unary().map(|f| Filter::Not(Box::new(f)))
        } else if self.take(&["("]) {
            let inner = self.expression()?;
            if self.take(&[")"]) { Ok(inner) } else { Err("a `)` is missing".into()) }
        } else {
            self.atom()
        };
        self.depth -= 1;
        filter
    }

    fn atom(&mut self) -> Result<Filter, String> {
        let side = if self.take(&["src"]) {
            Side::Source
        } else if self.take(&["dst"]) {
            Side::Destination
        } else {
            Side::Either
        };
        let word =
            self.next("a condition: host, net, port, portrange, proto, tcp, udp, icmp or an address")?;
        match word {
            "host" | "net" => super::flows::net(self.next("an address")?).map(|net| Filter::Net(side, net)),
            "port" => {
                let text = self.next("a port")?;
                let port = text.parse().map_err(|_| format!("`{text}` is no port: 0 to 65535"))?;
                Ok(Filter::Port(side, port..=port))
            }
            "portrange" => {
                let range: sluice_state::PortRange = self.next("FIRST-LAST")?.parse()?;
                Ok(Filter::Port(side, range.first..=range.last))
            }
            "proto" if side == Side::Either => protocol_number(self.next("a protocol")?).map(Filter::Protocol),
            "tcp" | "udp" | "icmp" | "sctp" if side == Side::Either => protocol_number(word).map(Filter::Protocol),
            other => super::flows::net(other).map(|net| Filter::Net(side, net)).map_err(|_| {
                format!("`{other}` is no condition: host, net, port, portrange, proto, tcp, udp, icmp or an address")
            }),
        }
    }

    fn take(&mut self, signs: &[&str]) -> bool {
        let Some((first, rest)) = self.words.split_first() else { return false };
        let taken = signs.contains(first);
        if taken {
            self.words = rest;
        }
        taken
    }

    fn next(&mut self, expected: &str) -> Result<&str, String> {
        let (first, rest) = self
            .words
            .split_first()
            .ok_or_else(|| format!("the filter ends where {expected} should follow"))?;
        self.words = rest;
        Ok(first)
    }
}

#[cfg(test)]
mod tests;
