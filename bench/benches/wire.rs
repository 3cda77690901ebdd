//! Checksum and parse: `cargo bench -p sluice-bench --bench wire`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_bench::load::frame::{Checksums, Template};
use sluice_bench::memory::run::CHECKSUM_LENGTHS;
use sluice_bench::memory::world::{OUTSIDE, POD};
use sluice_engine::wire::{checksum, parse};

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for length in CHECKSUM_LENGTHS {
        let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_with_input(BenchmarkId::from_parameter(length), &bytes, |b, bytes| {
            b.iter(|| checksum::sum(black_box(bytes)));
        });
    }
    group.finish();
}

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    let udp = Template::new(64, [2; 6], [4; 6], Checksums::Full).addressed(POD, OUTSIDE).frame(1000, 53, 1);
    let mut fragment = udp.clone();
    fragment[20] |= 0x20;
    for (name, frame) in [("udp", udp), ("first fragment", fragment)] {
        group.bench_function(name, |b| b.iter(|| parse(black_box(&frame), frame.len()).is_ok()));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = checksums, parsing
}
criterion_main!(benches);
