//! pcapng, as much of it as a capture needs (draft-ietf-opsawg-pcapng): section header, interface descriptions, enhanced
//! packets with comments. Little endian, nanoseconds.

use std::io::{self, Write};

const SECTION: u32 = 0x0A0D_0D0A;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1A2B_3C4D;
const ETHERNET: u16 = 1;
const SNAPLEN: u32 = 262_144;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
/// Comments are cut to what an option's length can say.
const MAX_OPTION: usize = 65_532;

/// Which way a packet went at its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards this machine.
    In,
    /// Away from it.
    Out,
}

/// One packet to be written.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// What [`PcapngWriter::add_interface`] returned.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// What was captured of it, from the Ethernet header on.
    pub data: &'a [u8],
    /// Bytes that it had on the wire; not below `data.len()`.
    pub original_len: usize,
    /// Which way it went, if that is known.
    pub direction: Option<Direction>,
    /// Shown as the packet's comments.
    pub comments: &'a [&'a str],
}

/// Writes a pcapng file block by block. Every block reaches `W` whole, in one call of `write_all`.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    block: Vec<u8>,
    interfaces: u32,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a file by `application`.
    ///
    /// # Errors
    /// What `out` said.
    pub fn new(out: W, application: &str) -> io::Result<Self> {
        let mut writer = Self { out, block: Vec::with_capacity(4096), interfaces: 0 };
        writer.begin(SECTION);
        writer.u32(BYTE_ORDER);
        writer.u16(1);
        writer.u16(0);
        writer.block.extend_from_slice(&u64::MAX.to_le_bytes());
        writer.option(SHB_USERAPPL, application.as_bytes());
        writer.end_options();
        writer.finish()?;
        Ok(writer)
    }

    /// Describes one more interface and gives its number. `description` may be empty.
    ///
    /// # Errors
    /// What the output said.
    pub fn add_interface(&mut self, name: &str, description: &str) -> io::Result<u32> {
        self.begin(INTERFACE);
        self.u16(ETHERNET);
        self.u16(0);
        self.u32(SNAPLEN);
        self.option(IF_NAME, name.as_bytes());
        if !description.is_empty() {
            self.option(IF_DESCRIPTION, description.as_bytes());
        }
        self.option(IF_TSRESOL, &[9]);
        self.end_options();
        self.finish()?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// `InvalidInput` for an interface that was not described, otherwise what the output said.
    pub fn packet(&mut self, record: &Record<'_>) -> io::Result<()> {
        if record.interface >= self.interfaces {
            let what = format!("interface {} of {} described", record.interface, self.interfaces);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let data = &record.data[..record.data.len().min(SNAPLEN as usize)];
        self.begin(ENHANCED_PACKET);
        self.u32(record.interface);
        self.u32((record.time >> 32) as u32);
        self.u32(record.time as u32);
        self.u32(data.len() as u32);
        self.u32(record.original_len.max(record.data.len()) as u32);
        self.block.extend_from_slice(data);
        self.pad();
        if record.direction.is_some() || !record.comments.is_empty() {
            for comment in record.comments {
                self.option(OPT_COMMENT, cut(comment).as_bytes());
            }
            if let Some(direction) = record.direction {
                let flags: u32 = if direction == Direction::In { 1 } else { 2 };
                self.option(EPB_FLAGS, &flags.to_le_bytes());
            }
            self.end_options();
        }
        self.finish()
    }

    /// Flushes the output.
    ///
    /// # Errors
    /// What the output said.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The output, everything written.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.u32(kind);
        self.u32(0);
    }

    fn finish(&mut self) -> io::Result<()> {
        let len = (self.block.len() + 4) as u32;
        self.block[4..8].copy_from_slice(&len.to_le_bytes());
        self.u32(len);
        self.out.write_all(&self.block)
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(MAX_OPTION)];
        self.u16(code);
        self.u16(value.len() as u16);
        self.block.extend_from_slice(value);
        self.pad();
    }

    fn end_options(&mut self) {
        self.u32(0);
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn u16(&mut self, value: u16) {
        self.block.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.block.extend_from_slice(&value.to_le_bytes());
    }
}

/// The beginning of a text that an option holds, whole characters only.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_OPTION);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
