//! What readers see: the report, the pods, what is degraded.

use std::sync::Arc;

use sluice_state::OnFailure;
use sluice_state::query::{Extent, Finding, PodStatus, Report};

use super::{Control, lock};
use crate::view::View;

impl Control {
    /// Shows readers what is in force now.
    pub(super) fn show(&self) {
        let mut findings = self.findings.clone();
        findings.extend(self.enis.values().flat_map(|eni| eni.findings.clone()));
        findings.extend(self.mtu_findings());
        findings.extend(self.contract.report.findings.clone());
        let report = Report {
            daemon: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            node: self.state.node.name.clone(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            started_ns: self.started_ns,
            startup_ms: self.startup_ms,
            generation: self.generation,
            tc: lock(&self.programs)
                .hook(self.trunk.ifindex, sluice_bpf::Role::Trunk)
                .map_or_else(String::new, |hook| hook.to_string()),
            on_failure: match self.state.node.on_failure {
                OnFailure::Drop => "drop".into(),
                OnFailure::Kernel => "kernel".into(),
            },
            snat_address: self.state.primary_eni().map(|eni| eni.address),
            trunk: self.trunk.clone(),
            workers: self.worker_reports(),
            enis: self.eni_reports(),
            ports: self.contract.report.clone(),
            extent: self.extent(),
            imported: self.imported.clone(),
            memory: self.memory,
            findings,
        };
        self.view.store(Arc::new(View::new(report, self.pod_statuses())));
    }

    /// The same after a generation that changed nothing but policy and services: what was said of pods and ENIs holds.
    pub(super) fn show_generation(&self) {
        let mut view = View::clone(&self.view.load());
        view.report.generation = self.generation;
        view.report.extent = self.extent();
        self.view.store(Arc::new(view));
    }

    fn extent(&self) -> Extent {
        let policy = &self.state.policy;
        let count = |n: usize| n as u64;
        let (frontends, endpoints) = self.reach.sizes();
        Extent {
            addresses: count(policy.addresses.as_slice().len()),
            identities: count(policy.identities.len()),
            rules: count(policy.rules.len()),
            isolated_pods: count(policy.pods.len()),
            services: count(self.state.services.services.len()),
            frontends: count(frontends),
            endpoints: count(endpoints),
        }
    }

    fn worker_reports(&self) -> Vec<sluice_state::query::WorkerReport> {
        let mut workers = self.workers.clone();
        for worker in &mut workers {
            worker.queues = self
                .enis
                .iter()
                .flat_map(|(name, eni)| (0..eni.queues).map(move |queue| (name, queue, eni)))
                .filter(|(_, queue, eni)| eni.owner(*queue) == Some(worker.id))
                .map(|(name, queue, _)| format!("{name}:{queue}"))
                .collect();
        }
        workers
    }

    fn pod_statuses(&self) -> Vec<PodStatus> {
        let status = |pod: &sluice_state::Pod| {
            let link = self.host.link(&pod.interface);
            let attached = link.is_some_and(|link| self.pods.contains_key(&link.ifindex));
            let problem = match (link, self.pod_problems.get(&pod.ip)) {
                (None, _) => format!("interface {} is not in this network namespace (yet)", pod.interface),
                (Some(_), Some(problem)) => problem.clone(),
                (Some(_), None) => String::new(),
            };
            PodStatus {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                ip: pod.ip,
                eni: pod.eni.clone(),
                interface: pod.interface.clone(),
                ifindex: link.map(|link| link.ifindex),
                attached,
                problem,
            }
        };
        self.state.pods.iter().map(status).collect()
    }

    /// Where pods may send more than their ENI carries.
    fn mtu_findings(&self) -> Vec<Finding> {
        let mtu_of = |name: &str| self.host.link(name).map(|link| link.mtu);
        let mut findings = Vec::new();
        for eni in &self.state.enis {
            let Some(eni_mtu) = mtu_of(&eni.name) else { continue };
            let pods = self.state.pods.iter().filter(|pod| pod.eni == eni.name || eni.primary);
            let Some(pod_mtu) =
                pods.filter_map(|pod| mtu_of(&pod.interface)).max().filter(|mtu| *mtu > eni_mtu)
            else {
                continue;
            };
            findings.push(Finding {
                subject: eni.name.clone(),
                what: format!(
                    "its MTU {eni_mtu} is below the pods' {pod_mtu}: TCP is clamped to fit (MSS), UDP from peers with \
                     a larger MTU is lost without a message, as the VPC sends no ICMP"
                ),
                remedy: format!("set the pods' MTU to {eni_mtu}, or run with --eni-port=tap and an MTU of {pod_mtu}"),
            });
        }
        findings
    }
}
