use super::*;
use crate::cloud::{Attachment, InstanceId, Interface, InterfaceStatus, Tags};
use crate::settings::Settings;
use proptest::prelude::*;
use std::collections::BTreeSet;

const COOLDOWN: Duration = Duration::from_secs(30);
const T: Moment = Moment(1_000_000);

fn later(seconds: u64) -> Moment {
    T.after(Duration::from_secs(seconds))
}

fn key(container: &str) -> LeaseKey {
    LeaseKey { network: "pods".into(), container: container.into(), interface: "eth0".into() }
}

fn pod(name: &str) -> Pod {
    Pod { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}") }
}

fn interface(n: u8, secondary: std::ops::Range<u8>, prefixes: &[&str]) -> Interface {
    Interface {
        id: format!("eni-{n}").parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, n]),
        kind: InterfaceKind::Standard,
        status: InterfaceStatus::InUse,
        subnet: "subnet-1".parse().unwrap(),
        vpc: "vpc-1".parse().unwrap(),
        zone: "a".into(),
        groups: Vec::new(),
        primary: Ipv4Addr::new(10, 0, n, 1),
        secondary: secondary.map(|host| Ipv4Addr::new(10, 0, n, host)).collect(),
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
        tags: Tags::new(),
        description: String::new(),
        attachment: Some(Attachment {
            id: format!("eni-attach-{n}").parse().unwrap(),
            instance: None,
            device_index: u32::from(n),
            network_card: 0,
            delete_on_termination: true,
        }),
    }
}

fn believe(store: &mut Store, found: &[Interface], now: Moment, cool_until: Option<Moment>) -> Vec<Change> {
    let instance: InstanceId = "i-1".parse().unwrap();
    let settings = Settings::default();
    let busy = BTreeSet::new();
    let belief = Belief {
        instance: &instance,
        settings: &settings,
        default_card: 0,
        busy: &busy,
        whole: true,
        cool_until,
        now,
    };
    store.believe(found, &BTreeMap::new(), belief)
}

fn store_of(found: &[Interface]) -> Store {
    let mut store = Store::default();
    believe(&mut store, found, T, None);
    store
}

#[test]
fn a_key_keeps_its_address_and_another_gets_another() {
    let mut store = store_of(&[interface(0, 10..12, &[])]);
    let one = store.assign(key("a"), pod("x"), T, COOLDOWN).unwrap();
    assert!(one.fresh);
    let again = store.assign(key("a"), pod("x"), later(1), COOLDOWN).unwrap();
    assert_eq!((again.fresh, again.lease), (false, one.lease.clone()));
    let two = store.assign(key("b"), pod("y"), T, COOLDOWN).unwrap();
    assert_ne!(two.lease.address, one.lease.address);
    assert_eq!(store.assign(key("c"), pod("z"), T, COOLDOWN), Err(Empty { next: None }));
}

#[test]
fn a_released_address_cools_down_and_is_preferred_afterwards() {
    let mut store = store_of(&[interface(0, 10..13, &[])]);
    let first = store.assign(key("a"), pod("x"), T, COOLDOWN).unwrap().lease.address;
    let second = store.assign(key("b"), pod("y"), T, COOLDOWN).unwrap().lease.address;
    store.release(&key("b"), T, COOLDOWN).unwrap();
    let third = store.assign(key("c"), pod("z"), later(29), COOLDOWN).unwrap().lease.address;
    assert!(third != first && third != second);
    assert_eq!(store.assign(key("d"), pod("w"), later(29), COOLDOWN), Err(Empty { next: Some(later(30)) }));
    assert_eq!(store.assign(key("d"), pod("w"), later(30), COOLDOWN).unwrap().lease.address, second);

    let mut store = store_of(&[interface(0, 10..13, &[])]);
    store.assign(key("a"), pod("x"), T, COOLDOWN).unwrap();
    let cooled = store.assign(key("b"), pod("y"), T, COOLDOWN).unwrap().lease.address;
    store.release(&key("a"), T, COOLDOWN);
    store.release(&key("b"), T, Duration::ZERO);
    let next = store.assign(key("c"), pod("z"), later(1), COOLDOWN).unwrap().lease.address;
    assert_eq!(next, cooled, "a cooled address goes before one that nobody had");
}

#[test]
fn a_recreated_sandbox_supersedes_and_the_late_del_of_the_old_one_changes_nothing() {
    let mut store = store_of(&[interface(0, 10..14, &[])]);
    let old = store.assign(key("old"), pod("x"), T, COOLDOWN).unwrap().lease;
    let new = store.assign(key("new"), pod("x"), later(1), COOLDOWN).unwrap();
    assert_eq!(new.superseded.as_ref(), Some(&old));
    assert_ne!(new.lease.address, old.address);
    assert_eq!(store.release(&key("old"), later(2), COOLDOWN), None);
    assert_eq!(store.holder(new.lease.address), Some(&new.lease));
    assert!(store.release(&key("new"), later(3), COOLDOWN).is_some());
    assert_eq!(store.release(&key("new"), later(4), COOLDOWN), None);
    // Containers without a pod are never taken for one another.
    store.assign(key("p"), Pod::default(), later(5), COOLDOWN).unwrap();
    assert_eq!(store.assign(key("q"), Pod::default(), later(5), COOLDOWN).unwrap().superseded, None);
}

#[test]
fn an_assignment_is_undone_with_what_it_superseded() {
    let mut store = store_of(&[interface(0, 10..14, &[])]);
    store.assign(key("old"), pod("x"), T, COOLDOWN).unwrap();
    let before = store.clone();
    let new = store.assign(key("new"), pod("x"), T, COOLDOWN).unwrap();
    store.undo(&new);
    assert_eq!(store, before);
}

#[test]
fn every_address_of_a_prefix_is_given_and_packed() {
    let mut store = store_of(&[interface(0, 0..0, &["10.1.0.0/28", "10.1.0.16/28"])]);
    let usage = store.usage();
    assert_eq!((usage.total, usage.free_prefixes), (32, 2));
    let got: BTreeSet<_> = (0..16)
        .map(|n| store.assign(key(&n.to_string()), Pod::default(), T, COOLDOWN).unwrap().lease.address)
        .collect();
    assert_eq!(got, addresses("10.1.0.0/28".parse().unwrap()).collect());
    assert_eq!(store.usage().free_prefixes, 1);
}

#[test]
fn what_leaves_is_not_given_and_is_not_believed_for_a_minute() {
    let found = [interface(0, 10..12, &[])];
    let id = found[0].id.clone();
    let mut store = store_of(&found);
    let leased = store.assign(key("a"), pod("x"), T, COOLDOWN).unwrap().lease.address;
    let all = Placed { addresses: found[0].secondary.clone(), prefixes: Vec::new() };
    let leaving = store.leave(&id, &all, T);
    assert!(!leaving.addresses.contains(&leased) && leaving.addresses.len() == 1);
    assert!(store.assign(key("b"), pod("y"), T, COOLDOWN).is_err());
    store.left(&id, &leaving, T);
    let changes = believe(&mut store, &found, later(59), None);
    assert_eq!(changes, [Change::Undecided(id.clone())]);
    assert!(store.assign(key("b"), pod("y"), later(59), COOLDOWN).is_err());
    let changes = believe(&mut store, &found, later(60), None);
    let blocks = leaving.addresses.iter().map(|a| Ipv4Net::from(*a)).collect();
    assert_eq!(changes, [Change::Appeared(id, blocks)]);
    assert!(store.assign(key("b"), pod("y"), later(60), COOLDOWN).is_ok());
}

#[test]
fn a_lease_outlives_its_interface_and_its_address_goes_to_nobody_else() {
    let found = [interface(0, 10..11, &[])];
    let mut store = store_of(&found);
    let lease = store.assign(key("a"), pod("x"), T, COOLDOWN).unwrap().lease;
    assert_eq!(believe(&mut store, &[], later(100), None), [Change::Vanished(found[0].id.clone())]);
    assert_eq!(store.lost().collect::<Vec<_>>(), [&lease]);
    believe(&mut store, &found, later(101), None);
    assert!(store.assign(key("b"), pod("y"), later(200), COOLDOWN).is_err());
    assert_eq!(store.holder(lease.address), Some(&lease));
}

#[test]
fn a_block_that_was_just_placed_may_be_missing_for_a_while() {
    let found = [interface(0, 10..11, &[])];
    let id = found[0].id.clone();
    let mut store = store_of(&found);
    let more = Placed { addresses: vec![Ipv4Addr::new(10, 0, 0, 20)], prefixes: Vec::new() };
    store.place(&id, &more, T);
    assert_eq!(believe(&mut store, &found, later(29), None), [Change::Undecided(id)]);
    assert_eq!(store.usage().total, 2);
    believe(&mut store, &found, later(30), None);
    assert_eq!(store.usage().total, 1);
}

#[test]
fn what_is_adopted_after_a_lost_checkpoint_cools_first() {
    let mut store = Store::default();
    believe(&mut store, &[interface(0, 10..11, &[])], T, Some(later(30)));
    assert!(store.assign(key("a"), pod("x"), later(29), COOLDOWN).is_err());
    assert!(store.assign(key("a"), pod("x"), later(30), COOLDOWN).is_ok());
}

#[test]
fn the_store_comes_back_from_its_json_and_a_clash_is_refused() {
    let mut store = store_of(&[interface(0, 10..14, &["10.1.0.0/28"])]);
    store.assign(key("a"), pod("x"), T, COOLDOWN).unwrap();
    store.assign(key("b"), pod("y"), T, COOLDOWN).unwrap();
    store.release(&key("b"), T, COOLDOWN);
    let mut json = serde_json::to_value(store.save()).unwrap();
    let read: Saved = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(Store::load(read), Ok(store.clone()));
    let mut twice = json["leases"][0].clone();
    twice["key"]["container"] = "other".into();
    json["leases"].as_array_mut().unwrap().push(twice);
    let read: Saved = serde_json::from_value(json).unwrap();
    assert!(Store::load(read).unwrap_err().contains("clashes"));
    assert_eq!(store.reboot().len(), 1);
    assert_eq!((store.leases().len(), store.usage().cooling), (0, 0));
}

proptest! {
    /// Whatever comes in whatever order: one address, one lease, and never one that cools or leaves.
    #[test]
    fn no_address_is_in_two_hands(steps in prop::collection::vec((0_u8..7, 0_u8..12, 0_u64..40), 1..200)) {
        let found = [interface(0, 10..16, &[]), interface(1, 10..13, &["10.1.0.0/28"])];
        let mut store = store_of(&found);
        let (mut now, mut ended) = (T, BTreeMap::new());
        for (what, n, wait) in steps {
            now = now.after(Duration::from_secs(wait));
            let eni = found[usize::from(n % 2)].id.clone();
            let blocks: Vec<_> = store.enis().get(&eni).map_or_else(Vec::new, |e| e.blocks.keys().copied().collect());
            match what {
                0..3 => if let Ok(done) = store.assign(key(&n.to_string()), pod(&(n / 2).to_string()), now, COOLDOWN)
                    && done.fresh {
                    let address = done.lease.address;
                    let since = ended.get(&address).map(|end| now.since(*end));
                    prop_assert!(since.is_none_or(|s| s >= COOLDOWN), "{address} after {since:?}");
                    ended.extend(done.superseded.map(|old| (old.address, now)));
                },
                3 => ended.extend(store.release(&key(&n.to_string()), now, COOLDOWN).map(|l| (l.address, now))),
                4 => {
                    let leaving = store.leave(&eni, &placed(blocks.into_iter().take(usize::from(n))), now);
                    store.left(&eni, &leaving, now);
                }
                5 => { believe(&mut store, &found, now, None); }
                _ => { believe(&mut store, &found[..usize::from(n % 3)], now, None); }
            }
            let held: BTreeSet<_> = store.leases().values().map(|l| l.address).collect();
            prop_assert_eq!(held.len(), store.leases().len());
            prop_assert!(store.leases().values().all(|l| store.holder(l.address) == Some(l)));
        }
    }
}

#[test]
fn an_address_is_in_one_place_whatever_ec2_answers() {
    let found = [interface(0, 10..11, &[]), interface(1, 10..11, &["10.0.1.32/28"])];
    let (first, second) = (found[0].id.clone(), found[1].id.clone());
    let mut store = store_of(&found);
    let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    // Its own primary, another's primary, another's address, one of another's prefix, its own again, and a new one.
    let answer = ["10.0.0.1", "10.0.1.1", "10.0.1.10", "10.0.1.40", "10.0.0.10", "10.0.0.11"].map(address);
    let placed = Placed { addresses: answer.to_vec(), prefixes: vec!["10.0.1.0/28".parse().unwrap()] };
    let taken = store.place(&first, &placed, T);
    assert_eq!(taken.addresses, answer[..4]);
    assert_eq!(taken.prefixes, placed.prefixes);
    assert_eq!(store.enis()[&first].blocks.len(), 2);
    // A list that has it twice is believed once.
    let mut twice = found.to_vec();
    twice[1].secondary.push(address("10.0.0.10"));
    believe(&mut store, &twice, later(100), None);
    assert_eq!(store.carrier(address("10.0.0.10")).unwrap().id, first);
    assert_eq!(store.enis()[&second].blocks.len(), 2);
    let mut fresh = store_of(&twice);
    assert_eq!(fresh.usage().total, 1 + 1 + 16);
    let mut new = fresh.enis()[&second].clone();
    (new.id, new.primary) = ("eni-9".parse().unwrap(), address("10.0.9.1"));
    fresh.insert(new);
    assert_eq!(fresh.usage().total, 18, "a new interface brings nothing that is there already");
}
