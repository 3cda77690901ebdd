//! What answers in the lab: on every pod, the node and every host an echo, a service that tells its client which address
//! it sees, and on the IMDS address a little HTTP. One process, a thread for each namespace.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::record::{Paths, Record};
use super::topology::{IMDS, Topology};
use crate::netns::Netns;

/// TCP and UDP: what comes goes back (RFC 862).
pub(crate) const ECHO: u16 = 7;
/// TCP and UDP: the first line says which address and port the client is seen as. TCP then echoes; a UDP answer is as long
/// as its question, filled up with the rest of it.
pub(crate) const PEER: u16 = 8;
/// HTTP on the IMDS address; `/peer` says which address the client is seen as.
pub(crate) const HTTP: u16 = 80;

/// How this program is called to serve; the lab's name follows.
pub(crate) const SERVER_ARGS: [&str; 2] = ["lab-server", "--name"];

/// A client that says nothing for this long is let go.
const IDLE: Duration = Duration::from_secs(300);

/// Serves until it is killed. Says `ready` once every socket listens.
///
/// # Errors
/// The lab has no record, or a socket cannot be opened.
pub(crate) fn serve(lab: &str) -> Result<()> {
    let plan = Record::read(&Paths::new(lab))?.topology;
    let mut threads = Vec::new();
    for (namespace, addresses) in places(&plan) {
        let netns = Netns::open(&namespace)?;
        let sockets = netns.within(|| Sockets::open(&addresses))?;
        let page = Page { plan: plan.clone() };
        let thread = std::thread::Builder::new().name(namespace).stack_size(256 * 1024);
        threads.push(thread.spawn(move || sockets.serve(&page)).context("cannot start a thread")?);
    }
    println!("ready");
    std::io::stdout().flush()?;
    for thread in threads {
        // A thread ends only when its sockets fail, which a lab that goes away makes them do.
        let _ = thread.join();
    }
    Ok(())
}

/// Every namespace with the addresses to serve on: one UDP socket each, or the answer would not come from where the
/// question went.
fn places(plan: &Topology) -> Vec<(String, Vec<Ipv4Addr>)> {
    let node = (plan.node.clone(), plan.enis.iter().map(|e| e.address).collect());
    let pods = plan.pods.iter().map(|p| (p.namespace.clone(), vec![p.address]));
    let hosts = plan.hosts.iter().map(|h| (h.namespace.clone(), vec![h.address]));
    std::iter::once(node).chain(pods).chain(hosts).collect()
}

struct Sockets {
    udp: Vec<(UdpSocket, u16)>,
    tcp: Vec<(TcpListener, u16)>,
}

impl Sockets {
    fn open(addresses: &[Ipv4Addr]) -> Result<Self> {
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new() };
        for address in addresses {
            for port in [ECHO, PEER] {
                let at = SocketAddr::from((*address, port));
                let udp = UdpSocket::bind(at).with_context(|| format!("cannot listen on {at}/udp"))?;
                udp.set_nonblocking(true)?;
                sockets.udp.push((udp, port));
                sockets.listen(at)?;
            }
            if *address == IMDS {
                sockets.listen(SocketAddr::from((*address, HTTP)))?;
            }
        }
        Ok(sockets)
    }

    fn listen(&mut self, at: SocketAddr) -> Result<()> {
        let tcp = TcpListener::bind(at).with_context(|| format!("cannot listen on {at}/tcp"))?;
        tcp.set_nonblocking(true)?;
        self.tcp.push((tcp, at.port()));
        Ok(())
    }

    fn serve(&self, page: &Page) {
        let fds = self.udp.iter().map(|(s, _)| s.as_fd()).chain(self.tcp.iter().map(|(s, _)| s.as_fd()));
        let mut polled: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        loop {
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            for (socket, port) in &self.udp {
                answer_datagrams(socket, *port);
            }
            for (listener, port) in &self.tcp {
                while let Ok((stream, peer)) = listener.accept() {
                    let (page, port) = (page.clone(), *port);
                    let thread = std::thread::Builder::new().stack_size(256 * 1024);
                    // Without a thread the connection is closed: the client sees it.
                    let _ = thread.spawn(move || answer_stream(stream, peer, port, &page));
                }
            }
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, port: u16) {
    let mut buffer = vec![0_u8; 65_536];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
        let answer = &mut buffer[..len];
        if port == PEER {
            let line = format!("{peer}\n");
            if let Some(head) = answer.get_mut(..line.len()) {
                head.copy_from_slice(line.as_bytes());
            }
        }
        // A datagram that cannot be sent is lost, as datagrams are.
        let _ = socket.send_to(answer, peer);
    }
}

fn answer_stream(mut stream: TcpStream, peer: SocketAddr, port: u16, page: &Page) {
    let served = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(IDLE)))
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| match port {
            HTTP => page.answer(&mut stream, peer),
            PEER => stream.write_all(format!("{peer}\n").as_bytes()).and_then(|()| echo(&mut stream)),
            _ => echo(&mut stream),
        });
    // A client that goes away in the middle is its own affair.
    let _ = served;
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 65_536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// The pages of the IMDS stand-in: those that VPC CNI reads, and `/peer`.
#[derive(Clone)]
struct Page {
    plan: Topology,
}

impl Page {
    fn answer(&self, stream: &mut TcpStream, peer: SocketAddr) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?.take(16 * 1024));
        let mut request = String::new();
        reader.read_line(&mut request)?;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
        }
        let mut words = request.split_ascii_whitespace();
        let body = match (words.next(), words.next()) {
            (Some("PUT"), Some("/latest/api/token")) => Some("lab-token".to_owned()),
            (Some("GET"), Some("/peer")) => Some(peer.to_string()),
            (Some("GET"), Some(path)) => self.metadata(path.trim_end_matches('/')),
            _ => None,
        };
        let (status, body) = body.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())
    }

    fn metadata(&self, path: &str) -> Option<String> {
        let path = path.strip_prefix("/latest/meta-data")?.trim_start_matches('/');
        let primary = self.plan.enis.iter().find(|e| e.primary)?;
        match path {
            "" => Some("local-ipv4\nmac\nnetwork/\n".into()),
            "local-ipv4" => Some(primary.address.to_string()),
            "mac" => Some(primary.mac.to_string()),
            "network/interfaces/macs" => {
                Some(self.plan.enis.iter().map(|e| format!("{}/\n", e.mac)).collect::<String>())
            }
            _ => self.interface(path.strip_prefix("network/interfaces/macs/")?),
        }
    }

    fn interface(&self, path: &str) -> Option<String> {
        let (mac, leaf) = path.split_once('/')?;
        let (number, eni) = (0..).zip(&self.plan.enis).find(|(_, e): &(u32, _)| e.mac.to_string() == mac)?;
        match leaf {
            "device-number" => Some(number.to_string()),
            "subnet-ipv4-cidr-block" => Some(eni.subnet.to_string()),
            "vpc-ipv4-cidr-blocks" => Some(lines(&super::options::vpc_cidrs())),
            "local-ipv4s" => Some(lines(&self.plan.owned(eni))),
            _ => None,
        }
    }
}

fn lines<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
