//! Names, labels, ports and addresses: what may be written, and how it is refused.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::status::Cause;
use super::{items, text};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
    end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
    start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
    start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const PORT: &str = "must be between 1 and 65535, inclusive";

fn is_label(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|b| plain(*b))
        && bytes.last().is_some_and(|b| plain(*b))
        && bytes.iter().all(|b| plain(*b) || *b == b'-')
}

fn is_word(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn length(at: &str, name: &str, limit: usize, causes: &mut Vec<Cause>) {
    if name.len() > limit {
        causes.push(Cause::invalid(at, &json!(name), &format!("must be no more than {limit} characters")));
    }
}

/// A label of DNS (RFC 1123): namespaces and services.
pub(super) fn label_name(at: &str, name: &str, causes: &mut Vec<Cause>) {
    length(at, name, 63, causes);
    if !is_label(name) {
        causes.push(Cause::invalid(at, &json!(name), LABEL));
    }
}

/// A name of DNS (RFC 1123): most objects, custom ones among them.
pub fn subdomain(at: &str, name: &str, causes: &mut Vec<Cause>) {
    length(at, name, 253, causes);
    if !name.split('.').all(is_label) {
        causes.push(Cause::invalid(at, &json!(name), SUBDOMAIN));
    }
}

/// The key of a label, or another name of this form.
pub fn qualified(at: &str, key: &str, causes: &mut Vec<Cause>) {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if let Some(prefix) = prefix.filter(|p| !p.split('.').all(is_label)) {
        let why = if prefix.is_empty() {
            "prefix part must be non-empty".into()
        } else {
            format!("prefix part {SUBDOMAIN}")
        };
        causes.push(Cause::invalid(at, &json!(key), &why));
    }
    if name.is_empty() {
        causes.push(Cause::invalid(at, &json!(key), "name part must be non-empty"));
    } else if name.len() > 63 {
        causes.push(Cause::invalid(at, &json!(key), "name part must be no more than 63 characters"));
    }
    if !is_word(name) {
        causes.push(Cause::invalid(at, &json!(key), QUALIFIED));
    }
}

fn label_value(at: &str, value: &str, causes: &mut Vec<Cause>) {
    length(at, value, 63, causes);
    if !value.is_empty() && !is_word(value) {
        causes.push(Cause::invalid(at, &json!(value), VALUE));
    }
}

/// Labels.
pub fn labels(at: &str, labels: &Value, causes: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        qualified(at, key, causes);
        label_value(at, value.as_str().unwrap_or_default(), causes);
    }
}

/// A selector of labels.
pub(super) fn selector(at: &str, selector: &Value, causes: &mut Vec<Cause>) {
    labels(&format!("{at}.matchLabels"), &selector["matchLabels"], causes);
    for (i, term) in items(selector, "matchExpressions") {
        let at = format!("{at}.matchExpressions[{i}]");
        let any = term["values"].as_array().is_some_and(|v| !v.is_empty());
        match text(term, "operator") {
            "In" | "NotIn" if !any => causes.push(Cause::required(
                format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if any => causes.push(Cause::forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => causes.push(Cause::invalid(
                format!("{at}.operator"),
                &term["operator"],
                "not a valid selector operator",
            )),
        }
        qualified(&format!("{at}.key"), text(term, "key"), causes);
        for (j, value) in items(term, "values") {
            label_value(&format!("{at}.values[{j}]"), value.as_str().unwrap_or_default(), causes);
        }
    }
}

/// The number of a port.
pub(super) fn port(at: &str, port: &Value, causes: &mut Vec<Cause>) {
    if !port.as_i64().is_some_and(|p| (1..=65_535).contains(&p)) {
        causes.push(Cause::invalid(at, port, PORT));
    }
}

/// The name of a port (`IANA_SVC_NAME`).
pub(super) fn port_name(at: &str, name: &str, causes: &mut Vec<Cause>) {
    let mut refuse = |why: &str| causes.push(Cause::invalid(at, &json!(name), why));
    if name.len() > 15 {
        refuse("must be no more than 15 characters");
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || !name.bytes().all(plain) {
        refuse("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        refuse("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        refuse("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        refuse("must not begin or end with a hyphen");
    }
}

/// One of a few words.
pub(super) fn one_of(at: &str, value: &Value, words: &[&str], causes: &mut Vec<Cause>) {
    if !value.as_str().is_some_and(|v| words.contains(&v)) {
        causes.push(Cause::unsupported(at, value, words));
    }
}

/// An address.
pub fn ip(at: &str, value: &Value, causes: &mut Vec<Cause>) {
    if value.as_str().is_none_or(|ip| ip.parse::<IpAddr>().is_err()) {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        causes.push(Cause::invalid(at, value, why));
    }
}

/// A prefix; what is odd about it without being wrong is warned of.
pub(super) fn cidr(
    at: &str,
    value: &Value,
    causes: &mut Vec<Cause>,
    warnings: &mut Vec<String>,
) -> Option<IpNet> {
    let written = value.as_str().unwrap_or_default();
    let mut refuse = |why: &str| causes.push(Cause::invalid(at, value, why));
    let zeros =
        |part: &str| part.len() > 1 && part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit());
    let Some((address, length)) = written.split_once('/') else {
        refuse(CIDR);
        return None;
    };
    let zeroed = (!address.contains(':') && address.split('.').any(zeros)) || zeros(length);
    let trimmed = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".into(),
        rest => rest.to_string(),
    };
    let plain = if zeroed {
        let address = if address.contains(':') {
            address.into()
        } else {
            address.split('.').map(trimmed).collect::<Vec<_>>().join(".")
        };
        format!("{address}/{}", trimmed(length))
    } else {
        written.into()
    };
    let Ok(net) = plain.parse::<IpNet>() else {
        refuse(CIDR);
        return None;
    };
    if zeroed {
        refuse("must not have leading 0s in IP or prefix length");
    } else if matches!(net.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        refuse("must not have an IPv4-mapped IPv6 address");
    } else if net.trunc() != net {
        refuse("must not have bits set beyond the prefix length");
    } else {
        if net.to_string() != written {
            warnings.push(format!(
                "{at}: IPv6 CIDR value \"{written}\" should be in RFC 5952 canonical format (\"{net}\")"
            ));
        }
        return Some(net);
    }
    None
}
