use etherparse::PacketBuilder;

use super::*;

const MAPPING: &str = "10.0.1.10:40000 > 203.0.113.9:80 as 10.0.9.5:2345 > 203.0.113.9:80";

fn tcp(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [3; 6])
        .ipv4(src, dst, 64)
        .tcp(sport, dport, 1, 1024)
        .write(&mut frame, b"hello")
        .unwrap();
    frame
}

fn holds(filter: &str, view: &View) -> bool {
    filter.parse::<Filter>().unwrap_or_else(|e| panic!("{filter}: {e}")).matches(view)
}

#[test]
fn a_pods_packet_is_found_on_both_sides_of_the_translation() {
    let on_eni = View::new(&tcp([10, 0, 9, 5], 2345, [203, 0, 113, 9], 80), Some(MAPPING));
    for filter in [
        "host 10.0.1.10",
        "src host 10.0.1.10 and dst port 80",
        "port 40000",
        "src port 2345",
        "10.0.9.5",
        "net 203.0.113.0/24 tcp",
        "not udp",
        "!(dst net 10.0.0.0/8) && (port 1 or portrange 79-81)",
    ] {
        assert!(holds(filter, &on_eni), "{filter}");
    }
    for filter in
        ["dst host 10.0.1.10", "not host 10.0.1.10", "udp", "dst port 40000", "host 10.0.1.11 or port 81"]
    {
        assert!(!holds(filter, &on_eni), "{filter}");
    }
}

#[test]
fn a_reply_has_its_source_where_the_sender_is() {
    let reply = View::new(&tcp([203, 0, 113, 9], 80, [10, 0, 9, 5], 2345), Some(MAPPING));
    assert!(holds("dst host 10.0.1.10 and src host 203.0.113.9", &reply));
    assert!(holds("dst port 40000", &reply));
    assert!(!holds("src host 10.0.1.10", &reply));
}

#[test]
fn precedence_is_not_then_and_then_or() {
    let view = View::new(&tcp([10, 0, 1, 10], 1, [10, 0, 1, 11], 2), None);
    assert!(holds("udp and port 9 or tcp", &view));
    assert!(!holds("udp and (port 9 or tcp)", &view));
    assert!(holds("not udp and tcp", &view));
    assert!(!holds("not (not udp and tcp)", &view));
}

#[test]
fn what_is_not_ipv4_matches_nothing_but_a_negation() {
    let view = View::new(&[0xff; 60], None);
    assert!(!holds("tcp", &view) && !holds("net 0.0.0.0/0", &view) && holds("not tcp", &view));
    assert_eq!(view.summary(), "not IPv4");
}

#[test]
fn mistakes_are_named() {
    for (filter, word) in [
        ("prot tcp", "prot"),
        ("host", "an address"),
        ("port 70000", "70000"),
        ("(tcp", ")"),
        ("tcp )", ")"),
        ("tcp or", "should follow"),
        ("src tcp", "tcp"),
        ("", "condition"),
    ] {
        let error = filter.parse::<Filter>().unwrap_err();
        assert!(error.contains(word), "{filter}: {error}");
    }
    assert!("(".repeat(1000).parse::<Filter>().unwrap_err().contains("nested"));
    assert!("not ".repeat(1000).parse::<Filter>().unwrap_err().contains("nested"));
}
