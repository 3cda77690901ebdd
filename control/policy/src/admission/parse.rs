//! Texts and numbers of the API made types, once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use super::{Refusal, Strictness};

/// A port, 1 to 65535.
pub(crate) fn port_number(field: &str, number: i32, refusals: &mut Vec<Refusal>) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|p| *p != 0);
    if port.is_none() {
        let why = "must be between 1 and 65535, inclusive";
        refusals.push(Refusal::raw(field, number.to_string(), why));
    }
    port
}

/// A CIDR that some version of the API server stores, masked.
pub(crate) fn cidr(field: &str, text: &str, refusals: &mut Vec<Refusal>) -> Option<IpNet> {
    cidr_as(field, text, Strictness::Stored, refusals)
}

/// A CIDR, masked. IPv4 in IPv6 is IPv4.
pub(super) fn cidr_as(
    field: &str,
    text: &str,
    strictness: Strictness,
    refusals: &mut Vec<Refusal>,
) -> Option<IpNet> {
    let Some(Parsed { net, zeros, mapped, host_bits }) = read(text) else {
        let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        refusals.push(Refusal::invalid(field, text, why));
        return None;
    };
    if strictness == Strictness::New {
        let why = if mapped {
            Some("must not have an IPv4-mapped IPv6 address")
        } else if zeros {
            Some("must not have leading 0s in IP or prefix length")
        } else if host_bits {
            Some("must not have bits set beyond the prefix length")
        } else {
            None
        };
        if let Some(why) = why {
            refusals.push(Refusal::invalid(field, text, why));
            return None;
        }
    }
    Some(net)
}

struct Parsed {
    net: IpNet,
    zeros: bool,
    mapped: bool,
    host_bits: bool,
}

fn read(text: &str) -> Option<Parsed> {
    let (address, length) = text.split_once('/')?;
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let leading = |t: &str| t.len() > 1 && t.starts_with('0');
    if !digits(length) {
        return None;
    }
    let prefix: u8 = length.parse().ok()?;
    let mut zeros = leading(length);
    if address.contains(':') {
        let address: Ipv6Addr = address.parse().ok()?;
        let whole = Ipv6Net::new(address, prefix).ok()?;
        let host_bits = whole.addr() != whole.network();
        let v4 = address.to_ipv4_mapped().filter(|_| prefix >= 96);
        let net = match v4 {
            Some(v4) => IpNet::V4(Ipv4Net::new(v4, prefix - 96).ok()?.trunc()),
            None => IpNet::V6(whole.trunc()),
        };
        return Some(Parsed { net, zeros, mapped: address.to_ipv4_mapped().is_some(), host_bits });
    }
    let octets: Vec<&str> = address.split('.').collect();
    zeros |= octets.iter().any(|o| leading(o));
    // Decimal despite leading zeros, as every version of the API server has read them.
    let octets = octets.iter().map(|o| if digits(o) { o.parse::<u8>().ok() } else { None });
    let octets: [u8; 4] = octets.collect::<Option<Vec<u8>>>()?.try_into().ok()?;
    let net = Ipv4Net::new(Ipv4Addr::from(octets), prefix).ok()?;
    let host_bits = IpAddr::V4(net.network()) != IpAddr::V4(net.addr());
    Some(Parsed { net: IpNet::V4(net.trunc()), zeros, mapped: false, host_bits })
}

/// Reads a policy from JSON as the API server does: `null` is as good as absent, and an empty object inside of a list.
///
/// # Errors
/// A value is of the wrong type, told with its place.
pub fn policy_from_json(mut json: Value) -> Result<NetworkPolicy, String> {
    prune(&mut json);
    serde_json::from_value(json).map_err(|e| format!("cannot be handled as a NetworkPolicy: {e}"))
}

fn prune(json: &mut Value) {
    match json {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(prune);
        }
        Value::Array(list) => {
            for value in list.iter_mut() {
                if value.is_null() {
                    *value = Value::Object(serde_json::Map::new());
                }
                prune(value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fields of a policy's JSON that no policy has, `spec.ingress[0].form`. The API server takes them with a warning and
/// leaves them out, and what is left may allow more than was meant.
#[must_use]
pub fn unknown_fields(json: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let Ok(policy) = policy_from_json(json.clone()) else { return unknown };
    if let Ok(known) = serde_json::to_value(&policy) {
        compare("", json, &known, &mut unknown);
    }
    unknown
}

fn compare(path: &str, json: &Value, known: &Value, unknown: &mut Vec<String>) {
    match (json, known) {
        (Value::Object(fields), Value::Object(known)) => {
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(known) => compare(&path, value, known, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(items), Value::Array(known)) => {
            for (i, (value, known)) in items.iter().zip(known).enumerate() {
                compare(&format!("{path}[{i}]"), value, known, unknown);
            }
        }
        _ => {}
    }
}
