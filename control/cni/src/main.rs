//! `sluice-cni`, as a container runtime calls it.
#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use sluice_cni::call::{Call, MAX_CONFIGURATION, Version};
use sluice_cni::command;
use sluice_cni::error::{CniError, Code};

const HELP: &str = "\
sluice-cni - the CNI plugin of Sluice

A container runtime calls it; people have no need to. It asks the agent of the node for an address, lays the pod's veth,
and returns from ADD once sluiced has the pod's path and policy in force.

Environment (CNI specification, versions 0.3.1 to 1.1.0):
  CNI_COMMAND      ADD, DEL, CHECK, GC, STATUS or VERSION
  CNI_CONTAINERID  the sandbox
  CNI_NETNS        its network namespace; a DEL may do without
  CNI_IFNAME       the interface's name in it
  CNI_ARGS         K8S_POD_NAMESPACE, K8S_POD_NAME and K8S_POD_UID: only a pod gets a network

Configuration, as JSON on standard input; what else it holds is let through:
  cniVersion, name  as the specification has them
  socket            where the agent answers [/run/sluice/cni/agent.sock]
  timeoutSeconds    how long a command may take [40]

Example, as root on a node:
  echo '{\"cniVersion\":\"1.1.0\",\"name\":\"sluice\",\"type\":\"sluice-cni\"}' | CNI_COMMAND=STATUS sluice-cni

Exit codes: 0 done, 1 an error as JSON on standard output (docs/cni.md lists the codes), 2 wrong command line
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help" | "-h") => return print(HELP, 0),
        Some("--version" | "-V") => return print(concat!("sluice-cni ", env!("CARGO_PKG_VERSION"), "\n"), 0),
        Some(other) => {
            // Standard error may be closed; the exit code says it all the same.
            let _ = writeln!(
                io::stderr(),
                "sluice-cni: unexpected argument {other:?}; sluice-cni --help explains"
            );
            return ExitCode::from(2);
        }
    }
    let variable = |name: &str| std::env::var(name).ok();
    if variable("CNI_COMMAND").is_none() {
        let _ = writeln!(
            io::stderr(),
            "sluice-cni is a CNI plugin, called by a container runtime; sluice-cni --help explains"
        );
    }
    let done = configuration()
        .map_err(|error| (Version::NEWEST, error))
        .and_then(|text| Call::read(variable, &text))
        .and_then(|call| command::run(&call).map_err(|error| (call.version, error)));
    match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => print(&format!("{result:#}\n"), 0),
        Err((version, error)) => print(&format!("{}\n", error.to_json(version)), 1),
    }
}

fn configuration() -> Result<Vec<u8>, CniError> {
    // Nothing calls without a command; a person at a terminal must not have to type a configuration first.
    if std::env::var_os("CNI_COMMAND").is_none() {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_CONFIGURATION + 1).read_to_end(&mut text).map_err(|error| {
        CniError::new(Code::InputOutput, format!("standard input cannot be read: {error}"))
    })?;
    if text.len() as u64 > MAX_CONFIGURATION {
        let message = format!("the configuration is larger than {MAX_CONFIGURATION} bytes");
        return Err(CniError::new(Code::Decoding, message));
    }
    Ok(text)
}

fn print(text: &str, code: u8) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(code),
        // A runtime that does not hear the result must not take it for one.
        Err(_) => ExitCode::FAILURE,
    }
}
