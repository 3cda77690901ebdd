//! What the control thread shows to readers: replaced as a whole whenever anything in it changes.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_state::query::{PodStatus, Point, Report};

/// The daemon as it is now, for the query socket.
#[derive(Debug, Clone)]
pub struct View {
    /// The start-up report, kept up to date.
    pub report: Report,
    /// The pods of the state in force.
    pub pods: Arc<[PodStatus]>,
    /// What an interface index is called.
    pub points: Arc<HashMap<u32, Point>>,
    /// Which pod an address belongs to, `namespace/name`.
    pub owners: Arc<HashMap<Ipv4Addr, String>>,
}

impl View {
    /// A view of the report and the pods.
    #[must_use]
    pub fn new(report: Report, pods: Vec<PodStatus>) -> Self {
        let mut points: HashMap<u32, Point> =
            report.enis.iter().map(|eni| (eni.ifindex, Point::Eni(eni.name.clone()))).collect();
        let mut owners = HashMap::new();
        for pod in &pods {
            let name = format!("{}/{}", pod.namespace, pod.name);
            if let Some(ifindex) = pod.ifindex {
                points.insert(ifindex, Point::Pod(name.clone()));
            }
            owners.insert(pod.ip, name);
        }
        Self { report, pods: pods.into(), points: points.into(), owners: owners.into() }
    }

    /// Every point that a capture can show: pods, ENIs, then the drops.
    #[must_use]
    pub fn all_points(&self) -> Vec<Point> {
        let mut points: Vec<Point> = self.points.values().cloned().collect();
        points.push(Point::Drop);
        points.sort_unstable();
        points
    }

    /// What an interface index is called, `if7` for one that nobody knows any more.
    #[must_use]
    pub fn point(&self, ifindex: u32) -> Point {
        self.points.get(&ifindex).cloned().unwrap_or_else(|| Point::Eni(format!("if{ifindex}")))
    }
}
