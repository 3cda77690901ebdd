//! Taking over what the kernel has tracked so far, when the daemon begins on a node whose pods are in use.
//!
//! ```text
//!  snapshot in force -> look -> [workers: flows] -> their ports are steered -> programs on the pods' veths -> look again
//! ```
//! Until a pod's programs are on its veth the kernel goes on forwarding; what begins meanwhile the second look finds. Only
//! the first generation with pods is treated so, and only where no program of an earlier daemon's was: later the kernel
//! knows nothing of the pods' connections but what is long over, or what another pod had at the same address.

use crossbeam::channel::bounded;
use sluice_engine::flow::FlowRecord;
use sluice_engine::wire::proto;
use sluice_engine::worker::{Imports, Left};
use sluice_state::PortSet;
use sluice_state::query::Finding;

use super::Control;
use super::publish::PATIENCE;
use crate::clock;
use crate::conntrack;
use crate::plane::Order;
use crate::ports::union;

/// Connections that a worker takes over between two batches of packets: a fraction of a millisecond.
const AT_ONCE: usize = 512;

impl Control {
    /// Looks once. What it finds the second time replaces what it found the first time in the report.
    pub(super) fn import(&mut self, warnings: &mut Vec<String>) {
        let dump = match conntrack::dump() {
            Ok(dump) => dump,
            Err(error) => {
                tracing::error!(%error, "the kernel's connection tracking cannot be read");
                warnings.push(format!("the kernel's connection tracking cannot be read: {error}"));
                self.note_import(Finding {
                    subject: "import".into(),
                    what: format!("the kernel's connection tracking cannot be read ({error}): translated connections of the pods are cut"),
                    remedy: "nothing, when no pod was in use; a kernel with CONFIG_NF_CT_NETLINK reads it".into(),
                });
                return;
            }
        };
        let workers = self.plane.seats.len();
        let (sender, answers) = bounded(dump.connections.len() / AT_ONCE + 1);
        let mut asked = 0;
        for (i, chunk) in dump.connections.chunks(AT_ONCE).enumerate() {
            self.plane.seats[i % workers].order(Order::Import(chunk.to_vec(), sender.clone()));
            asked += 1;
        }
        let mut imports = Imports::default();
        for _ in 0..asked {
            match answers.recv_timeout(PATIENCE) {
                Ok(done) => imports.add(&done),
                Err(_) => {
                    let late =
                        format!("not every worker has taken connections over after {} s", PATIENCE.as_secs());
                    warnings.push(late);
                    break;
                }
            }
        }
        // Also those that the kernel chose outside of our set, for as long as a flow has them.
        let ports = union(self.mapped_ports(|_, _| true), &self.steered);
        if ports != self.steered {
            self.set_ports(ports, warnings);
        }
        self.report_import(&imports, dump.unreadable);
    }

    fn report_import(&mut self, imports: &Imports, unreadable: u64) {
        let mut imported = self.imported.take().unwrap_or_default();
        imported.taken += imports.taken;
        imported.elsewhere = imports.elsewhere;
        imported.unreadable = unreadable;
        imported.left = Left::ALL
            .into_iter()
            .map(|reason| (reason.name().to_owned(), imports.left[reason as usize]))
            .filter(|(_, count)| *count > 0)
            .collect();
        let left: u64 = imported.left.values().sum();
        if left > 0 {
            let reasons: Vec<_> =
                imported.left.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            self.note_import(Finding {
                subject: "import".into(),
                what: format!(
                    "{left} connection(s) of pods that the kernel tracked were not taken over: {}",
                    reasons.join(", ")
                ),
                remedy: "those that were translated have to be opened anew by their pods".into(),
            });
        }
        self.imported = Some(imported);
    }

    fn note_import(&mut self, finding: Finding) {
        self.findings.retain(|f| f.subject != finding.subject);
        self.findings.push(finding);
    }

    /// The ports on the SNAT address that flows' translations have and `counts` says yes to: TCP, UDP, ICMP identifiers.
    pub(super) fn mapped_ports(&self, counts: impl Fn(usize, u16) -> bool) -> [PortSet; 3] {
        let mut ports: [PortSet; 3] = std::array::from_fn(|_| PortSet::default());
        let Some(primary) = self.state.primary_eni() else { return ports };
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
            if counts(space, port) {
                ports[space].insert(port);
            }
        }
        ports
    }
}
