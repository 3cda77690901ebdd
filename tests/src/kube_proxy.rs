//! Rules of the shape that kube-proxy and the portmap plugin make, as far as one service with one endpoint goes: what is on
//! a node beside Sluice, and what Sluice must neither need nor disturb.

use std::net::Ipv4Addr;

use crate::lab::PEER;

/// How the rules translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// `externalTrafficPolicy: Cluster`: the source too.
    Cluster,
    /// `externalTrafficPolicy: Local`: the pod sees its client.
    Local,
}

/// kube-proxy's nftables mode: a map of ports, a mark, and `masquerade fully-random` for what is marked.
#[must_use]
pub fn nft(pod: Ipv4Addr, port: u16, traffic: Traffic) -> String {
    let mark = if traffic == Traffic::Cluster { "meta mark set meta mark or 0x4000" } else { "" };
    format!(
        "table ip kube-proxy {{\n\
           chain external {{\n {mark}\n meta l4proto {{ tcp, udp }} dnat to {pod}:{PEER}\n }}\n\
           chain services {{\n fib daddr type local meta l4proto {{ tcp, udp }} th dport {port} goto external\n }}\n\
           chain nat-prerouting {{\n type nat hook prerouting priority dstnat; policy accept;\n jump services\n }}\n\
           chain nat-postrouting {{\n type nat hook postrouting priority srcnat; policy accept;\n\
             meta mark and 0x4000 == 0 return\n meta mark set meta mark xor 0x4000\n masquerade fully-random\n }}\n }}"
    )
}

/// kube-proxy's iptables mode, and portmap's chains, which differ in names only: KUBE-MARK-MASQ and KUBE-SEP, or CNI-DN.
#[must_use]
pub fn iptables(pod: Ipv4Addr, port: u16, traffic: Traffic) -> String {
    let mark = if traffic == Traffic::Cluster { "-A KUBE-EXT -j KUBE-MARK-MASQ\n" } else { "" };
    let rule = |proto: &str| {
        format!(
            "-A KUBE-NODEPORTS -p {proto} -m {proto} --dport {port} -j KUBE-EXT\n\
             -A KUBE-SEP -p {proto} -m {proto} -j DNAT --to-destination {pod}:{PEER}\n"
        )
    };
    // VPC CNI's rules for node ports, in the same syntax (`iptables_connmark.go`).
    let marks = "*mangle\n\
         -A PREROUTING -i eni0 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL \
         --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80\n\
         -A PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark \
         --nfmask 0x80 --ctmask 0x80\nCOMMIT\n";
    format!(
        "{marks}*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-EXT - [0:0]\n:KUBE-SEP - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         -A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {mark}{}{}-A KUBE-EXT -j KUBE-SEP\nCOMMIT\n",
        rule("tcp"),
        rule("udp")
    )
}
