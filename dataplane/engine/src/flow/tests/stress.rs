//! Real threads on a table that is too small for them: no key twice, no slot lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::*;

const WORKERS: usize = 4;
const STEPS: usize = 4_000;

#[test]
fn workers_never_share_a_mapping_and_lose_no_slot() {
    let table = Arc::new(FlowTable::new(256, WORKERS, 5));
    let clock = Arc::new(AtomicU64::new(1));
    let threads: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (table, clock) = (Arc::clone(&table), Arc::clone(&clock));
            std::thread::spawn(move || work(&table, &clock, worker))
        })
        .collect();
    let locals: Vec<(Local, u64)> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(locals.iter().all(|(_, inserted)| *inserted > 0));

    let now = clock.load(Ordering::Relaxed);
    let (mut keys, mut live) = (HashSet::new(), 0);
    for slot in table.slots.iter().filter(|slot| slot.load_state().is_live()) {
        live += 1;
        assert!(keys.insert(slot.key(Dir::Forward)), "a forward key twice at {now}");
        assert!(keys.insert(slot.key(Dir::Reply)), "a reply key twice at {now}");
    }
    assert_eq!(live, table.live());
    let held: usize = locals.iter().map(|(l, _)| l.cache.len() + l.retired.count as usize).sum();
    assert_eq!(table.free.len() + held + live as usize, table.slots.len() - 1);

    let mut parts = locals.into_iter().map(|(local, _)| local).collect();
    let mut adopted = table.adopt(&mut parts, 2).unwrap();
    assert_eq!((adopted.len(), table.live()), (2, live));
    for second in 0..400 {
        for local in &mut adopted {
            local.begin_step(&table, now + second * 1_000_000_000, &TimeoutsNs::default());
        }
    }
    assert_eq!(table.live(), 0, "adopted flows were not aged");
    assert!(table.buckets.iter().flat_map(|bucket| &bucket.0).all(|word| word.load(Ordering::Relaxed) == 0));
}

fn work(table: &FlowTable, clock: &AtomicU64, worker: usize) -> (Local, u64) {
    let mut local = table.local(worker).unwrap();
    let (mut random, mut inserted) = (worker as u64 + 1, 0);
    for step in 0..STEPS {
        let now = clock.fetch_add(20_000_000, Ordering::Relaxed);
        local.begin_step(table, now, &TimeoutsNs::default());
        for _ in 0..16 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Few hosts and few ports: everybody wants the same.
            let (from, port) = ((random % 200) as u32, (random >> 32) as u16 % 200);
            let original = FlowKey::new(from, 7, 1000, 80, 17);
            let translated = FlowKey::new(99, 7, 5000 + port, 80, 17);
            if let Some((id, dir)) = table.lookup(&original, table.hash(&original), now) {
                let flow = table.flow(id);
                assert_eq!((flow.original(), dir), (original, Dir::Forward), "reused within a step");
                table.touch(id, dir, now, 64);
                if random & 7 == 0 {
                    local.remove(table, id);
                }
            } else {
                let new = NewFlow {
                    original,
                    translated,
                    origin: Origin::Pod,
                    start: Start::Udp,
                    egress: [0, 0],
                    policy_generation: 0,
                };
                inserted += u64::from(local.insert(table, &new, now).is_ok());
            }
        }
        if step % 64 == 0 {
            local.sleep(table);
            std::thread::yield_now();
            local.wake(table);
        }
    }
    local.sleep(table);
    (local, inserted)
}
