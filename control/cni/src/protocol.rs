//! What plugin and agent say to each other over the agent's CNI socket.
//!
//! Messages travel as `sluice_state::framing` has it. The plugin opens with [`Hello`] and is answered by
//! [`Reply::Hello`]; then it asks one question after the other, each answered by one [`Reply`].
//!
//! ```text
//!  ADD:  Hello, Assign ──► Assigned (an address, and what the veth must be)
//!        the plugin lays the veth
//!              Attach ───► Attached (the daemon has path and policy of the pod in force)
//!  DEL:  Hello, Release ─► Released (which veth the attachment had, if it is still its own)
//! ```
//!
//! A connection that ends between [`Request::Assign`] and [`Reply::Attached`] gives the address back: the plugin was
//! killed, and the runtime will send a DEL that need not find anything.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
pub use sluice_state::Mac;

/// The version of this protocol. An agent refuses a plugin of another one, and says which has to be replaced.
pub const VERSION: u32 = 1;

/// Where the agent listens, unless it is told otherwise; root's alone.
pub const SOCKET: &str = "/run/sluice/cni/agent.sock";

/// Largest message in either direction, in bytes: a GC with the attachments of a full node is 100 kB.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The default gateway inside of a pod (VPC CNI: the same).
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The plugin's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`] of the plugin.
    pub version: u32,
    /// The plugin's own version, for people.
    pub plugin: String,
}

/// What an attachment is known by (CNI specification 1.1: the runtime keeps the three unique together).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The name of the network in the conflist.
    pub network: String,
    /// `CNI_CONTAINERID`: the sandbox.
    pub container: String,
    /// `CNI_IFNAME`: the interface inside of it.
    pub interface: String,
}

/// The pod, from `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; empty where the runtime gives none.
    pub uid: String,
}

/// What the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// An address for a pod. Asked again for the same attachment: the same address. An attachment of the same pod in
    /// another sandbox is superseded once [`Request::Attach`] is answered.
    Assign {
        /// Whose.
        attachment: Attachment,
        /// Which pod it is.
        pod: Pod,
        /// `CNI_NETNS`, for people who look at leases.
        netns: PathBuf,
    },
    /// The veth is laid: bring its path and policy into force.
    Attach {
        /// Whose.
        attachment: Attachment,
        /// The host's end: its name.
        host_interface: String,
        /// The host's end: its index.
        host_ifindex: u32,
        /// The pod's end.
        mac: Mac,
    },
    /// The attachment ends. Never refused; asked twice, the second finds nothing.
    Release {
        /// Which.
        attachment: Attachment,
    },
    /// Is the attachment as it was made?
    Check {
        /// Which.
        attachment: Attachment,
    },
    /// Every attachment of the network but these is gone.
    Gc {
        /// Whose network.
        network: String,
        /// Those that live.
        valid: Vec<Attachment>,
    },
    /// Could an ADD be served now?
    Status,
    /// Everything there is to see: for people.
    Show,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// To [`Hello`].
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
        /// The agent's own version, for people.
        agent: String,
    },
    /// To [`Request::Assign`].
    Assigned(Assigned),
    /// To [`Request::Attach`]: the pod's packets now take the path and the policy that they should.
    Attached {
        /// The generation that brought it.
        generation: u64,
    },
    /// To [`Request::Release`] and to [`Request::Gc`]: the host's ends of veths that these attachments had and that no
    /// other attachment has taken over. The plugin removes them.
    Released {
        /// Their names.
        host_interfaces: Vec<String>,
    },
    /// To [`Request::Check`]: what there should be.
    Checked(Assigned),
    /// To [`Request::Status`]: an ADD could be served.
    Ready,
    /// To [`Request::Show`].
    Shown(Shown),
    /// The question is not served.
    Refused {
        /// The kind, which decides the CNI error code.
        kind: Refusal,
        /// What is wrong, and the way out.
        message: String,
    },
}

/// What an attachment has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assigned {
    /// The pod's address, a /32.
    pub address: Ipv4Addr,
    /// The name that the host's end must have.
    pub host_interface: String,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The ENI that owns the address.
    pub eni: String,
}

/// What the agent has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// It has been ready.
    pub ready: bool,
    /// Addresses that serve pods, those of them that are leased, and those that cool down.
    pub addresses: [u32; 3],
    /// What keeps the pool from growing, in sentences.
    pub troubles: Vec<String>,
    /// The ENIs.
    pub enis: Vec<ShownEni>,
    /// The leases.
    pub leases: Vec<ShownLease>,
}

/// An ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownEni {
    /// Its id.
    pub id: String,
    /// Its link on the node, once it is there.
    pub link: Option<String>,
    /// Its primary address.
    pub primary: Ipv4Addr,
    /// Its subnet's id.
    pub subnet: String,
    /// Why it gives no address to pods, if it gives none.
    pub idle: Option<String>,
    /// Addresses as /32 and prefixes as /28.
    pub blocks: Vec<String>,
    /// How many of its addresses are leased.
    pub leased: usize,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownLease {
    /// Whose.
    pub pod: Pod,
    /// The attachment.
    pub attachment: Attachment,
    /// The address.
    pub address: Ipv4Addr,
    /// The ENI that has it.
    pub eni: String,
    /// Since when (RFC 3339).
    pub since: String,
    /// The host's end of the veth, once the daemon has its path in force.
    pub host_interface: Option<String>,
    /// The pod's network namespace.
    pub netns: Option<PathBuf>,
}

/// Why a question is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Plugin and agent speak different versions (CNI: 1).
    Version,
    /// The question is wrong in itself (CNI: 7).
    Invalid,
    /// The attachment is not known (CHECK; CNI: 3).
    Unknown,
    /// Nothing can be given now, but later it may: no free address, the daemon or the API server is away (CNI: 11).
    TryAgain,
    /// The agent is not ready for its first ADD yet (STATUS; CNI: 50).
    NotReady,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_strangers_keys_are_refused() {
        let attachment =
            Attachment { network: "sluice".into(), container: "c1".into(), interface: "eth0".into() };
        let request = Request::Release { attachment };
        let mut wire = Vec::new();
        sluice_state::framing::write_message(&mut wire, &request).unwrap();
        let read: Request = sluice_state::framing::read_message(&mut wire.as_slice(), MAX_MESSAGE).unwrap();
        assert_eq!(read, request);
        let text = r#"{"version":1,"plugin":"x","more":true}"#;
        assert!(serde_json::from_str::<Hello>(text).is_err());
    }
}
