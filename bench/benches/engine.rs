//! The packet path, new flows and expiry, for regressions: `cargo bench -p sluice-bench --bench engine`.
//!
//! An iteration is one packet (or one flow), timed as `sluice-bench engine` times it: CPU time of this thread, the making
//! of frames left out. The yardstick runs as a group member, so that a slower hour shows as such.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_bench::memory::path::Path;
use sluice_bench::memory::run::{expire, open};
use sluice_bench::memory::stream::{Order, Stream};
use sluice_bench::memory::world;
use sluice_bench::memory::yardstick::Yardstick;

const LENGTH: usize = 64;

/// CPU time of `iterations` packets; the stream carries whole chunks.
fn packets(stream: &mut Stream, path: &mut impl Path, iterations: u64) -> Duration {
    let cost = stream.measure(path, iterations);
    assert_eq!(cost.lost, 0, "packets of known flows were not forwarded");
    Duration::from_secs_f64(cost.cpu.as_secs_f64() * iterations as f64 / cost.packets as f64)
}

fn packet_path(c: &mut Criterion) {
    let mut group = c.benchmark_group("packet");
    group.throughput(Throughput::Elements(1));
    for (flows, order, name) in [
        (1_000, Order::InOrder, "1k"),
        (100_000, Order::InOrder, "100k"),
        (1_000_000, Order::InOrder, "1M"),
        (100_000, Order::Shuffled, "100k shuffled"),
        (1_000_000, Order::Shuffled, "1M shuffled"),
    ] {
        let mut stream = Stream::new(0..flows, order, LENGTH);
        let mut engine = open(flows, LENGTH).expect("every flow is opened");
        group.bench_function(format!("engine/{name}"), |b| {
            b.iter_custom(|iterations| packets(&mut stream, &mut engine, iterations));
        });
        drop(engine);
        let mut yardstick = Yardstick::new(flows);
        group.bench_function(format!("yardstick/{name}"), |b| {
            b.iter_custom(|iterations| packets(&mut stream, &mut yardstick, iterations));
        });
    }
    group.finish();
}

/// Flows of one round: the table is emptied before it can fill up.
const ROUND: u32 = 200_000;

fn flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow");
    group.throughput(Throughput::Elements(1));
    let mut engine = world::engine(ROUND).expect("the bench's state is valid");
    let mut now = Duration::ZERO;
    let mut round = |engine: &mut _| {
        let mut stream = Stream::new(0..ROUND, Order::InOrder, LENGTH);
        stream.advance(now);
        let opened = stream.measure(engine, stream.once());
        assert_eq!(opened.lost, 0, "new flows were refused");
        let (expired, end) = expire(engine, stream.now()).expect("every flow expires");
        now = Duration::from_nanos(end);
        (opened.cpu / ROUND, expired / ROUND)
    };
    round(&mut engine);
    let mut scaled = |iterations: u64, which: fn((Duration, Duration)) -> Duration| {
        let rounds = iterations.div_ceil(u64::from(ROUND)).max(1);
        let sum: Duration = (0..rounds).map(|_| which(round(&mut engine))).sum();
        sum.mul_f64(iterations as f64 / rounds as f64)
    };
    group.bench_function("open", |b| b.iter_custom(|iterations| scaled(iterations, |(opened, _)| opened)));
    group
        .bench_function("expire", |b| b.iter_custom(|iterations| scaled(iterations, |(_, expired)| expired)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = packet_path, flows
}
criterion_main!(benches);
