//! Fifty thousand services: what a change of one costs until it can be published, what all at once cost, and what the
//! first packet of a flow pays for its lookup: `cargo bench -p sluice-bench --bench services`.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sluice_engine::flow::FlowKey;
use sluice_engine::service::Services;
use sluice_state::{Endpoint, Frontend, Protocol, Service, Services as State, WithoutEndpoints};

const SERVICES: u32 = 50_000;

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0A60_0000 + n)
}

fn service(n: u32, endpoints: u32) -> Arc<Service> {
    let frontend = Frontend { address: Some(address(n)), port: 80, sources: None, over_local: false };
    let endpoint = |i| Endpoint { ip: Ipv4Addr::from_bits(0x0A00_0000 + n * 8 + i), port: 8080 };
    Arc::new(Service {
        name: format!("namespace-{}/service-{n}:http", n % 300),
        protocol: Protocol::Tcp,
        frontends: vec![frontend],
        endpoints: (0..endpoints).map(endpoint).collect(),
        affinity: None,
        without_endpoints: WithoutEndpoints::Reject,
    })
}

fn state() -> State {
    let cidrs = vec!["10.96.0.0/12".parse().expect("it is a CIDR")];
    State { cidrs, services: (0..SERVICES).map(|n| service(n, 3)).collect() }
}

fn publish(c: &mut Criterion) {
    let before = state();
    let (known, _) = Services::default().follow(&before);
    let mut group = c.benchmark_group("services");
    let mut after = before.clone();
    after.services[31_000] = service(31_000, 2);
    group.bench_function("one of 50,000 changes", |b| b.iter(|| known.follow(black_box(&after))));
    let mut after = before.clone();
    after.services.remove(31_000);
    group.bench_function("one of 50,000 goes", |b| b.iter(|| known.follow(black_box(&after))));
    group.bench_function("none of 50,000 changes", |b| b.iter(|| known.follow(black_box(&before))));
    group.bench_function("50,000 told anew, all the same", |b| {
        b.iter_batched_ref(state, |again| known.follow(black_box(again)), BatchSize::PerIteration);
    });
    group.bench_function("50,000 at once", |b| b.iter(|| Services::default().follow(black_box(&before))));

    let keys: Vec<_> = (0..4096u32)
        .map(|i| FlowKey::new(0x0A00_010A, address(i * 7919 % SERVICES).to_bits(), 40_000, 80, 6))
        .collect();
    let mut at = 0;
    group.bench_function("lookup", |b| {
        b.iter(|| {
            at = (at + 1) % keys.len();
            known.find(black_box(&keys[at]), false).is_some()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = publish
}
criterion_main!(benches);
