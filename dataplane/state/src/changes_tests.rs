//! A generation is checked by what it touches. That must find exactly what a look at everything would find.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::framing::{MAX_MESSAGE, write_message};
use crate::push::Push;
use crate::*;

/// xorshift: the same worlds on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 40).expect("24 bits") % sides
    }

    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, u8::try_from(self.roll(6)).expect("small"))
    }

    fn selectors(&mut self) -> Vec<u32> {
        // One of the lists is not in order, and one number is too high.
        match self.roll(12) {
            0 => vec![4, 1],
            1 => vec![1 << 23],
            n => vec![n, n + 3],
        }
    }

    fn port(&mut self) -> u16 {
        u16::try_from(self.roll(4)).expect("small")
    }

    fn service(&mut self) -> Arc<Service> {
        let protocol = [Protocol::Tcp, Protocol::Udp][self.roll(2) as usize];
        let frontends = (0..self.roll(3)).map(|_| Frontend {
            address: [None, Some(Ipv4Addr::new(172, 20, 0, 1))][self.roll(2) as usize],
            port: 79 + self.port(),
            sources: None,
            over_local: false,
        });
        let frontends = frontends.collect();
        Arc::new(Service {
            name: format!("default/s{}:p", self.roll(5)),
            protocol,
            frontends,
            endpoints: vec![Endpoint { ip: self.address(), port: u16::from(self.roll(9) > 0) }],
            affinity: [None, Some(10_800), Some(0)][self.roll(9).min(2) as usize],
            without_endpoints: WithoutEndpoints::Reject,
        })
    }

    fn rules(&mut self) -> Arc<Rules> {
        let ports = PortMatch { protocol: Protocol::Tcp, first: 2, last: 1 + self.port() };
        let peers = Some(vec![Peer::Selector(if self.roll(9) == 0 { 1 << 23 } else { 7 })]);
        let rule = Rule { origin: String::new(), peers, ports: Some(vec![ports]) };
        Arc::new(Rules { id: self.roll(4), rules: vec![rule] })
    }

    fn op(&mut self) -> Op {
        match self.roll(13) {
            0 => Op::UpsertAddresses((0..=self.roll(30)).map(|_| (self.address(), self.roll(5))).collect()),
            1 => Op::DeleteAddresses((0..=self.roll(30)).map(|_| self.address()).collect()),
            2 | 3 => Op::UpsertIdentity(Arc::new(Identity { id: self.roll(5), selectors: self.selectors() })),
            4 => Op::DeleteIdentity(self.roll(5)),
            5 => Op::UpsertRules(self.rules()),
            6 => Op::DeleteRules(self.roll(4)),
            7 => {
                let id = |n: u32| (n < 4).then_some(n);
                let (ingress, egress) = (id(self.roll(6)), id(self.roll(6)));
                Op::UpsertPodPolicy(PodPolicy { ip: self.address(), ingress, egress })
            }
            8 => Op::DeletePodPolicy(self.address()),
            9 | 10 => Op::UpsertService(self.service()),
            11 => Op::DeleteService(format!("default/s{}:p", self.roll(5))),
            _ => Op::ServiceCidrs(vec![
                ["172.20.0.0/16", "172.20.0.1/16"][self.roll(2) as usize].parse().expect("a CIDR"),
            ]),
        }
    }
}

#[test]
fn what_a_generation_touches_is_checked_as_if_everything_were() {
    let mut dice = Dice(0x5eed_1e55);
    let mut state = State::default();
    let (mut accepted, mut refused) = (0, 0);
    for number in 0..3_000 {
        let ops = (0..=dice.roll(6)).map(|_| dice.op()).collect();
        let generation = Generation { number, ops };
        let whole = state.changed(&generation).check();
        match (state.apply(&generation), whole) {
            (Ok(next), Ok(())) => {
                accepted += 1;
                state = next;
            }
            (Err(_), Err(_)) => refused += 1,
            (apply, whole) => panic!("{:?}\nby itself: {apply:?}\nas a whole: {whole:?}", generation.ops),
        }
    }
    assert!(accepted > 300 && refused > 300, "{accepted} accepted, {refused} refused");
}

#[test]
fn addresses_are_a_map_whatever_order_they_come_in() {
    let ip = |n: u32| Ipv4Addr::from_bits(n);
    let mut dice = Dice(7);
    let (mut one, mut all) = (Addresses::default(), Addresses::default());
    for _ in 0..200 {
        let pairs: Vec<_> = (0..dice.roll(40)).map(|_| (ip(dice.roll(60)), dice.roll(9))).collect();
        pairs.iter().for_each(|(address, id)| one.insert(*address, *id));
        all.insert_all(&pairs);
        assert_eq!(one, all);
        let gone: Vec<_> = (0..dice.roll(40)).map(|_| ip(dice.roll(60))).collect();
        gone.iter().for_each(|address| one.remove(*address));
        all.remove_all(&gone);
        assert_eq!(one, all);
    }
    one.insert(ip(3), 4);
    let text = serde_json::to_string(&one).expect("JSON");
    assert_eq!(serde_json::from_str::<Addresses>(&text).expect("the same"), one);
    let twice = serde_json::from_str::<Addresses>(r#"{"10.0.0.1":1,"10.0.0.1":2}"#).unwrap_err();
    assert!(twice.to_string().contains("duplicate address `10.0.0.1`"), "{twice}");
}

#[test]
fn a_full_resync_of_a_large_cluster_is_one_message() {
    let mut state = State::default();
    let pairs: Vec<_> = (0..100_000).map(|n| (Ipv4Addr::from_bits(0x0a40_0000 + n), n % 20_000)).collect();
    state.policy.addresses.insert_all(&pairs);
    let selectors: Vec<u32> = (0..100).map(|n| 10_000 + n).collect();
    state.policy.identities =
        (0..20_000).map(|id| Arc::new(Identity { id, selectors: selectors.clone() })).collect();
    let service = |n: u32| {
        let address = Some(Ipv4Addr::from_bits(0xac14_0000 + n));
        let endpoints =
            (0..20).map(|e| Endpoint { ip: Ipv4Addr::from_bits(0x0a40_0000 + n + e), port: 8080 });
        Arc::new(Service {
            name: format!("some-namespace/some-service-{n}:http"),
            protocol: Protocol::Tcp,
            frontends: vec![Frontend { address, port: 80, sources: None, over_local: false }],
            endpoints: endpoints.collect(),
            affinity: None,
            without_endpoints: WithoutEndpoints::Reject,
        })
    };
    state.services.services = (0..5_000).map(service).collect();
    let mut wire = Vec::new();
    let generation = Generation { number: 1, ops: vec![Op::Replace(Box::new(state))] };
    write_message(&mut wire, &Push::Generation(generation)).expect("it fits");
    assert!((16_000_000..MAX_MESSAGE / 2).contains(&wire.len()), "{} bytes of {MAX_MESSAGE}", wire.len());
}
