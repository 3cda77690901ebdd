//! The pods' side of the kernel: programs on their interfaces, entries in the maps.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use sluice_bpf::Programs;
use sluice_state::Mac;

use super::publish::note;
use super::{Control, lock};
use crate::expedite::Expedited;
use crate::host::Host;

/// What the kernel was told of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodBinding {
    ip: Ipv4Addr,
    mac: Mac,
    host_mac: Mac,
}

impl Control {
    /// Pins of pods whose interfaces went after the state had let them go.
    pub(super) fn sweep_pins(&self) {
        let mut programs = lock(&self.programs);
        for (ifindex, role) in programs.attached() {
            if role == sluice_bpf::Role::FromPod {
                let_go(&mut programs, &self.host, ifindex);
            }
        }
    }

    /// What the kernel must be told of each pod whose interface is there.
    fn wanted_pods(&self) -> HashMap<u32, PodBinding> {
        let bind = |pod: &sluice_state::Pod| {
            let link = self.host.link(&pod.interface)?;
            Some((link.ifindex, PodBinding { ip: pod.ip, mac: pod.mac, host_mac: link.mac }))
        };
        self.state.pods.iter().filter_map(bind).collect()
    }

    /// The pods of the state that the kernel does not lead to the engine.
    pub(super) fn pods_without_path(&self) -> Vec<Ipv4Addr> {
        let bound: HashSet<Ipv4Addr> = self.pods.values().map(|binding| binding.ip).collect();
        self.state.pods.iter().map(|pod| pod.ip).filter(|ip| !bound.contains(ip)).collect()
    }

    pub(super) fn unbind_gone_pods(&mut self, warnings: &mut Vec<String>) {
        let wanted = self.wanted_pods();
        let gone: Vec<u32> = self
            .pods
            .iter()
            .filter(|(i, binding)| wanted.get(*i) != Some(*binding))
            .map(|(i, _)| *i)
            .collect();
        let _expedited = Expedited::during(2 * gone.len());
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

    pub(super) fn bind_pods(&mut self, warnings: &mut Vec<String>) {
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
