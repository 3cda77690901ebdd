//! What goes wrong: token buckets as EC2 has them per action, the IAM policy that says no, and a script of failures for
//! tests (the third AttachNetworkInterface fails, its answer is lost, the connection breaks).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::call::{Call, Refusal};

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Most calls at once.
    pub capacity: f64,
    /// Calls a second.
    pub refill: f64,
}

/// The buckets of an account, one for each action.
#[derive(Debug, Clone)]
pub struct Buckets {
    sizes: BTreeMap<&'static str, Bucket>,
    describe: Bucket,
    mutate: Bucket,
    levels: BTreeMap<&'static str, (f64, Duration)>,
}

impl Default for Buckets {
    /// EC2's documented sizes: Describe calls 100 and 20 a second, changes of ENIs 100 and 5 a second.
    fn default() -> Self {
        Self {
            sizes: BTreeMap::new(),
            describe: Bucket { capacity: 100.0, refill: 20.0 },
            mutate: Bucket { capacity: 100.0, refill: 5.0 },
            levels: BTreeMap::new(),
        }
    }
}

impl Buckets {
    /// The same bucket for every action.
    #[must_use]
    pub fn all(bucket: Bucket) -> Self {
        Self { describe: bucket, mutate: bucket, ..Self::default() }
    }

    /// A bucket of its own for an action.
    pub fn set(&mut self, action: &'static str, bucket: Bucket) {
        self.sizes.insert(action, bucket);
        self.levels.remove(action);
    }

    /// Takes a token.
    ///
    /// # Errors
    /// `RequestLimitExceeded` when there is none.
    pub fn take(&mut self, call: &Call, now: Duration) -> Result<(), Refusal> {
        let action = call.action();
        let usual = if call.is_describe() { self.describe } else { self.mutate };
        let bucket = self.sizes.get(action).copied().unwrap_or(usual);
        let (level, since) = self.levels.entry(action).or_insert((bucket.capacity, now));
        *level = (*level + now.saturating_sub(*since).as_secs_f64() * bucket.refill).min(bucket.capacity);
        *since = now;
        if *level < 1.0 {
            return Err(Refusal::new("RequestLimitExceeded", "Request limit exceeded."));
        }
        *level -= 1.0;
        Ok(())
    }
}

/// What a role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Allowed actions, without `ec2:`.
    pub actions: BTreeSet<String>,
}

impl Policy {
    /// AmazonEKS_CNI_Policy, version 5: these actions, and CreateTags on network interfaces alone.
    #[must_use]
    pub fn amazon_eks_cni() -> Self {
        let actions = [
            "AssignPrivateIpAddresses",
            "AttachNetworkInterface",
            "CreateNetworkInterface",
            "DeleteNetworkInterface",
            "DescribeInstances",
            "DescribeTags",
            "DescribeNetworkInterfaces",
            "DescribeInstanceTypes",
            "DescribeSubnets",
            "DetachNetworkInterface",
            "ModifyNetworkInterfaceAttribute",
            "UnassignPrivateIpAddresses",
            "CreateTags",
        ];
        Self { actions: actions.into_iter().map(str::to_owned).collect() }
    }

    /// The same with one action more.
    #[must_use]
    pub fn with(mut self, action: &str) -> Self {
        self.actions.insert(action.to_owned());
        self
    }

    /// The same without an action.
    #[must_use]
    pub fn without(mut self, action: &str) -> Self {
        self.actions.remove(action);
        self
    }

    /// Judges a call. Tags at creation need CreateTags too.
    ///
    /// # Errors
    /// `UnauthorizedOperation`, with the action and the resource in the message as EC2 has it.
    pub fn allow(&self, call: &Call, who: &str) -> Result<(), Refusal> {
        let needs_tags = matches!(call, Call::CreateNetworkInterface(c) if !c.tags.is_empty());
        let mut needed = vec![call.action()];
        if needs_tags {
            needed.push("CreateTags");
        }
        let foreign = match call {
            Call::CreateTags { resources, .. } => resources.iter().find(|r| !r.starts_with("eni-")),
            _ => None,
        };
        let denied = needed.into_iter().find(|a| !self.actions.contains(*a));
        let denied = denied.or_else(|| foreign.is_some().then_some("CreateTags"));
        let Some(action) = denied else { return Ok(()) };
        let on = foreign.map_or("*", String::as_str);
        Err(Refusal::new(
            "UnauthorizedOperation",
            format!(
                "You are not authorized to perform this operation. User: {who} is not authorized to perform: \
                 ec2:{action} on resource: {on} because no identity-based policy allows the ec2:{action} action"
            ),
        ))
    }
}

/// What a rule of the script does to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The call is refused and does nothing.
    Refuse {
        /// EC2's code.
        code: String,
        /// Its words.
        #[serde(default)]
        message: String,
    },
    /// The call does its work and the connection breaks before the answer: the caller cannot know.
    LoseAnswer,
    /// The connection breaks before the call does anything.
    Cut,
    /// The call waits so many milliseconds first.
    DelayMs(u64),
}

/// A rule: to which calls it applies, and what it does to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// An action, or `*`.
    pub action: String,
    /// So many matching calls pass first.
    #[serde(default)]
    pub after: u32,
    /// Then so many are hit.
    #[serde(default = "once")]
    pub times: u32,
    /// How.
    pub effect: Effect,
}

fn once() -> u32 {
    1
}

impl Rule {
    /// One for people to change.
    #[must_use]
    pub fn example() -> Self {
        let effect = Effect::Refuse { code: "InternalError".to_owned(), message: String::new() };
        Self { action: "AttachNetworkInterface".to_owned(), after: 2, times: 1, effect }
    }

    /// The next call of that action.
    #[must_use]
    pub fn next(action: &str, effect: Effect) -> Self {
        Self { action: action.to_owned(), after: 0, times: 1, effect }
    }
}

/// Rules in order; the first that applies is used.
#[derive(Debug, Clone, Default)]
pub struct Script {
    rules: Vec<Rule>,
}

impl Script {
    /// Adds a rule behind the others.
    pub fn push(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// The rules that are left.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Forgets every rule.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// What happens to a call of this action; counts it.
    pub fn strike(&mut self, action: &str) -> Option<Effect> {
        let mut hit = None;
        for rule in self.rules.iter_mut().filter(|r| r.action == action || r.action == "*") {
            if rule.after > 0 {
                rule.after -= 1;
            } else if hit.is_none() && rule.times > 0 {
                rule.times -= 1;
                hit = Some(rule.effect.clone());
            }
        }
        self.rules.retain(|r| r.times > 0);
        hit
    }
}
