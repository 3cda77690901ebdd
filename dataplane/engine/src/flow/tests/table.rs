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

#[test]
fn a_full_table_gives_up_expired_then_unanswered_but_no_answered_flow() {
    let table = FlowTable::new(16, 1, 3);
    let mut local = table.local(0).unwrap();
    let timeouts = TimeoutsNs::default();
    let mut now = 100 * SECOND;
    local.begin_step(&table, now, &timeouts);
    for number in 0..16 {
        let id = local.insert(&table, &udp(number), now).unwrap();
        // 0: expires first. 1: never answered, but fresh.
        if number != 0 {
            table.touch(id, Dir::Forward, now + 20 * SECOND, 1);
        }
        if number > 1 {
            table.datagram(id, Dir::Reply);
        }
    }
    now += 30 * SECOND;
    let gone = |number, now| find(&table, &udp(number).original, now).is_none();
    let (free, buckets) = (table.free.len() + local.cache.len(), table.live());
    assert_eq!((free, buckets), (table.slots.len() - 1 - 16, 16));
    local.insert(&table, &udp(100), now).unwrap();
    assert!(gone(0, now) && !gone(1, now));
    table.datagram(find(&table, &udp(100).original, now).unwrap().0, Dir::Reply);
    local.insert(&table, &udp(101), now).unwrap();
    assert!(gone(1, now));
    table.datagram(find(&table, &udp(101).original, now).unwrap().0, Dir::Reply);
    assert_eq!(local.insert(&table, &udp(102), now), Err(InsertError::Full));
    assert!((2..16).all(|number| !gone(number, now)));
    assert_eq!(table.live(), 16);
    assert_eq!(local.begin_step(&table, now, &timeouts), Aged { expired: 1, evicted: 1 });
}

#[test]
fn a_failed_insert_leaves_neither_direction() {
    let table = FlowTable::new(16, 1, 3);
    let mut local = table.local(0).unwrap();
    local.insert(&table, &udp(0), SECOND).unwrap();
    let same_mapping = NewFlow { original: FlowKey::new(5, 6, 7, 8, 17), ..udp(0) };
    assert_eq!(local.insert(&table, &same_mapping, SECOND), Err(InsertError::ReplyExists));
    assert_eq!(find(&table, &same_mapping.original, SECOND), None);
    assert_eq!(table.live(), 1);
}

#[test]
fn timeouts_are_exact_and_changed_ones_followed_at_once() {
    let table = FlowTable::new(16, 1, 3);
    let mut local = table.local(0).unwrap();
    let now = 100 * SECOND;
    let timeouts = TimeoutsNs::default();
    local.begin_step(&table, now, &timeouts);
    let new = udp(0);
    let id = local.insert(&table, &new, now).unwrap();
    assert!(find(&table, &new.original, now + 30 * SECOND - 1).is_some());
    assert!(find(&table, &new.original, now + 30 * SECOND).is_none());
    // D2: answered, it lives longer. D3: and packets from outside keep it alive.
    table.datagram(id, Dir::Reply);
    table.touch(id, Dir::Reply, now + 10 * SECOND, 1);
    assert!(find(&table, &new.original, now + 130 * SECOND - 1).is_some());
    assert!(find(&table, &new.original, now + 130 * SECOND).is_none());
    // D10.
    let short = sluice_state::Timeouts {
        udp_two_way: Some(sluice_state::Seconds(5)),
        ..sluice_state::Timeouts::default()
    };
    local.begin_step(&table, now + 12 * SECOND, &TimeoutsNs::from(&short));
    assert!(find(&table, &new.original, now + 15 * SECOND - 1).is_some());
    assert!(find(&table, &new.original, now + 15 * SECOND).is_none());
    for second in 15..48 {
        local.begin_step(&table, now + second * SECOND, &TimeoutsNs::from(&short));
    }
    assert_eq!(table.live(), 0);
}

#[test]
fn without_inbound_refresh_only_the_pod_keeps_its_flow_alive() {
    let table = FlowTable::new(16, 1, 3);
    let mut local = table.local(0).unwrap();
    let now = 100 * SECOND;
    local.begin_step(&table, now, &TimeoutsNs::default().with_inbound_refresh(false));
    let new = udp(0);
    let id = local.insert(&table, &new, now).unwrap();
    table.datagram(id, Dir::Reply);
    table.touch(id, Dir::Reply, now + 100 * SECOND, 1);
    assert!(find(&table, &new.original, now + 120 * SECOND).is_none());
}

#[test]
fn a_table_at_capacity_has_room_for_every_key() {
    let table = FlowTable::new(65_536, 1, 11);
    let mut local = table.local(0).unwrap();
    for number in 0..65_536 {
        local.insert(&table, &udp(number), SECOND).unwrap();
    }
    assert!((0..65_536).all(|number| find(&table, &udp(number).original, SECOND).is_some()));
}
