use crate::flow::wheel::TICK;
use crate::flow::*;

const SECOND: u64 = 1_000_000_000;

fn udp(number: u32) -> NewFlow {
    let original = FlowKey::new(0x0A00_010A, 0xCB00_7109 + number, 40_000, 80, 17);
    let translated = FlowKey::new(0x0A00_0905, 0xCB00_7109 + number, 5_000, 80, 17);
    NewFlow {
        original,
        translated,
        origin: Origin::Pod,
        start: Start::Udp,
        egress: [1, 2],
        policy_generation: 7,
    }
}

fn find(table: &FlowTable, key: &FlowKey, now: u64) -> Option<(FlowId, Dir)> {
    table.lookup(key, table.hash(key), now)
}

#[test]
fn both_directions_are_found_and_carry_what_was_given() {
    let table = FlowTable::new(16, 1, 1);
    let mut local = table.local(0).unwrap();
    let now = 100 * SECOND;
    local.begin_step(&table, now, &TimeoutsNs::default());
    let new = udp(0);
    let id = local.insert(&table, &new, now).unwrap();
    assert_eq!(find(&table, &new.original, now), Some((id, Dir::Forward)));
    assert_eq!(find(&table, &new.translated.reversed(), now), Some((id, Dir::Reply)));
    assert_eq!(find(&table, &new.translated, now), None);
    let flow = table.flow(id);
    assert_eq!((flow.original(), flow.translated()), (new.original, new.translated));
    assert_eq!((flow.origin(), flow.egress(Dir::Forward), flow.egress(Dir::Reply)), (Origin::Pod, 1, 2));
    assert_eq!(flow.policy_generation(), 7);
    assert_eq!(table.live(), 1);
    assert!(local.remove(&table, id));
    assert!(!local.remove(&table, id));
    assert_eq!(find(&table, &new.original, now), None);
    assert_eq!(table.live(), 0);
}

#[test]
fn ten_thousand_due_in_one_tick_are_cleared_in_bounded_steps_within_two() {
    let table = FlowTable::new(16_384, 1, 1);
    let mut local = table.local(0).unwrap();
    let timeouts = TimeoutsNs::default();
    let start = 100 * SECOND;
    local.begin_step(&table, start, &timeouts);
    let free = table.free.len();
    for number in 0..10_000 {
        local.insert(&table, &udp(number), start).unwrap();
    }
    let due = start + timeouts.of(Phase::UdpOneWay);
    assert_eq!(local.begin_step(&table, due - 1, &timeouts).expired, 0);
    assert_eq!(table.live(), 10_000);
    let (mut polls, mut now) = (0, due);
    while now < due + 2 * TICK {
        let aged = local.begin_step(&table, now, &timeouts);
        assert!(aged.expired <= 128 && aged.evicted == 0, "{aged:?}");
        polls += 1;
        now += TICK / 200;
    }
    assert_eq!(table.live(), 0, "after {polls} polls");
    assert!(!local.is_behind(now));
    local.begin_step(&table, now, &timeouts);
    assert!(table.free.len() + 64 >= free, "slots came back: {} of {free}", table.free.len());
}
