//! What of services others than the engine must know: tc, which of the node's addresses and ports are services and which of
//! its own sockets serve; the port contract, which ports of the node's address are a service's.
//!
//! There may be thousands of services with a hundred thousand endpoints, of which one changes at a time. So each place is
//! counted, by how many services name it, and a change costs the services that it concerns.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_bpf::Endpoint as Place;
use sluice_engine::flow::FlowKey;
use sluice_state::{Service, Shared};

use super::publish::note;
use super::{Control, lock};
use crate::clock;
use crate::ports::{Protocol as SocketProtocol, Socket};

/// The services of a state, as far as this node's own addresses are concerned.
#[derive(Debug, Clone, Default)]
pub(super) struct Reach(Arc<Counted>);

#[derive(Debug, Clone, Default)]
struct Counted {
    services: Shared<Arc<Service>>,
    local: HashSet<Ipv4Addr>,
    frontends: BTreeMap<Place, u32>,
    endpoints: BTreeMap<Place, u32>,
    /// Frontends and endpoints of all services, wherever they are.
    sizes: (usize, usize),
}

/// What tc is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    frontends: BTreeSet<Place>,
    endpoints: BTreeSet<Place>,
}

impl Reach {
    /// The reach of these services on a node with these addresses, for the cost of what is different from this one.
    pub(super) fn follow(&self, services: &Shared<Arc<Service>>, local: &[Ipv4Addr]) -> Self {
        let here = &self.0;
        let same_node = local.len() == here.local.len() && local.iter().all(|a| here.local.contains(a));
        if !same_node {
            let node = Counted { local: local.iter().copied().collect(), ..Counted::default() };
            return Self(Arc::new(node.followed_by(services)));
        }
        if services.is_same(&here.services) {
            return self.clone();
        }
        Self(Arc::new(Counted::clone(here).followed_by(services)))
    }

    /// True when nothing can be different.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Frontends and endpoints of all services.
    pub(super) fn sizes(&self) -> (usize, usize) {
        self.0.sizes
    }

    /// What services have on the node's addresses, as if they were sockets of its. There is no SNAT of SCTP.
    pub(super) fn sockets(&self) -> Vec<Socket> {
        let socket = |place: &Place| {
            let protocol = match place.protocol {
                6 => SocketProtocol::Tcp,
                17 => SocketProtocol::Udp,
                _ => return None,
            };
            Some(Socket { protocol, address: Some(place.address), port: place.port })
        };
        self.0.frontends.keys().filter_map(socket).collect()
    }

    fn places(&self) -> Places {
        Places {
            frontends: self.0.frontends.keys().copied().collect(),
            endpoints: self.0.endpoints.keys().copied().collect(),
        }
    }
}

impl Counted {
    /// Services keep their order while others come and go, so that walking along both lists finds most of what is the same;
    /// where it does not, one is taken out and counted again, which is right too.
    fn followed_by(mut self, services: &Shared<Arc<Service>>) -> Self {
        let before = std::mem::take(&mut self.services);
        let mut old = before.iter().peekable();
        for service in services {
            while let Some(was) = old.next_if(|was| !Arc::ptr_eq(was, service)) {
                self.count(was, false);
                if was.name == service.name {
                    break;
                }
            }
            match old.next_if(|was| Arc::ptr_eq(was, service)) {
                Some(_) => {}
                None => self.count(service, true),
            }
        }
        old.for_each(|was| self.count(was, false));
        self.services = services.clone();
        self
    }

    /// Adds what a service has, or takes it out.
    fn count(&mut self, service: &Service, add: bool) {
        let place = |address, port| Place { address, port, protocol: service.protocol.number() };
        for frontend in &service.frontends {
            let place = match frontend.address {
                None => place(Ipv4Addr::UNSPECIFIED, frontend.port),
                Some(own) if frontend.over_local && self.local.contains(&own) => place(own, frontend.port),
                Some(_) => continue,
            };
            tally(&mut self.frontends, place, add);
        }
        for endpoint in service.endpoints.iter().filter(|endpoint| self.local.contains(&endpoint.ip)) {
            tally(&mut self.endpoints, place(endpoint.ip, endpoint.port), add);
        }
        let (frontends, endpoints) = &mut self.sizes;
        for (size, n) in [(frontends, service.frontends.len()), (endpoints, service.endpoints.len())] {
            *size = if add { *size + n } else { size.saturating_sub(n) };
        }
    }
}

fn tally(counts: &mut BTreeMap<Place, u32>, place: Place, add: bool) {
    let count = counts.entry(place).or_default();
    *count = if add { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        counts.remove(&place);
    }
}

impl Places {
    fn with(&self, other: &Self) -> Self {
        Self { frontends: &self.frontends | &other.frontends, endpoints: &self.endpoints | &other.endpoints }
    }

    fn without(&self, other: &Self) -> Self {
        Self { frontends: &self.frontends - &other.frontends, endpoints: &self.endpoints - &other.endpoints }
    }

    fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.endpoints.is_empty()
    }

    /// Those of them that a flow uses: what a pod asked for, or where it was sent to.
    fn used_by(&self, original: &FlowKey, translated: &FlowKey) -> Self {
        let place = |key: &FlowKey| Place {
            address: Ipv4Addr::from_bits(key.dst()),
            port: key.dport(),
            protocol: key.proto(),
        };
        let asked = place(original);
        let anywhere = Place { address: Ipv4Addr::UNSPECIFIED, ..asked };
        let known = |set: &BTreeSet<Place>, place: Place| set.contains(&place).then_some(place);
        Self {
            frontends: [asked, anywhere].into_iter().filter_map(|p| known(&self.frontends, p)).collect(),
            endpoints: known(&self.endpoints, place(translated)).into_iter().collect(),
        }
    }
}

impl Control {
    /// Before the engine knows of a new service tc must: what the engine does not know it hands back.
    pub(super) fn widen_places(&mut self, warnings: &mut Vec<String>) {
        let both = self.places.with(&self.reach.places());
        self.set_places(both, warnings);
    }

    /// Leaves to tc the places that services have, and those that they had and that a flow still uses: a connection outlives
    /// its service, as it does under kube-proxy.
    pub(super) fn settle_places(&mut self, warnings: &mut Vec<String>) {
        let mut places = self.reach.places();
        let gone = self.places.without(&places);
        if !gone.is_empty() {
            for flow in self.plane.table.flows(clock::monotonic()).filter(|f| f.original != f.translated) {
                places = places.with(&gone.used_by(&flow.original, &flow.translated));
            }
        }
        self.set_places(places, warnings);
    }

    fn set_places(&mut self, places: Places, warnings: &mut Vec<String>) {
        if places == self.places {
            return;
        }
        let programs = lock(&self.programs);
        note(warnings, "telling tc the services", programs.set_frontends(&places.frontends));
        let serving = programs.set_node_endpoints(&places.endpoints);
        note(warnings, "telling tc the node's own endpoints", serving);
        drop(programs);
        self.places = places;
    }
}

#[cfg(test)]
mod tests {
    use sluice_state::{Endpoint, Frontend, Protocol, WithoutEndpoints};

    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);
    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 6);

    fn service(
        name: &str,
        frontends: &[(Option<Ipv4Addr>, u16, bool)],
        endpoints: &[Ipv4Addr],
    ) -> Arc<Service> {
        let frontend = |&(address, port, over_local): &(Option<Ipv4Addr>, u16, bool)| Frontend {
            address,
            port,
            sources: None,
            over_local,
        };
        Arc::new(Service {
            name: name.into(),
            protocol: Protocol::Tcp,
            frontends: frontends.iter().map(frontend).collect(),
            endpoints: endpoints.iter().map(|&ip| Endpoint { ip, port: 8080 }).collect(),
            affinity: None,
            without_endpoints: WithoutEndpoints::Reject,
        })
    }

    fn place(address: Ipv4Addr, port: u16) -> Place {
        Place { address, port, protocol: 6 }
    }

    fn of(services: &[Arc<Service>]) -> Reach {
        Reach::default().follow(&services.to_vec().into(), &[NODE])
    }

    #[test]
    fn only_what_lies_on_the_node_is_told_and_a_cluster_ip_never_is() {
        let reach = of(&[service(
            "a",
            &[
                (None, 30_080, true),
                (Some(NODE), 80, true),
                (Some(NODE), 53, false),
                (Some(ELSEWHERE), 443, true),
            ],
            &[NODE, ELSEWHERE],
        )]);
        let places = reach.places();
        let any = Ipv4Addr::UNSPECIFIED;
        assert_eq!(places.frontends, [place(any, 30_080), place(NODE, 80)].into());
        assert_eq!(places.endpoints, [place(NODE, 8080)].into());
        assert_eq!((reach.sizes(), reach.sockets().len()), ((4, 2), 2));
        // Another address of the node makes more of them its own.
        let places = reach.follow(&reach.0.services, &[NODE, ELSEWHERE]).places();
        assert_eq!((places.frontends.len(), places.endpoints.len()), (3, 2));
    }

    #[test]
    fn following_a_change_gives_what_starting_anew_would() {
        let ports = |n: u16| -> Vec<(Option<Ipv4Addr>, u16, bool)> {
            (0..=n % 3).map(|i| (None, 30_000 + n * 3 + i, true)).collect()
        };
        let all: Vec<_> = (0..40u16)
            .map(|n| service(&format!("s{n}"), &ports(n), if n % 2 == 0 { &[NODE] } else { &[] }))
            .collect();
        let mut reach = of(&all);
        let mut list = Shared::from(all);
        for step in 0..200usize {
            match step % 5 {
                0 => {
                    let i = step * 7 % list.len();
                    list.remove(i);
                }
                1 => list.push(service(&format!("new{step}"), &ports(500 + step as u16), &[NODE])),
                2 => {
                    let i = step * 11 % list.len();
                    list[i] = service(&list[i].name, &ports(900 + step as u16), &[NODE, ELSEWHERE]);
                }
                3 => list.reverse(),
                _ => list.swap(0, step % 17),
            }
            reach = reach.follow(&list, &[NODE]);
            let anew = of(&list);
            assert_eq!(reach.places(), anew.places(), "step {step}");
            assert_eq!(reach.sizes(), anew.sizes(), "step {step}");
        }
        assert!(reach.is_same(&reach.follow(&list, &[NODE])), "nothing changed, nothing is made");
    }

    #[test]
    fn a_place_stays_while_a_flow_uses_it() {
        let services = [service("a", &[(None, 30_080, true)], &[NODE])];
        let gone = of(&services).places();
        let pod = Ipv4Addr::new(10, 0, 1, 10).to_bits();
        let asked = FlowKey::new(pod, NODE.to_bits(), 40_000, 30_080, 6);
        let sent = FlowKey::new(pod, NODE.to_bits(), 40_000, 8080, 6);
        assert_eq!(gone.used_by(&asked, &sent), gone);
        let other = FlowKey::new(pod, NODE.to_bits(), 40_000, 30_080, 17);
        assert!(gone.used_by(&other, &other).is_empty());
    }
}
