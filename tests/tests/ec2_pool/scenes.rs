//! Single scenes: what a burst costs, and what the pool does about each kind of trouble.

use std::time::Duration;

use sluice_ec2::settings::Settings;

use crate::churn::{key, open, pass, pod, world};

#[test]
fn fifty_pods_on_a_fresh_m5_4xlarge_cost_at_most_two_calls_more_than_the_least() {
    let direct = world("m5.4xlarge");
    let (pool, _) = open(&direct, &Settings::default(), &[]);
    pass(&direct, &pool, Duration::from_secs(30));
    let mut given = 0;
    while given < 50 {
        let name = format!("p{given}");
        match pool.try_assign(key(&name), pod(&name)).unwrap() {
            Ok(_) => given += 1,
            Err(_) => pass(&direct, &pool, Duration::from_millis(200)),
        }
    }
    pass(&direct, &pool, Duration::from_secs(600));
    assert!(pool.targets().settled);
    let counts = direct.node().world.counts();
    let (asked, changed): (Vec<_>, Vec<_>) =
        counts.iter().partition(|(action, _)| action.starts_with("Describe"));
    let changed: usize = changed.iter().map(|(_, n)| **n).sum();
    // 50 pods and 29 spare addresses: the primary interface filled (1), two more made (create, attach, keep).
    assert!((7..=9).contains(&changed), "{counts:?}");
    let asked: usize = asked.iter().map(|(_, n)| **n).sum();
    assert!(asked <= 10, "{counts:?}");
}
