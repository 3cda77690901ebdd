//! The world behind every face. It has no clock and no socket: each call brings the time since the Unix epoch, so that a
//! test may let an hour pass in a microsecond.
//!
//! ```text
//!   call ─► key known? clock near? ─► script ─► bucket ─► policy ─► the change, at once ─► answer
//!                                                                       │
//!                                  past: [t0: view] [t1: view] [t2: view]
//!                                          ▲ IMDS reads `imds` ago   ▲ Describe reads `describe` ago
//! ```
//!
//! Changes act on the truth; reads see it as it was a while ago. That is what EC2 and IMDS do, and why an allocator that
//! believes what it read last will give an address away twice.

mod describe;
mod interfaces;
mod keys;
mod setup;
mod subnets;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::call::{Answer, Call, Refusal};
use super::faults::{Buckets, Effect, Policy, Script};
use super::objects::{Group, Instance, Interface, Progress, Vpc};

pub use keys::{Key, Signature};
pub use setup::Place;
pub use subnets::Subnet;

/// How long things take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// From AttachNetworkInterface's answer to the device.
    pub attach: Duration,
    /// From DetachNetworkInterface's answer to a free ENI.
    pub detach: Duration,
    /// How old what Describe calls see is.
    pub describe: Duration,
    /// How old what IMDS shows is.
    pub imds: Duration,
    /// How much older still its lists of addresses and prefixes are; IMDS shows a MAC before it shows what belongs to it.
    pub imds_addresses: Duration,
    /// How long an answer takes.
    pub call: Duration,
}

impl Delays {
    /// Everything at once: for tests of something else.
    pub const NONE: Self = Self {
        attach: Duration::ZERO,
        detach: Duration::ZERO,
        describe: Duration::ZERO,
        imds: Duration::ZERO,
        imds_addresses: Duration::ZERO,
        call: Duration::ZERO,
    };
}

impl Default for Delays {
    /// About what a quiet region does.
    fn default() -> Self {
        Self {
            attach: Duration::from_millis(800),
            detach: Duration::from_millis(1500),
            describe: Duration::from_millis(200),
            imds: Duration::from_millis(1500),
            imds_addresses: Duration::from_millis(500),
            call: Duration::from_millis(30),
        }
    }
}

/// What a call leads to: when the answer comes, and whether it arrives.
#[derive(Debug)]
pub struct Reaction {
    /// The answer; what was done is done even if it does not arrive.
    pub answer: Result<Answer, Refusal>,
    /// After so long.
    pub delay: Duration,
    /// Whether the connection breaks instead.
    pub cut: bool,
}

/// A line of the log.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Entry {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The action.
    pub action: &'static str,
    /// `ok`, or EC2's code.
    pub outcome: String,
}

/// ENIs by id; a view of the past shares them with the present.
pub type Interfaces = BTreeMap<String, Arc<Interface>>;

/// A region with one account.
#[derive(Debug)]
pub struct World {
    /// Region, such as `eu-central-1`.
    pub region: String,
    /// Account number.
    pub account: String,
    /// How long things take.
    pub delays: Delays,
    /// Token buckets.
    pub buckets: Buckets,
    /// Failures on order.
    pub script: Script,
    /// Most items that any answer has, whatever was asked; EC2 may always answer with less.
    pub page_limit: usize,
    pub(super) vpcs: BTreeMap<String, Vpc>,
    pub(super) subnets: BTreeMap<String, Subnet>,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) instances: BTreeMap<String, Instance>,
    pub(super) interfaces: Interfaces,
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) roles: BTreeMap<String, Policy>,
    /// Tokens that STS and Pod Identity trust, and the role that each may take.
    pub(super) identities: BTreeMap<String, String>,
    /// Creations by client token.
    created: BTreeMap<String, (super::call::Create, String)>,
    past: VecDeque<(Duration, Interfaces)>,
    log: Vec<Entry>,
    next_id: u64,
}

impl World {
    /// An empty region.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self {
            region: region.to_owned(),
            account: "123456789012".to_owned(),
            delays: Delays::default(),
            buckets: Buckets::default(),
            script: Script::default(),
            page_limit: 1000,
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            groups: BTreeMap::new(),
            instances: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
            identities: BTreeMap::new(),
            created: BTreeMap::new(),
            past: VecDeque::new(),
            log: Vec::new(),
            next_id: 1,
        }
    }

    /// A call by a role, whose key was checked already ([`World::authenticate`]).
    pub fn call(&mut self, now: Duration, role: &str, call: &Call, dry_run: bool) -> Reaction {
        self.settle(now);
        let mut reaction = Reaction { answer: Ok(Answer::Done), delay: self.delays.call, cut: false };
        let effect = self.script.strike(call.action());
        match &effect {
            Some(Effect::DelayMs(ms)) => reaction.delay += Duration::from_millis(*ms),
            Some(Effect::LoseAnswer | Effect::Cut) => reaction.cut = true,
            Some(Effect::Refuse { .. }) | None => {}
        }
        reaction.answer = match effect {
            Some(Effect::Refuse { code, message }) => Err(Refusal::new(&code, message)),
            Some(Effect::Cut) => Err(Refusal::new("InternalError", "The connection was cut.")),
            _ => self.judge(now, role, call, dry_run),
        };
        let outcome = reaction.answer.as_ref().map_or_else(|e| e.code.clone(), |_| "ok".to_owned());
        self.log.push(Entry { at_ms: millis(now), action: call.action(), outcome });
        reaction
    }

    fn judge(&mut self, now: Duration, role: &str, call: &Call, dry_run: bool) -> Result<Answer, Refusal> {
        self.buckets.take(call, now)?;
        let who = format!("arn:aws:sts::{}:assumed-role/{role}/session", self.account);
        match self.roles.get(role) {
            Some(policy) => policy.allow(call, &who)?,
            None => return Err(Refusal::new("UnauthorizedOperation", format!("There is no role {role}."))),
        }
        if dry_run {
            return Err(Refusal::new(
                "DryRunOperation",
                "Request would have succeeded, but DryRun flag is set.",
            ));
        }
        if call.is_describe() {
            return self.describe(now, call);
        }
        let answer = self.change(now, call)?;
        self.remember(now);
        Ok(answer)
    }

    /// Lets what is due happen: devices come and go, each at its own time, so that the past is right too.
    pub fn settle(&mut self, now: Duration) {
        loop {
            let due = self.interfaces.values().filter_map(|i| {
                let at = match i.attachment.as_ref()?.progress {
                    Progress::Attaching(at) | Progress::Detaching(at) => at,
                    Progress::Attached => return None,
                };
                (at <= now).then(|| (at, i.id.clone()))
            });
            let Some((at, id)) = due.min() else { break };
            let Some(interface) = self.interfaces.get_mut(&id).map(Arc::make_mut) else { break };
            if let Some(attachment) = &mut interface.attachment {
                if matches!(attachment.progress, Progress::Attaching(_)) {
                    attachment.progress = Progress::Attached;
                } else {
                    interface.attachment = None;
                }
            }
            self.remember(at);
        }
    }

    fn remember(&mut self, at: Duration) {
        self.past.push_back((at, self.interfaces.clone()));
        let oldest = self.delays.describe.max(self.delays.imds + self.delays.imds_addresses);
        // The last view before the horizon is still what a reader there sees.
        while self.past.len() > 1 && self.past[1].0 + oldest < at {
            self.past.pop_front();
        }
    }

    /// ENIs as they were so long before `now`.
    pub(super) fn as_of(&self, now: Duration, lag: Duration) -> &Interfaces {
        let then = now.saturating_sub(lag);
        self.past
            .iter()
            .rev()
            .find(|(at, _)| *at <= then)
            .or(self.past.front())
            .map_or(&self.interfaces, |(_, v)| v)
    }

    /// What IMDS shows now: which ENIs there are, and, older, what belongs to them.
    #[must_use]
    pub fn metadata_views(&self, now: Duration) -> (&Interfaces, &Interfaces) {
        let contents = self.delays.imds + self.delays.imds_addresses;
        (self.as_of(now, self.delays.imds), self.as_of(now, contents))
    }

    /// The ENIs as they really are.
    #[must_use]
    pub fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// The subnets as they are.
    #[must_use]
    pub fn subnets(&self) -> &BTreeMap<String, Subnet> {
        &self.subnets
    }

    /// The instances.
    #[must_use]
    pub fn instances(&self) -> &BTreeMap<String, Instance> {
        &self.instances
    }

    /// A VPC.
    #[must_use]
    pub fn vpc(&self, id: &str) -> Option<&Vpc> {
        self.vpcs.get(id)
    }

    /// A security group.
    #[must_use]
    pub fn group(&self, id: &str) -> Option<&Group> {
        self.groups.get(id)
    }

    /// Every call so far.
    #[must_use]
    pub fn log(&self) -> &[Entry] {
        &self.log
    }

    /// How often each action was called.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for entry in &self.log {
            *counts.entry(entry.action).or_default() += 1;
        }
        counts
    }

    /// The next id with that prefix, of EC2's length.
    pub(super) fn mint(&mut self, prefix: &str) -> String {
        let id = self.next_id;
        self.next_id += 1;
        format!("{prefix}-{:017x}", 0x0a00_0000_0000_0000_u64 + id)
    }

    /// A MAC address that no ENI ever had.
    pub(super) fn mint_mac(&mut self) -> String {
        let [.., a, b, c, d] = self.next_id.to_be_bytes();
        format!("06:5a:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
