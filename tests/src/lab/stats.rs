//! The daemon's counters before and after: what a test asserts beside what peers saw.

use std::collections::BTreeMap;

use serde_json::Value;

/// One reading. Names: `engine.to_eni`, `drop.spoof`, `bpf.xdp_redirect_port`, `eni0.tx_packets`, `trunk.rx_packets`
/// (summed over queues), and `flows`.
#[derive(Debug, Clone)]
pub struct Stats {
    counters: BTreeMap<String, i64>,
    conservation: Value,
}

impl Stats {
    /// Reads what `sluice stats --output json` printed.
    pub(super) fn read(stats: &Value) -> Self {
        let mut counters = BTreeMap::new();
        for (group, prefix) in [("total", "engine"), ("drops", "drop"), ("bpf", "bpf")] {
            gather(&mut counters, prefix, &stats[group]);
        }
        for port in stats["ports"].as_array().into_iter().flatten() {
            let name = port["port"].as_str().unwrap_or_default();
            let device = name.split_once(':').map_or(name, |(device, _)| device);
            gather(&mut counters, device, &port["counters"]);
        }
        counters.insert("flows".into(), stats["flows"].as_i64().expect("the number of flows"));
        Self { counters, conservation: stats["conservation"].clone() }
    }

    /// The value of one counter.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn of(&self, name: &str) -> i64 {
        *self.counters.get(name).unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// In = out + dropped + held.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.conservation["balanced"] == true
    }

    /// Both sides of it.
    #[must_use]
    pub fn conservation(&self) -> &Value {
        &self.conservation
    }

    /// No packet moved between two readings.
    pub(super) fn at_rest(&self, earlier: &Self) -> bool {
        let still = |name: &str| self.of(name) == earlier.of(name);
        let bpf =
            |s: &Self| s.counters.iter().filter(|(k, _)| k.starts_with("bpf.")).map(|(_, v)| v).sum::<i64>();
        still("engine.in") && still("engine.held") && bpf(self) == bpf(earlier) && self.is_balanced()
    }

    /// What changed since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Delta {
        let before = |name: &String| earlier.counters.get(name).copied().unwrap_or_default();
        let changes = self.counters.iter().map(|(name, now)| (name.clone(), now - before(name)));
        Delta { changes: changes.collect() }
    }
}

fn gather(counters: &mut BTreeMap<String, i64>, prefix: &str, group: &Value) {
    for (name, value) in group.as_object().expect("a group of counters") {
        *counters.entry(format!("{prefix}.{name}")).or_default() += value.as_i64().unwrap_or_default();
    }
}

/// What every counter did between two readings.
#[derive(Debug, Clone)]
pub struct Delta {
    changes: BTreeMap<String, i64>,
}

impl Delta {
    /// The change of one counter.
    ///
    /// # Panics
    /// There is none of this name: a test that misspells a counter must not pass.
    #[must_use]
    pub fn of(&self, name: &str) -> i64 {
        *self.changes.get(name).unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// Everything that changed, without what only tells time; for messages.
    #[must_use]
    pub fn all(&self) -> Vec<(&str, i64)> {
        let noise = |name: &str| name.ends_with("_ns") || name.contains("sleeps") || name.contains("loops");
        let moved = self.changes.iter().filter(|(name, change)| **change != 0 && !noise(name));
        moved.map(|(name, change)| (name.as_str(), *change)).collect()
    }

    /// The drops, the engine's by reason and the BPF programs'.
    #[must_use]
    pub fn drops(&self) -> Vec<(&str, i64)> {
        let is_drop = |name: &str| {
            name.starts_with("drop.") || name.strip_prefix("bpf.").is_some_and(|n| n.contains("_drop_"))
        };
        self.all().into_iter().filter(|(name, _)| is_drop(name)).collect()
    }

    /// Asserts that exactly these drops were counted.
    ///
    /// # Panics
    /// Others were.
    #[track_caller]
    pub fn assert_drops(&self, expected: &[(&str, i64)]) {
        assert_eq!(self.drops(), expected, "all changes: {:?}", self.all());
    }

    /// Asserts the change of counters.
    ///
    /// # Panics
    /// One differs.
    #[track_caller]
    pub fn assert(&self, expected: &[(&str, i64)]) {
        let found: Vec<_> = expected.iter().map(|(name, _)| (*name, self.of(name))).collect();
        assert_eq!(found, expected, "all changes: {:?}", self.all());
    }

    /// Asserts that counters moved by at least so much.
    ///
    /// # Panics
    /// One did not.
    #[track_caller]
    pub fn assert_at_least(&self, expected: &[(&str, i64)]) {
        for (name, least) in expected {
            let found = self.of(name);
            assert!(found >= *least, "{name}: {found}, not {least} or more; all changes: {:?}", self.all());
        }
    }
}
