//! Cases F1 to F8, and conservation under any order of arrival.

use super::*;
use crate::testing::{fragments, read, reassemble, udp};
use crate::wire::set_ip_id;
use proptest::prelude::*;
use std::collections::HashSet;

const SECOND: u64 = 1_000_000_000;
const VETH: u32 = 7;

type Table = FragTable<Vec<u8>, u32>;

fn table() -> Table {
    FragTable::new(Limits { held: 8, datagrams: 16, timeout: 30 * SECOND }, 1)
}

fn datagram(id: u16, len: usize) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
    fragments(&udp("10.0.1.10:40000", "203.0.113.9:5000").id(id).payload(&payload).build(), 256)
}

fn later(table: &mut Table, now: u64, frame: &[u8]) -> Later<Vec<u8>, u32> {
    table.later(now, VETH, &read(frame), frame.to_vec())
}

fn first(table: &mut Table, now: u64, frame: &[u8], decision: u32) -> Result<Vec<Vec<u8>>, Drop> {
    let p = read(frame);
    assert!(p.is_first_fragment());
    table.first(now, VETH, &p, decision)?;
    Ok(std::iter::from_fn(|| {
        let (item, released) = table.release(VETH, &p)?;
        assert_eq!(released, decision);
        Some(item)
    })
    .collect())
}

#[test]
fn in_order_passes_and_leaves_nothing() {
    let mut table = table();
    let f = datagram(9, 700);
    assert_eq!(f.len(), 3);
    assert_eq!(first(&mut table, 0, &f[0], 5), Ok(vec![]));
    assert_eq!(later(&mut table, 1, &f[1]), Later::Pass(f[1].clone(), 5));
    assert_eq!(table.datagrams(), 1);
    assert_eq!(later(&mut table, 2, &f[2]), Later::Pass(f[2].clone(), 5));
    assert_eq!((table.datagrams(), table.held(), table.next_deadline()), (0, 0, None));
}

#[test]
fn what_overtook_waits_and_is_released_in_order_of_arrival() {
    let mut table = table();
    let f = datagram(9, 1000);
    assert_eq!(f.len(), 4);
    assert_eq!(later(&mut table, 0, &f[3]), Later::Held);
    assert_eq!(later(&mut table, 1, &f[1]), Later::Held);
    assert_eq!(table.held(), 2);
    assert_eq!(first(&mut table, 2, &f[0], 5), Ok(vec![f[3].clone(), f[1].clone()]));
    assert_eq!((table.datagrams(), table.held()), (1, 0));
    assert_eq!(later(&mut table, 3, &f[2]), Later::Pass(f[2].clone(), 5));
    assert_eq!(table.datagrams(), 0);
    // Backwards: the first one completes it, and the release empties the table.
    for i in [3, 2, 1] {
        assert_eq!(later(&mut table, 4, &f[i]), Later::Held);
    }
    assert_eq!(first(&mut table, 5, &f[0], 6), Ok(vec![f[3].clone(), f[2].clone(), f[1].clone()]));
    assert_eq!((table.datagrams(), table.held()), (0, 0));
}

#[test]
fn overlaps_and_duplicates_are_dropped() {
    let mut table = table();
    let f = datagram(9, 1000);
    let coarse = {
        let whole = reassemble(&f).unwrap();
        fragments(&whole, 400)
    };
    assert_eq!(first(&mut table, 0, &f[0], 5), Ok(vec![]));
    assert_eq!(first(&mut table, 0, &f[0], 6), Err(Drop::FragmentOverlap));
    assert_eq!(first(&mut table, 0, &coarse[0], 6), Err(Drop::FragmentOverlap));
    assert_eq!(later(&mut table, 0, &f[1]), Later::Pass(f[1].clone(), 5));
    assert_eq!(later(&mut table, 0, &f[1]), Later::Drop(f[1].clone(), Drop::FragmentOverlap));
    assert_eq!(later(&mut table, 0, &coarse[1]), Later::Drop(coarse[1].clone(), Drop::FragmentOverlap));
    // The decision of the first one stays.
    assert_eq!(later(&mut table, 0, &f[2]), Later::Pass(f[2].clone(), 5));
    assert_eq!(later(&mut table, 0, &f[3]), Later::Pass(f[3].clone(), 5));
    assert_eq!(table.datagrams(), 0);

    // Held ones count too, and a first one that overlaps them leaves them waiting.
    assert_eq!(later(&mut table, 0, &f[1]), Later::Held);
    assert_eq!(later(&mut table, 0, &f[1]), Later::Drop(f[1].clone(), Drop::FragmentOverlap));
    assert_eq!(first(&mut table, 0, &coarse[0], 6), Err(Drop::FragmentOverlap));
    assert_eq!(first(&mut table, 0, &f[0], 7), Ok(vec![f[1].clone()]));
}

#[test]
fn nothing_lies_behind_the_end_and_there_is_one_end() {
    let mut ranges = Ranges::new();
    assert_eq!(ranges.insert(0, 8, false), Ok(()));
    assert_eq!(ranges.insert(16, 20, true), Ok(()));
    assert_eq!(ranges.insert(24, 32, false), Err(Drop::FragmentOverlap));
    assert_eq!(ranges.insert(8, 16, true), Err(Drop::FragmentOverlap));
    assert!(!ranges.complete());
    assert_eq!(ranges.insert(8, 16, false), Ok(()));
    assert!(ranges.complete());
    let mut ranges = Ranges::new();
    assert_eq!(ranges.insert(64, 72, false), Ok(()));
    assert_eq!(ranges.insert(0, 8, true), Err(Drop::FragmentOverlap));
    for i in 1..32 {
        assert_eq!(ranges.insert(64 + i * 16, 72 + i * 16, false), Ok(()));
    }
    assert_eq!(ranges.insert(0, 8, false), Err(Drop::FragmentQueueFull));
    assert_eq!(ranges.insert(72, 80, false), Ok(()));
    assert_eq!(ranges.insert(0, 8, false), Ok(()));
}

#[test]
fn waiting_ends() {
    let mut table = table();
    let (f, g) = (datagram(9, 1000), datagram(10, 1000));
    assert_eq!(later(&mut table, 0, &f[1]), Later::Held);
    assert_eq!(later(&mut table, SECOND, &f[2]), Later::Held);
    assert_eq!(first(&mut table, SECOND, &g[0], 1), Ok(vec![]));
    assert_eq!(table.next_deadline(), Some(30 * SECOND));
    assert_eq!(table.expire(30 * SECOND - 1).count(), 0);
    let gone: Vec<_> = table.expire(30 * SECOND).collect();
    assert_eq!(gone, [(f[1].clone(), Drop::FragmentTimeout), (f[2].clone(), Drop::FragmentTimeout)]);
    assert_eq!((table.held(), table.datagrams(), table.next_deadline()), (0, 1, Some(31 * SECOND)));
    // What was decided is forgotten as well, swept or not.
    assert_eq!(later(&mut table, 31 * SECOND, &g[1]), Later::Held);
    assert_eq!(table.expire(61 * SECOND).count(), 1);
    assert_eq!(table.datagrams(), 0);
    assert_eq!(later(&mut table, 70 * SECOND, &g[1]), Later::Held);
    assert_eq!(table.drain().collect::<Vec<_>>(), [(g[1].clone(), Drop::Shutdown)]);
    assert_eq!((table.held(), table.datagrams()), (0, 0));
}

#[test]
fn full_of_waiting_ones_it_still_takes_first_ones() {
    let mut table = table();
    for id in 0..8 {
        assert_eq!(later(&mut table, 0, &datagram(id, 600)[1]), Later::Held);
    }
    let more = datagram(99, 600);
    assert_eq!(later(&mut table, 0, &more[1]), Later::Drop(more[1].clone(), Drop::FragmentQueueFull));
    // 16 datagrams, 8 of them waiting: more than 8 decided push out the oldest decided one.
    for id in 100..120 {
        assert_eq!(first(&mut table, 1, &datagram(id, 600)[0], u32::from(id)), Ok(vec![]));
    }
    assert_eq!((table.datagrams(), table.held()), (16, 8));
    assert_eq!(later(&mut table, 2, &datagram(119, 600)[1]), Later::Pass(datagram(119, 600)[1].clone(), 119));
    // Released as ever.
    assert_eq!(first(&mut table, 2, &datagram(3, 600)[0], 3), Ok(vec![datagram(3, 600)[1].clone()]));
}

#[test]
fn another_interface_is_another_datagram() {
    let mut table = table();
    let f = datagram(9, 600);
    assert_eq!(table.first(0, 1, &read(&f[0]), 5), Ok(()));
    assert_eq!(table.later(0, 2, &read(&f[1]), f[1].clone()), Later::Held);
    assert_eq!(table.later(0, 1, &read(&f[1]), f[1].clone()), Later::Pass(f[1].clone(), 5));
}

#[test]
fn one_worker_owns_a_datagram_and_all_own_some() {
    let mut owners = HashSet::new();
    for id in 0..200 {
        let f = datagram(id, 1000);
        let of: HashSet<_> = f.iter().map(|f| owner(&read(f), 42, 5)).collect();
        assert_eq!(of.len(), 1);
        owners.extend(of);
    }
    assert_eq!(owners, (0..5).collect());
}

#[test]
fn equal_identifications_part() {
    let mut seen = HashSet::new();
    for worker in 0..3 {
        let mut ids = FragmentIds::new(worker, 3, 77 + u64::from(worker));
        for _ in 0..21_845 {
            assert!(seen.insert(ids.allocate()));
        }
    }
    // Two pods, one identification, one destination: after the rewrite each can be put together alone.
    let (mut a, mut b) = (datagram(9, 600), datagram(9, 600));
    let mut ids = FragmentIds::new(0, 1, 5);
    for frames in [&mut a, &mut b] {
        let id = ids.allocate();
        frames.iter_mut().for_each(|f| set_ip_id(f, id));
    }
    assert!(reassemble(&a).is_ok() && reassemble(&b).is_ok());
    assert!(reassemble(&[a[0].clone(), b[1].clone(), b[2].clone()]).is_err());
}

proptest! {
    #[test]
    fn every_fragment_is_accounted_for(
        arrivals in proptest::collection::vec((0u16..12, 0usize..5, 0u64..SECOND), 0..300),
        held in 0u32..12,
        datagrams in 0u32..20,
        timeout in 1u64..(20 * SECOND),
    ) {
        let mut table: Table = FragTable::new(Limits { held, datagrams, timeout }, 3);
        let (mut now, mut passed, mut dropped) = (0, 0, 0);
        for (number, &(id, piece, pause)) in arrivals.iter().enumerate() {
            now += pause;
            dropped += table.expire(now).count();
            let f = datagram(id, 1200);
            prop_assert_eq!(f.len(), 5);
            if piece == 0 {
                match first(&mut table, now, &f[0], 1) {
                    Ok(released) => {
                        prop_assert!(released.iter().all(|r| read(r).id == id));
                        passed += 1 + released.len();
                    }
                    Err(drop) => {
                        prop_assert_eq!(drop, Drop::FragmentOverlap);
                        dropped += 1;
                    }
                }
            } else {
                match later(&mut table, now, &f[piece]) {
                    Later::Pass(frame, _) => {
                        prop_assert_eq!(&frame, &f[piece]);
                        passed += 1;
                    }
                    Later::Held => {}
                    Later::Drop(frame, _) => {
                        prop_assert_eq!(&frame, &f[piece]);
                        dropped += 1;
                    }
                }
            }
            prop_assert_eq!(number + 1, passed + dropped + table.held() as usize);
            prop_assert!(table.held() <= held);
            prop_assert!(table.datagrams() <= datagrams.max(held + 1));
        }
        dropped += table.drain().count();
        prop_assert_eq!(arrivals.len(), passed + dropped);
        prop_assert_eq!((table.held(), table.datagrams(), table.next_deadline()), (0, 0, None));
        // All memory is free again.
        for id in 0..held.max(1) as u16 {
            let result = later(&mut table, now, &datagram(id, 600)[1]);
            if held > 0 {
                prop_assert_eq!(result, Later::Held);
            }
        }
    }
}
