//! Directories on disk, written and rewritten as people do, and what the control plane is told of it.

mod cluster;
mod files;
mod random;
mod watch;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use sluice_policy::{Change, EndpointSlice, Object, ObjectId, Pod, Service};

use super::{Allocations, Batch, Directory, Finding, NODE_PORTS, NodePlace, Placement, Severity, Slot};

/// A directory, and everything that its changes come to.
struct Bed {
    root: tempfile::TempDir,
    directory: Directory,
    objects: BTreeMap<ObjectId, Object>,
}

/// Node `here` with places for four pods, the first kept for `a/fixed`; node `there` with a range.
fn placement() -> Placement {
    let slot = |last: u8, pod: Option<(&str, &str)>| Slot {
        ip: Ipv4Addr::new(10, 0, 1, last),
        pod: pod.map(|(namespace, name)| (namespace.into(), name.into())),
    };
    let node = |name: &str, last: u8, cidr: Option<&str>| NodePlace {
        name: name.into(),
        addresses: vec![Ipv4Addr::new(10, 0, 9, last)],
        zone: Some(format!("zone-{last}")),
        labels: BTreeMap::from([("disk".to_owned(), format!("d{last}"))]),
        pod_cidr: cidr.map(|cidr| cidr.parse().unwrap()),
    };
    Placement {
        node: "here".into(),
        nodes: vec![node("here", 5, None), node("there", 6, Some("10.0.128.0/17"))],
        slots: Some(vec![slot(10, Some(("a", "fixed"))), slot(11, None), slot(12, None), slot(13, None)]),
        service_cidrs: vec!["172.20.0.0/16".parse().unwrap()],
        node_ports: NODE_PORTS,
        elsewhere: None,
    }
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path(), &placement(), &Allocations::default());
        Self { root, directory, objects: BTreeMap::new() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    /// Writes a file and looks.
    fn write(&mut self, file: &str, text: &str) -> Vec<ObjectId> {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self.scan()
    }

    fn remove(&mut self, file: &str) -> Vec<ObjectId> {
        std::fs::remove_file(self.path(file)).unwrap();
        self.scan()
    }

    /// Looks, and gives what has changed.
    fn scan(&mut self) -> Vec<ObjectId> {
        let batch = self.directory.scan();
        self.take(batch)
    }

    fn take(&mut self, batch: Batch) -> Vec<ObjectId> {
        let mut changed = Vec::new();
        for change in batch.changes {
            match change {
                Change::Upsert(object) => {
                    changed.push(object.id());
                    self.objects.insert(object.id(), object);
                }
                Change::Delete(id) => {
                    self.objects.remove(&id);
                    changed.push(id);
                }
            }
        }
        changed
    }

    fn names(&self, kind: sluice_policy::Kind) -> Vec<String> {
        let ids = self.objects.keys().filter(|id| id.kind == kind);
        ids.map(|id| format!("{}/{}", id.namespace, id.name)).collect()
    }

    fn pods(&self) -> Vec<String> {
        self.names(sluice_policy::Kind::Pod)
    }

    fn pod(&self, name: &str) -> &Pod {
        match self.object(sluice_policy::Kind::Pod, name) {
            Object::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn service(&self, name: &str) -> &Service {
        match self.object(sluice_policy::Kind::Service, name) {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        }
    }

    fn object(&self, kind: sluice_policy::Kind, name: &str) -> &Object {
        let found = self
            .objects
            .iter()
            .find(|(id, _)| id.kind == kind && format!("{}/{}", id.namespace, id.name) == name);
        found.unwrap_or_else(|| panic!("no {kind} {name} in {:?}", self.names(kind))).1
    }

    /// The slices of a service.
    fn slices(&self, service: &str) -> Vec<&EndpointSlice> {
        let slices = self.objects.values().filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        });
        slices.filter(|slice| slice.service.as_deref() == Some(service)).collect()
    }

    fn findings(&self, severity: Severity) -> Vec<Finding> {
        self.directory.findings().into_iter().filter(|f| f.severity == severity).collect()
    }

    fn errors(&self) -> Vec<String> {
        self.findings(Severity::Error).iter().map(ToString::to_string).collect()
    }

    /// The only error, which must contain every part.
    fn error(&self, parts: &[&str]) {
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        for part in parts {
            assert!(errors[0].contains(part), "`{part}` in {}", errors[0]);
        }
    }
}

fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: a, name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 8080}}]}}]{more}}}\n---\n"
    )
}

fn policy(name: &str, from: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: a, name: {name}}}\n\
         spec: {{podSelector: {{}}, ingress: [{{from: [{from}]}}]}}\n---\n"
    )
}
