//! The protocol under every interleaving and every reordering that the memory model permits, in models small enough to
//! finish: `RUSTFLAGS="--cfg loom" cargo test -p sluice-engine --lib --release loom`.

use loom::sync::Arc;
use loom::thread;

use super::phase::Life;
use super::slot::UNLINKED;
use super::sync::Ordering;
use super::*;

const NOW: u64 = 1_000_000_000;

/// Runs a model with at most `preemptions` forced switches; most bugs of this kind need two.
fn model(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(test);
}

fn key(sport: u16, dport: u16) -> FlowKey {
    FlowKey::new(1, 2, sport, dport, 17)
}

fn new_flow(original: FlowKey, translated: FlowKey) -> NewFlow {
    NewFlow {
        original,
        translated,
        origin: Origin::Pod,
        start: Start::Udp,
        egress: [0, 0],
        policy_generation: 0,
    }
}

/// Two workers insert at once; both sleep, so that loom has no epochs to look at.
fn race(table: &Arc<FlowTable>, flows: [NewFlow; 2]) -> [(Local, Result<FlowId, InsertError>); 2] {
    let [first, second] = flows;
    let mut other = table.local(1).unwrap();
    let thread = {
        let table = Arc::clone(table);
        thread::spawn(move || {
            let result = other.insert(&table, &second, NOW);
            (other, result)
        })
    };
    let mut own = table.local(0).unwrap();
    let result = own.insert(table, &first, NOW);
    [(own, result), thread.join().unwrap()]
}

/// Every slot is free, at hand, live or retired, each exactly one of it.
fn conserved(table: &FlowTable, locals: &[&Local]) {
    let held: usize = locals.iter().map(|l| l.cache.len() + l.retired.count as usize).sum();
    assert_eq!(table.free.len() + held + table.live() as usize, table.slots.len() - 1);
    let live = table.slots.iter().filter(|slot| slot.load_state().life() == Life::Live).count();
    assert_eq!(live, table.live() as usize);
    let words = table.buckets.iter().flat_map(|b| &b.0).filter(|w| w.load(Ordering::Relaxed) != 0).count();
    assert_eq!(words, 2 * live, "words of flows that are not live are left over");
}

fn one_wins(flows: [NewFlow; 2], contested: FlowKey) {
    let table = Arc::new(FlowTable::new(2, 2, 7));
    let [(a, first), (b, second)] = race(&table, flows);
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let winner = first.or(second).unwrap();
    let (found, _) = table.lookup(&contested, table.hash(&contested), NOW).unwrap();
    assert_eq!(found, winner);
    conserved(&table, &[&a, &b]);
}

#[test]
fn loom_one_forward_key_is_inserted_once() {
    model(3, || {
        let original = key(1, 2);
        one_wins([new_flow(original, key(10, 2)), new_flow(original, key(11, 2))], original);
    });
}

#[test]
fn loom_one_mapping_is_handed_out_once() {
    model(3, || {
        let translated = key(10, 2);
        one_wins([new_flow(key(1, 2), translated), new_flow(key(3, 2), translated)], translated.reversed());
    });
}

#[test]
fn loom_forward_key_of_one_is_reply_key_of_the_other() {
    model(3, || {
        let shared = key(1, 2);
        one_wins([new_flow(shared, key(10, 2)), new_flow(key(3, 4), shared.reversed())], shared);
    });
}

#[test]
fn loom_both_keys_crossed() {
    // Each one's forward key is the other one's reply key.
    model(3, || {
        let there = key(1, 2);
        one_wins([new_flow(there, there), new_flow(there.reversed(), there.reversed())], there);
    });
}

#[test]
fn loom_different_flows_both_succeed() {
    model(3, || {
        let table = Arc::new(FlowTable::new(2, 2, 7));
        let flows = [new_flow(key(1, 2), key(10, 2)), new_flow(key(3, 2), key(11, 2))];
        let [(a, first), (b, second)] = race(&table, flows);
        assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
        conserved(&table, &[&a, &b]);
    });
}

#[test]
fn loom_a_flow_to_oneself_is_inserted_once() {
    model(3, || {
        let own = FlowKey::new(1, 1, 5, 5, 17);
        let table = Arc::new(FlowTable::new(2, 2, 7));
        let [(_, first), (_, second)] = race(&table, [new_flow(own, own), new_flow(own, own)]);
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        assert_eq!(table.live(), 1);
    });
}

#[test]
fn loom_lookup_sees_a_whole_flow_or_none() {
    model(3, || {
        let table = Arc::new(FlowTable::new(2, 2, 7));
        let new = new_flow(key(1, 2), key(10, 2));
        let mut inserter = table.local(1).unwrap();
        let thread = {
            let table = Arc::clone(&table);
            thread::spawn(move || inserter.insert(&table, &new, NOW).unwrap())
        };
        let reply = new.translated.reversed();
        if let Some((id, dir)) = table.lookup(&reply, table.hash(&reply), NOW) {
            assert_eq!(dir, Dir::Reply);
            assert_eq!(table.flow(id).original(), new.original);
            assert_eq!(table.flow(id).translated(), new.translated);
            // Both directions or none: the other key is found from now on.
            assert!(table.lookup(&new.original, table.hash(&new.original), NOW).is_some());
        }
        let id = thread.join().unwrap();
        assert_eq!(table.lookup(&reply, table.hash(&reply), NOW), Some((id, Dir::Reply)));
    });
}

/// One worker removes a flow and puts another one into its slot as soon as it may, the other one looks the first up.
/// Within its step, what the reader has found stays what it was.
fn reuse(asleep_at_first: bool) {
    let table = Arc::new(FlowTable::new(1, 2, 7));
    let (old, fresh) = (new_flow(key(1, 2), key(10, 2)), new_flow(key(3, 2), key(11, 2)));
    let mut remover = table.local(0).unwrap();
    let mut reader = table.local(1).unwrap();
    remover.quiesce(&table);
    let id = remover.insert(&table, &old, NOW).unwrap();
    if !asleep_at_first {
        reader.quiesce(&table);
    }
    let thread = {
        let table = Arc::clone(&table);
        thread::spawn(move || {
            assert!(remover.remove(&table, id));
            // Its next step.
            remover.quiesce(&table);
            remover.reclaim(&table);
            if remover.cache.last() == Some(&id.0) {
                assert_eq!(remover.insert(&table, &fresh, NOW), Ok(id));
            }
        })
    };
    reader.wake(&table);
    if let Some((found, dir)) = table.lookup(&old.original, table.hash(&old.original), NOW) {
        assert_eq!((found, dir), (id, Dir::Forward));
        assert_eq!(table.flow(found).original(), old.original);
        assert_eq!(table.flow(found).translated(), old.translated, "reused while a worker held it");
    }
    reader.sleep(&table);
    thread.join().unwrap();
}

#[test]
fn loom_a_slot_is_not_reused_while_a_worker_may_hold_it() {
    model(3, || reuse(false));
}

#[test]
fn loom_a_worker_that_wakes_finds_no_unlinked_flow() {
    model(3, || reuse(true));
}

#[test]
fn loom_expiry_by_two_workers_unlinks_once() {
    model(3, || {
        let table = Arc::new(FlowTable::new(2, 2, 7));
        let new = new_flow(key(1, 2), key(10, 2));
        let mut a = table.local(0).unwrap();
        let mut b = table.local(1).unwrap();
        let id = a.insert(&table, &new, NOW).unwrap();
        let late = NOW + TimeoutsNs::default().of(Phase::UdpOneWay);
        let thread = {
            let table = Arc::clone(&table);
            // The other worker finds the key taken by an expired flow, and takes it.
            thread::spawn(move || {
                let result = b.insert(&table, &new, late);
                (b, result)
            })
        };
        let removed = a.remove(&table, id);
        let (b, result) = thread.join().unwrap();
        let second = result.unwrap();
        if second != id {
            assert!(table.lookup(&new.original, table.hash(&new.original), late).is_some());
        }
        assert_eq!(a.retired.count + b.retired.count, 1, "unlinked once, removed by the owner: {removed}");
        conserved(&table, &[&a, &b]);
    });
}

#[test]
fn loom_a_live_flow_is_always_on_a_wheel() {
    model(3, || {
        let table = Arc::new(FlowTable::new(1, 2, 7));
        let mut a = table.local(0).unwrap();
        let mut b = table.local(1).unwrap();
        let id = a.insert(&table, &new_flow(key(1, 2), key(10, 2)), NOW).unwrap();
        // Removed by the other worker: the slot is still on the first one's wheel.
        assert!(b.remove(&table, id));
        b.reclaim(&table);
        b.reclaim(&table);
        assert_eq!(b.cache.last(), Some(&id.0));
        let index = a.wheel.next(&table, 40 * NOW).unwrap();
        let thread = {
            let table = Arc::clone(&table);
            thread::spawn(move || b.insert(&table, &new_flow(key(3, 2), key(11, 2)), NOW).unwrap())
        };
        a.visit(&table, index, NOW);
        let second = thread.join().unwrap();
        assert_ne!(table.slot(second.0).link().load(Ordering::Relaxed), UNLINKED);
    });
}

#[test]
fn loom_reply_and_expiry_agree_on_one_state() {
    model(3, || {
        let table = Arc::new(FlowTable::new(1, 2, 7));
        let mut a = table.local(0).unwrap();
        let id = a.insert(&table, &new_flow(key(1, 2), key(10, 2)), NOW).unwrap();
        let thread = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.datagram(id, Dir::Reply))
        };
        assert!(a.remove(&table, id));
        thread.join().unwrap();
        assert_eq!(table.slot(id.0).load_state().life(), Life::Dead, "a packet brought a removed flow back");
    });
}

/// Keys from `sport` on whose flows' forward word goes to `bucket` first, and whose reply word does not.
fn in_bucket(table: &FlowTable, bucket: usize, sport: u16) -> NewFlow {
    let first = |key: &FlowKey| table.bucket_numbers(table.hash(key)).0;
    (sport..)
        .map(|sport| new_flow(key(sport, 2), key(sport, 3)))
        .find(|flow| first(&flow.original) == bucket && first(&flow.translated.reversed()) != bucket)
        .unwrap()
}

#[test]
fn loom_one_key_in_two_buckets_is_inserted_once() {
    // One insert finds the first bucket full, the other one a word of it just given back: no word is common to both.
    model(2, || {
        let table = Arc::new(FlowTable::new(4, 2, 7));
        let (mut a, mut b) = (table.local(0).unwrap(), table.local(1).unwrap());
        let contested = key(1, 2);
        let (bucket, _) = table.bucket_numbers(table.hash(&contested));
        let filler = in_bucket(&table, bucket, 100);
        let second = in_bucket(&table, bucket, filler.original.sport() + 1);
        let id = a.insert(&table, &filler, NOW).unwrap();
        a.insert(&table, &second, NOW).unwrap();
        let thread = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                assert!(b.remove(&table, id));
                b.insert(&table, &new_flow(contested, key(11, 2)), NOW)
            })
        };
        let first = a.insert(&table, &new_flow(contested, key(10, 2)), NOW);
        let second = thread.join().unwrap();
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    });
}
