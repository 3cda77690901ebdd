//! Captured packets, and which to capture.
//!
//! A record says what no interface's capture can: what became of the packet and why.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::PortRange;

/// Which packets to capture. Empty lists let everything through; all that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureFilter {
    /// `namespace/name` or `name` of pods that the packet came from or goes to.
    pub pods: Vec<String>,
    /// Only packets that were dropped.
    pub drops: bool,
    /// Source or destination lies in one of these.
    pub nets: Vec<Ipv4Net>,
    /// Source or destination port lies in one of these.
    pub ports: Vec<PortRange>,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Bytes of each packet at most; absent: 65535.
    pub snaplen: Option<u32>,
}

/// Where a packet was captured: one interface of the file each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// On a pod's veth, `namespace/name`.
    Pod(String),
    /// On an ENI.
    Eni(String),
    /// Where it was dropped.
    Drop,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod:{name}"),
            Self::Eni(name) => write!(f, "eni:{name}"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

/// One captured packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRecord {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The worker that saw it.
    pub worker: u16,
    /// Where.
    pub point: Point,
    /// True on its way into the engine, false on its way out.
    pub inbound: bool,
    /// Bytes of the whole packet.
    pub len: u32,
    /// The captured bytes, from the Ethernet header on.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// What happened to it: `pod default/a`, `eni eth0`, `kernel`, `drop`.
    pub verdict: String,
    /// Number of its flow.
    pub flow: Option<u64>,
    /// `10.0.1.10:40000 > 203.0.113.9:80 as 10.0.9.5:2345 > 203.0.113.9:80`, when its flow is translated.
    pub mapping: Option<String>,
    /// Why it was dropped.
    pub drop: Option<String>,
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes =
            pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect::<Option<Vec<u8>>>();
        bytes
            .filter(|_| rest.is_empty())
            .ok_or_else(|| D::Error::custom("not an even number of hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_carries_its_bytes_as_hexadecimal_text() {
        let record = CaptureRecord {
            time_ns: 1,
            worker: 0,
            point: Point::Pod("default/a".into()),
            inbound: true,
            len: 3,
            bytes: vec![0, 0xfe, 0x7f],
            verdict: "eni eth0".into(),
            flow: Some(7),
            mapping: None,
            drop: None,
        };
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains("\"00fe7f\""), "{text}");
        assert_eq!(serde_json::from_str::<CaptureRecord>(&text).unwrap(), record);
        for bad in ["00fe7", "00fe7g"] {
            let text = text.replace("00fe7f", bad);
            assert!(serde_json::from_str::<CaptureRecord>(&text).is_err(), "{bad}");
        }
    }
}
