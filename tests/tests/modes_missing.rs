//! What a kernel or a driver may lack, taken away or left out here: zero-copy, native XDP, the kernel's BTF, protocols
//! that it has no sockets for. `docs/testing.md` says what else this cannot show.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;

use etherparse::EtherType;
use sluice_engine::testing::sctp;
use sluice_tests::lab::{Lab, NODE, PEER, Sender, eventually, mac, program, tcp_peer};
use sluice_tests::node::{report, start, state};

/// Exit code of `sluiced` for a state that it refuses.
const STATE: i32 = 3;

#[test]
fn zero_copy_is_refused_by_name_where_the_driver_has_none() {
    let lab = Lab::up("z", &["--dataplane", "none", "--pods", "1"]);
    start(&lab, &[], &state(&lab), &["--eni-port", "xdp", "--xdp-mode", "zerocopy"]).assert(
        STATE,
        &[
            "eni[0].name: `eni0` cannot be opened",
            "xdp zero-copy: AF_XDP on eni0 queue 0 (zero-copy)",
            "try copy mode",
        ],
    );
}

#[test]
fn an_eni_without_native_xdp_is_taken_by_the_trunk_and_said_so() {
    let lab = Lab::up("d", &["--dataplane", "none", "--pods", "2"]);
    // A device that no packet ever comes by, with a driver that knows no XDP.
    lab.sh(
        "node",
        "ip link add bare0 type bridge && ip addr add 10.0.10.6/24 dev bare0 && ip link set bare0 up",
    );
    let bare = state(&lab).replace("\"eni1\"", "\"bare0\"").replace("10.0.10.5", "10.0.10.6");
    start(&lab, &[], &bare, &["--eni-port", "xdp"]).assert(
        STATE,
        &["eni[1].name: `bare0` cannot be opened", "the driver has no native XDP", "--eni-port=tap"],
    );

    std::fs::write(lab.path("state.toml"), bare).expect("a file in the lab's directory");
    lab.start_daemon(&[]);
    let report = report(&lab);
    let modes: Vec<_> = report["enis"].as_array().expect("ENIs").iter().map(|e| e["mode"].as_str()).collect();
    assert_eq!(modes, [Some("xdp native"), Some("tap")], "{report}");
    let findings = report["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|f| f["subject"] == "bare0").expect("a finding on it");
    let text = finding.to_string();
    assert!(
        text.contains("no AF_XDP") && text.contains("no native XDP") && text.contains("--eni-port=tap"),
        "{text}"
    );
    assert_eq!(*lab.within("pod-a", || tcp_peer(None, lab.address("host-x"), PEER)).ip(), NODE);
}

#[test]
fn the_kernels_btf_is_not_needed() {
    // The programs use no type of the kernel's, so that a kernel whose BTF is not to be seen runs them.
    let wrapper = std::env::temp_dir().join(format!("sluiced-without-btf-{}", std::process::id()));
    let script = format!(
        "#!/bin/sh\nexec unshare --mount --propagation slave sh -c \
         'mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"' '{}' \"$@\"\n",
        program("sluiced").display()
    );
    std::fs::write(&wrapper, script).expect("a file in the temporary directory");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("our file");
    let lab = Lab::up("b", &["--pods", "2", "--sluiced", wrapper.to_str().expect("a path of text")]);
    std::fs::remove_file(&wrapper).expect("our file");
    let hidden =
        std::fs::read_dir(format!("/proc/{}/root/sys/kernel/btf", lab.pid("sluiced"))).expect("a directory");
    assert_eq!(hidden.count(), 0, "the daemon sees no BTF");
    let before = lab.stats();
    assert_eq!(*lab.within("pod-a", || tcp_peer(None, lab.address("host-x"), PEER)).ip(), NODE);
    lab.since(&before).assert_at_least(&[("bpf.from_pod_redirect", 5), ("bpf.xdp_redirect_port", 5)]);
}

#[test]
fn sctp_passes_inside_the_vpc_and_is_dropped_by_name_outside() {
    const SCTP: u8 = 132;
    let lab = Lab::up("s", &[]);
    let (sniffer, pod) = (lab.sniff(), lab.member("pod-c"));
    let own = |field: &str| mac(pod[field].as_str().expect("a MAC"));
    let sender = Sender::open(&lab.namespace("pod-c"), "eth0");
    let send = |to: Ipv4Addr| {
        // The chunk that opens an association (RFC 9260 §3.3.2).
        const INIT: u8 = 1;
        let from = lab.address("pod-c");
        let init = sctp(&format!("{from}:5000"), &format!("{to}:5000"), INIT).payload(&[0; 16]);
        sender.send(&init.macs(own("gateway_mac"), own("mac")).build());
    };
    let before = lab.stats();
    send(lab.address("host-v"));
    eventually("it leaves by the pod's own ENI", || {
        let left = |f: &sluice_tests::lab::Seen| f.left_the_node() && f.protocol == SCTP;
        sniffer.all().iter().any(|f| left(f) && f.link == "eni1" && f.src == lab.address("pod-c"))
    });
    lab.since(&before).assert_drops(&[]);
    let before = lab.stats();
    send(lab.address("host-x"));
    eventually("it is dropped", || lab.since(&before).of("drop.unsupported_protocol") == 1);
    lab.since(&before).assert_drops(&[("drop.unsupported_protocol", 1)]);
    let outside = sniffer.all().into_iter().filter(|f| f.left_the_node() && f.ethertype == EtherType::IPV4.0);
    assert!(outside.clone().all(|f| f.dst != lab.address("host-x")), "{:?}", outside.collect::<Vec<_>>());
}
