//! A capture file as a port: what it holds is received, what is sent goes into another file.

use std::io::{self, Write};
use std::os::fd::RawFd;

use sluice_engine::{Drop as Reason, Frame, Ingress, Offload, Packet, Verdict};

use super::reader::{PcapError, PcapReader, Recorded};
use super::writer::{Direction, PcapngWriter, Record};
use crate::{IoFrame, Port, PortStats};

/// Reads packets from a file and writes what is sent, with the verdict as a comment, one interface for each way out.
///
/// A packet that was captured short is skipped and counted: its checksum could not be right.
pub struct PcapPort<W> {
    reader: PcapReader,
    ahead: Option<Recorded>,
    ingress: Box<dyn Fn(usize) -> Ingress + Send>,
    writer: PcapngWriter<W>,
    outputs: Vec<(Verdict, u32)>,
    time: u64,
    error: Option<PcapError>,
    scratch: Vec<u8>,
    rx_packets: u64,
    rx_short: u64,
    tx_packets: u64,
}

impl<W: Write + Send> PcapPort<W> {
    /// Reads from `reader`, the packets of its interface `n` entering at `ingress(n)`, and writes to `writer`.
    pub fn new(
        reader: PcapReader,
        ingress: impl Fn(usize) -> Ingress + Send + 'static,
        writer: PcapngWriter<W>,
    ) -> Self {
        Self {
            reader,
            ahead: None,
            ingress: Box::new(ingress),
            writer,
            outputs: Vec::new(),
            time: 0,
            error: None,
            scratch: Vec::new(),
            rx_packets: 0,
            rx_short: 0,
            tx_packets: 0,
        }
    }

    /// When the next packet was captured, in nanoseconds since 1970; `None` at the end or after an error.
    pub fn next_time(&mut self) -> Option<u64> {
        self.look_ahead();
        self.ahead.as_ref().map(|packet| packet.time)
    }

    /// What ended reading or writing early, if something did.
    pub fn error(&self) -> Option<&PcapError> {
        self.error.as_ref()
    }

    /// The writer, with everything sent.
    pub fn into_writer(self) -> PcapngWriter<W> {
        self.writer
    }

    fn look_ahead(&mut self) {
        while self.ahead.is_none() && self.error.is_none() {
            match self.reader.next_packet() {
                Ok(Some(packet)) if packet.data.len() < packet.original_len => self.rx_short += 1,
                Ok(Some(packet)) => self.ahead = Some(packet),
                Ok(None) => return,
                Err(error) => self.error = Some(error),
            }
        }
    }

    fn write(&mut self, frame: &IoFrame, verdict: Verdict) -> io::Result<()> {
        let interface = match self.outputs.iter().find(|(v, _)| *v == verdict) {
            Some((_, interface)) => *interface,
            None => {
                let name = match verdict {
                    Verdict::Pod { ifindex } => format!("pod{ifindex}"),
                    Verdict::Eni { ifindex } => format!("eni{ifindex}"),
                    Verdict::KernelPod { ifindex } => format!("kernel-pod{ifindex}"),
                    Verdict::KernelEni { ifindex } => format!("kernel-eni{ifindex}"),
                    Verdict::Handoff { worker } => format!("worker{worker}"),
                    Verdict::Drop(reason) => format!("drop-{reason}"),
                };
                let interface = self.writer.add_interface(&name, "")?;
                self.outputs.push((verdict, interface));
                interface
            }
        };
        self.scratch.clear();
        frame.copy_to(&mut self.scratch);
        self.writer.packet(&Record {
            interface,
            time: self.time,
            data: &self.scratch,
            original_len: self.scratch.len(),
            direction: Some(Direction::Out),
            comments: &[&format!("{verdict:?}")],
        })
    }
}

impl<W: Write + Send> Port for PcapPort<W> {
    fn receive(&mut self, budget: usize, into: &mut Vec<Packet<IoFrame>>) -> usize {
        for received in 0..budget {
            self.look_ahead();
            let Some(packet) = self.ahead.take() else { return received };
            self.time = packet.time;
            self.rx_packets += 1;
            let ingress = (self.ingress)(packet.interface);
            into.push(Packet { frame: packet.data.into(), ingress, offload: Offload::default() });
        }
        budget
    }

    /// Writes the frame; a [`Verdict::Drop`] is recorded too. What a file cannot take ends as [`Reason::TxError`].
    fn send(&mut self, frame: IoFrame, verdict: Verdict, _: Offload) -> Result<(), (IoFrame, Reason)> {
        if frame.is_empty() {
            return Err((frame, Reason::TxError));
        }
        match self.write(&frame, verdict) {
            Ok(()) => {
                self.tx_packets += 1;
                Ok(())
            }
            Err(error) => {
                self.error = Some(error.into());
                Err((frame, Reason::TxError))
            }
        }
    }

    fn flush(&mut self) {
        if let Err(error) = self.writer.flush() {
            self.error = Some(error.into());
        }
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> PortStats {
        [
            ("rx_packets", self.rx_packets),
            ("rx_captured_short", self.rx_short),
            ("tx_packets", self.tx_packets),
        ]
        .into_iter()
        .collect()
    }
}
