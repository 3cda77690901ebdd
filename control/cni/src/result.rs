//! What ADD prints, in each version of the specification.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Map, Value, json};
use sluice_state::Mac;

use crate::call::Version;
use crate::protocol::GATEWAY;

/// What was laid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid<'a> {
    /// The host's end: its name.
    pub host_interface: &'a str,
    /// The host's end: its Ethernet address.
    pub host_mac: Mac,
    /// The pod's end: its name.
    pub interface: &'a str,
    /// The pod's end: its Ethernet address.
    pub mac: Mac,
    /// The pod's network namespace.
    pub netns: &'a Path,
    /// Its address.
    pub address: Ipv4Addr,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// The result as JSON. Version 1.0.0 dropped `ips[].version`, 1.1.0 brought `interfaces[].mtu`.
#[must_use]
pub fn success(version: Version, laid: &Laid<'_>, dns: Option<&Value>) -> Value {
    let interface = |name: &str, mac: Mac| {
        let mut interface = Map::new();
        interface.insert("name".into(), name.into());
        interface.insert("mac".into(), mac.to_string().into());
        if version >= Version::V1_1_0 {
            interface.insert("mtu".into(), laid.mtu.into());
        }
        interface
    };
    let host = interface(laid.host_interface, laid.host_mac);
    let mut pod = interface(laid.interface, laid.mac);
    pod.insert("sandbox".into(), laid.netns.to_string_lossy().into());
    let mut ip = json!({ "address": format!("{}/32", laid.address), "gateway": GATEWAY, "interface": 1 });
    if version < Version::V1_0_0 {
        ip["version"] = "4".into();
    }
    json!({
        "cniVersion": version.text(),
        "interfaces": [host, pod],
        "ips": [ip],
        "routes": [{ "dst": format!("{GATEWAY}/32") }, { "dst": "0.0.0.0/0", "gw": GATEWAY }],
        "dns": dns.cloned().unwrap_or_else(|| json!({})),
    })
}

/// What VERSION prints.
#[must_use]
pub fn versions() -> Value {
    json!({
        "cniVersion": Version::NEWEST.text(),
        "supportedVersions": Version::ALL.map(Version::text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_shape() {
        let laid = Laid {
            host_interface: "eni1",
            host_mac: Mac([2, 0, 0, 0, 0, 1]),
            interface: "eth0",
            mac: Mac([2, 0, 0, 0, 0, 2]),
            netns: Path::new("/run/netns/x"),
            address: Ipv4Addr::new(10, 0, 9, 20),
            mtu: 9001,
        };
        let old = success(Version::V0_4_0, &laid, None);
        assert_eq!((&old["cniVersion"], &old["ips"][0]["version"]), (&json!("0.4.0"), &json!("4")));
        let plain = success(Version::V1_0_0, &laid, None);
        assert_eq!(
            (&plain["ips"][0]["version"], &plain["interfaces"][1]["mtu"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(plain["interfaces"][1]["mac"], "02:00:00:00:00:02");
        assert_eq!(plain["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(plain["interfaces"][0]["sandbox"], Value::Null);
        assert_eq!(plain["ips"][0]["interface"], 1);
        let new = success(Version::V1_1_0, &laid, Some(&json!({ "nameservers": ["10.0.0.2"] })));
        assert_eq!(
            (&new["interfaces"][0]["mtu"], &new["dns"]["nameservers"][0]),
            (&json!(9001), &json!("10.0.0.2"))
        );
        assert_eq!(versions()["supportedVersions"].as_array().unwrap().len(), 4);
    }
}
