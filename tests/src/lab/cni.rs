//! Pods that a container runtime would add: the built plugin, called as a runtime calls it, in a lab's node.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use super::{Lab, program};

/// A container's network namespace, which goes with this.
#[derive(Debug)]
pub struct Sandbox {
    namespace: String,
    node: String,
    socket: PathBuf,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// The pod's name, in the namespace `lab`.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
}

impl Sandbox {
    /// An empty namespace for a pod. Its member's name in the lab is `container`.
    ///
    /// # Panics
    /// There is one of that name already.
    #[must_use]
    pub fn new(lab: &Lab, container: &str, pod: &str) -> Self {
        let sandbox = Self {
            namespace: lab.namespace(container),
            node: lab.namespace("node"),
            socket: lab.path("cni/agent.sock"),
            container: container.to_owned(),
            pod: pod.to_owned(),
            uid: format!("uid-{pod}"),
        };
        let done = Command::new("ip").args(["netns", "add", &sandbox.namespace]).status().expect("ip runs");
        assert!(done.success(), "no namespace {}", sandbox.namespace);
        sandbox
    }

    /// The configuration of a call, in a version of the specification.
    #[must_use]
    pub fn configuration(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "name": "sluice", "type": "sluice-cni", "socket": self.socket })
    }

    /// Begins a call; its answer is [`answered`].
    ///
    /// # Panics
    /// The plugin is not built.
    #[must_use]
    pub fn begin(&self, command: &str, configuration: &Value) -> Child {
        let mut call = Command::new("ip");
        call.args(["netns", "exec", &self.node]).arg(program("sluice-cni"));
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.pod, self.container, self.uid
        );
        call.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", format!("/run/netns/{}", self.namespace))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", args)
            .env("CNI_PATH", "/opt/cni/bin");
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = call.spawn().expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A plugin that ends before it has read all has its reasons, which its answer tells.
        let _ = stdin.write_all(configuration.to_string().as_bytes());
        child
    }

    /// A call: what it printed, or its error.
    ///
    /// # Errors
    /// The plugin's, as JSON.
    ///
    /// # Panics
    /// What it prints is no JSON.
    pub fn call(&self, command: &str, configuration: &Value) -> Result<Value, Value> {
        answered(&self.begin(command, configuration).wait_with_output().expect("the plugin ends"))
    }

    /// ADD in version 1.0.0, which must succeed; gives the pod's address.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn add(&self) -> Ipv4Addr {
        let result = self.call("ADD", &self.configuration("1.0.0"));
        let result = result.unwrap_or_else(|error| panic!("ADD of {}: {error}", self.container));
        address(&result)
    }

    /// DEL in version 1.0.0, which must succeed.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn del(&self) {
        let done = self.call("DEL", &self.configuration("1.0.0"));
        assert_eq!(done, Ok(Value::Null), "DEL of {}", self.container);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).stderr(Stdio::null()).status();
    }
}

/// What a call came to.
///
/// # Errors
/// The plugin's, as JSON.
///
/// # Panics
/// What it printed is no JSON.
pub fn answered(output: &Output) -> Result<Value, Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let value = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text)
            .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr))),
    };
    if output.status.success() { Ok(value) } else { Err(value) }
}

/// The address in a result.
///
/// # Panics
/// There is none.
#[must_use]
pub fn address(result: &Value) -> Ipv4Addr {
    let text = result["ips"][0]["address"].as_str().and_then(|text| text.strip_suffix("/32"));
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {result}"))
}
