//! Which endpoints a node uses, by the rules of kube-proxy (`pkg/proxy/topology.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_state::Endpoint;

use crate::{EndpointSlice, ServicePort, SliceEndpoint};

/// The endpoints of one port of a service, in order.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// For traffic that may go anywhere: the ready ones, of these the ones that hints give to this node; if none is ready,
    /// those that terminate but still serve.
    pub(super) cluster: Vec<Endpoint>,
    /// For traffic that must stay on this node, by the same preference. Hints do not matter here.
    pub(super) local: Vec<Endpoint>,
    /// Some endpoint would do if it could be anywhere.
    pub(super) anywhere: bool,
}

impl Choice {
    pub(super) fn new(slices: &[&EndpointSlice], port: &ServicePort, node: &str, zone: Option<&str>) -> Self {
        // Named target ports have another number in each slice. While an endpoint moves from one slice to another it is in
        // both: its best condition counts.
        let mut all: BTreeMap<(std::net::Ipv4Addr, u16), &SliceEndpoint> = BTreeMap::new();
        for slice in slices {
            let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for (port, endpoint) in ports.flat_map(|p| slice.endpoints.iter().map(move |e| (p.port, e))) {
                let known = all.entry((endpoint.ip, port)).or_insert(endpoint);
                if (endpoint.ready, endpoint.serving) > (known.ready, known.serving) {
                    *known = endpoint;
                }
            }
        }
        let hints = Hints::new(&all.values().copied().filter(|e| e.ready), node, zone);
        let pick = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> Vec<Endpoint> {
            let wanted = all.iter().filter(|(_, e)| wanted(e));
            wanted.map(|((ip, port), _)| Endpoint { ip: *ip, port: *port }).collect()
        };
        let leaving = |e: &SliceEndpoint| !e.ready && e.serving && e.terminating;
        let here = |e: &SliceEndpoint| e.node.as_deref() == Some(node);
        let or = |first: Vec<Endpoint>, second: &dyn Fn() -> Vec<Endpoint>| {
            if first.is_empty() { second() } else { first }
        };
        Self {
            cluster: or(pick(&|e| e.ready && hints.allow(e)), &|| pick(&leaving)),
            local: or(pick(&|e| e.ready && here(e)), &|| pick(&|e| leaving(e) && here(e))),
            anywhere: all.values().any(|e| e.ready || leaving(e)),
        }
    }
}

/// Which hints are followed: all ready endpoints must have them, and one of them must be for us. Those for nodes go before
/// those for zones.
enum Hints<'a> {
    Node(&'a str),
    Zone(&'a str),
    None,
}

impl<'a> Hints<'a> {
    fn new<'e>(
        ready: &(impl Iterator<Item = &'e SliceEndpoint> + Clone),
        node: &'a str,
        zone: Option<&'a str>,
    ) -> Self {
        let usable = |list: fn(&SliceEndpoint) -> &[Arc<str>], us: &str| {
            let mut ready = ready.clone();
            ready.clone().all(|e| !list(e).is_empty()) && ready.any(|e| has(list(e), us))
        };
        if usable(|e| &e.for_nodes, node) {
            return Self::Node(node);
        }
        match zone {
            Some(zone) if usable(|e| &e.for_zones, zone) => Self::Zone(zone),
            _ => Self::None,
        }
    }

    fn allow(&self, endpoint: &SliceEndpoint) -> bool {
        match self {
            Self::Node(node) => has(&endpoint.for_nodes, node),
            Self::Zone(zone) => has(&endpoint.for_zones, zone),
            Self::None => true,
        }
    }
}

fn has(list: &[Arc<str>], us: &str) -> bool {
    list.iter().any(|name| &**name == us)
}
