//! What is wrong is refused, with the field, the value and the way out, and what was in force stays: bad states, bad
//! hosts, missing rights, second daemons, and clients of the sockets that mean no good.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_io::xsk::{Mode, Umem, XskOptions, XskPort};
use sluice_tests::lab::{Lab, PEER, eventually, program, tcp_peer};
use sluice_tests::node::{Client, check, framed, log, start, state};

/// Exit codes of `sluiced`, as its help lists them.
const STATE: i32 = 3;
const CAPABILITY: i32 = 4;
const SECOND: i32 = 5;

/// A state that is good, to be broken.
const GOOD: &str = r#"
version = 1
[node]
name = "node"
[[eni]]
name = "eni0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"
[[pod]]
namespace = "default"
name = "a"
ip = "10.0.1.10"
eni = "eni0"
interface = "veth-a"
mac = "02:00:00:0a:00:00"
[nat]
vpc_cidrs = ["10.0.0.0/16"]
[snat_ports]
ranges = ["1024-29999"]
"#;

/// The good state with one piece of text exchanged.
#[track_caller]
fn broken(piece: &str, by: &str) -> String {
    assert!(GOOD.contains(piece), "the good state has no `{piece}`");
    GOOD.replacen(piece, by, 1)
}

#[test]
fn a_good_state_is_good_and_unreadable_ones_are_refused() {
    check(GOOD, "toml").assert(0, &["good: 1 ENI(s), 1 pod(s), 28976 SNAT ports"]);
    check("version = ", "toml").assert(STATE, &["does not parse", "line 1"]);
    check("{\"version\": 1,}", "json").assert(STATE, &["does not parse", "line 1"]);
    check(&broken("version = 1", "version = 9"), "toml").assert(STATE, &["version: `9`", "reads: 1"]);
    let missing = std::process::Command::new(program("sluiced"))
        .args(["check", "--state", "/no/such/state.toml"])
        .output()
        .expect("sluiced runs");
    assert_eq!(missing.status.code(), Some(STATE));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/state.toml: No such file"));
}

#[test]
fn unknown_and_duplicate_keys_are_named_with_what_would_do() {
    check(&broken("name = \"node\"", "colour = \"red\""), "toml")
        .assert(STATE, &["unknown field `colour`", "line 4", "`on_failure`"]);
    check(&broken("primary = true", "primry = true"), "toml")
        .assert(STATE, &["unknown field `primry`", "`primary`"]);
    check(&broken("primary = true", "primary = true\nprimary = false"), "toml")
        .assert(STATE, &["duplicate key", "primary"]);
    check(r#"{"version": 1, "version": 1}"#, "json").assert(STATE, &["duplicate field `version`"]);
    check(r#"{"version": 1, "extra": 1}"#, "json").assert(STATE, &["unknown field `extra`", "`snat_ports`"]);
}

#[test]
fn contradictions_are_all_listed_at_once() {
    let cidrs = broken("[\"10.0.0.0/16\"]", "[\"10.0.0.0/16\", \"10.0.8.0/21\", \"100.64.3.1/16\"]");
    let both = cidrs.replacen("eni = \"eni0\"", "eni = \"eni9\"", 1);
    check(&both, "toml").assert(
        STATE,
        &[
            "3 finding(s)",
            "nat.vpc_cidrs[1]: `10.0.8.0/21` overlaps nat.vpc_cidrs[0] = 10.0.0.0/16: keep the wider one",
            "nat.vpc_cidrs[2]: `100.64.3.1/16` has host bits set: write 100.64.0.0/16",
            "pod[0].eni: `eni9` is no ENI of this node: one of [eni0]",
        ],
    );
    check(&broken("primary = true", "primary = false"), "toml")
        .assert(STATE, &["eni.primary: `0`", "exactly one must be"]);
    check(&broken("ip = \"10.0.1.10\"", "ip = \"10.0.9.5\""), "toml")
        .assert(STATE, &["pod[0].ip: `10.0.9.5`", "ENI's primary address", "secondary address"]);
    check(&broken("gateway = \"10.0.9.1\"", "gateway = \"10.0.8.1\""), "toml")
        .assert(STATE, &["eni[0].gateway: `10.0.8.1`", "outside the ENI's subnet 10.0.9.0/24"]);
}

#[test]
fn port_ranges_that_leave_nothing_or_make_no_sense_are_refused() {
    check(&broken("[\"1024-29999\"]", "[\"2000-2009\"]\nexclude = [\"1990-2100\"]"), "toml")
        .assert(STATE, &["snat_ports: `2000-2009` leaves no port for SNAT", "outside `exclude`"]);
    check(&broken("[\"1024-29999\"]", "[]"), "toml").assert(STATE, &["snat_ports", "leaves no port"]);
    check(&broken("1024-29999", "29999-1024"), "toml")
        .assert(STATE, &["`29999-1024` is not a port range", "FIRST <= LAST"]);
    check(&broken("1024-29999", "80-29999"), "toml").assert(STATE, &["snat_ports.ranges", "start at 1024"]);
}

#[test]
fn a_host_that_does_not_fit_the_state_is_refused_and_nothing_stays_behind() {
    let lab = Lab::up("h", &["--dataplane", "none", "--pods", "2"]);
    let good = state(&lab);
    let xdp_only = ["--eni-port", "xdp"];

    start(&lab, &[], &good.replace("\"eni1\"", "\"eni7\""), &[]).assert(
        STATE,
        &["eni[1].name: `eni7` is no interface of this network namespace", "[lo, eni0, eni1, "],
    );

    let taken = lab.within("node", || hold_queue("eni0"));
    start(&lab, &[], &good, &xdp_only).assert(
        STATE,
        &[
            "eni[0].name: `eni0` cannot be opened",
            "eni0 queue 0",
            "taken by another AF_XDP socket",
            "ss --xdp -p",
        ],
    );
    drop(taken);

    attach_foreign_xdp(&lab, "eni1");
    start(&lab, &[], &good, &xdp_only).assert(
        STATE,
        &[
            "eni[1].name: `eni1` cannot be opened",
            "another XDP program is attached to eni1: \"foreign_prog\"",
            "ip link set dev eni1 xdp off",
        ],
    );
    let left = lab.sh("node", "ip link show eni1");
    assert!(left.contains("foreign_prog"), "the other's program stays: {left}");
    lab.sh("node", "ip link set dev eni1 xdpdrv off");

    lab.sh("node", "ip link set eni1 mtu 40000");
    start(&lab, &[], &good, &xdp_only).assert(
        STATE,
        &["eni[1].name: `eni1`", "MTU 40000 needs frames of 40014 bytes", "lower the MTU", "--eni-port=tap"],
    );
    lab.sh("node", "ip link set eni1 mtu 1500");

    let ports = good.replace("[\"1024-29999\", \"61000-65535\"]", "[\"30500-30599\"]");
    assert_ne!(ports, good);
    start(&lab, &[], &ports, &[])
        .assert(STATE, &["snat_ports.ranges: `30500-30599`", "NodePort", "30000-32767", "--node-ports"]);

    let rest = lab.sh("node", "ip -o link; tc filter show dev eni0 ingress; tc filter show dev eni0 egress");
    assert!(!rest.contains("sluice0") && !rest.contains("xdp") && !rest.contains("bpf"), "left: {rest}");
    // The same node takes the daemon once nothing stands in its way.
    lab.start_daemon(&xdp_only);
    lab.within("pod-a", || tcp_peer(None, lab.address("host-x"), PEER));
}

/// An AF_XDP socket of somebody else on queue 0. The caller is in the interface's namespace.
fn hold_queue(interface: &str) -> (Umem, XskPort) {
    let index = nix::net::if_::if_nametoindex(interface).expect("an interface");
    let umem = Umem::new(256, 64, false).expect("a UMEM");
    let options = XskOptions { mode: Mode::Copy, multi_buffer: false, mtu: 1500, busy_poll: None };
    let port = XskPort::open(&umem, interface, index, 0, &options).expect("the queue is free");
    (umem, port)
}

/// Somebody else's XDP program that passes everything.
fn attach_foreign_xdp(lab: &Lab, interface: &str) {
    let source = lab.path("foreign.c");
    let program = "
        #define SEC(name) __attribute__((section(name), used))
        struct context;
        SEC(\"xdp\") int foreign_prog(struct context *ctx) { return 2; }
        char gpl[] SEC(\"license\") = \"GPL\";";
    std::fs::write(&source, program).expect("a file in the lab's directory");
    let (source, object) = (source.display(), lab.path("foreign.o"));
    let object = object.display();
    lab.sh("node", &format!("clang -O2 -g -target bpf -c {source} -o {object}"));
    lab.sh("node", &format!("ip link set dev {interface} xdpdrv obj {object} sec xdp"));
}

#[test]
fn a_missing_capability_is_named_with_what_needs_it() {
    let lab = Lab::up("c", &["--dataplane", "none", "--pods", "1"]);
    let good = state(&lab);
    let without = |caps: &str| start(&lab, &["setpriv", "--bounding-set", caps], &good, &[]);
    without("-net_raw").assert(CAPABILITY, &["missing CAP_NET_RAW", "AF_XDP sockets", "[NET_RAW]"]);
    without("-net_admin").assert(CAPABILITY, &["missing CAP_NET_ADMIN", "trunk", "[NET_ADMIN]"]);
    without("-bpf,-sys_admin").assert(CAPABILITY, &["missing CAP_BPF", "loads BPF programs", "[BPF]"]);
    without("-perfmon,-sys_admin")
        .assert(CAPABILITY, &["missing CAP_PERFMON", "pointers into packets", "[PERFMON]"]);
    without("-all").assert(
        CAPABILITY,
        &["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "securityContext.capabilities.add", "Run as root"],
    );
}

#[test]
fn what_is_in_force_survives_bad_files_bad_generations_and_a_second_daemon() {
    let lab = Lab::up("s", &["--pods", "2"]);
    let good = state(&lab);
    let pid = lab.pid("sluiced");
    works(&lab);

    start(&lab, &[], &good, &[])
        .assert(SECOND, &[&format!("another sluiced (pid {pid})"), "stop it", "--run-dir"]);
    works(&lab);

    let bad = good.replace("eni = \"eni0\"", "eni = \"eni5\"");
    hang_up(&lab, &bad, "the state stays as it was");
    assert!(log(&lab).contains("pod[0].eni: `eni5` is no ENI of this node"), "{}", log(&lab));
    assert_eq!(generation(&lab), 1);
    hang_up(&lab, &good.replace("\"eni1\"", "\"eni6\""), "eni[1].name: `eni6`");
    hang_up(&lab, "version = ", "does not parse");
    assert_eq!(generation(&lab), 1);
    works(&lab);
    hang_up(&lab, &good, "the state file was read again");
    assert_eq!(generation(&lab), 2);
    works(&lab);

    let (mut client, hello) = Client::greet(&lab, "state.sock");
    assert_eq!(hello["hello"]["generation"], 2);
    let refused = client.ask(&push(3, &json!([{ "delete_eni": "eni0" }])));
    assert_eq!(refused["refused"]["generation"], 2, "{refused}");
    let findings = refused["refused"]["findings"].as_array().expect("findings");
    assert!(findings.iter().any(|f| f["field"] == "pod[0].eni" && f["value"] == "eni0"), "{refused}");
    works(&lab);
    let eni = json!({ "name": "eni9", "primary": false, "address": "10.0.30.5", "subnet": "10.0.30.0/24", "gateway": "10.0.30.1" });
    let refused = client.ask(&push(3, &json!([{ "upsert_eni": eni }])));
    assert_eq!(refused["refused"]["findings"][0]["value"], "eni9", "{refused}");
    let old = client.ask(&push(2, &json!([])));
    assert!(old["refused"]["reason"].as_str().expect("a reason").contains("not above 2"), "{old}");
    let typo = client.ask(&push(3, &json!([{ "delete_podd": "10.0.1.10" }])));
    assert!(typo["refused"]["reason"].as_str().expect("a reason").contains("delete_podd"), "{typo}");
    assert_eq!(generation(&lab), 2);
    works(&lab);

    let accepted = client.ask(&push(3, &json!([{ "delete_pod": "10.0.1.11" }])));
    assert_eq!(accepted["accepted"]["generation"], 3, "{accepted}");
    assert_eq!(generation(&lab), 3);
    works(&lab);
}

/// A pod reaches the outside, translated, through the engine.
#[track_caller]
fn works(lab: &Lab) {
    let before = lab.stats();
    let seen = lab.within("pod-a", || tcp_peer(None, lab.address("host-x"), PEER));
    assert_eq!(*seen.ip(), sluice_tests::lab::NODE);
    let delta = lab.since(&before);
    delta.assert(&[("engine.flows_opened", 1)]);
    delta.assert_drops(&[]);
}

fn generation(lab: &Lab) -> u64 {
    let output = sluice_tests::lab::sluice(&["stats", "--lab", lab.name()], &["--output", "json"]);
    let stats: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    stats["generation"].as_u64().expect("a generation")
}

/// Writes another state, sends SIGHUP and waits for what the daemon says to it.
#[track_caller]
fn hang_up(lab: &Lab, state: &str, answer: &str) {
    let before = log(lab).matches(answer).count();
    std::fs::write(lab.path("state.toml"), state).expect("a file in the lab's directory");
    let pid = nix::unistd::Pid::from_raw(lab.pid("sluiced"));
    nix::sys::signal::kill(pid, nix::sys::signal::SIGHUP).expect("the daemon lives");
    eventually(&format!("`{answer}` in the log"), || log(lab).matches(answer).count() > before);
}

fn push(number: u64, ops: &Value) -> Value {
    json!({ "generation": { "number": number, "ops": ops } })
}

#[test]
fn clients_that_mean_no_good_are_cut_off_and_harm_nobody() {
    let lab = Lab::up("k", &["--pods", "1"]);
    for socket in ["state.sock", "query.sock"] {
        // Lengths that nobody would send, before a byte is allocated for them.
        let mut huge = Client::connect(&lab, socket);
        huge.send(&u32::MAX.to_be_bytes());
        assert!(huge.hung_up(Duration::from_secs(3)).is_some(), "{socket} keeps who announces 4 GiB");
        let mut garbage = Client::connect(&lab, socket);
        garbage.send(b"GET / HTTP/1.1\r\nHost: sluice\r\n\r\n");
        assert!(garbage.hung_up(Duration::from_secs(3)).is_some(), "{socket} keeps who talks HTTP");
        let mut not_json = Client::connect(&lab, socket);
        not_json.send(&framed(&[0xff; 64]));
        assert!(not_json.hung_up(Duration::from_secs(3)).is_some(), "{socket} keeps who sends no JSON");
        let mut stranger = Client::connect(&lab, socket);
        let answer = stranger.ask(&json!({ "version": 77, "client": "from the future" }));
        let reason = answer["refused"]["reason"].as_str().or(answer["refused"].as_str()).unwrap_or_default();
        assert!(reason.contains("77") && reason.contains('1'), "{socket}: {answer}");
    }
    // After the greeting, too.
    let (mut client, _) = Client::greet(&lab, "state.sock");
    client.send(&(65_u32 << 20).to_be_bytes());
    assert!(client.hung_up(Duration::from_secs(3)).is_some());
    works(&lab);

    // As many silent and half-spoken clients as fit: the others wait no longer than their time is up.
    let mut slow: Vec<_> = (0..3).map(|_| Client::connect(&lab, "state.sock")).collect();
    slow.iter_mut().for_each(|client| assert!(client.send(&[0, 0])));
    let (mut good, hello) = Client::greet(&lab, "state.sock");
    assert_eq!(hello["hello"]["generation"], 1, "one place is left");
    let mut too_many = Client::connect(&lab, "state.sock");
    assert!(too_many.hung_up(Duration::from_secs(3)).is_some(), "the fifth is turned away");
    assert_eq!(good.ask(&push(2, &json!([])))["accepted"]["generation"], 2, "the fourth goes on");
    works(&lab);
    for client in &mut slow {
        assert!(client.hung_up(Duration::from_secs(13)).is_some(), "a half-spoken message has 10 s");
    }
    let (_, hello) = Client::greet(&lab, "state.sock");
    assert_eq!(hello["hello"]["generation"], 2, "their places are free again");
}

#[test]
fn a_stranger_gets_no_word_on_any_socket() {
    let lab = Lab::up("x", &["--pods", "1"]);
    let run = lab.path("run");
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&run), 0o700);
    for socket in ["state.sock", "query.sock"] {
        let path = run.join(socket);
        assert_eq!(mode(&path), 0o600);
        let refused = as_nobody(|| UnixStream::connect(&path).map(drop));
        assert_eq!(refused.expect_err("a closed door").kind(), std::io::ErrorKind::PermissionDenied);
    }
    // With the doors open the daemon itself looks who comes.
    for path in [run.parent().expect("the lab's directory").to_owned(), run.clone()] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our directory");
    }
    for socket in ["state.sock", "query.sock"] {
        let path = run.join(socket);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("our socket");
        let before = log(&lab).matches("is not root's").count();
        let stream = as_nobody(|| UnixStream::connect(&path)).expect("the doors are open");
        let hello = framed(br#"{"version":1,"client":"nobody"}"#);
        let _ = (&stream).write_all(&hello);
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let answer = std::io::Read::read(&mut &stream, &mut [0; 64]);
        assert!(
            matches!(answer, Ok(0)) || answer.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        );
        eventually("the refusal is in the log", || log(&lab).matches("is not root's").count() > before);
    }
    works(&lab);
}

/// Runs `work` as the user nobody, on a thread of its own.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: libc::c_long = 65_534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the bare system call, unlike libc's function, changes the calling thread alone, and that one ends
            // with the work. Its arguments are numbers.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(done, 0, "the tests run as root");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
