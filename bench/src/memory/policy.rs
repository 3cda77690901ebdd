//! The first packet of a flow against a policy of many CIDRs: the engine's lines of disjoint blocks beside a unibit trie.
//!
//! A trie of single bits with the longest prefix winning is what a BPF LPM map is and what the VPC CNI's policy agent asks
//! for every first packet. Both are given the same blocks and the same questions, and must agree.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;
use serde::Serialize;
use sluice_engine::flow::{FlowKey, Origin};
use sluice_engine::policy::{Circumstances, Policy};
use sluice_state::{Peer, PodPolicy, PortMatch, Protocol, Rule, Rules, State};

use crate::meter::cpu::of_this_thread;

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Pods with a policy of their own.
    pub pods: u32,
    /// CIDRs that each of them allows.
    pub cidrs: u32,
    /// Questions of one pass.
    pub lookups: u32,
    /// Passes of both in turn.
    pub rounds: u32,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The engine's CPU nanoseconds per judgement of a flow, median of the rounds.
    pub engine_ns: f64,
    /// The trie's per lookup.
    pub trie_ns: f64,
    /// Median over the rounds of how many times longer the trie takes.
    pub ratio: f64,
    /// CPU milliseconds to compile the policy.
    pub compile_ms: f64,
}

/// Measures both in turn.
///
/// # Errors
/// They disagree on a question.
pub fn measure(settings: &Settings) -> Result<Figures> {
    let mut random = Random(0x5EED);
    let state = state(settings, &mut random);
    let begun = of_this_thread();
    let policy = Policy::compile(&state, &Policy::allow_all(), false);
    let compile = of_this_thread() - begun;
    let tries: Vec<Trie> = state.policy.rules.iter().map(|rules| Trie::new(rules)).collect();
    let questions = questions(&state, settings, &mut random);
    let circumstances =
        Circumstances { origin: Origin::Wire, source_is_node: false, source_may_be_pod: false };
    for (pod, key) in &questions {
        let ours = policy.judge(key, circumstances).is_ok();
        let theirs = tries[*pod].allows(key.src(), key.dport());
        ensure!(ours == theirs, "{key}: the engine says {ours}, the trie {theirs}");
    }
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let engine = timed(&questions, |(_, key)| policy.judge(key, circumstances).is_ok());
        let trie = timed(&questions, |(pod, key)| tries[*pod].allows(key.src(), key.dport()));
        let each = |cost: Duration| cost.as_secs_f64() * 1e9 / questions.len() as f64;
        ours.push(each(engine));
        theirs.push(each(trie));
        ratios.push(each(trie) / each(engine));
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Figures {
        engine_ns: median(&mut ours),
        trie_ns: median(&mut theirs),
        ratio: median(&mut ratios),
        compile_ms: compile.as_secs_f64() * 1e3,
    })
}

fn timed(questions: &[(usize, FlowKey)], ask: impl Fn(&(usize, FlowKey)) -> bool) -> Duration {
    let begun = of_this_thread();
    for question in questions {
        black_box(ask(black_box(question)));
    }
    of_this_thread() - begun
}

/// Every pod takes TCP 80 and 443 from CIDRs of its own of 16 to 32 bits.
fn state(settings: &Settings, random: &mut Random) -> State {
    let ports = [80, 443].map(|port| PortMatch { protocol: Protocol::Tcp, first: port, last: port }).to_vec();
    let mut state = State::default();
    for pod in 0..settings.pods {
        let peers = (0..settings.cidrs)
            .map(|_| {
                let len = 16 + (random.next() % 17) as u8;
                let cidr = Ipv4Net::new_assert(Ipv4Addr::from_bits(random.next()), len).trunc();
                Peer::Block { cidr, except: Vec::new() }
            })
            .collect();
        let rule = Rule { origin: "bench".into(), peers: Some(peers), ports: Some(ports.clone()) };
        state.policy.rules.push(Arc::new(Rules { id: pod, rules: vec![rule] }));
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 10).to_bits() + pod);
        state.policy.pods.push(PodPolicy { ip, ingress: Some(pod), egress: None });
    }
    state
}

/// Half of the sources lie in a CIDR that the pod allows, half anywhere.
fn questions(state: &State, settings: &Settings, random: &mut Random) -> Vec<(usize, FlowKey)> {
    let ask = |_| {
        let pod = random.next() as usize % state.policy.pods.len();
        let peers = state.policy.rules[pod].rules[0].peers.as_deref().unwrap_or_default();
        let source = match peers.get(random.next() as usize % peers.len().max(1)) {
            Some(Peer::Block { cidr, .. }) if random.next().is_multiple_of(2) => {
                cidr.network().to_bits() | random.next() & cidr.hostmask().to_bits()
            }
            _ => random.next(),
        };
        let port = if random.next().is_multiple_of(4) { 22 } else { 443 };
        (pod, FlowKey::new(source, state.policy.pods[pod].ip.to_bits(), 40_000, port, 6))
    };
    (0..settings.lookups).map(ask).collect()
}

/// A unibit trie: a node for each bit of each prefix, the longest match wins.
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Default)]
struct Node {
    children: [u32; 2],
    allows: bool,
}

impl Trie {
    fn new(rules: &Rules) -> Self {
        let mut nodes = vec![Node::default()];
        for peer in rules.rules.iter().flat_map(|rule| rule.peers.iter().flatten()) {
            let Peer::Block { cidr, .. } = peer else { continue };
            let (bits, mut at) = (cidr.network().to_bits(), 0);
            for depth in 0..cidr.prefix_len() {
                let bit = (bits >> (31 - depth) & 1) as usize;
                if nodes[at].children[bit] == 0 {
                    nodes[at].children[bit] = nodes.len() as u32;
                    nodes.push(Node::default());
                }
                at = nodes[at].children[bit] as usize;
            }
            nodes[at].allows = true;
        }
        Self { nodes }
    }

    /// All blocks of the bench allow the same ports, so that the longest match is as good as any.
    fn allows(&self, address: u32, port: u16) -> bool {
        let (mut at, mut found) = (0_usize, false);
        for depth in 0..32 {
            found |= self.nodes[at].allows;
            match self.nodes[at].children[(address >> (31 - depth) & 1) as usize] {
                0 => return found && matches!(port, 80 | 443),
                next => at = next as usize,
            }
        }
        (found || self.nodes[at].allows) && matches!(port, 80 | 443)
    }
}

/// SplitMix64, seeded: the same questions in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answer_alike() {
        let settings = Settings { pods: 10, cidrs: 50, lookups: 5_000, rounds: 1 };
        let figures = measure(&settings).unwrap();
        assert!(figures.engine_ns > 0.0 && figures.trie_ns > 0.0);
    }
}
