//! A thread that sends the load from inside a namespace, at a rate or flat out.
//!
//! AF_PACKET with `sendmmsg` gives the node the same skbs that a pod's own sockets would, for about a third of the cost.
//! What a veth's other end does with a packet runs inside the sender's system call, so the generator's own CPU time is
//! *not* the generator's cost: that is measured apart, with a sink at the first interface of the node
//! ([`crate::forwarding`]), and taken off.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::frame::{Checksums, Template};
use crate::cpus;
use crate::netns;
use crate::sys::{self, BATCH, PacketSocket};

/// virtio-net header that says: complete the checksum of the UDP header behind Ethernet and IPv4.
const NEEDS_CHECKSUM: [u8; 10] = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0];

/// Packets sent between two looks at the clock when there is a rate: small, so that no queue sees a burst.
const PACED_BATCH: usize = 32;

/// What to send, from where.
#[derive(Debug, Clone)]
pub struct Load {
    /// Namespace that sends.
    pub namespace: String,
    /// Interface in there.
    pub interface: String,
    /// Length of the frames, Ethernet header included, in bytes.
    pub length: usize,
    /// Ethernet address of the sender.
    pub source_mac: [u8; 6],
    /// Ethernet address of the next hop.
    pub destination_mac: [u8; 6],
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source and destination port of each flow; sent in turn, one packet each.
    pub ports: Arc<[(u16, u16)]>,
    /// What the checksum fields hold.
    pub checksums: Checksums,
    /// Packets per second; `None` is flat out.
    pub rate: Option<f64>,
    /// Packets after which it ends by itself.
    pub limit: Option<u64>,
    /// CPUs that it may run on; none: all.
    pub cpus: Vec<usize>,
}

/// A generator at work.
#[derive(Debug)]
pub struct Generator {
    /// `None` once it was joined.
    thread: Option<JoinHandle<Result<()>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    refused: AtomicU64,
    thread: AtomicU32,
}

/// What a generator did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Packets that the kernel took.
    pub packets: u64,
    /// Packets that it refused at once: the queue behind the interface was full.
    pub refused: u64,
}

impl Load {
    /// Starts sending.
    ///
    /// # Errors
    /// The namespace or the interface does not exist, or a capability is missing.
    pub fn start(self) -> Result<Generator> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let namespace = self.namespace.clone();
        let thread = netns::spawn(&namespace, "generator", move || self.run(&theirs))?;
        Ok(Generator { thread: Some(thread), shared })
    }

    fn run(self, shared: &Shared) -> Result<()> {
        shared.thread.store(sys::thread_id(), Ordering::Release);
        sys::precise_sleep();
        if !self.cpus.is_empty() {
            cpus::keep(0, &self.cpus)
                .with_context(|| format!("cannot keep the generator on CPUs {:?}", self.cpus))?;
        }
        let partial = self.checksums == Checksums::Partial;
        let socket = if partial {
            PacketSocket::sender_with_offload(&self.interface)
        } else {
            PacketSocket::sender(&self.interface)
        }
        .with_context(|| format!("the generator cannot send by {} in {}", self.interface, self.namespace))?;

        let template = Template::new(self.length, self.source_mac, self.destination_mac, self.checksums)
            .addressed(self.source, self.destination);
        let prefix = if partial { NEEDS_CHECKSUM.len() } else { 0 };
        let stride = prefix + template.length();
        let mut frames = vec![0; stride * BATCH];
        for frame in frames.chunks_exact_mut(stride) {
            frame[..prefix].copy_from_slice(&NEEDS_CHECKSUM[..prefix]);
            template.lay(&mut frame[prefix..]);
        }

        let mut pace = self.rate.map(Pace::new);
        let batch = if pace.is_some() { PACED_BATCH } else { BATCH };
        let (mut flow, mut left) = (0_usize, self.limit.unwrap_or(u64::MAX));
        while left > 0 && !shared.stop.load(Ordering::Relaxed) {
            let count = batch.min(usize::try_from(left).unwrap_or(usize::MAX));
            for frame in frames.chunks_exact_mut(stride).take(count) {
                let (source_port, destination_port) = self.ports[flow];
                template.write(&mut frame[prefix..], source_port, destination_port, flow as u32);
                flow = if flow + 1 == self.ports.len() { 0 } else { flow + 1 };
            }
            let mut at = 0;
            while at < count {
                match socket.send(&frames[at * stride..count * stride], stride) {
                    Ok(sent) => {
                        shared.sent.fetch_add(sent as u64, Ordering::Relaxed);
                        at += sent;
                    }
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                        shared.refused.fetch_add(1, Ordering::Relaxed);
                        at += 1;
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e).context("the generator's interface went away"),
                }
            }
            left -= count as u64;
            if let Some(pace) = &mut pace {
                pace.wait(count);
            }
        }
        Ok(())
    }
}

impl Generator {
    /// Number of its thread; 0 until it runs.
    #[must_use]
    pub fn thread_id(&self) -> u32 {
        self.shared.thread.load(Ordering::Acquire)
    }

    /// What it has sent so far.
    #[must_use]
    pub fn sent(&self) -> Sent {
        Sent {
            packets: self.shared.sent.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    /// True once it has ended by itself: its limit is reached, or it failed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it, if it has not ended by itself, and gives what it sent.
    ///
    /// # Errors
    /// What stopped it earlier.
    pub fn stop(mut self) -> Result<Sent> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), netns::join)?;
        Ok(self.sent())
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Spreads packets over time.
#[derive(Debug)]
struct Pace {
    interval: f64,
    due: Instant,
}

impl Pace {
    /// What a sender may be late and still catch up. More than that was lost, and a burst would not bring it back.
    const PATIENCE: Duration = Duration::from_millis(5);

    fn new(rate: f64) -> Self {
        Self { interval: 1.0 / rate.max(1.0), due: Instant::now() }
    }

    fn wait(&mut self, packets: usize) {
        self.due += Duration::from_secs_f64(self.interval * packets as f64);
        let now = Instant::now();
        match self.due.checked_duration_since(now) {
            Some(early) => std::thread::sleep(early),
            None if now - self.due > Self::PATIENCE => self.due = now,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(100_000.0);
        (0..100).for_each(|_| pace.wait(32));
        let seconds = start.elapsed().as_secs_f64();
        assert!((0.030..0.5).contains(&seconds), "3200 packets at 100 kpps took {seconds} s");
    }
}
