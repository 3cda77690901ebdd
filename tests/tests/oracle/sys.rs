//! Network namespaces and packet sockets: the one place of this test with `unsafe` in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Named namespaces of this process, deleted when dropped.
pub(crate) struct Namespaces {
    prefix: String,
    names: Vec<String>,
}

impl Namespaces {
    /// Makes namespaces; their names begin with this process's own prefix.
    pub(crate) fn new(names: &[&str]) -> Result<Self> {
        let mut made = Self { prefix: format!("slt{}o", std::process::id()), names: Vec::new() };
        for name in names {
            let full = made.name(name);
            run(&["ip", "netns", "add", &full])?;
            made.names.push(full);
        }
        Ok(made)
    }

    /// Full name of a namespace.
    pub(crate) fn name(&self, short: &str) -> String {
        format!("{}{short}", self.prefix)
    }

    /// Runs a command line, split at blanks, in a namespace; its output.
    pub(crate) fn exec(&self, short: &str, line: &str) -> Result<String> {
        let name = self.name(short);
        let mut words = vec!["ip", "netns", "exec", &name];
        words.extend(line.split_whitespace());
        run(&words)
    }

    /// A packet socket on an interface of a namespace.
    pub(crate) fn packet_socket(&self, short: &str, interface: &str) -> Result<PacketSocket> {
        let path = format!("/var/run/netns/{}", self.name(short));
        let interface = interface.to_owned();
        // A thread of its own goes there and never comes back; the socket stays in the namespace it was made in.
        let made = std::thread::spawn(move || {
            let namespace = File::open(&path).with_context(|| path.clone())?;
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).context("setns")?;
            PacketSocket::open(&interface)
        });
        made.join().map_err(|_| anyhow::anyhow!("the thread that opens a packet socket died"))?
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = run(&["ip", "netns", "delete", name]) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// Runs a command and gives its standard output.
pub(crate) fn run(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| words.join(" "))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {}", words.join(" "), error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sees what an interface receives, and sends by it.
pub(crate) struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    fn open(interface: &str) -> Result<Self> {
        let ifindex = nix::net::if_::if_nametoindex(interface).with_context(|| interface.to_owned())?;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed; the result is checked before it is used.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            bail!("packet socket: {}", io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_IP as u16).to_be(),
            sll_ifindex: i32::try_from(ifindex).context("interface index")?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = size_of_val(&address) as u32;
        // SAFETY: the pointer is to a whole sockaddr_ll that lives through the call, and the size is its own.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) };
        ensure!(bound == 0, "bind to {interface}: {}", io::Error::last_os_error());
        Ok(Self { fd })
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let flags = nix::sys::socket::MsgFlags::empty();
        let sent = nix::sys::socket::send(self.fd.as_raw_fd(), frame, flags).context("send")?;
        ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
        Ok(())
    }

    /// The next frame, if one is there.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 70_000];
        match nix::unistd::read(&self.fd, &mut buffer) {
            Ok(len) => Ok(Some(buffer[..len].to_vec())),
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("receive"),
        }
    }

    /// The frames up to one that `is_last` knows, without it; two seconds at most.
    pub(crate) fn until(&self, is_last: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + Duration::from_secs(2);
        let mut frames = Vec::new();
        loop {
            match self.receive()? {
                Some(frame) if is_last(&frame) => return Ok(frames),
                Some(frame) => frames.push(frame),
                None if Instant::now() > end => {
                    bail!("the marker did not come within two seconds; {} frames before it", frames.len())
                }
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }
}
