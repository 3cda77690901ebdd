//! What a runtime calls the plugin with: variables of the environment, and a configuration on standard input.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::protocol::{Attachment, Pod, SOCKET};

/// Largest configuration that is read, in bytes: a GC lists every attachment of a node.
pub const MAX_CONFIGURATION: u64 = 1 << 20;

/// How long a command may take where the configuration does not say; kubelet gives a sandbox two minutes.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Longest name of a network interface (`IFNAMSIZ` less its end).
const LONGEST_INTERFACE: usize = 15;

/// A version of the CNI specification that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0: GC, STATUS.
    V1_1_0,
}

impl Version {
    /// Every version, the oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As the specification writes it.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the specification's own names")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    fn parse(text: &str) -> Result<Self, CniError> {
        match text {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            _ => Err(CniError::new(
                Code::InvalidEnvironment,
                format!("CNI_COMMAND={text:?} is no command: ADD, DEL, CHECK, GC, STATUS or VERSION"),
            )),
        }
    }

    fn since(self) -> Version {
        match self {
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
            Self::Add | Self::Del | Self::Version => Version::V0_3_1,
        }
    }
}

/// The configuration, as far as it is read. What other plugins, runtimes and operators put beside it is let through.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    timeout_seconds: Option<u64>,
    #[serde(default)]
    dns: Option<Value>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Listed>>,
    #[serde(default, rename = "cni.dev/attachments")]
    listed: Option<Vec<Listed>>,
}

/// An attachment as a runtime lists it for GC.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// A call, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What is asked for.
    pub command: Command,
    /// The version that the answer must be in.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// The container; empty for GC, STATUS and VERSION.
    pub container: String,
    /// The interface's name in the container; empty likewise.
    pub interface: String,
    /// The container's network namespace; absent where the runtime has none any more.
    pub netns: Option<PathBuf>,
    /// The pod.
    pub pod: Pod,
    /// Where the agent answers.
    pub socket: PathBuf,
    /// How long the command may take.
    pub timeout: Duration,
    /// What the result says of name servers.
    pub dns: Option<Value>,
    /// What an ADD said.
    pub previous: Option<Previous>,
    /// GC: the attachments that live; absent: the runtime gave no list.
    pub valid: Option<Vec<Attachment>>,
}

/// What an ADD said, as far as a CHECK holds it against what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// The addresses.
    pub addresses: Vec<Ipv4Addr>,
}

impl Call {
    /// Reads a call. An error comes with the version to answer in.
    ///
    /// # Errors
    /// A variable or a field that is missing or makes no sense, by name.
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
        configuration: &[u8],
    ) -> Result<Self, (Version, CniError)> {
        let asked = variable("CNI_COMMAND").unwrap_or_default();
        let command = Command::parse(&asked).map_err(|error| (Version::NEWEST, error))?;
        let read: Result<Configuration, _> = serde_json::from_slice(configuration);
        let read = match read {
            Ok(read) => read,
            // A runtime that asks for versions need not say more.
            Err(_) if command == Command::Version => Configuration::default(),
            Err(error) => {
                let message = format!("the configuration on standard input does not parse: {error}");
                return Err((Version::NEWEST, CniError::new(Code::Decoding, message)));
            }
        };
        let version = match read.cni_version.as_deref() {
            // The specification's default, of which only VERSION is spoken.
            None if command == Command::Version => Version::NEWEST,
            None => {
                let message =
                    "cniVersion is missing: the configuration must name a version of the specification";
                return Err((Version::NEWEST, CniError::new(Code::InvalidConfiguration, message)));
            }
            Some(text) => match Version::parse(text) {
                Some(version) => version,
                None if command == Command::Version => Version::NEWEST,
                None => {
                    let spoken = Version::ALL.map(Version::text).join(", ");
                    let message = format!("cniVersion {text:?} is not spoken");
                    let error = CniError::new(Code::IncompatibleVersion, message);
                    return Err((Version::NEWEST, error.with(format!("spoken are {spoken}"))));
                }
            },
        };
        Self::checked(command, version, read, &variable).map_err(|error| (version, error))
    }

    fn checked(
        command: Command,
        version: Version,
        read: Configuration,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CniError> {
        if version < command.since() {
            let message = format!("{command:?} came with version {} of CNI", command.since().text());
            let details = format!("the configuration says cniVersion {}", version.text());
            return Err(CniError::new(Code::IncompatibleVersion, message).with(details));
        }
        let network = read.name.unwrap_or_default();
        if network.is_empty() && command != Command::Version {
            return Err(CniError::new(Code::InvalidConfiguration, "name is missing: the network has none"));
        }
        let of_container = matches!(command, Command::Add | Command::Del | Command::Check);
        let needed = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            match value {
                Some(value) => Ok(value),
                None if of_container => {
                    Err(CniError::new(Code::InvalidEnvironment, format!("{name} is not set")))
                }
                None => Ok(String::new()),
            }
        };
        let (container, interface) = (needed("CNI_CONTAINERID")?, needed("CNI_IFNAME")?);
        if of_container {
            check_interface(&interface)?;
        }
        let netns = variable("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        if netns.is_none() && matches!(command, Command::Add | Command::Check) {
            return Err(CniError::new(Code::InvalidEnvironment, "CNI_NETNS is not set"));
        }
        let pod = pod(&variable("CNI_ARGS").unwrap_or_default());
        let listed = read.valid.or(read.listed);
        let valid = listed.map(|all| {
            let attachment = |listed: Listed| Attachment {
                network: network.clone(),
                container: listed.container,
                interface: listed.ifname,
            };
            all.into_iter().map(attachment).collect()
        });
        Ok(Self {
            command,
            version,
            container,
            interface,
            netns,
            pod,
            socket: read.socket.unwrap_or_else(|| PathBuf::from(SOCKET)),
            timeout: read.timeout_seconds.filter(|s| *s > 0).map_or(TIMEOUT, Duration::from_secs),
            dns: read.dns.filter(|dns| !dns.is_null()),
            previous: read.prev_result.as_ref().map(previous),
            valid,
            network,
        })
    }

    /// What the attachment is known by.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment {
            network: self.network.clone(),
            container: self.container.clone(),
            interface: self.interface.clone(),
        }
    }
}

/// Names that the kernel takes, and that no file name in disguise is.
fn check_interface(name: &str) -> Result<(), CniError> {
    let fits = name.len() <= LONGEST_INTERFACE
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && name != "."
        && name != "..";
    if fits {
        return Ok(());
    }
    let message = format!(
        "CNI_IFNAME={name:?} is no name of an interface: 1 to {LONGEST_INTERFACE} printable characters without / and :"
    );
    Err(CniError::new(Code::InvalidEnvironment, message))
}

/// `CNI_ARGS` as kubelet's runtimes write it; other keys are none of ours.
fn pod(args: &str) -> Pod {
    let mut pod = Pod { namespace: String::new(), name: String::new(), uid: String::new() };
    for pair in args.split(';') {
        match pair.split_once('=') {
            Some(("K8S_POD_NAMESPACE", value)) => pod.namespace = value.to_owned(),
            Some(("K8S_POD_NAME", value)) => pod.name = value.to_owned(),
            Some(("K8S_POD_UID", value)) => pod.uid = value.to_owned(),
            _ => {}
        }
    }
    pod
}

fn previous(result: &Value) -> Previous {
    let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let address = |ip: &Value| {
        let text = ip.get("address")?.as_str()?;
        text.split('/').next()?.parse().ok()
    };
    Previous { addresses: ips.filter_map(address).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURATION: &str = r#"{"cniVersion":"1.0.0","name":"sluice","type":"sluice-cni","capabilities":{"x":true},"ipMasq":false}"#;

    fn read(variables: &[(&str, &str)], configuration: &str) -> Result<Call, (Version, CniError)> {
        let variables: std::collections::BTreeMap<_, _> = variables.iter().copied().collect();
        Call::read(|name| variables.get(name).map(ToString::to_string), configuration.as_bytes())
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c1",
        ),
    ];

    fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut all: Vec<_> = ADD.into_iter().filter(|(n, _)| *n != name).collect();
        if !value.is_empty() {
            all.push((name, value));
        }
        all
    }

    #[test]
    fn an_add_of_kubelets_is_read() {
        let call = read(&ADD, CONFIGURATION).unwrap();
        assert_eq!((call.command, call.version), (Command::Add, Version::V1_0_0));
        assert_eq!(
            (call.pod.namespace.as_str(), call.pod.name.as_str(), call.pod.uid.as_str()),
            ("n", "p", "u")
        );
        assert_eq!(call.socket, PathBuf::from(SOCKET));
        let set = CONFIGURATION.replace(
            "\"ipMasq\":false",
            r#""socket":"/x","timeoutSeconds":7,"dns":{"nameservers":["10.0.0.2"]}"#,
        );
        let call = read(&ADD, &set).unwrap();
        assert_eq!((call.socket, call.timeout), (PathBuf::from("/x"), Duration::from_secs(7)));
        assert_eq!(call.dns.unwrap()["nameservers"][0], "10.0.0.2");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_its_code() {
        for (variables, configuration, code, word) in [
            (with("CNI_COMMAND", ""), CONFIGURATION, Code::InvalidEnvironment, "CNI_COMMAND"),
            (with("CNI_COMMAND", "BREAK"), CONFIGURATION, Code::InvalidEnvironment, "BREAK"),
            (with("CNI_CONTAINERID", ""), CONFIGURATION, Code::InvalidEnvironment, "CNI_CONTAINERID"),
            (with("CNI_IFNAME", ""), CONFIGURATION, Code::InvalidEnvironment, "CNI_IFNAME"),
            (with("CNI_IFNAME", "a/b"), CONFIGURATION, Code::InvalidEnvironment, "a/b"),
            (with("CNI_IFNAME", "sixteencharsname"), CONFIGURATION, Code::InvalidEnvironment, "15"),
            (with("CNI_NETNS", ""), CONFIGURATION, Code::InvalidEnvironment, "CNI_NETNS"),
            (ADD.to_vec(), "{", Code::Decoding, "does not parse"),
            (ADD.to_vec(), "{\"name\":\"x\"}", Code::InvalidConfiguration, "cniVersion"),
            (ADD.to_vec(), "{\"cniVersion\":\"1.0.0\"}", Code::InvalidConfiguration, "name"),
            (ADD.to_vec(), "{\"cniVersion\":\"9.0.0\",\"name\":\"x\"}", Code::IncompatibleVersion, "9.0.0"),
            (with("CNI_COMMAND", "GC"), CONFIGURATION, Code::IncompatibleVersion, "1.1.0"),
        ] {
            let (_, error) = read(&variables, configuration).unwrap_err();
            assert_eq!(error.code, code, "{error:?}");
            assert!(error.message.contains(word), "`{word}` in {error:?}");
        }
    }

    #[test]
    fn a_del_needs_no_namespace_and_a_version_needs_nothing() {
        let mut del = with("CNI_COMMAND", "DEL");
        del.retain(|(name, _)| *name != "CNI_NETNS");
        assert_eq!(read(&del, CONFIGURATION).unwrap().netns, None);
        assert_eq!(read(&[("CNI_COMMAND", "VERSION")], "").unwrap().version, Version::NEWEST);
        let gc = CONFIGURATION.replace("1.0.0", "1.1.0").replace(
            "\"ipMasq\":false",
            r#""cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#,
        );
        let call = read(&[("CNI_COMMAND", "GC")], &gc).unwrap();
        assert_eq!(call.valid.unwrap()[0].container, "c1");
    }
}
