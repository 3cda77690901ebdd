//! The table against a plain map: whatever is done in whatever order, both say the same.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::flow::wheel::TICK;
use crate::flow::*;

const CAPACITY: u32 = 24;

#[derive(Debug, Clone)]
enum Action {
    Insert { from: u8, port: u8 },
    Remove { from: u8 },
    Packet { from: u8, reply: bool },
    Wait { ticks: u8 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..40u8, 0..40u8).prop_map(|(from, port)| Action::Insert { from, port }),
        1 => (0..40u8).prop_map(|from| Action::Remove { from }),
        3 => (0..40u8, any::<bool>()).prop_map(|(from, reply)| Action::Packet { from, reply }),
        2 => (0..130u8).prop_map(|ticks| Action::Wait { ticks }),
    ]
}

fn original(from: u8) -> FlowKey {
    FlowKey::new(0x0A00_0100 + u32::from(from), 7, 1000, 80, 17)
}

fn translated(port: u8) -> FlowKey {
    FlowKey::new(0x0A00_0905, 7, 5000 + u16::from(port), 80, 17)
}

struct Expected {
    port: u8,
    deadline: u64,
    replied: bool,
}

proptest! {
    #[test]
    fn behaves_as_a_map(actions in proptest::collection::vec(action(), 1..200), seed: u64) {
        let timeouts = TimeoutsNs::default();
        let table = FlowTable::new(CAPACITY, 1, seed);
        let mut local = table.local(0).unwrap();
        let mut map: HashMap<u8, Expected> = HashMap::new();
        let mut now = 1000 * TICK;
        for action in actions {
            local.begin_step(&table, now, &timeouts);
            map.retain(|_, flow| flow.deadline > now);
            match action {
                Action::Insert { from, port } => {
                    let new = NewFlow {
                        original: original(from), translated: translated(port), origin: Origin::Pod,
                        start: Start::Udp, egress: [u32::from(from), 0], policy_generation: 0,
                    };
                    let result = local.insert(&table, &new, now);
                    if map.contains_key(&from) {
                        prop_assert!(matches!(result, Err(InsertError::ForwardExists(_, Dir::Forward))));
                    } else if map.values().any(|flow| flow.port == port) {
                        prop_assert_eq!(result, Err(InsertError::ReplyExists));
                    } else if map.len() == CAPACITY as usize && map.values().all(|flow| flow.replied) {
                        prop_assert_eq!(result, Err(InsertError::Full));
                    } else {
                        prop_assert!(result.is_ok(), "{:?}", result);
                        if map.len() == CAPACITY as usize {
                            // One that was seen in one direction only had to go.
                            let gone: Vec<u8> = map.keys().copied().filter(|from| {
                                let key = original(*from);
                                table.lookup(&key, table.hash(&key), now).is_none()
                            }).collect();
                            prop_assert_eq!(gone.len(), 1);
                            prop_assert!(!map.remove(&gone[0]).unwrap().replied, "an answered flow was evicted");
                        }
                        let deadline = now + timeouts.of(Phase::UdpOneWay);
                        map.insert(from, Expected { port, deadline, replied: false });
                    }
                }
                Action::Remove { from } => {
                    let key = original(from);
                    let found = table.lookup(&key, table.hash(&key), now);
                    prop_assert_eq!(found.is_some(), map.remove(&from).is_some());
                    if let Some((id, _)) = found {
                        prop_assert!(local.remove(&table, id));
                    }
                }
                Action::Packet { from, reply } => {
                    if let Some(flow) = map.get_mut(&from) {
                        let key = if reply { translated(flow.port).reversed() } else { original(from) };
                        let (id, dir) = table.lookup(&key, table.hash(&key), now).unwrap();
                        prop_assert_eq!(dir == Dir::Reply, reply);
                        table.datagram(id, dir);
                        table.touch(id, dir, now, 1);
                        flow.replied |= reply;
                        let phase = if flow.replied { Phase::UdpTwoWay } else { Phase::UdpOneWay };
                        flow.deadline = now + timeouts.of(phase);
                    }
                }
                Action::Wait { ticks } => now += u64::from(ticks) * TICK + 12_345,
            }
            map.retain(|_, flow| flow.deadline > now);
            for from in 0..40 {
                let key = original(from);
                let found = table.lookup(&key, table.hash(&key), now).map(|(id, _)| table.flow(id).egress(Dir::Forward));
                prop_assert_eq!(found, map.contains_key(&from).then_some(u32::from(from)));
            }
            prop_assert_eq!(table.flows(now).count(), map.len());
            prop_assert_eq!(
                table.free.len() + local.cache.len() + local.retired.count as usize + table.live() as usize,
                table.slots.len() - 1
            );
        }
    }
}
