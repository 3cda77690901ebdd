//! The commands of the CNI specification, each from a call to what is printed.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::{Agent, AgentError};
use crate::call::{Call, Command};
use crate::error::{CniError, Code};
use crate::protocol::{Assigned, Reply, Request};
use crate::result::{Laid, success, versions};
use crate::veth::{Node, Plan, Sandbox, Veth};

/// The agent's file beside its socket: it has been ready.
const MARKER: &str = "ready";

/// How long an agent that is being replaced is waited for: an ADD needs it, a DEL does well to have it.
const ADD_PATIENCE: Duration = Duration::from_secs(8);
const DEL_PATIENCE: Duration = Duration::from_secs(2);

/// How often an ADD begins anew because the agent broke off in the middle.
const ATTEMPTS: u32 = 2;

/// Does what is asked; gives what is to be printed, if anything is.
///
/// # Errors
/// As the specification has them.
pub fn run(call: &Call) -> Result<Option<Value>, CniError> {
    let deadline = Instant::now() + call.timeout;
    match call.command {
        Command::Add => add(call, deadline).map(Some),
        Command::Del => del(call, deadline).map(|()| None),
        Command::Check => check(call, deadline).map(|()| None),
        Command::Gc => collect(call, deadline).map(|()| None),
        Command::Status => status(call, deadline).map(|()| None),
        Command::Version => Ok(Some(versions())),
    }
}

fn netns(call: &Call) -> Result<&std::path::Path, CniError> {
    call.netns.as_deref().ok_or_else(|| CniError::new(Code::InvalidEnvironment, "CNI_NETNS is not set"))
}

fn add(call: &Call, deadline: Instant) -> Result<Value, CniError> {
    let netns = netns(call)?;
    let sandbox = Sandbox::open(netns)?;
    // Before the agent is asked: an attachment that is there already must not lose its address to a second ADD.
    if sandbox.link(&call.interface)?.is_some() {
        let interface = call.interface.clone();
        return Err(crate::veth::VethError::Taken { interface, netns: netns.to_owned() }.into());
    }
    let mut attempt = 1;
    let (assigned, veth) = loop {
        match attach(call, &sandbox, deadline) {
            Ok(done) => break done,
            // An agent that was replaced in the middle has given the address back.
            Err(Failed::Agent(AgentError::Broken { .. })) if attempt < ATTEMPTS => attempt += 1,
            Err(failed) => return Err(failed.into()),
        }
    };
    let laid = Laid {
        host_interface: &assigned.host_interface,
        host_mac: veth.host.mac,
        interface: &call.interface,
        mac: veth.pod.mac,
        netns,
        address: assigned.address,
        mtu: assigned.mtu,
    };
    Ok(success(call.version, &laid, call.dns.as_ref()))
}

enum Failed {
    Agent(AgentError),
    Other(CniError),
}

impl From<Failed> for CniError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Agent(error) => error.into(),
            Failed::Other(error) => error,
        }
    }
}

impl From<AgentError> for Failed {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

/// One attempt: an address, a veth, and the daemon's acknowledgement. Whatever fails, nothing of it stays.
fn attach(call: &Call, sandbox: &Sandbox, deadline: Instant) -> Result<(Assigned, Veth), Failed> {
    let mut agent = Agent::greet(&call.socket, deadline, ADD_PATIENCE)?;
    let attachment = call.attachment();
    let assign = Request::Assign {
        attachment: attachment.clone(),
        pod: call.pod.clone(),
        netns: call.netns.clone().unwrap_or_default(),
    };
    let assigned = match agent.ask(&assign)? {
        Reply::Assigned(assigned) => assigned,
        other => return Err(agent.unexpected(&other).into()),
    };
    let plan = plan(call, &assigned);
    let veth = sandbox.lay(&plan).map_err(|error| Failed::Other(error.into()));
    let done = veth.and_then(|veth| {
        let attach = Request::Attach {
            attachment: attachment.clone(),
            host_interface: assigned.host_interface.clone(),
            host_ifindex: veth.host.ifindex,
            mac: veth.pod.mac,
        };
        match agent.ask(&attach)? {
            Reply::Attached { .. } => Ok(veth),
            other => Err(agent.unexpected(&other).into()),
        }
    });
    match done {
        Ok(veth) => Ok((assigned, veth)),
        Err(failed) => {
            // What was the matter first is told; the agent also gives back by itself what a conversation left behind.
            let _ = sandbox.remove(&call.interface);
            let _ = agent.ask(&Request::Release { attachment });
            Err(failed)
        }
    }
}

fn plan<'a>(call: &'a Call, assigned: &'a Assigned) -> Plan<'a> {
    Plan {
        interface: &call.interface,
        host_interface: &assigned.host_interface,
        address: assigned.address,
        mtu: assigned.mtu,
    }
}

/// A pod must be able to go, whoever is away: an agent finds at its start what went.
fn del(call: &Call, deadline: Instant) -> Result<(), CniError> {
    let released = Agent::greet(&call.socket, deadline, DEL_PATIENCE)
        .and_then(|mut agent| agent.ask(&Request::Release { attachment: call.attachment() }));
    if let Ok(Reply::Released { host_interfaces }) = released {
        remove(&host_interfaces)?;
    }
    // A namespace that is gone has taken its links along.
    if let Some(netns) = call.netns.as_deref().filter(|path| path.exists()) {
        Sandbox::open(netns)?.remove(&call.interface)?;
    }
    Ok(())
}

fn remove(host_interfaces: &[String]) -> Result<(), CniError> {
    if host_interfaces.is_empty() {
        return Ok(());
    }
    let node = Node::open()?;
    for name in host_interfaces {
        node.remove(name)?;
    }
    Ok(())
}

fn check(call: &Call, deadline: Instant) -> Result<(), CniError> {
    let Some(previous) = &call.previous else {
        let message = "prevResult is missing: CHECK holds what is there against what ADD said";
        return Err(CniError::new(Code::InvalidConfiguration, message));
    };
    let mut agent = Agent::greet(&call.socket, deadline, ADD_PATIENCE)?;
    let assigned = match agent.ask(&Request::Check { attachment: call.attachment() })? {
        Reply::Checked(assigned) => assigned,
        other => return Err(agent.unexpected(&other).into()),
    };
    if !previous.addresses.contains(&assigned.address) {
        let message =
            format!("the attachment has {}, prevResult says {:?}", assigned.address, previous.addresses);
        return Err(CniError::new(Code::Differs, message));
    }
    match Sandbox::open(netns(call)?)?.differs(&plan(call, &assigned))? {
        None => Ok(()),
        Some(what) => Err(CniError::new(Code::Differs, what)),
    }
}

fn collect(call: &Call, deadline: Instant) -> Result<(), CniError> {
    let Some(valid) = call.valid.clone() else {
        let message = "cni.dev/valid-attachments is missing: without a list everything would be garbage";
        return Err(CniError::new(Code::InvalidConfiguration, message));
    };
    let mut agent = Agent::greet(&call.socket, deadline, ADD_PATIENCE)?;
    match agent.ask(&Request::Gc { network: call.network.clone(), valid })? {
        Reply::Released { host_interfaces } => remove(&host_interfaces),
        other => Err(agent.unexpected(&other).into()),
    }
}

/// An agent that is being replaced must not make the node NotReady: it says so only before it has ever been ready.
fn status(call: &Call, deadline: Instant) -> Result<(), CniError> {
    let answer = Agent::greet(&call.socket, deadline, Duration::ZERO)
        .and_then(|mut agent| agent.ask(&Request::Status));
    match answer {
        Ok(Reply::Ready) => Ok(()),
        Err(AgentError::Refused(error)) => Err(error),
        _ if call.socket.with_file_name(MARKER).exists() => Ok(()),
        Ok(_) | Err(_) => {
            let message = format!("no agent has been ready yet at {}", call.socket.display());
            let way = "kubectl --namespace kube-system logs daemonset/sluice-agent tells what it waits for";
            Err(CniError::new(Code::NotAvailable, message).with(way))
        }
    }
}
