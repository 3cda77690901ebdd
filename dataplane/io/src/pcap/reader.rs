//! Packets out of a pcap or pcapng file, one at a time.

use std::io::{self, Read};

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError as ParserError};

/// Bytes of a file held at once: more than any block of a sane file.
const BUFFER: usize = 1 << 20;

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// Neither pcap nor pcapng.
    #[error("not a pcap or pcapng file")]
    NotACapture,
    /// Packets that do not begin with an Ethernet header.
    #[error("interface {interface} has link type {found}, only Ethernet (1) can be replayed")]
    LinkType {
        /// Its number in the file.
        interface: usize,
        /// Link type found.
        found: i32,
    },
    /// The file ends in the middle of a block, or a block is malformed.
    #[error("damaged after {packets} packets: {what}")]
    Damaged {
        /// Packets that were read before.
        packets: u64,
        /// What is wrong.
        what: String,
    },
    /// It could not be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One packet of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Number of its interface in the file; 0 in pcap files.
    pub interface: usize,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Bytes it had on the wire.
    pub original_len: usize,
    /// What was captured.
    pub data: Vec<u8>,
}

/// Reads a file packet by packet.
pub struct PcapReader {
    parser: Box<dyn PcapReaderIterator + Send>,
    interfaces: Vec<Interface>,
    packets: u64,
    refilled: bool,
}

struct Interface {
    link: Linktype,
    name: String,
    /// Units per second, and seconds to add.
    resolution: u64,
    offset: i64,
}

/// What a block was.
enum Found {
    Packet(Recorded),
    Nothing,
}

impl PcapReader {
    /// Begins to read.
    ///
    /// # Errors
    /// [`PcapError::NotACapture`] or [`PcapError::Io`].
    pub fn new(input: impl Read + Send + 'static) -> Result<Self, PcapError> {
        let parser = pcap_parser::create_reader(BUFFER, input).map_err(|e| match e {
            ParserError::ReadError => PcapError::Io(io::Error::other("read failed")),
            _ => PcapError::NotACapture,
        })?;
        Ok(Self { parser, interfaces: Vec::new(), packets: 0, refilled: false })
    }

    /// Names of the interfaces described so far, in the file's order.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().map(|interface| interface.name.as_str())
    }

    /// The next packet, `None` at the end.
    ///
    /// # Errors
    /// [`PcapError::Damaged`] or [`PcapError::LinkType`]; the reader cannot go on then.
    pub fn next_packet(&mut self) -> Result<Option<Recorded>, PcapError> {
        loop {
            let damaged = |what: String| PcapError::Damaged { packets: self.packets, what };
            match self.parser.next() {
                Ok((offset, block)) => {
                    let found = understand(&block, &mut self.interfaces);
                    self.parser.consume(offset);
                    self.refilled = false;
                    match found? {
                        Found::Packet(packet) => {
                            self.packets += 1;
                            return Ok(Some(packet));
                        }
                        Found::Nothing => {}
                    }
                }
                Err(ParserError::Eof) => return Ok(None),
                Err(ParserError::Incomplete(_)) if !self.refilled => {
                    // A second refusal after new bytes is the file's fault, not the buffer's.
                    let before = self.parser.data().len();
                    self.parser.refill().map_err(|e| damaged(format!("{e:?}")))?;
                    self.refilled = self.parser.data().len() == before;
                }
                Err(ParserError::Incomplete(_) | ParserError::UnexpectedEof) => {
                    return Err(damaged("the file ends within a block".into()));
                }
                Err(ParserError::ReadError) => return Err(io::Error::other("read failed").into()),
                Err(e) => return Err(damaged(e.to_string())),
            }
        }
    }
}

fn understand(block: &PcapBlockOwned<'_>, interfaces: &mut Vec<Interface>) -> Result<Found, PcapError> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            let resolution = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            interfaces.push(Interface { link: header.network, name: String::new(), resolution, offset: 0 });
        }
        PcapBlockOwned::Legacy(packet) => {
            let interface = ethernet(interfaces, 0)?;
            let fraction = u64::from(packet.ts_usec) * (1_000_000_000 / interface.resolution);
            return Ok(Found::Packet(Recorded {
                interface: 0,
                time: u64::from(packet.ts_sec) * 1_000_000_000 + fraction,
                original_len: packet.origlen as usize,
                data: packet.data.to_vec(),
            }));
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
        PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
            let name = description
                .options
                .iter()
                .find(|o| o.code.0 == 2)
                .map(|o| String::from_utf8_lossy(&o.value).trim_end_matches('\0').to_owned());
            interfaces.push(Interface {
                link: description.linktype,
                name: name.unwrap_or_default(),
                resolution: description.ts_resolution().filter(|r| *r > 0).unwrap_or(1_000_000),
                offset: description.ts_offset(),
            });
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let interface = ethernet(interfaces, packet.if_id as usize)?;
            let units = u128::from(packet.ts_high) << 32 | u128::from(packet.ts_low);
            let nanoseconds = (units * 1_000_000_000 / u128::from(interface.resolution)) as u64;
            let offset = interface.offset.wrapping_mul(1_000_000_000);
            return Ok(Found::Packet(Recorded {
                interface: packet.if_id as usize,
                time: nanoseconds.wrapping_add_signed(offset),
                original_len: packet.origlen as usize,
                data: packet.packet_data().to_vec(),
            }));
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            ethernet(interfaces, 0)?;
            return Ok(Found::Packet(Recorded {
                interface: 0,
                time: 0,
                original_len: packet.origlen as usize,
                data: packet.packet_data().to_vec(),
            }));
        }
        // Statistics, name resolution, custom blocks: not packets.
        PcapBlockOwned::NG(_) => {}
    }
    Ok(Found::Nothing)
}

fn ethernet(interfaces: &[Interface], number: usize) -> Result<&Interface, PcapError> {
    let interface = interfaces.get(number).ok_or_else(|| PcapError::Damaged {
        packets: 0,
        what: format!("a packet of interface {number}, {} are described", interfaces.len()),
    })?;
    if interface.link != Linktype::ETHERNET {
        return Err(PcapError::LinkType { interface: number, found: interface.link.0 });
    }
    Ok(interface)
}
