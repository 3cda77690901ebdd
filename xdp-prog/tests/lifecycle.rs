//! Attaching, refusing, surviving and taking off: what happens to programs, links, filters and pins over the life of the
//! process and beyond it.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{counters, enter_private_node, ifindex, ip};
use sluice_bpf::{
    BpfError, Config, Link, LinkKind, Options, Programs, Role, TcHook, XdpMode, detach_pinned, ensure_bpffs,
};

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const PINS: &str = "/sys/fs/bpf/sluice";

/// Two veths up, `va` and `vb`; `/sys/fs/bpf` is private to the test's thread.
fn node() -> (u32, u32) {
    enter_private_node();
    ip("link add va type veth peer name vb");
    ip("link set va up");
    ip("link set vb up");
    (ifindex("va"), ifindex("vb"))
}

fn load(options: &Options) -> Programs {
    Programs::load(options).unwrap_or_else(|error| panic!("{error}"))
}

fn pinned(force_clsact: bool) -> Options {
    Options { pin_dir: Some(PINS.into()), force_clsact, ..Options::default() }
}

fn xdp_of(name: &str) -> String {
    let shown = ip(&format!("-d link show dev {name}"));
    let first = shown.lines().next().unwrap_or_default().to_owned();
    first.split_whitespace().find(|word| word.starts_with("xdp")).unwrap_or("none").to_owned()
}

fn filters(name: &str, direction: &str) -> String {
    let output = Command::new("tc").args(["filter", "show", "dev", name, direction]).output().expect("tc");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn xdp_attaches_in_the_mode_that_was_asked_for_and_changes_it() {
    let (a, _) = node();
    for frags in [false, true] {
        let mut programs = load(&Options { frags, ..Options::default() });
        for (mode, shown) in
            [(XdpMode::Native, "xdp"), (XdpMode::Generic, "xdpgeneric"), (XdpMode::Native, "xdp")]
        {
            programs.attach_xdp(a, mode).expect("attached");
            programs.attach_xdp(a, mode).expect("attached again: exchanged in place");
            assert_eq!(xdp_of("va"), shown);
            assert_eq!(programs.attached(), [(a, Role::Xdp)]);
        }
        programs.detach(a).expect("detached");
        programs.detach(a).expect("detached twice is no error");
        assert_eq!(xdp_of("va"), "none");
        programs.attach_xdp(a, XdpMode::Native).expect("attached");
        drop(programs);
        assert_eq!(xdp_of("va"), "none", "without pins it ends with the process");
    }
}

#[test]
fn another_xdp_program_is_refused_by_name() {
    let (a, _) = node();
    let mut owner = load(&Options { frags: true, ..Options::default() });
    owner.attach_xdp(a, XdpMode::Native).expect("attached");
    let mut second = load(&Options::default());
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let error = second.attach_xdp(a, mode).expect_err("refused");
        assert!(matches!(error, BpfError::OtherXdpProgram { .. }), "{error}");
        let text = error.to_string();
        // The kernel keeps 15 characters of a name.
        assert!(text.contains("attached to va: \"sluice_eni_xdp_") && text.contains("xdp off"), "{text}");
    }
    assert_eq!(xdp_of("va"), "xdp", "the owner's is untouched");
    owner.detach_all().expect("detached");
    second.attach_xdp(a, XdpMode::Native).expect("free now");
}

#[test]
fn what_cannot_be_attached_says_why() {
    enter_private_node();
    let mut programs = load(&Options::default());
    let error = programs.attach_pod(4711).expect_err("no such interface").to_string();
    assert!(error.contains("4711"), "{error}");
    let error = programs.attach_xdp(1, XdpMode::Native).expect_err("lo has no native XDP").to_string();
    assert!(error.contains("lo takes no native XDP program") && error.contains("--eni-port=tap"), "{error}");
    ip("link add va mtu 9000 type veth peer name vb mtu 9000");
    let error = programs.attach_xdp(ifindex("va"), XdpMode::Native).expect_err("too large").to_string();
    assert!(error.contains("MTU"), "{error}");
    let mut frags = load(&Options { frags: true, ..Options::default() });
    frags.attach_xdp(ifindex("va"), XdpMode::Native).expect("xdp.frags carries it");
}

#[test]
fn without_privilege_the_missing_capability_is_named() {
    enter_private_node();
    let error = std::thread::spawn(|| {
        common::sys::drop_capabilities().expect("fewer capabilities");
        Programs::load(&Options::default()).expect_err("refused").to_string()
    })
    .join()
    .expect("the thread ends well");
    assert!(error.contains("CAP_BPF") && error.contains("CAP_NET_ADMIN"), "{error}");
}

#[test]
fn pins_are_adopted_and_the_programs_exchanged() {
    for force_clsact in [false, true] {
        let (a, b) = node();
        let options = pinned(force_clsact);
        let config = Config { nat_ip: POD, trunk_ifindex: 7, on_failure_kernel: false };
        let link = Link { kind: LinkKind::Pod, mac: [2; 6], peer_mac: [4; 6], ip: POD };

        let mut first = load(&options);
        first.attach_xdp(a, XdpMode::Native).expect("attached");
        first.attach_eni_egress(a).expect("attached");
        first.attach_pod(b).expect("attached");
        first.set_config(&config).expect("configuration");
        first.upsert_link(b, &link).expect("a link");
        first.upsert_pod(POD, b).expect("a pod");
        let (mark, handback) = (first.mark().expect("a mark"), first.handback_mac().expect("an address"));
        let everywhere = first.attached();
        drop(first);
        assert_eq!(xdp_of("va"), "xdp", "it outlives the process");

        let mut second = load(&options);
        assert_eq!(second.attached(), everywhere);
        assert_eq!(second.config().expect("configuration"), config);
        assert_eq!(second.links().expect("links"), [(b, link)]);
        assert_eq!(second.pods().expect("pods"), [(POD, b)]);
        assert_eq!(
            (second.mark().expect("a mark"), second.handback_mac().expect("an address")),
            (mark, handback)
        );
        let hook = if force_clsact { TcHook::Clsact } else { TcHook::Tcx };
        assert_eq!(second.hook(b, Role::FromPod), Some(hook));
        // Attaching again exchanges in place; our own pinned program is not "another XDP program".
        second.attach_xdp(a, XdpMode::Native).expect("ours");
        second.attach_eni_egress(a).expect("ours");
        second.attach_pod(b).expect("ours");
        assert_eq!(second.attached(), everywhere);
        second.attach_xdp(a, XdpMode::Generic).expect("another mode");
        assert_eq!(xdp_of("va"), "xdpgeneric");

        // What is attached keeps its hook; forced clsact takes over without leaving the link behind.
        drop(second);
        let mut third = load(&pinned(false));
        third.attach_pod(b).expect("exchanged");
        assert_eq!(third.hook(b, Role::FromPod), Some(hook));
        drop(third);
        let mut fourth = load(&pinned(true));
        fourth.attach_pod(b).expect("exchanged");
        assert_eq!(fourth.hook(b, Role::FromPod), Some(TcHook::Clsact));
        assert!(filters("vb", "ingress").contains("sluice_from_pod"));
        let names = fs::read_dir(PINS).expect("pins").flatten().map(|entry| entry.file_name());
        let of_b = names.filter(|name| name.to_string_lossy().contains(&format!("_{b}_"))).count();
        assert_eq!(of_b, 2, "one pin for each direction");
        drop(fourth);

        let removed = detach_pinned(Path::new(PINS)).expect("removed");
        for wanted in ["xdp from va", "eni-egress from va", "from-pod from vb", "to-pod from vb", "maps in"] {
            assert!(removed.iter().any(|line| line.contains(wanted)), "{wanted} in {removed:?}");
        }
        assert_eq!(xdp_of("va"), "none");
        assert_eq!(filters("va", "egress") + &filters("vb", "ingress") + &filters("vb", "egress"), "");
        assert!(!Path::new(PINS).exists());
        assert!(detach_pinned(Path::new(PINS)).expect("nothing to do").is_empty());
    }
}

#[test]
fn an_interface_that_is_gone_is_forgotten() {
    for force_clsact in [false, true] {
        let (a, b) = node();
        let mut first = load(&pinned(force_clsact));
        first.attach_pod(b).expect("attached");
        first.attach_xdp(a, XdpMode::Native).expect("attached");
        ip("link del va");
        first.detach(b).expect("nothing there is no error");
        first.attach_pod(1).expect("attached");
        drop(first);
        let second = load(&pinned(force_clsact));
        assert_eq!(second.attached(), [(1, Role::FromPod), (1, Role::ToPod)]);
        assert_eq!(fs::read_dir(PINS).expect("pins").count(), 3, "two attachments and the maps");
    }
}

#[test]
fn maps_of_another_layout_are_not_adopted_and_old_programs_stay_until_replaced() {
    let (a, _) = node();
    let mut old = load(&pinned(false));
    old.attach_xdp(a, XdpMode::Native).expect("attached");
    old.upsert_pod(POD, 3).expect("a pod");
    let maps = fs::read_dir(PINS).expect("pins").flatten().map(|entry| entry.file_name());
    let maps = maps.into_iter().find(|name| name.to_string_lossy().starts_with("maps_")).expect("maps");
    fs::rename(Path::new(PINS).join(maps), Path::new(PINS).join("maps_0000000000000000")).expect("renamed");

    let mut new = load(&pinned(false));
    assert_eq!(new.pods().expect("pods"), []);
    assert!(!Path::new(PINS).join("maps_0000000000000000").exists());
    assert_eq!(new.attached(), [(a, Role::Xdp)]);
    ip("addr add 10.9.9.1/24 dev va");
    let arp = |programs: &Programs| counters(programs).get("xdp_pass_not_ipv4").copied().unwrap_or(0);
    let sent = || {
        common::sys::send_raw(ifindex("vb"), &common::frames::arp()).expect("sent");
    };
    let before = arp(&new);
    sent();
    assert_eq!(arp(&new), before, "the old program still counts in the old maps");
    new.attach_xdp(a, XdpMode::Native).expect("exchanged");
    let before = arp(&new);
    sent();
    assert!(arp(&new) > before, "the new one counts in the new maps");
    new.detach_all().expect("removed");
    assert!(!Path::new(PINS).exists());
}

#[test]
fn a_filter_system_is_mounted_where_there_is_none() {
    enter_private_node();
    let path = Path::new(PINS);
    let first = ensure_bpffs(path).expect("a bpffs");
    assert!(path.is_dir());
    assert!(!ensure_bpffs(path).expect("there already"), "mounted once, not twice (first: {first})");
    let elsewhere = tempfile::tempdir().expect("a directory");
    assert!(ensure_bpffs(&elsewhere.path().join("pins")).expect("a bpffs"));
    nix::mount::umount(&elsewhere.path().join("pins")).expect("unmounted");
    fs::write(elsewhere.path().join("file"), "").expect("a file");
    let error = ensure_bpffs(&elsewhere.path().join("file")).expect_err("no directory").to_string();
    assert!(error.contains("file"), "{error}");
}

#[test]
fn filters_of_others_stay() {
    let (a, _) = node();
    let tc = |words: &str| {
        assert!(Command::new("tc").args(words.split(' ')).status().expect("tc").success(), "tc {words}");
    };
    tc("qdisc add dev va clsact");
    tc("filter add dev va ingress protocol ip pref 100 u32 match u32 0 0 classid 1:1");
    let mut programs = load(&Options { force_clsact: true, ..Options::default() });
    programs.attach_pod(a).expect("attached");
    assert!(filters("va", "ingress").contains("sluice_from_pod"));
    programs.detach(a).expect("detached");
    let left = filters("va", "ingress");
    assert!(!left.contains("sluice") && left.contains("u32"), "{left}");
    programs.attach_pod(a).expect("attached");
    drop(programs);
    assert!(!filters("va", "ingress").contains("sluice"), "without pins it ends with the process");
}

#[test]
fn many_pods_at_once_are_attached_without_waiting_for_each() {
    enter_private_node();
    let pods: Vec<u32> = (0..100)
        .map(|number| {
            ip(&format!("link add h{number} type veth peer name p{number}"));
            ifindex(&format!("h{number}"))
        })
        .collect();
    let mut programs = load(&pinned(false));
    let begun = Instant::now();
    programs.attach_pods(&pods).expect("attached");
    assert!(begun.elapsed() < Duration::from_secs(1), "100 pods took {:?}", begun.elapsed());
    assert_eq!(programs.attached().len(), 200);
    assert_eq!(programs.hook(pods[0], Role::ToPod), Some(TcHook::Clsact));
    programs.detach(pods[0]).expect("detached");
    programs.attach_pod(pods[0]).expect("attached");
    assert_eq!(programs.hook(pods[0], Role::ToPod), Some(TcHook::Tcx), "a single one gets tcx");
    programs.detach_all().expect("detached");
    assert_eq!(programs.attached(), []);
}
