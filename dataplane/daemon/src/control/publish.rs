//! Bringing a state into force: snapshot, BPF maps and tc programs, in an order in which nothing leaks and nothing is lost.
//!
//! ```text
//!  1 what can be refused is refused: findings, nothing changed      4 snapshot swapped, every worker has it
//!  2 new ENIs are opened                                            5 new pods get their programs and map entries
//!  3 ports: old and new; gone pods lose their map entries           6 ports: new, and old ones that flows have; gone ENIs are closed
//! ```

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use sluice_bpf::Programs;
use sluice_engine::flow::FlowRecord;
use sluice_engine::snapshot::{HostFacts, HostLink, Neighbour, Snapshot};
use sluice_engine::wire::proto;
use sluice_state::query::{Finding, PodStatus, Report};
use sluice_state::{Invalid, Mac, OnFailure, PortSet, State};

use super::{Control, lock};
use crate::clock;
use crate::expedite::Expedited;
use crate::host::{Host, Link};
use crate::plane::Route;
use crate::ports::{Contract, HostPorts, nothing_left, union};
use crate::settings::Settings;
use crate::view::View;

/// How long every worker has to take a snapshot.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the kernel was told of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodBinding {
    ip: Ipv4Addr,
    mac: Mac,
    host_mac: Mac,
}

impl Control {
    /// Brings a state into force as a whole, or nothing of it.
    ///
    /// # Errors
    /// Everything that is wrong with it on this host.
    pub(super) fn bring_into_force(&mut self, next: State, number: u64) -> Result<Vec<String>, Vec<Invalid>> {
        if let Some(finding) = nothing_left(&next.snat_ports, self.settings.node_ports) {
            return Err(vec![finding]);
        }
        let contract = contract(&next, &self.settings, &self.contract);
        self.bring_with(next, number, contract)
    }

    fn bring_with(
        &mut self,
        next: State,
        number: u64,
        contract: Contract,
    ) -> Result<Vec<String>, Vec<Invalid>> {
        let facts = facts(&next, &self.host, &contract);
        let publication = self.published + 1;
        let previous = self.plane.snapshot.load_full();
        let (snapshot, mut warnings) = Snapshot::compile_after(&next, &facts, publication, Some(&previous))?;
        drop(previous);
        let opened = self.open_new_enis(&next)?;
        if next.limits != self.state.limits && self.generation > 0 {
            warnings.push("limits: the tables have the sizes of the start; restart to change them".into());
        }
        self.published = publication;
        self.state = next;
        self.generation = number;
        self.contract = contract;
        self.configure(&mut warnings);
        // While one contract follows the other, what both give out: no reply is lost in between.
        let both = union(self.contract.sets(), &self.steered);
        self.set_ports(both, &mut warnings);
        self.unbind_gone_pods(&mut warnings);
        if !self.plane.publish(snapshot, PATIENCE) {
            warnings.push(format!("not every worker has the state after {} s", PATIENCE.as_secs()));
        }
        // After a restart the kernel has had the traffic until now, where the operator wants that.
        self.keep_alive();
        self.bind_pods(&mut warnings);
        self.steer(&mut warnings);
        self.close_gone_enis();
        if !opened.is_empty() {
            self.refresh_neighbours();
        }
        self.show();
        Ok(warnings)
    }

    /// Pins of pods whose interfaces went after the state had let them go.
    fn sweep_pins(&self) {
        let mut programs = lock(&self.programs);
        for (ifindex, role) in programs.attached() {
            if role == sluice_bpf::Role::FromPod {
                let_go(&mut programs, &self.host, ifindex);
            }
        }
    }

    /// The kernel reported a change: published when it is one that the engine or tc must know of.
    pub(super) fn host_changed(&mut self, host: Host) {
        let known = |host: &Host| -> Vec<_> {
            host.neighbours().filter(|(i, ..)| self.enis.values().any(|eni| eni.ifindex == *i)).collect()
        };
        let same = host.links().eq(self.host.links())
            && host.local_addresses() == self.host.local_addresses()
            && known(&host) == known(&self.host);
        self.host = host;
        if !same {
            self.sweep_pins();
            self.republish(self.contract.clone());
        }
    }

    /// On a timer: the host's sockets may have changed.
    pub(super) fn check_ports(&mut self) {
        let contract = contract(&self.state, &self.settings, &self.contract);
        for finding in contract.report.findings.iter().filter(|f| !self.contract.report.findings.contains(f))
        {
            tracing::warn!("ports: {} ({})", finding.what, finding.remedy);
        }
        if contract.same_ports(&self.contract) && self.pod_problems.is_empty() {
            self.contract = contract;
            let mut warnings = Vec::new();
            self.steer(&mut warnings);
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.show();
        } else {
            tracing::info!(listeners = contract.report.listeners.len(), "the port contract changed");
            self.republish(contract);
        }
    }

    /// The same state once more, because the host changed under it.
    fn republish(&mut self, contract: Contract) {
        let state = self.state.clone();
        match self.bring_with(state, self.generation, contract) {
            Ok(warnings) => warnings.iter().for_each(|warning| tracing::debug!("{warning}")),
            Err(findings) => {
                for finding in findings {
                    tracing::error!("the host no longer fits the state, what was in force stays: {finding}");
                }
                self.show();
            }
        }
    }

    /// The SNAT address, the trunk, the node's addresses, the ENIs' links.
    fn configure(&mut self, warnings: &mut Vec<String>) {
        let config = sluice_bpf::Config {
            nat_ip: self.state.primary_eni().map_or(Ipv4Addr::UNSPECIFIED, |eni| eni.address),
            trunk_ifindex: self.trunk.ifindex,
            on_failure_kernel: self.state.node.on_failure == OnFailure::Kernel,
        };
        let programs = lock(&self.programs);
        note(warnings, "configuring the BPF programs", programs.set_config(&config));
        let local = self.host.local_addresses();
        note(warnings, "telling tc the node's addresses", programs.set_local_addresses(&local));
        for eni in &self.state.enis {
            let (Some(open), Some(link)) = (self.enis.get(&eni.name), self.host.link(&eni.name)) else {
                continue;
            };
            let gateway = eni.gateway_mac.or_else(|| self.host.neighbour(link.ifindex, eni.gateway));
            let entry = sluice_bpf::Link {
                mac: link.mac.0,
                peer_mac: gateway.unwrap_or_default().0,
                ip: eni.address,
                kind: sluice_bpf::LinkKind::Eni { slot: open.slot },
            };
            note(warnings, "telling tc of an ENI", programs.upsert_link(link.ifindex, &entry));
        }
    }

    /// Steers to the engine the ports that it gives out, and those that it gave out before and that a flow still has: a
    /// process of the node that begins to listen on a port must not cut the connections that have it.
    fn steer(&mut self, warnings: &mut Vec<String>) {
        let mut ports = self.contract.sets();
        if ports != self.steered
            && let Some(primary) = self.state.primary_eni()
        {
            let address = primary.address.to_bits();
            // The host's own connections with their own port find their way past the engine, too.
            let held = |f: &FlowRecord| f.translated.src() == address && f.translated != f.original;
            for flow in self.plane.table.flows(clock::monotonic()).filter(held) {
                let space = match flow.translated.proto() {
                    proto::TCP => 0,
                    proto::UDP => 1,
                    proto::ICMP => 2,
                    _ => continue,
                };
                let port = flow.translated.sport();
                if self.steered[space].contains(port) {
                    ports[space].insert(port);
                }
            }
        }
        if ports != self.steered {
            self.set_ports(ports, warnings);
        }
    }

    fn set_ports(&mut self, ports: [PortSet; 3], warnings: &mut Vec<String>) {
        let [tcp, udp, icmp] = &ports;
        let set = lock(&self.programs).set_ports(tcp.words(), udp.words(), icmp.words());
        note(warnings, "setting the ports", set);
        self.steered = ports;
    }

    /// What the kernel must be told of each pod whose interface is there.
    fn wanted_pods(&self) -> HashMap<u32, PodBinding> {
        let bind = |pod: &sluice_state::Pod| {
            let link = self.host.link(&pod.interface)?;
            Some((link.ifindex, PodBinding { ip: pod.ip, mac: pod.mac, host_mac: link.mac }))
        };
        self.state.pods.iter().filter_map(bind).collect()
    }

    fn unbind_gone_pods(&mut self, warnings: &mut Vec<String>) {
        let wanted = self.wanted_pods();
        let gone: Vec<u32> = self
            .pods
            .iter()
            .filter(|(i, binding)| wanted.get(*i) != Some(*binding))
            .map(|(i, _)| *i)
            .collect();
        let mut programs = lock(&self.programs);
        for ifindex in gone {
            let Some(binding) = self.pods.remove(&ifindex) else { continue };
            // The address may have moved to another interface in the same generation; that one is bound afterwards.
            note(warnings, "forgetting a pod", programs.remove_pod(binding.ip));
            if !wanted.contains_key(&ifindex) {
                note(warnings, "forgetting a pod's interface", programs.remove_link(ifindex));
                let_go(&mut programs, &self.host, ifindex);
            }
        }
    }

    fn bind_pods(&mut self, warnings: &mut Vec<String>) {
        let wanted = self.wanted_pods();
        self.pod_problems.clear();
        let new = wanted.iter().filter(|(i, binding)| self.pods.get(*i) != Some(*binding)).count();
        let _expedited = Expedited::during(2 * new);
        let mut programs = lock(&self.programs);
        for (ifindex, binding) in wanted {
            if self.pods.get(&ifindex) == Some(&binding) {
                continue;
            }
            match bind(&mut programs, ifindex, &binding) {
                Ok(()) => {
                    self.pods.insert(ifindex, binding);
                }
                Err(error) => {
                    let problem = format!("its packets do not pass the engine: {error}");
                    warnings.push(format!("pod {}: {problem}", binding.ip));
                    self.pod_problems.insert(binding.ip, problem);
                }
            }
        }
    }

    /// Programs, links and map entries of pods that an earlier daemon left behind and that the state does not have.
    pub(super) fn forget_strangers(&mut self) {
        let wanted = self.wanted_pods();
        let mut programs = lock(&self.programs);
        let links = programs.links().unwrap_or_default();
        for (ifindex, link) in links {
            let open = self.enis.values().any(|eni| eni.ifindex == ifindex);
            if open || wanted.contains_key(&ifindex) {
                continue;
            }
            tracing::info!(ifindex, ip = %link.ip, "an interface of an earlier run is not in the state");
            let _ = programs.remove_link(ifindex);
            match link.kind {
                sluice_bpf::LinkKind::Pod => let_go(&mut programs, &self.host, ifindex),
                sluice_bpf::LinkKind::Eni { .. } => {
                    let _ = programs.detach(ifindex);
                }
            }
        }
        for (ip, ifindex) in programs.pods().unwrap_or_default() {
            if wanted.get(&ifindex).is_none_or(|binding| binding.ip != ip) {
                let _ = programs.remove_pod(ip);
            }
        }
    }

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
            findings,
        };
        self.view.store(std::sync::Arc::new(View::new(report, self.pod_statuses())));
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

    /// How worker `worker` reaches an ENI with so many queues.
    pub(super) fn route(worker: u16, queues: u32, workers: u16) -> Route {
        let owns = (0..queues).any(|queue| queue % u32::from(workers) == u32::from(worker));
        if owns {
            return Route::Own;
        }
        // Fewer queues than workers: queue q is worker q's.
        let owner = u32::from(worker) % queues.max(1);
        Route::Worker(u16::try_from(owner).unwrap_or(0))
    }
}

/// A pod that is gone from the state must not fall back to the kernel's path, untranslated, while its interface is still
/// there: the programs stay and drop what comes from an interface they do not know. They go with the interface.
fn let_go(programs: &mut Programs, host: &Host, ifindex: u32) {
    if host.link_at(ifindex).is_none() {
        // Only the pins are left of a link whose interface is gone; a failure leaves a file behind.
        let _ = programs.detach(ifindex);
    }
}

fn bind(programs: &mut Programs, ifindex: u32, pod: &PodBinding) -> Result<(), sluice_bpf::BpfError> {
    let link = sluice_bpf::Link {
        mac: pod.host_mac.0,
        peer_mac: pod.mac.0,
        ip: pod.ip,
        kind: sluice_bpf::LinkKind::Pod,
    };
    programs.upsert_link(ifindex, &link)?;
    programs.attach_pod(ifindex)?;
    programs.upsert_pod(pod.ip, ifindex)
}

fn note(warnings: &mut Vec<String>, what: &str, result: Result<(), sluice_bpf::BpfError>) {
    if let Err(error) = result {
        tracing::error!(%error, "{what} failed");
        warnings.push(format!("{what}: {error}"));
    }
}

/// The port contract of a state as the host is now; what cannot be read of the host is taken from the last one.
fn contract(state: &State, settings: &Settings, last: &Contract) -> Contract {
    let address = state.primary_eni().map(|eni| eni.address);
    match HostPorts::read() {
        Ok(host) => Contract::new(address, &state.snat_ports, settings.node_ports, &host, clock::unix()),
        Err(error) => {
            tracing::error!(%error, "the host's sockets cannot be read: the ports stay as they were");
            last.clone()
        }
    }
}

/// What the engine must know of the host.
fn facts(state: &State, host: &Host, contract: &Contract) -> HostFacts {
    let is_eni = |link: &&Link| state.enis.iter().any(|eni| eni.name == link.name);
    let link = |link: &Link| HostLink {
        name: link.name.clone(),
        ifindex: link.ifindex,
        mac: link.mac,
        mtu: link.mtu,
    };
    let enis: Vec<HostLink> = host.links().filter(is_eni).map(link).collect();
    HostFacts {
        links: host.links().filter(|l| !is_eni(l)).map(link).collect(),
        neighbours: host
            .neighbours()
            .filter(|(ifindex, ..)| enis.iter().any(|eni| eni.ifindex == *ifindex))
            .map(|(ifindex, address, mac)| Neighbour { ifindex, address, mac })
            .collect(),
        local: host.local_addresses(),
        tcp: contract.tcp.clone(),
        udp: contract.udp.clone(),
        icmp: contract.icmp.clone(),
        enis,
    }
}
