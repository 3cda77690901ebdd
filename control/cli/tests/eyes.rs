//! The first eyes against a daemon that a thread plays: it speaks the query protocol and answers from a script.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use assert_cmd::Command;
use sluice_state::PortRange;
use sluice_state::framing::{MAX_QUERY, read_message, write_message};
use sluice_state::push::Hello;
use sluice_state::query::{
    Answer, CaptureFilter, CaptureRecord, Conservation, Extent, FlowFilter, FlowRow, Flows, Listener, Memory,
    Point, PortContract, QUERY_VERSION, Query, Stats, Tuple,
};

/// Answers one client: its hello, its one question, and then whatever `answers` makes of that.
fn daemon(dir: &Path, answers: impl FnOnce(&Query) -> Vec<Answer> + Send + 'static) -> JoinHandle<Query> {
    let listener = UnixListener::bind(dir.join("query.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let hello: Hello = read_message(&mut stream, MAX_QUERY).unwrap();
        assert_eq!(hello.version, QUERY_VERSION);
        write_message(&mut stream, &Answer::Hello { version: QUERY_VERSION, daemon: "test".into(), pid: 1 })
            .unwrap();
        let query: Query = read_message(&mut stream, MAX_QUERY).unwrap();
        for answer in answers(&query) {
            // A client that has seen enough goes away.
            let _ = write_message(&mut stream, &answer);
        }
        let _ = stream.flush();
        query
    })
}

fn sluice(dir: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("sluice").unwrap();
    command.args(args).arg("--run-dir").arg(dir).timeout(std::time::Duration::from_secs(20));
    command.assert()
}

fn stdout(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn record(point: Point, src: [u8; 4], sport: u16, drop: Option<&str>, time_ns: u64) -> Answer {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [3; 6])
        .ipv4(src, [203, 0, 113, 9], 64)
        .udp(sport, 53)
        .write(&mut bytes, b"question")
        .unwrap();
    Answer::Record(Box::new(CaptureRecord {
        time_ns,
        worker: 0,
        point,
        inbound: false,
        len: u32::try_from(bytes.len()).unwrap(),
        bytes,
        verdict: drop.map_or("eni eni0", |_| "drop").into(),
        flow: Some(3),
        mapping: Some("10.0.1.10:40000 > 203.0.113.9:53 as 10.0.9.5:2345 > 203.0.113.9:53".into()),
        drop: drop.map(str::to_owned),
    }))
}

fn capture_script(_: &Query) -> Vec<Answer> {
    let points = vec![Point::Pod("lab/pod-a".into()), Point::Eni("eni0".into()), Point::Drop];
    let now = 1_700_000_000_000_000_123;
    vec![
        Answer::Capturing { points },
        record(Point::Pod("lab/pod-a".into()), [10, 0, 1, 10], 40000, None, now),
        record(Point::Eni("eni0".into()), [10, 0, 9, 5], 2345, None, now + 1000),
        record(Point::Drop, [10, 0, 1, 99], 1, Some("spoof"), now + 2000),
        Answer::CaptureStatus { sent: 3, lost: 2 },
        record(Point::Pod("lab/pod-z".into()), [10, 0, 1, 12], 9, None, now + 3000),
    ]
}

#[test]
fn a_capture_opens_in_tshark_without_a_warning_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.pcapng");
    let daemon = daemon(dir.path(), capture_script);
    let done = sluice(dir.path(), &["capture", "-c", "4", "--pod", "pod-a", "-w", file.to_str().unwrap()]);
    assert!(stderr(&done).contains("4 packets, 2 lost"), "{}", stderr(&done));
    done.success();
    let asked = daemon.join().unwrap();
    assert_eq!(
        asked,
        Query::Capture(CaptureFilter { pods: vec!["pod-a".into()], ..CaptureFilter::default() })
    );
    let mut tshark = std::process::Command::new("tshark");
    tshark.arg("-r").arg(&file).args(["-T", "fields", "-E", "separator=|"]);
    for field in ["frame.interface_name", "ip.src", "frame.comment", "frame.time_epoch"] {
        tshark.args(["-e", field]);
    }
    let shown = match tshark.output() {
        Ok(shown) => shown,
        Err(e) if std::env::var_os("CI").is_none() => {
            eprintln!("NOT RUN: tshark (package tshark) cannot be run: {e}");
            return;
        }
        Err(e) => panic!("tshark (package tshark) is needed: {e}"),
    };
    let words = String::from_utf8_lossy(&shown.stderr)
        .replace("Running as user \"root\" and group \"root\". This could be dangerous.", "");
    assert_eq!(words.trim(), "", "tshark has something to say");
    let text = String::from_utf8(shown.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(
        lines[0].starts_with("pod:lab/pod-a|10.0.1.10|verdict: eni eni0; mapping: 10.0.1.10:40000 >"),
        "{text}"
    );
    assert!(lines[1].starts_with("eni:eni0|10.0.9.5|"), "{text}");
    assert!(
        lines[2].contains("dropped: spoof (The source address is not the pod's; from the wire,"),
        "{text}"
    );
    assert!(lines[3].starts_with("pod:lab/pod-z|"), "a point that came later: {text}");
    assert!(lines[0].contains("1700000000.000000123"), "nanoseconds are kept: {text}");
}

#[test]
fn a_filter_sees_both_sides_of_the_translation() {
    let dir = tempfile::tempdir().unwrap();
    let _daemon = daemon(dir.path(), capture_script);
    let done = sluice(
        dir.path(),
        &["capture", "-c", "2", "--output", "json", "src", "host", "10.0.1.10", "and", "port", "2345"],
    );
    let text = stdout(&done);
    done.success();
    let points: Vec<CaptureRecord> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(points.iter().map(|r| r.point.to_string()).collect::<Vec<_>>(), ["pod:lab/pod-a", "eni:eni0"]);
}

#[test]
fn a_wrong_filter_ends_with_code_2_and_names_the_word() {
    let dir = tempfile::tempdir().unwrap();
    let done = sluice(dir.path(), &["capture", "prot", "tcp"]);
    assert!(stderr(&done).contains("`prot` is no condition"), "{}", stderr(&done));
    done.code(2);
}

#[test]
fn flows_pass_the_filter_on_and_print_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let original =
        Tuple { src: [10, 0, 1, 10].into(), dst: [203, 0, 113, 9].into(), sport: 40000, dport: 80 };
    let row = FlowRow {
        id: 9,
        protocol: 6,
        original,
        translated: Tuple { src: [10, 0, 9, 5].into(), sport: 2345, ..original },
        origin: "pod".into(),
        state: "established".into(),
        idle_ms: 10,
        packets: [1, 1],
        bytes: [60, 60],
        pods: [Some("lab/pod-a".into()), None],
    };
    let flows = Flows { rows: vec![row], matched: 1, live: 1, capacity: 1024 };
    let daemon = daemon(dir.path(), move |_| vec![Answer::Flows(flows)]);
    let done = sluice(dir.path(), &["flows", "--net", "10.0.1.10", "--proto", "tcp", "--translated"]);
    assert!(stdout(&done).contains("10.0.9.5:2345 > 203.0.113.9:80"), "{}", stdout(&done));
    done.success();
    let expected = FlowFilter {
        net: Some("10.0.1.10/32".parse().unwrap()),
        protocol: Some(6),
        translated: Some(true),
        limit: Some(1000),
        ..FlowFilter::default()
    };
    assert_eq!(daemon.join().unwrap(), Query::Flows(expected));
}

#[test]
fn stats_and_ports_print_as_json_what_the_daemon_said() {
    let dir = tempfile::tempdir().unwrap();
    let stats = Stats {
        time_ns: 1,
        uptime_s: 2,
        generation: 3,
        total: [("packets".to_owned(), 4)].into(),
        drops: [("spoof".to_owned(), 1)].into(),
        bpf: [].into(),
        ports: Vec::new(),
        workers: Vec::new(),
        flows: 0,
        flow_capacity: 1024,
        extent: Extent { addresses: 5, ..Extent::default() },
        memory: Memory::default(),
        conservation: Conservation { packets_in: 4, packets_out: 3, dropped: 1, held: 0, balanced: true },
    };
    let said = stats.clone();
    daemon(dir.path(), move |_| vec![Answer::Stats(Box::new(said))]);
    let done = sluice(dir.path(), &["stats", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Stats>(&stdout(&done)).unwrap(), stats);
    done.success();

    let dir = tempfile::tempdir().unwrap();
    let range = |first, last| PortRange { first, last };
    let ports = PortContract {
        address: Some([10, 0, 9, 5].into()),
        configured: vec![range(1024, 29_999)],
        excluded: Vec::new(),
        node_ports: range(30_000, 32_767),
        listeners: Vec::new(),
        services: vec![Listener { protocol: "tcp".into(), port: 8080 }],
        tcp: vec![range(1024, 8079), range(8081, 29_999)],
        udp: vec![range(1024, 29_999)],
        icmp: vec![range(1024, 29_999)],
        ephemeral: Some(range(32_768, 60_999)),
        reserved: Vec::new(),
        checked_ns: 1,
        findings: Vec::new(),
    };
    daemon(dir.path(), move |_| vec![Answer::Ports(Box::new(ports))]);
    let done = sluice(dir.path(), &["ports"]);
    let text = stdout(&done);
    assert!(text.contains("1024-8079, 8081-29999 (28975 ports)") && text.contains("32768-60999"), "{text}");
    assert!(text.contains("8080/tcp"), "{text}");
    done.success();
}

#[test]
fn without_a_daemon_the_error_says_where_it_looked_and_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let done = sluice(dir.path(), &["stats"]);
    let text = stderr(&done);
    assert!(text.contains("query.sock") && text.contains("--lab"), "{text}");
    done.code(1);
}

#[test]
fn a_typo_gets_a_suggestion_and_code_2() {
    let done = Command::cargo_bin("sluice").unwrap().args(["lab", "up", "--dataplan", "nft"]).assert();
    assert!(stderr(&done).contains("--dataplane"), "{}", stderr(&done));
    done.code(2);
}

#[test]
fn completions_and_the_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let done = Command::cargo_bin("sluice").unwrap().args(["completions", shell]).assert();
        assert!(stdout(&done).contains("capture"), "{shell}");
        done.success();
    }
    let done = Command::cargo_bin("sluice").unwrap().arg("man").assert();
    assert!(stdout(&done).contains(".TH sluice"));
    done.success();
    let done = Command::cargo_bin("sluice").unwrap().args(["man", "lab", "up"]).assert();
    assert!(
        stdout(&done).contains(".TH sluice-lab-up") && stdout(&done).contains("10.0.9.5"),
        "{}",
        stdout(&done)
    );
    done.success();
}
