//! What the four policies say, written down by hand from their texts and not from anything that compiles them: the demo
//! is judged by this.

use std::fmt;

use serde::{Serialize, Serializer};

/// A policy of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Policy {
    /// Default deny in `stars` and `client`.
    S1,
    /// The management UI reaches all pods of both.
    S2,
    /// The frontend reaches the backend on 6379.
    S3,
    /// The client's namespace reaches the frontend on 80.
    S4,
}

impl Policy {
    /// All of them, in the demo's order.
    pub(super) const ALL: [Self; 4] = [Self::S1, Self::S2, Self::S3, Self::S4];

    /// `S1`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::S4 => "S4",
        }
    }

    /// What it does, in a line.
    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::S1 => "default-deny: nobody reaches a pod of stars or client",
            Self::S2 => "allow-ui: the management UI reaches them all",
            Self::S3 => "backend-policy: frontend reaches backend on 6379/TCP",
            Self::S4 => "frontend-policy: namespace client reaches frontend on 80/TCP",
        }
    }
}

/// The policies in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Policies(u8);

impl Policies {
    /// These and no other.
    pub(super) fn of(policies: &[Policy]) -> Self {
        policies.iter().fold(Self::default(), |set, policy| set.with(*policy))
    }

    /// The first so many of the demo's order: step S0 to S4.
    pub(super) fn step(n: usize) -> Self {
        Self::of(&Policy::ALL[..n.min(Policy::ALL.len())])
    }

    /// With this one.
    #[must_use]
    pub(super) fn with(self, policy: Policy) -> Self {
        Self(self.0 | 1 << policy as u8)
    }

    /// Without this one.
    #[must_use]
    pub(super) fn without(self, policy: Policy) -> Self {
        Self(self.0 & !(1 << policy as u8))
    }

    /// Whether this one is in force.
    pub(super) fn has(self, policy: Policy) -> bool {
        self.0 & 1 << policy as u8 != 0
    }

    /// Those in force, in the demo's order.
    pub(super) fn list(self) -> Vec<Policy> {
        Policy::ALL.into_iter().filter(|policy| self.has(*policy)).collect()
    }

    fn has_any(self, policies: &[Policy]) -> bool {
        policies.iter().any(|policy| self.has(*policy))
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.list().as_slice() {
            [] => f.write_str("none"),
            list => f.write_str(&list.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ")),
        }
    }
}

impl Serialize for Policies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list().iter().map(|policy| policy.name()))
    }
}

/// Who speaks, or is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Who {
    /// The collector, in a namespace of its own.
    ManagementUi,
    /// In `client`.
    Client,
    /// In `stars`.
    Frontend,
    /// In `stars`.
    Backend,
    /// A pod without labels in `client`.
    Visitor,
    /// A process of the node, as kubelet.
    Node,
    /// A host of the VPC.
    Browser,
}

impl Who {
    /// Those that are pods of the demo.
    pub(super) const PODS: [Self; 5] =
        [Self::ManagementUi, Self::Client, Self::Frontend, Self::Backend, Self::Visitor];

    /// Its name, of a pod that of its workload.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ManagementUi => "management-ui",
            Self::Client => "client",
            Self::Frontend => "frontend",
            Self::Backend => "backend",
            Self::Visitor => "visitor",
            Self::Node => "node",
            Self::Browser => "browser",
        }
    }

    /// The namespace of a pod.
    pub(super) const fn namespace(self) -> &'static str {
        match self {
            Self::ManagementUi => "management-ui",
            Self::Client | Self::Visitor => "client",
            Self::Frontend | Self::Backend => "stars",
            Self::Node | Self::Browser => "",
        }
    }

    /// The port on which it answers; the last two are asked by nobody.
    pub(super) const fn port(self) -> u16 {
        match self {
            Self::ManagementUi => 9001,
            Self::Frontend => 80,
            Self::Backend => 6379,
            Self::Client | Self::Visitor => 9000,
            Self::Node | Self::Browser => 0,
        }
    }

    /// The pods whose service it asks, each by its URL.
    pub(super) const fn asks(self) -> &'static [Self] {
        match self {
            Self::ManagementUi | Self::Frontend | Self::Backend => {
                &[Self::Frontend, Self::Backend, Self::Client]
            }
            Self::Client | Self::Visitor => &[Self::Frontend, Self::Backend],
            Self::Node | Self::Browser => &[],
        }
    }

    /// The URL by which others ask it.
    pub(super) fn url(self) -> String {
        format!("http://{}.{}:{}/status", self.name(), self.namespace(), self.port())
    }
}

/// Whether these policies let `from` open a connection to a port of `to`.
pub(super) fn allowed(policies: Policies, from: Who, to: Who, port: u16) -> bool {
    use Policy::{S1, S2, S3, S4};
    // A pod always reaches itself, and its node always reaches it.
    if from == to || from == Who::Node {
        return true;
    }
    let isolated = match to {
        Who::Frontend => policies.has_any(&[S1, S2, S4]),
        Who::Backend => policies.has_any(&[S1, S2, S3]),
        Who::Client | Who::Visitor => policies.has_any(&[S1, S2]),
        Who::ManagementUi | Who::Node | Who::Browser => false,
    };
    let by_s2 = policies.has(S2) && from == Who::ManagementUi;
    let by_s3 = policies.has(S3) && from == Who::Frontend && to == Who::Backend && port == 6379;
    let by_s4 = policies.has(S4) && from.namespace() == "client" && to == Who::Frontend && port == 80;
    !isolated || by_s2 || by_s3 || by_s4
}

#[cfg(test)]
mod tests {
    use super::*;
    use Who::{Backend, Browser, Client, Frontend, ManagementUi, Node, Visitor};

    /// Pairs, and whether the first reaches the second at S0, S1, S2, S3, S4.
    type Row = (&'static [(Who, Who)], [bool; 5]);

    /// The demo's table.
    const TABLE: &[Row] = &[
        (
            &[(ManagementUi, Frontend), (ManagementUi, Backend), (ManagementUi, Client)],
            [true, false, true, true, true],
        ),
        (&[(Frontend, Backend)], [true, false, false, true, true]),
        (&[(Client, Frontend), (Visitor, Frontend)], [true, false, false, false, true]),
        (
            &[
                (Frontend, Client),
                (Backend, Frontend),
                (Backend, Client),
                (Client, Backend),
                (Visitor, Backend),
            ],
            [true, false, false, false, false],
        ),
        (&[(Frontend, Frontend), (Backend, Backend)], [true; 5]),
        (&[(Node, Frontend), (Node, Backend), (Node, Client), (Node, ManagementUi)], [true; 5]),
        (&[(Browser, ManagementUi)], [true; 5]),
    ];

    #[test]
    fn the_steps_are_the_demos_table() {
        for (pairs, steps) in TABLE {
            for (from, to) in *pairs {
                let found: Vec<_> =
                    (0..5).map(|step| allowed(Policies::step(step), *from, *to, to.port())).collect();
                assert_eq!(found, steps, "{} -> {}", from.name(), to.name());
            }
        }
    }

    #[test]
    fn a_policy_opens_one_port_and_its_absence_closes_it() {
        for step in 1..5 {
            assert!(!allowed(Policies::step(step), Frontend, Backend, 6380), "S{step}");
        }
        assert!(!allowed(Policies::step(4).without(Policy::S3), Frontend, Backend, 6379));
        assert!(
            allowed(Policies::of(&[Policy::S4]), Frontend, Backend, 6380),
            "S4 alone isolates no backend"
        );
    }

    #[test]
    fn a_set_says_what_is_in_it() {
        let set = Policies::of(&[Policy::S4, Policy::S1]);
        assert_eq!(
            (set.to_string().as_str(), serde_json::to_string(&set).unwrap().as_str()),
            ("S1, S4", r#"["S1","S4"]"#)
        );
        assert_eq!(Policies::default().to_string(), "none");
        assert_eq!(set.without(Policy::S1), Policies::of(&[Policy::S4]));
    }
}
