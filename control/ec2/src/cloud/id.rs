//! Identifiers of EC2, parsed once: a subnet's id can then not be handed to a call that wants a group's.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A text that is no identifier of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no {what}: it must be {prefix:?} followed by lower-case letters and digits")]
pub struct IdError {
    /// What was asked for, in words.
    pub what: &'static str,
    /// How such an identifier begins.
    pub prefix: &'static str,
    /// The text that was found.
    pub found: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// How the identifier begins.
            pub const PREFIX: &'static str = $prefix;

            /// The identifier as EC2 writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let rest = text.strip_prefix($prefix).unwrap_or("");
                if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) {
                    return Err(IdError { what: $what, prefix: $prefix, found: text.to_owned() });
                }
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// An instance, `i-…`.
    InstanceId,
    "i-",
    "instance id"
);
id!(
    /// A network interface, `eni-…`.
    EniId,
    "eni-",
    "network interface id"
);
impl EniId {
    /// No interface's: of an address whose interface is not found out yet.
    #[must_use]
    pub fn unknown() -> Self {
        Self("eni-unknown".into())
    }
}

id!(
    /// The attachment of an interface to an instance, `eni-attach-…`.
    AttachmentId,
    "eni-attach-",
    "attachment id"
);
id!(
    /// A subnet, `subnet-…`.
    SubnetId,
    "subnet-",
    "subnet id"
);
id!(
    /// A VPC, `vpc-…`.
    VpcId,
    "vpc-",
    "VPC id"
);
id!(
    /// A security group, `sg-…`.
    GroupId,
    "sg-",
    "security group id"
);

/// A MAC address, written as EC2 and IMDS write it (`0a:1b:2c:3d:4e:5f`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MAC address: six pairs of hexadecimal digits with colons between them are")]
pub struct MacError(pub String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        // IMDS lists MACs as folders, with a slash at the end.
        let mut pairs = text.trim_end_matches('/').split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2 && !p.starts_with('+')).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        if pairs.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_kind_are_no_ids_of_another() {
        assert_eq!("eni-0a1".parse::<EniId>().unwrap().as_str(), "eni-0a1");
        for wrong in ["", "eni-", "subnet-1", "eni-0A", "eni-1 ", "eni-attach-1"] {
            let error = wrong.parse::<EniId>().unwrap_err().to_string();
            assert!(error.contains("network interface id") && error.contains("eni-"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_mac_is_read_with_or_without_the_slash_of_imds() {
        let mac = Mac([0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
        assert_eq!("0a:1b:2c:3d:4e:5f".parse(), Ok(mac));
        assert_eq!("0a:1b:2c:3d:4e:5f/".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "0a:1b:2c:3d:4e:5f");
        for wrong in ["", "0a:1b", "0a:1b:2c:3d:4e:5f:60", "+a:1b:2c:3d:4e:5f", "zz:1b:2c:3d:4e:5f"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
