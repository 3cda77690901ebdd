use super::*;
use crate::cloud::{Card, Mac};
use crate::moment::Moment;
use crate::store::{LeaseKey, Pod, Role};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

const NOW: Moment = Moment(10_000_000);

fn limits(interfaces: u32, addresses: u32) -> Limits {
    let cards = vec![Card { index: 0, interfaces }];
    Limits { instance_type: "t".into(), interfaces, addresses, default_card: 0, cards, nitro: true }
}

fn eni(index: u8, blocks: impl Iterator<Item = Ipv4Net>) -> Eni {
    Eni {
        id: format!("eni-{index}").parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, index]),
        kind: InterfaceKind::Standard,
        device_index: u32::from(index),
        network_card: 0,
        subnet: format!("subnet-{index}").parse().unwrap(),
        subnet_cidr: None,
        groups: Vec::new(),
        primary: Ipv4Addr::new(10, 0, index, 250),
        role: Role::Pods,
        ours: index > 0,
        draining: false,
        since: Moment(0),
        changed: Moment(0),
        blocks: blocks.map(|block| (block, false)).collect(),
    }
}

fn with_addresses(index: u8, count: u8) -> Eni {
    eni(index, (0..count).map(|host| Ipv4Addr::new(10, 0, index, host).into()))
}

fn with_prefixes(index: u8, count: u8) -> Eni {
    let prefix = |n: u8| Ipv4Net::new(Ipv4Addr::new(10, 1, index, n * 16), 28).unwrap();
    eni(index, (0..count).map(prefix))
}

fn lease(store: &mut Store, count: usize) {
    for _ in 0..count {
        let container = store.leases().len().to_string();
        let key = LeaseKey { network: "n".into(), container, interface: "eth0".into() };
        store.assign(key, Pod::default(), NOW, Duration::ZERO).unwrap();
    }
}

fn store(enis: impl IntoIterator<Item = Eni>, leases: usize) -> Store {
    let mut store = Store::default();
    enis.into_iter().for_each(|eni| store.insert(eni));
    lease(&mut store, leases);
    store
}

fn plan(store: &Store, settings: &Settings, limits: &Limits) -> Option<Plan> {
    let exhausted = BTreeMap::new();
    next(store, situation(settings, limits, &exhausted))
}

fn situation<'a>(
    settings: &'a Settings,
    limits: &'a Limits,
    exhausted: &'a BTreeMap<SubnetId, Moment>,
) -> Situation<'a> {
    Situation {
        settings,
        limits,
        max_pods: 1_000,
        exhausted,
        reserved: &[],
        may_create: true,
        may_shrink: true,
        may_free: true,
        now: NOW,
    }
}

fn of(target: Target, prefixes: bool) -> Settings {
    Settings { target, prefixes, ..Settings::default() }
}

fn id(index: u8) -> EniId {
    format!("eni-{index}").parse().unwrap()
}

fn assign(index: u8, amount: Amount) -> Option<Plan> {
    Some(Plan::Assign { eni: id(index), amount })
}

#[test]
fn the_shortage_is_that_of_the_vpc_cni() {
    let ten = limits(4, 11);
    let addresses = |warm, minimum| of(Target::Addresses { warm, minimum }, false);
    for (settings, total, assigned, max_pods, short) in [
        // WARM_ENI_TARGET: available below n interfaces' worth.
        (of(Target::Interfaces(1), false), 10, 0, 100, 0),
        (of(Target::Interfaces(1), false), 10, 1, 100, 1),
        (of(Target::Interfaces(2), false), 10, 0, 100, 10),
        // A target of 0 with nothing available.
        (of(Target::Interfaces(0), false), 10, 9, 100, 0),
        (of(Target::Interfaces(0), false), 10, 10, 100, 1),
        // WARM_IP_TARGET and MINIMUM_IP_TARGET: the larger lack.
        (addresses(5, 0), 10, 6, 100, 1),
        (addresses(5, 0), 10, 5, 100, 0),
        (addresses(0, 12), 10, 10, 100, 2),
        (addresses(4, 30), 10, 8, 100, 20),
        (addresses(4, 11), 10, 10, 100, 4),
        // WARM_PREFIX_TARGET counts addresses.
        (of(Target::Prefixes(1), true), 32, 16, 100, 0),
        (of(Target::Prefixes(1), true), 32, 17, 100, 1),
        // Never above max pods.
        (of(Target::Interfaces(1), false), 20, 20, 20, 0),
        (addresses(5, 50), 20, 20, 20, 0),
    ] {
        let usage = Usage { total, assigned, available: total - assigned, ..Usage::default() };
        let found = shortage(usage, &settings, &ten, max_pods);
        assert_eq!(found, short, "{:?} total {total} assigned {assigned} of {max_pods}", settings.target);
    }
}

#[test]
fn an_interface_is_filled_before_another_is_made() {
    let ten = limits(4, 11);
    let whole = of(Target::Interfaces(1), false);
    assert_eq!(plan(&store([with_addresses(0, 0)], 0), &whole, &ten), assign(0, Amount::Addresses(10)));
    assert_eq!(plan(&store([with_addresses(0, 10)], 0), &whole, &ten), None);
    let create = |amount, device_index| Some(Plan::Create { amount, device_index });
    let one = store([with_addresses(0, 10)], 1);
    assert_eq!(plan(&one, &whole, &ten), create(Amount::Addresses(10), 1));
    let few = of(Target::Addresses { warm: 3, minimum: 0 }, false);
    assert_eq!(plan(&store([with_addresses(0, 10)], 9), &few, &ten), create(Amount::Addresses(2), 1));
    assert_eq!(plan(&store([with_addresses(0, 9)], 9), &few, &ten), assign(0, Amount::Addresses(1)));
    let prefixes = of(Target::Prefixes(2), true);
    assert_eq!(plan(&store([with_prefixes(0, 1)], 1), &prefixes, &ten), assign(0, Amount::Prefixes(2)));
    // The free index between two that are taken.
    assert_eq!(
        plan(&store([with_addresses(0, 10), with_addresses(2, 10)], 15), &whole, &ten),
        create(Amount::Addresses(10), 1)
    );
}

#[test]
fn the_limits_of_the_type_the_card_and_the_operator_hold() {
    let two = store([with_addresses(0, 10), with_addresses(1, 10)], 20);
    let whole = of(Target::Interfaces(1), false);
    assert_eq!(plan(&two, &whole, &limits(2, 11)), None);
    let capped = Settings { max_interfaces: Some(2), ..whole.clone() };
    assert_eq!(plan(&two, &capped, &limits(4, 11)), None);
    let mut cards = limits(8, 11);
    cards.cards = vec![Card { index: 0, interfaces: 2 }, Card { index: 1, interfaces: 6 }];
    assert_eq!(plan(&two, &whole, &cards), None);
    let (four, none) = (limits(4, 11), BTreeMap::new());
    let reserved = Situation { reserved: &[2, 3], ..situation(&whole, &four, &none) };
    assert_eq!(next(&two, reserved), None);
    let waiting = Situation { may_create: false, ..situation(&whole, &four, &none) };
    assert_eq!(next(&two, waiting), None);
}

#[test]
fn an_interface_in_a_full_subnet_or_out_of_service_is_passed_over() {
    let whole = of(Target::Interfaces(1), false);
    let ten = limits(4, 11);
    let store_ = store([with_addresses(0, 0), with_addresses(1, 0)], 0);
    let exhausted = [("subnet-0".parse().unwrap(), NOW.after(Duration::from_secs(1)))].into();
    let expected = assign(1, Amount::Addresses(10));
    assert_eq!(next(&store_, situation(&whole, &ten, &exhausted)), expected);
    let mut custom = with_addresses(0, 0);
    custom.role = Role::CustomNetworking;
    assert_eq!(plan(&store([custom, with_addresses(1, 0)], 0), &whole, &ten), expected);
}

#[test]
fn an_interface_is_freed_when_the_pool_has_one_more_than_its_target() {
    let whole = of(Target::Interfaces(1), false);
    let ten = limits(4, 11);
    let three = |leases| store([with_addresses(0, 10), with_addresses(1, 10), with_addresses(2, 10)], leases);
    let free = |index| Some(Plan::Free { eni: id(index) });
    assert_eq!(plan(&three(10), &whole, &ten), free(2));
    assert_eq!(plan(&three(11), &whole, &ten), None);
    // Not in its first minute, not the primary one, not one that is not ours, not an EFA, not while one cools.
    let spared = |change: fn(&mut Eni)| {
        let mut last = with_addresses(1, 10);
        change(&mut last);
        plan(&store([with_addresses(0, 10), last], 0), &whole, &ten)
    };
    assert_eq!(spared(|_| {}), free(1));
    assert_eq!(spared(|eni| eni.since = Moment(NOW.0 - 59_000)), None);
    assert_eq!(spared(|eni| eni.ours = false), None);
    assert_eq!(spared(|eni| eni.kind = InterfaceKind::Efa), None);
    let mut cooling = three(20);
    let key = cooling.leases().values().find(|l| l.eni == id(1)).unwrap().key.clone();
    cooling.release(&key, NOW, Duration::from_secs(30));
    assert_eq!(plan(&cooling, &whole, &ten), None);
}

#[test]
fn targets_in_addresses_and_prefixes_give_back_what_is_over() {
    let ten = limits(4, 11);
    let unassign = |index, what: &[&str]| {
        let what = placed(what.iter().map(|b| b.parse().unwrap()));
        Some(Plan::Unassign { eni: id(index), what })
    };
    let settings = of(Target::Addresses { warm: 2, minimum: 6 }, false);
    let full = store([with_addresses(0, 10)], 5);
    assert_eq!(plan(&full, &settings, &ten), unassign(0, &["10.0.0.9/32", "10.0.0.8/32", "10.0.0.7/32"]));
    // The minimum holds although fewer are warm enough.
    assert_eq!(plan(&store([with_addresses(0, 6)], 0), &settings, &ten), None);
    let prefixes = of(Target::Prefixes(1), true);
    let three = store([with_prefixes(0, 3)], 1);
    assert_eq!(plan(&three, &prefixes, &ten), unassign(0, &["10.1.0.32/28"]));
    assert_eq!(plan(&store([with_prefixes(0, 2)], 1), &prefixes, &ten), None);
    // Interfaces' worth of targets give back whole interfaces only.
    assert_eq!(plan(&store([with_addresses(0, 10)], 0), &of(Target::Interfaces(0), false), &ten), None);
    // An interface that carries nothing goes, whatever the mode.
    let bare = store([with_prefixes(0, 1), with_prefixes(1, 0)], 0);
    assert_eq!(plan(&bare, &prefixes, &ten), Some(Plan::Free { eni: id(1) }));
}

/// Obeys the planner until it wants nothing more; counts the mutating calls of each action.
fn settle(store: &mut Store, settings: &Settings, limits: &Limits) -> u32 {
    let mut calls = 0;
    for _ in 0..1_000 {
        match plan(store, settings, limits) {
            None => return calls,
            Some(Plan::Assign { eni, amount }) => {
                let index = u8::try_from(store.enis()[&eni].device_index).unwrap();
                store.place(&eni, &new(index, store.enis()[&eni].blocks.len(), amount), NOW);
                calls += 1;
            }
            Some(Plan::Create { amount, device_index }) => {
                let index = u8::try_from(device_index).unwrap();
                let mut made = with_addresses(index, 0);
                let blocks: Vec<_> = crate::store::blocks_of(&new(index, 0, amount)).collect();
                made.blocks = blocks.into_iter().map(|block| (block, false)).collect();
                store.insert(made);
                // CreateNetworkInterface, AttachNetworkInterface, ModifyNetworkInterfaceAttribute.
                calls += 3;
            }
            Some(Plan::Unassign { eni, what }) => {
                let leaving = store.leave(&eni, &what, NOW);
                store.left(&eni, &leaving, NOW);
                calls += 1;
            }
            Some(Plan::Free { eni }) => {
                assert!(store.drain(&eni));
                store.bury(&eni, NOW);
                calls += 2;
            }
        }
        assert!(store.enis().len() <= limits.interfaces as usize);
        assert!(store.enis().values().all(|e| e.blocks.len() < limits.addresses as usize));
    }
    panic!("the planner never comes to rest: {settings:?}");
}

fn new(index: u8, from: usize, amount: Amount) -> Placed {
    let from = u32::try_from(from).unwrap();
    let at = |third: u8, n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, third, index, 0)) + n);
    match amount {
        Amount::Addresses(n) => {
            Placed { addresses: (from..from + n).map(|h| at(0, h)).collect(), prefixes: vec![] }
        }
        Amount::Prefixes(n) => Placed {
            addresses: vec![],
            prefixes: (from..from + n).map(|p| Ipv4Net::new(at(1, p * 16), 28).unwrap()).collect(),
        },
    }
}

#[test]
fn fifty_pods_on_a_fresh_m5_4xlarge_need_seven_calls() {
    let limits = crate::limits::from_table("m5.4xlarge").unwrap();
    let settings = Settings::default();
    let mut store = store([with_addresses(0, 0)], 0);
    let mut calls = 0;
    for _ in 0..50 {
        calls += settle(&mut store, &settings, &limits);
        lease(&mut store, 1);
    }
    calls += settle(&mut store, &settings, &limits);
    // 50 + 29 spare addresses take three interfaces of 29: one assignment and two interfaces of three calls each.
    assert_eq!((calls, store.enis().len()), (7, 3));
}

#[test]
fn the_pool_comes_to_rest_at_its_targets_whatever_they_are() {
    let limits = limits(4, 5);
    let targets = (0..4).map(|n| of(Target::Interfaces(n), false));
    let counted = (0..4)
        .flat_map(|warm| [0, 3, 9].map(|minimum| (Target::Addresses { warm, minimum }, warm + minimum > 0)));
    let counted = counted.filter(|(_, set)| *set).map(|(target, _)| target);
    let all = targets
        .chain(counted.flat_map(|target| [of(target, false), of(target, true)]))
        .chain((1..4).map(|n| of(Target::Prefixes(n), true)));
    for settings in all {
        let (mut store, mut made) = (store([with_addresses(0, 0)], 0), 0_u32);
        for leases in [0_usize, 1, 7, 13, 5, 16, 0, 3] {
            while store.leases().len() > leases {
                let key = store.leases().keys().next().unwrap().clone();
                store.release(&key, Moment(0), Duration::ZERO);
                store.settle(NOW);
            }
            while store.leases().len() < leases {
                settle(&mut store, &settings, &limits);
                made += 1;
                let container = format!("c{made}");
                let key = LeaseKey { network: "n".into(), container, interface: "eth0".into() };
                if store.assign(key, Pod::default(), NOW, Duration::ZERO).is_err() {
                    break;
                }
            }
            settle(&mut store, &settings, &limits);
            let usage = store.usage();
            let full = store.enis().len() == 4 && store.enis().values().all(|e| e.blocks.len() == 4);
            let short = shortage(usage, &settings, &limits, 1_000);
            assert!(short == 0 || full, "{settings:?} with {leases} leases: {usage:?}");
        }
    }
}
