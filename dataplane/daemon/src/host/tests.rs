use netlink_packet_core::{NetlinkHeader, NetlinkPayload};

use super::*;

fn message(inner: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
    NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(inner))
}

fn link(ifindex: u32, name: &str) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
    ];
    RouteNetlinkMessage::NewLink(link)
}

fn address(ifindex: u32, ip: [u8; 4]) -> RouteNetlinkMessage {
    let mut address = AddressMessage::default();
    address.header.index = ifindex;
    address.attributes = vec![AddressAttribute::Local(IpAddr::V4(ip.into()))];
    RouteNetlinkMessage::NewAddress(address)
}

fn neighbour(state: NeighbourState, mac: Option<u8>) -> RouteNetlinkMessage {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.ifindex = 2;
    neighbour.header.state = state;
    neighbour.attributes =
        vec![NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 9, 1].into()))];
    if let Some(last) = mac {
        neighbour.attributes.push(NeighbourAttribute::LinkLocalAddress(vec![2, 0, 0, 0, 0, last]));
    }
    RouteNetlinkMessage::NewNeighbour(neighbour)
}

#[test]
fn addresses_of_services_are_not_the_nodes() {
    let mut host = Host::default();
    for inner in
        [link(2, "eth0"), link(3, "kube-ipvs0"), address(2, [10, 0, 9, 5]), address(3, [172, 20, 0, 1])]
    {
        assert!(host.apply(&message(inner)));
    }
    assert_eq!(host.local_addresses(), [Ipv4Addr::new(10, 0, 9, 5)]);
}

#[test]
fn only_what_changes_something_counts_as_a_change() {
    let mut host = Host::default();
    assert!(host.apply(&message(link(2, "eth0"))));
    assert!(!host.apply(&message(link(2, "eth0"))));
    assert!(host.apply(&message(neighbour(NeighbourState::Reachable, Some(7)))));
    assert!(!host.apply(&message(neighbour(NeighbourState::Stale, Some(7)))), "the address is the same");
    assert!(host.apply(&message(neighbour(NeighbourState::Reachable, Some(8)))));
    assert!(host.apply(&message(neighbour(NeighbourState::Failed, None))));
    assert_eq!(host.neighbours().count(), 0);
}

#[test]
fn a_link_that_goes_takes_its_addresses_and_neighbours_along() {
    let mut host = Host::default();
    for inner in [link(2, "eth0"), address(2, [10, 0, 9, 5]), neighbour(NeighbourState::Permanent, Some(1))] {
        host.apply(&message(inner));
    }
    let mut gone = LinkMessage::default();
    gone.header.index = 2;
    assert!(host.apply(&message(RouteNetlinkMessage::DelLink(gone))));
    assert_eq!(host, Host::default());
}

#[test]
fn the_kernel_of_this_machine_can_be_read() {
    let host = Host::dump().unwrap();
    let lo = host.link("lo").expect("every namespace has a loopback interface");
    assert_eq!(lo.ifindex, 1);
}
