//! Bringing a state into force: snapshot, BPF maps and tc programs, in an order in which nothing leaks and nothing is lost.
//!
//! ```text
//!  1 what can be refused is refused: findings, nothing changed      4 snapshot swapped, every worker has it
//!  2 new ENIs are opened                                            5 new pods get their programs and map entries; the
//!                                                                     first ones' connections are imported before
//!  3 ports: old and new; gone pods lose their map entries           6 ports: new, and old ones that flows have; gone ENIs are closed
//! ```
//!
//! Most generations change policy or services and nothing else, many times a second in a large cluster. They cost what
//! they change: what only depends on the node, its pods and its ports is left as it is.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use sluice_engine::snapshot::{HostFacts, HostLink, Neighbour, Snapshot};
use sluice_state::{Invalid, OnFailure, Pod, PortSet, State};

use super::reach::Reach;
use super::{Control, lock};
use crate::clock;
use crate::host::{Host, Link};
use crate::plane::Route;
use crate::ports::{Contract, HostPorts, nothing_left, union};

/// How long every worker has to take a snapshot.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What a state is brought into force with besides itself.
struct Around {
    /// The ports, where they have to be looked at again.
    contract: Option<Contract>,
    reach: Reach,
    /// The kernel's view of the host is another one than last time.
    host_changed: bool,
}

impl Control {
    /// Brings a state into force as a whole, or nothing of it.
    ///
    /// # Errors
    /// Everything that is wrong with it on this host.
    pub(super) fn bring_into_force(&mut self, next: State, number: u64) -> Result<Vec<String>, Vec<Invalid>> {
        let ports_changed = next.snat_ports != self.state.snat_ports || self.published == 0;
        if ports_changed && let Some(finding) = nothing_left(&next.snat_ports, self.settings.node_ports) {
            return Err(vec![finding]);
        }
        let host_changed = self.look_for_new_pods(&next);
        let reach = self.reach.follow(&next.services.services, &self.local);
        let address = |state: &State| state.primary_eni().map(|eni| eni.address);
        let changed = ports_changed
            || address(&next) != address(&self.state)
            || !reach.is_same(&self.reach) && reach.sockets() != self.reach.sockets();
        let contract = changed.then(|| self.look_at_ports(&next, &reach));
        let done = self.bring_with(next, number, Around { contract, reach, host_changed });
        if host_changed && done.is_err() {
            // The monitor will not say again what was taken from it here.
            self.republish(self.contract.clone());
        }
        done
    }

    /// A pod's veth is made just before the pod is told of, and an earlier one's of the same name may have gone at the same
    /// time: what the monitor will say of it in some milliseconds is asked of the kernel now, so that the acknowledgement
    /// means that the programs are on the pod's own interface. True when the host is another one than last time.
    fn look_for_new_pods(&mut self, next: &State) -> bool {
        if next.pods == self.state.pods {
            return false;
        }
        let known: HashMap<Ipv4Addr, &Pod> = self.state.pods.iter().map(|pod| (pod.ip, pod)).collect();
        if next.pods.iter().all(|pod| known.get(&pod.ip) == Some(&pod)) {
            return false;
        }
        match Host::dump() {
            Ok(host) => self.take_host(host),
            Err(error) => {
                tracing::warn!(%error, "new pods' interfaces are those that the monitor has seen");
                false
            }
        }
    }

    fn bring_with(&mut self, next: State, number: u64, around: Around) -> Result<Vec<String>, Vec<Invalid>> {
        let Around { contract, reach, host_changed } = around;
        let first = self.published == 0;
        let node = first || host_changed || next.enis != self.state.enis || next.node != self.state.node;
        let pods = node || next.pods != self.state.pods || !self.pod_problems.is_empty();
        let facts = if node || contract.is_some() {
            Arc::new(facts(&next, &self.host, contract.as_ref().unwrap_or(&self.contract), &self.local))
        } else {
            Arc::clone(&self.facts)
        };
        let publication = self.published + 1;
        let previous = self.plane.snapshot.load_full();
        let (snapshot, mut warnings) = Snapshot::compile_after(&next, &facts, publication, Some(&previous))?;
        let opened = if node { self.open_new_enis(&next)? } else { Vec::new() };
        if next.limits != self.state.limits && self.generation > 0 {
            warnings.push("limits: the tables have the sizes of the start; restart to change them".into());
        }
        self.published = publication;
        self.state = next;
        self.generation = number;
        self.facts = facts;
        let moved = !reach.is_same(&self.reach);
        self.reach = reach;
        if moved {
            self.widen_places(&mut warnings);
        }
        if node {
            self.configure(&mut warnings);
        }
        let ports = contract.is_some();
        if let Some(contract) = contract {
            self.contract = contract;
            // While one contract follows the other, what both give out: no reply is lost in between.
            let both = union(self.contract.sets(), &self.steered);
            self.set_ports(both, &mut warnings);
        }
        if pods {
            self.unbind_gone_pods(&mut warnings);
        }
        if !self.plane.publish(snapshot, PATIENCE) {
            warnings.push(format!("not every worker has the state after {} s", PATIENCE.as_secs()));
        }
        // After a restart the kernel has had the traffic until now, where the operator wants that.
        self.keep_alive();
        let live = pods && self.may_be_live && !self.state.pods.is_empty();
        if live {
            self.import(&mut warnings);
        }
        if pods {
            self.bind_pods(&mut warnings);
        }
        if live {
            self.import(&mut warnings);
        }
        // A later generation's new pods have no past.
        self.may_be_live &= number == 0;
        if ports {
            self.steer(&mut warnings);
        }
        if moved {
            self.settle_places(&mut warnings);
        }
        if node {
            self.close_gone_enis();
        }
        if !opened.is_empty() {
            self.refresh_neighbours();
        }
        if pods || ports {
            self.show();
        } else {
            self.show_generation();
        }
        Ok(warnings)
    }

    /// The kernel reported a change: published when it is one that the engine or tc must know of.
    pub(super) fn host_changed(&mut self, host: Host) {
        // The monitor's view may be older than one that was asked for since: a pod must not lose its path to that.
        let lost = self.pods.keys().any(|ifindex| host.link_at(*ifindex).is_none());
        let host = if lost { Host::dump().unwrap_or(host) } else { host };
        if self.take_host(host) {
            self.republish(self.contract.clone());
        }
    }

    /// Takes a view of the host; true when it differs in what is the engine's or tc's to know.
    fn take_host(&mut self, host: Host) -> bool {
        let known = |host: &Host| -> Vec<_> {
            host.neighbours().filter(|(i, ..)| self.enis.values().any(|eni| eni.ifindex == *i)).collect()
        };
        let same = host.links().eq(self.host.links())
            && host.local_addresses() == self.local
            && known(&host) == known(&self.host);
        self.host = host;
        if !same {
            self.local = self.host.local_addresses();
            self.sweep_pins();
        }
        !same
    }

    /// On a timer: the host's sockets may have changed.
    pub(super) fn check_ports(&mut self) {
        let contract = self.look_at_ports(&self.state, &self.reach);
        for finding in contract.report.findings.iter().filter(|f| !self.contract.report.findings.contains(f))
        {
            tracing::warn!("ports: {} ({})", finding.what, finding.remedy);
        }
        if contract.same_ports(&self.contract) && self.pod_problems.is_empty() {
            self.contract = contract;
            let mut warnings = Vec::new();
            self.steer(&mut warnings);
            self.settle_places(&mut warnings);
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
        let reach = self.reach.follow(&state.services.services, &self.local);
        let around = Around { contract: Some(contract), reach, host_changed: true };
        match self.bring_with(state, self.generation, around) {
            Ok(warnings) => warnings.iter().for_each(|warning| tracing::debug!("{warning}")),
            Err(findings) => {
                for finding in findings {
                    tracing::error!("the host no longer fits the state, what was in force stays: {finding}");
                }
                self.show();
            }
        }
    }

    /// The port contract of a state as the host is now; what cannot be read of the host is taken from the last one.
    fn look_at_ports(&self, state: &State, reach: &Reach) -> Contract {
        let address = state.primary_eni().map(|eni| eni.address);
        let node_ports = self.settings.node_ports;
        match HostPorts::read() {
            Ok(host) => {
                let services = reach.sockets();
                Contract::new(address, &state.snat_ports, node_ports, &services, &host, clock::unix())
            }
            Err(error) => {
                tracing::error!(%error, "the host's sockets cannot be read: the ports stay as they were");
                self.contract.clone()
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
        note(warnings, "telling tc the node's addresses", programs.set_local_addresses(&self.local));
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
        if ports != self.steered {
            let held = self.mapped_ports(|space, port| self.steered[space].contains(port));
            ports = union(ports, &held);
        }
        if ports != self.steered {
            self.set_ports(ports, warnings);
        }
    }

    pub(super) fn set_ports(&mut self, ports: [PortSet; 3], warnings: &mut Vec<String>) {
        let [tcp, udp, icmp] = &ports;
        let set = lock(&self.programs).set_ports(tcp.words(), udp.words(), icmp.words());
        note(warnings, "setting the ports", set);
        self.steered = ports;
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

pub(super) fn note(warnings: &mut Vec<String>, what: &str, result: Result<(), sluice_bpf::BpfError>) {
    if let Err(error) = result {
        tracing::error!(%error, "{what} failed");
        warnings.push(format!("{what}: {error}"));
    }
}

/// What the engine must know of the host.
fn facts(state: &State, host: &Host, contract: &Contract, local: &[Ipv4Addr]) -> HostFacts {
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
        local: local.to_vec(),
        tcp: contract.tcp.clone(),
        udp: contract.udp.clone(),
        icmp: contract.icmp.clone(),
        enis,
    }
}
