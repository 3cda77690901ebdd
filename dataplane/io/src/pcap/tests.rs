//! What is written is read back, by us and by Wireshark.

use std::io::{Cursor, Write};
use std::process::{Command, Stdio};

use etherparse::PacketBuilder;
use sluice_engine::{Frame, Ingress, Offload, Verdict};

use super::*;
use crate::Port;

const TIME: u64 = 1_790_000_000_123_456_789;

fn packet(len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(5000, 4789)
        .write(&mut frame, &vec![7; len])
        .unwrap();
    frame
}

fn file() -> Vec<u8> {
    let mut writer = PcapngWriter::new(Vec::new(), "sluice test").unwrap();
    let pod = writer.add_interface("pod a", "before policy").unwrap();
    let eni = writer.add_interface("eni0", "").unwrap();
    for i in 0..5u64 {
        let data = packet(i as usize);
        writer
            .packet(&Record {
                interface: if i % 2 == 0 { pod } else { eni },
                time: TIME + i,
                data: &data,
                original_len: data.len(),
                direction: [None, Some(Direction::In), Some(Direction::Out)][i as usize % 3],
                comments: if i == 3 { &["verdict: eni 3", "Übergröße ✓"] } else { &[] },
            })
            .unwrap();
    }
    writer.into_inner()
}

#[test]
fn what_is_written_is_read_back() {
    let mut reader = PcapReader::new(Cursor::new(file())).unwrap();
    let mut count = 0;
    while let Some(packet_read) = reader.next_packet().unwrap() {
        let i = count as usize;
        let expected = packet(i);
        assert_eq!(
            packet_read,
            Recorded { interface: i % 2, time: TIME + count, original_len: expected.len(), data: expected }
        );
        count += 1;
    }
    assert_eq!(count, 5);
    assert_eq!(reader.interfaces().collect::<Vec<_>>(), ["pod a", "eni0"]);
}

#[test]
fn wireshark_opens_it_without_a_warning() {
    let path = std::env::temp_dir().join(format!("sluice-io-{}.pcapng", std::process::id()));
    std::fs::write(&path, file()).unwrap();
    let output = Command::new("tshark")
        .args(["-r"])
        .arg(&path)
        .args(["-T", "fields", "-E", "separator=|", "-E", "aggregator=+"])
        .args([
            "-e",
            "frame.interface_name",
            "-e",
            "frame.time_epoch",
            "-e",
            "frame.len",
            "-e",
            "frame.comment",
        ])
        .args(["-e", "frame.packet_flags_direction"])
        .stdin(Stdio::null())
        .output()
        .expect("tshark is needed for this test (apt install tshark)");
    std::fs::remove_file(&path).unwrap();
    let warnings: Vec<_> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| !line.contains("Running as user"))
        .map(str::to_owned)
        .collect();
    assert!(output.status.success() && warnings.is_empty(), "{warnings:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    let fields: Vec<_> = lines[3].split('|').collect();
    assert_eq!(fields[0], "eni0");
    assert!(fields[1].ends_with(".123456792"), "{}", fields[1]);
    assert_eq!(fields[2], "45");
    assert!(fields[3].contains("verdict: eni 3") && fields[3].contains("Übergröße ✓"), "{}", fields[3]);
}

#[test]
fn classic_files_are_read_too() {
    let mut file = Vec::new();
    for word in [0xA1B2_C3D4u32, 0x0004_0002, 0, 0, 65_535, 1, 100, 5, 4, 60] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[1, 2, 3, 4]);
    let mut reader = PcapReader::new(Cursor::new(file)).unwrap();
    let packet = reader.next_packet().unwrap().unwrap();
    assert_eq!((packet.time, packet.original_len, packet.data), (100_000_005_000, 60, vec![1, 2, 3, 4]));
    assert_eq!(reader.next_packet().unwrap(), None);
}

#[test]
fn damage_is_named() {
    assert!(matches!(
        PcapReader::new(Cursor::new(b"hello, world, no capture".to_vec())),
        Err(PcapError::NotACapture)
    ));
    let mut short = file();
    short.truncate(short.len() - 7);
    let mut reader = PcapReader::new(Cursor::new(short)).unwrap();
    let error = loop {
        match reader.next_packet() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the damage went unseen"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PcapError::Damaged { packets: 4, .. }), "{error}");
    let mut file = file();
    // The first interface's link type, behind a section header of 48 bytes.
    assert_eq!(file[48], 1);
    file[56] = 101;
    let mut reader = PcapReader::new(Cursor::new(file)).unwrap();
    assert!(matches!(reader.next_packet(), Err(PcapError::LinkType { interface: 0, found: 101 })));
}

#[test]
fn a_port_replays_and_records() {
    let reader = PcapReader::new(Cursor::new(file())).unwrap();
    let writer = PcapngWriter::new(Vec::new(), "sluice replay").unwrap();
    let mut port = PcapPort::new(reader, |n| Ingress::Eni(10 + n as u32), writer);
    assert_eq!(port.next_time(), Some(TIME));
    let mut packets = Vec::new();
    assert_eq!(port.receive(3, &mut packets), 3);
    assert_eq!(port.receive(64, &mut packets), 2);
    assert_eq!(port.receive(64, &mut packets), 0);
    assert!(port.error().is_none());
    assert_eq!(packets[1].ingress, Ingress::Eni(11));
    for packet in packets {
        let verdict = Verdict::Pod { ifindex: packet.frame.len() as u32 % 2 };
        port.send(packet.frame, verdict, Offload::default()).unwrap();
    }
    port.flush();
    assert_eq!(port.stats().value("tx_packets"), 5);
    let written = port.into_writer().into_inner();
    let mut reader = PcapReader::new(Cursor::new(written)).unwrap();
    for i in 0..5 {
        let recorded = reader.next_packet().unwrap().unwrap();
        assert_eq!((recorded.data, recorded.time), (packet(i), TIME + 4));
    }
    assert_eq!(reader.interfaces().collect::<Vec<_>>(), ["pod0", "pod1"]);
}

/// An output that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_fails_is_an_error_not_a_panic() {
    assert!(PcapngWriter::new(Full, "x").is_err());
    let mut writer = PcapngWriter::new(Vec::new(), "x").unwrap();
    let record =
        Record { interface: 0, time: 0, data: &[0; 14], original_len: 14, direction: None, comments: &[] };
    assert!(writer.packet(&record).is_err(), "no interface was described");
}
