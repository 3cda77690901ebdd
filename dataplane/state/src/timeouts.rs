//! How long idle flows live.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A duration in whole seconds, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u32);

impl Seconds {
    /// The duration in nanoseconds.
    #[must_use]
    pub fn nanos(self) -> u64 {
        u64::from(self.0) * 1_000_000_000
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

/// Where a value that is not set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The defaults of Linux' nf_conntrack, save an unanswered SYN (30 s).
    #[default]
    Linux,
    /// The minima of RFC 5382 (TCP), RFC 4787 (UDP) and RFC 5508 (ICMP).
    Rfc,
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "linux" => Ok(Self::Linux),
            "rfc" => Ok(Self::Rfc),
            _ => Err(format!("`{text}` is not a preset of timeouts: linux or rfc")),
        }
    }
}

macro_rules! timeouts {
    ($($(#[$doc:meta])* $name:ident: $linux:literal, $rfc:literal;)*) => {
        /// How long flows live after their last packet. A value that is absent comes from the preset.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Timeouts {
            /// Source of the absent values.
            pub preset: Preset,
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<Seconds>,)*
        }

        impl Timeouts {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> Seconds {
                    self.$name.unwrap_or(match self.preset {
                        Preset::Linux => Seconds($linux),
                        Preset::Rfc => Seconds($rfc),
                    })
                }
            )*

            /// Every value in force, by name.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, Seconds)> {
                vec![$((stringify!($name), self.$name())),*]
            }
        }
    };
}

timeouts! {
    /// TCP: a SYN that nobody answered.
    tcp_syn_sent: 30, 30;
    /// TCP: a SYN that nobody answered, while the table is under pressure.
    tcp_syn_flood: 5, 5;
    /// TCP: SYN and SYN/ACK seen, the last ACK not yet.
    tcp_syn_received: 60, 240;
    /// TCP: established (RFC 5382 §5: at least 2 h 4 min).
    tcp_established: 432_000, 7_440;
    /// TCP: one side has sent FIN.
    tcp_fin_wait: 120, 240;
    /// TCP: the other side has acknowledged the FIN.
    tcp_close_wait: 60, 240;
    /// TCP: both sides have sent FIN, the last ACK is missing.
    tcp_last_ack: 30, 240;
    /// TCP: closed by two FINs.
    tcp_time_wait: 120, 240;
    /// TCP: closed by RST.
    tcp_close: 10, 240;
    /// UDP: seen in one direction only.
    udp_one_way: 30, 120;
    /// UDP: seen in both directions (RFC 4787 §4.3: at least 2 min, 5 recommended).
    udp_two_way: 120, 300;
    /// ICMP queries (RFC 5508 §3.2: at least 60 s).
    icmp: 30, 60;
    /// Protocols without ports, never translated.
    other: 600, 600;
    /// Fragments of a datagram, from the first that arrived (RFC 1122 §3.3.2 lets hosts wait 60 s to 120 s).
    fragment: 30, 30;
}
