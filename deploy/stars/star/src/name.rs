//! Names to addresses, by asking the name server itself: a static binary has no use of libc's resolver, and what is
//! asked and answered here is exactly what the demo wants on the wire.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::dns::wire;
use crate::http::Failure;

/// A question that is not answered is asked again after this long.
const AGAIN: Duration = Duration::from_millis(250);

/// Who is asked, and what is tried after a name as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolver {
    server: SocketAddr,
    search: Vec<String>,
}

impl Resolver {
    /// Asks this server, and only for names as they are.
    pub(crate) fn of(server: SocketAddr) -> Self {
        Self { server, search: Vec::new() }
    }

    /// The resolver that a `resolv.conf` describes; none where it names no IPv4 server.
    pub(crate) fn from_config(text: &str) -> Option<Self> {
        let mut server = None;
        let mut search = Vec::new();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|a| a.parse::<Ipv4Addr>().ok());
                    server = server.or(address.map(|a| SocketAddr::new(IpAddr::V4(a), 53)));
                }
                Some("search") => search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        server.map(|server| Self { server, search })
    }

    /// The address of a name, or of what is an address already.
    ///
    /// # Errors
    /// Nobody answers until the deadline, or there is no such name.
    pub(crate) fn address(&self, name: &str, deadline: Instant) -> Result<Ipv4Addr, Failure> {
        if let Ok(address) = name.parse() {
            return Ok(address);
        }
        // `backend.stars` is `backend.stars.svc.cluster.local`: in a cluster every name has few dots, and the search
        // list comes first.
        let longer = self.search.iter().map(|domain| format!("{name}.{domain}"));
        for name in longer.chain([name.to_owned()]) {
            if let Some(address) = self.ask(&name, deadline)? {
                return Ok(address);
            }
        }
        Err(Failure::NoName)
    }

    fn ask(&self, name: &str, deadline: Instant) -> Result<Option<Ipv4Addr>, Failure> {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(question) = wire::question(id, name) else { return Err(Failure::NoName) };
        // A socket of its own, so that each question has a port of its own and no answer of an earlier one.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|_| Failure::NoDns)?;
        socket.connect(self.server).map_err(|_| Failure::NoDns)?;
        let mut buffer = [0; 1500];
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now()).min(AGAIN);
            let asked = socket.set_read_timeout(Some(left.max(Duration::from_millis(1))));
            asked.and_then(|()| socket.send(&question)).map_err(|_| Failure::NoDns)?;
            // What is not the answer to this question is as good as none.
            let Ok(n) = socket.recv(&mut buffer) else { continue };
            if let Some(found) = wire::answer(id, &buffer[..n]) {
                return Ok(found);
            }
        }
        Err(Failure::NoDns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_resolv_conf_is_understood() {
        let text = "search stars.svc.cluster.local svc.cluster.local\nnameserver fd00::1\nnameserver 10.100.0.10\noptions ndots:5\n";
        let resolver = Resolver::from_config(text).unwrap();
        assert_eq!(resolver.server.to_string(), "10.100.0.10:53");
        assert_eq!(resolver.search, ["stars.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(Resolver::from_config("search x\n"), None);
    }

    #[test]
    fn an_address_needs_no_server() {
        let nobody = Resolver::of("127.0.0.1:9".parse().unwrap());
        let found = nobody.address("10.0.1.10", Instant::now()).unwrap();
        assert_eq!(found, Ipv4Addr::new(10, 0, 1, 10));
        assert_eq!(nobody.address("backend", Instant::now()), Err(Failure::NoDns));
    }
}
