use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use sluice_state::{Generation, State};

use super::{EnforcingMode, Settings, Update, World};
use crate::{Change, ContainerPort, Kind, Labels, Namespace, Object, ObjectId, Phase, Pod};

mod corpus;
mod incremental;
mod judge;
mod random;

pub(super) fn settings() -> Settings {
    Settings {
        node: "n1".into(),
        mode: EnforcingMode::Standard,
        on_change: sluice_state::OnPolicyChange::Recheck,
        masqueraded_node_traffic: sluice_state::MasqueradedNodeTraffic::Allow,
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
    }
}

/// A world and the state of an engine that follows it.
pub(super) struct Followed {
    pub(super) world: World,
    pub(super) state: State,
    number: u64,
}

impl Followed {
    pub(super) fn new(settings: Settings) -> Self {
        Self { world: World::new(settings), state: State::default(), number: 0 }
    }

    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.world.apply(change).unwrap());
    }

    /// Updates, and checks that what the operations make of the engine's state is what the world says as a whole.
    pub(super) fn update(&mut self) -> Update {
        let update = self.world.update();
        self.number += 1;
        let generation = Generation { number: self.number, ops: update.ops.clone() };
        self.state = self.state.apply(&generation).unwrap();
        let policy = &mut self.state.policy;
        policy.identities.sort_by_key(|i| i.id);
        policy.rules.sort_by_key(|r| r.id);
        policy.pods.sort_by_key(|p| p.ip);
        assert_eq!(*policy, self.world.policy());
        self.state.services.services.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(self.state.services, self.world.services());
        update
    }
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    Arc::new(pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect())
}

pub(super) fn namespace(name: &str, pairs: &[(&str, &str)]) -> Change {
    Change::Upsert(Object::Namespace(Namespace { name: name.into(), labels: labels(pairs) }))
}

pub(super) fn pod(name: &str, pairs: &[(&str, &str)], ip: &str) -> Pod {
    let (namespace, name) = name.split_once('/').unwrap();
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        uid: format!("{namespace}/{name}").into(),
        labels: labels(pairs),
        ip: ip.parse().ok(),
        node: Some("n1".into()),
        host_network: false,
        phase: Phase::Running,
        terminating: false,
        created: Some(1_700_000_000),
        ports: Arc::new([]),
    }
}

pub(super) fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        protocol: sluice_state::Protocol::Tcp,
        port: number,
        host_port: None,
        host_ip: None,
    }
}

pub(super) fn upsert(pod: Pod) -> Change {
    Change::Upsert(Object::Pod(pod.into()))
}

pub(super) fn policy(json: serde_json::Value) -> Change {
    Change::Upsert(Object::NetworkPolicy(Box::new(read_policy(json))))
}

pub(super) fn read_policy(json: serde_json::Value) -> NetworkPolicy {
    crate::policy_from_json(json).unwrap()
}

pub(super) fn delete(kind: Kind, name: &str) -> Change {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Change::Delete(ObjectId { kind, namespace: namespace.into(), name: name.into() })
}
