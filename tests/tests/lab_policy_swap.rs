//! Policies that change all the time, under load: a swap is atomic. What both versions allow loses nothing, what both deny
//! passes nothing, and what is denied leaves no trace in the flow table.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_tests::cluster::{block, identities, isolate, selected};
use sluice_tests::lab::{ECHO, Lab, PATIENCE, PEER, Pusher, connect, greeting, is_open};

const SWAPS: u32 = 1000;

/// Two versions of what pod-c takes: pod-a always, pod-d in every other one, pod-b never. Everything about pod-a's rule is
/// another each time: its selector, the identity that has it, the number of the rules.
fn version(lab: &Lab, n: u32) -> Vec<Value> {
    let selector = 100 + n % 2;
    let mut ops = vec![json!({ "upsert_identity": { "id": 1, "selectors": [1, selector] } })];
    let mut takes = vec![selected(selector), block("203.0.113.0/24")];
    if n.is_multiple_of(2) {
        takes.push(selected(4));
    }
    ops.extend(isolate(10 + n % 2, lab.address("pod-c"), Some(&takes), None));
    ops
}

/// Sends small datagrams to an echo until told to stop, one at a time; gives how many were sent, answered, and sent but not
/// answered in time.
fn probe(to: (Ipv4Addr, u16), wait: Duration, stop: &AtomicBool) -> (u64, u64) {
    let (mut sent, mut answered) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        // A socket of its own for each: a flow of its own, judged from the first packet on.
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(wait)).expect("a timeout");
        socket.connect(to).expect("a route");
        for _ in 0..8 {
            if socket.send(b"probe").is_ok() {
                sent += 1;
                answered += u64::from(socket.recv(&mut [0; 16]).is_ok());
            }
        }
    }
    (sent, answered)
}

#[test]
fn a_thousand_swaps_under_load_lose_nothing_allowed_and_pass_nothing_denied() {
    let lab = Lab::up("w", &["--queues", "2", "--sluiced-arg=--workers=2"]);
    let mut pusher = Pusher::connect(&lab);
    pusher.push_all(&[identities(&lab), version(&lab, 0)]);
    let target = lab.address("pod-c");
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let at = SocketAddrV4::new(target, PEER);
    let mut held: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = lab.within("pod-a", || connect(None, at, PATIENCE)).expect("a connection");
            greeting(&mut stream).expect("the server's first line");
            stream
        })
        .collect();
    let before = lab.stats();
    let (allowed, denied, outside, took) = std::thread::scope(|scope| {
        let (lab, stop) = (&lab, &stop);
        let start = |member: &'static str, wait: u64| {
            scope.spawn(move || {
                lab.within(member, || probe((target, ECHO), Duration::from_millis(wait), stop))
            })
        };
        // An answer may be late on a busy machine; one that is lost never comes.
        let (allowed, outside) = (start("pod-a", 5_000), start("host-x", 5_000));
        let (denied, _every_other) = (start("pod-b", 5), start("pod-d", 5));
        let since = Instant::now();
        for n in 1..=SWAPS {
            pusher.push(&Value::Array(version(lab, n)));
            swaps.fetch_add(1, Ordering::Relaxed);
        }
        let took = since.elapsed();
        stop.store(true, Ordering::Relaxed);
        let end = |thread: std::thread::ScopedJoinHandle<'_, (u64, u64)>| thread.join().expect("a probe");
        (end(allowed), end(denied), end(outside), took)
    });
    let said = format!(
        "{SWAPS} swaps in {took:?}; (sent, answered): allowed {allowed:?} and {outside:?}, denied {denied:?}"
    );
    println!("{said}");
    assert!(allowed.0 > 1000 && outside.0 > 1000 && denied.0 > 100, "{said}");
    assert_eq!((allowed.0, outside.0), (allowed.1, outside.1), "{said}");
    assert_eq!(denied.1, 0, "{said}");
    for stream in &mut held {
        assert!(is_open(stream), "a connection that every version allows was cut");
    }
    let delta = lab.since(&before);
    delta.assert_at_least(&[
        ("engine.flows_rechecked", 100),
        ("engine.flows_revoked", 1),
        ("drop.policy_ingress", i64::try_from(denied.0).expect("a count")),
    ]);
    let known = ["drop.policy_ingress", "drop.revoked"];
    let others: Vec<_> = delta.drops().into_iter().filter(|(name, _)| !known.contains(name)).collect();
    assert!(others.is_empty(), "{others:?}: {:?}", delta.all());
    assert_eq!(swaps.load(Ordering::Relaxed), u64::from(SWAPS));
}

#[test]
fn a_peer_that_becomes_another_is_judged_again_at_its_next_packet() {
    let lab = Lab::up("r", &[]);
    let mut pusher = Pusher::connect(&lab);
    let (c, v) = (lab.address("pod-c"), lab.address("host-v"));
    let identity =
        |id: u32, selectors: Vec<u32>| json!({ "upsert_identity": { "id": id, "selectors": selectors } });
    // Host V stands for a pod of another node.
    let remote =
        vec![identity(50, vec![77]), json!({ "upsert_addresses": [[v, 50]] }), identity(51, vec![78])];
    let takes = [selected(77), selected(1)];
    pusher.push_all(&[identities(&lab), remote.clone(), isolate(1, c, Some(&takes), None)]);
    let at = SocketAddrV4::new(c, PEER);
    let open = |member: &str| {
        let mut stream = lab.within(member, || connect(None, at, PATIENCE)).expect("a connection");
        greeting(&mut stream).expect("the server's first line");
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        stream
    };
    let changes: [(&str, &str, Value, Value); 3] = [
        ("a local pod relabelled", "pod-a", identity(1, vec![9]), identity(1, vec![1])),
        ("a namespace relabelled", "host-v", identity(50, vec![79]), identity(50, vec![77])),
        (
            "an address used again by another pod",
            "host-v",
            json!({ "upsert_addresses": [[v, 51]] }),
            json!({ "upsert_addresses": [[v, 50]] }),
        ),
    ];
    for (what, member, change, back) in changes {
        let mut held = open(member);
        assert!(is_open(&mut held), "{what}: before");
        // Its last acknowledgement may be delayed, and what lacks one is sent again once it may be.
        std::thread::sleep(Duration::from_millis(150));
        let before = lab.stats();
        pusher.push(&json!([change]));
        let after = lab.stats();
        assert!(!is_open(&mut held), "{what}: its packets still arrive");
        lab.since(&before).assert_at_least(&[("engine.flows_revoked", 1), ("drop.revoked", 1)]);
        lab.since(&after).assert(&[("engine.to_pod", 0)]);
        let anew = lab.within(member, || connect(None, at, Duration::from_millis(500)));
        assert!(anew.is_err(), "{what}: a new connection came through");
        // Gone before it is allowed again, or it would go on then.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&held, nix::sys::socket::sockopt::Linger, &linger).expect("a socket");
        drop(held);
        pusher.push(&json!([back]));
        assert!(is_open(&mut open(member)), "{what}: allowed again");
    }
}
