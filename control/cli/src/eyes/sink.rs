//! Where captured packets go: lines, JSON, or a pcapng file with one interface for each point.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context as _, Result};
use sluice_io::pcap::{Direction, PcapngWriter, Record};
use sluice_state::query::{CaptureRecord, Point};

use super::filter::View;
use crate::output::Format;

/// Takes captured packets.
pub(super) enum Sink {
    /// A line each on the standard output.
    Lines,
    /// A JSON object each on the standard output.
    Json,
    /// A pcapng file.
    File(Box<Pcapng>),
}

impl Sink {
    /// Opens what the command line asks for; a file is written only once the daemon has agreed to the capture.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn open(file: Option<&str>, format: Format, points: &[Point]) -> Result<Self> {
        match (file, format) {
            (Some(name), _) => Pcapng::create(name, points).map(|f| Self::File(Box::new(f))),
            (None, Format::Json) => Ok(Self::Json),
            (None, Format::Table) => Ok(Self::Lines),
        }
    }

    /// Takes one packet.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(super) fn take(&mut self, record: &CaptureRecord, view: &View) -> Result<()> {
        match self {
            Self::File(file) => file.take(record),
            Self::Lines => print(&line(record, view)),
            Self::Json => print(&serde_json::to_string(record)?),
        }
    }

    /// Makes visible what was taken so far.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        match self {
            Self::File(file) => file.writer.flush().context("cannot write the file"),
            Self::Lines | Self::Json => {
                std::io::stdout().flush().context("cannot write to the standard output")
            }
        }
    }
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write to the standard output")
}

/// A pcapng file that is being written.
pub(super) struct Pcapng {
    writer: PcapngWriter<BufWriter<Box<dyn Write>>>,
    interfaces: HashMap<Point, u32>,
}

impl Pcapng {
    fn create(name: &str, points: &[Point]) -> Result<Self> {
        let out: Box<dyn Write> = match name {
            "-" => Box::new(std::io::stdout()),
            name => Box::new(File::create(name).with_context(|| format!("cannot create {name}"))?),
        };
        Self::begin(out, points).with_context(|| format!("cannot write to {name}"))
    }

    fn begin(out: Box<dyn Write>, points: &[Point]) -> std::io::Result<Self> {
        let application = concat!("sluice ", env!("CARGO_PKG_VERSION"));
        let mut writer = PcapngWriter::new(BufWriter::new(out), application)?;
        let mut interfaces = HashMap::new();
        for point in points {
            interfaces.insert(point.clone(), writer.add_interface(&point.to_string(), "")?);
        }
        writer.flush()?;
        Ok(Self { writer, interfaces })
    }

    fn take(&mut self, record: &CaptureRecord) -> Result<()> {
        let interface = match self.interfaces.get(&record.point) {
            Some(interface) => *interface,
            // A pod or an ENI that came after the capture had begun.
            None => {
                let interface = self.writer.add_interface(&record.point.to_string(), "")?;
                self.interfaces.insert(record.point.clone(), interface);
                interface
            }
        };
        let comment = comment(record);
        let packet = Record {
            interface,
            time: record.time_ns,
            data: &record.bytes,
            original_len: record.len as usize,
            direction: Some(if record.inbound { Direction::In } else { Direction::Out }),
            comments: &[&comment],
        };
        self.writer.packet(&packet).context("cannot write the file")
    }
}

/// What no interface's capture can say, in one line.
fn comment(record: &CaptureRecord) -> String {
    let mut comment = format!("verdict: {}", record.verdict);
    if let Some(reason) = &record.drop {
        comment.push_str(&format!("; dropped: {reason}"));
        let meaning = sluice_engine::Drop::ALL.iter().find(|d| d.name() == reason).map(|d| d.explain());
        if let Some(meaning) = meaning {
            comment.push_str(&format!(" ({meaning})"));
        }
    }
    if let Some(mapping) = &record.mapping {
        comment.push_str(&format!("; mapping: {mapping}"));
    }
    if let Some(flow) = record.flow {
        comment.push_str(&format!("; flow: {flow}"));
    }
    comment.push_str(&format!("; worker: {}", record.worker));
    comment
}

/// Time of day in UTC, point, direction, ends, size, and what became of it.
fn line(record: &CaptureRecord, view: &View) -> String {
    let seconds = record.time_ns / 1_000_000_000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:06} {} {} {}, {} B: {}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        record.time_ns % 1_000_000_000 / 1000,
        record.point,
        if record.inbound { "in " } else { "out" },
        view.summary(),
        record.len,
        comment(record).trim_start_matches("verdict: "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(point: Point, drop: Option<&str>) -> CaptureRecord {
        CaptureRecord {
            time_ns: 3_661_000_002_000,
            worker: 1,
            point,
            inbound: true,
            len: 60,
            bytes: vec![0; 60],
            verdict: if drop.is_some() { "drop".into() } else { "eni eni0".into() },
            flow: Some(7),
            mapping: None,
            drop: drop.map(str::to_owned),
        }
    }

    #[test]
    fn a_comment_says_why_a_packet_was_dropped() {
        let text = comment(&record(Point::Drop, Some("spoof")));
        assert!(
            text.starts_with("verdict: drop; dropped: spoof (The source address is not the pod's"),
            "{text}"
        );
        assert!(text.ends_with("flow: 7; worker: 1"), "{text}");
        let line = line(&record(Point::Eni("eni0".into()), None), &View::default());
        assert!(line.starts_with("01:01:01.000002 eni:eni0 in  not IPv4, 60 B: eni eni0; flow: 7"), "{line}");
    }

    #[test]
    fn a_point_that_comes_later_gets_its_interface() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let known = Point::Eni("eni0".into());
        let late = Point::Pod("lab/pod-z".into());
        let mut file = Pcapng::create(path.to_str().unwrap(), std::slice::from_ref(&known)).unwrap();
        file.take(&record(known, None)).unwrap();
        file.take(&record(late, None)).unwrap();
        file.writer.flush().unwrap();
        drop(file);
        let mut reader = sluice_io::pcap::PcapReader::new(File::open(&path).unwrap()).unwrap();
        let mut interfaces = Vec::new();
        while let Some(packet) = reader.next_packet().unwrap() {
            assert_eq!(packet.data.len(), 60);
            interfaces.push(packet.interface);
        }
        assert_eq!(interfaces, [0, 1]);
        assert_eq!(reader.interfaces().collect::<Vec<_>>(), ["eni:eni0", "pod:lab/pod-z"]);
    }
}
