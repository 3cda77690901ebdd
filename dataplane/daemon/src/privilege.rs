//! Which capabilities the daemon needs, asked for by name before anything fails with "operation not permitted".

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// One capability and what of the daemon needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Its name as in capabilities(7).
    pub name: &'static str,
    bit: u8,
    /// What needs it.
    pub purpose: &'static str,
}

const SYS_ADMIN: u8 = 21;

/// What cannot be done without. `CAP_SYS_ADMIN` stands in for `CAP_BPF` and `CAP_PERFMON`, as in kernels before 5.8.
const REQUIRED: [Capability; 4] = [
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
        purpose: "creates the trunk, attaches the XDP and tc programs, changes offloads and asks for neighbours",
    },
    Capability { name: "CAP_NET_RAW", bit: 13, purpose: "opens AF_XDP sockets" },
    Capability { name: "CAP_BPF", bit: 39, purpose: "loads BPF programs and maps" },
    Capability {
        name: "CAP_PERFMON",
        bit: 38,
        purpose: "loads BPF programs that do arithmetic on pointers into packets",
    },
];

/// Memory that AF_XDP and BPF maps lock on kernels that count it against the limit.
const MEMLOCK: u64 = 512 << 20;

/// Why the process may not run the dataplane.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Capabilities are missing.
    #[error("{}", explain(.0))]
    Missing(Vec<Capability>),
    /// The capabilities could not be read.
    #[error("cannot read the process's capabilities from /proc/self/status: {0}")]
    Unreadable(String),
    /// Too little memory may be locked.
    #[error(
        "only {limit} bytes may be locked (RLIMIT_MEMLOCK) and {MEMLOCK} are needed: raise it \
         (LimitMEMLOCK=infinity, ulimit -l unlimited) or add CAP_SYS_RESOURCE or CAP_IPC_LOCK"
    )]
    Memlock {
        /// The limit in bytes.
        limit: u64,
    },
}

fn explain(missing: &[Capability]) -> String {
    let list =
        missing.iter().map(|c| format!("{}, which {}", c.name, c.purpose)).collect::<Vec<_>>().join("; ");
    let names = missing.iter().map(|c| c.name.trim_start_matches("CAP_")).collect::<Vec<_>>().join(", ");
    format!(
        "missing {list}. Run as root, or add [{names}] to securityContext.capabilities.add of the container"
    )
}

/// Checks the capabilities in force and raises the limit of locked memory.
///
/// # Errors
/// Names every missing capability and what needs it.
pub fn check() -> Result<(), PrivilegeError> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|e| PrivilegeError::Unreadable(e.to_string()))?;
    let effective = effective(&status).ok_or_else(|| PrivilegeError::Unreadable("no CapEff line".into()))?;
    let missing = missing(effective);
    if !missing.is_empty() {
        return Err(PrivilegeError::Missing(missing));
    }
    raise_memlock(effective)
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<Capability> {
    let has = |bit: u8| effective >> bit & 1 == 1;
    let fulfilled =
        |c: &Capability| has(c.bit) || (matches!(c.name, "CAP_BPF" | "CAP_PERFMON") && has(SYS_ADMIN));
    REQUIRED.into_iter().filter(|c| !fulfilled(c)).collect()
}

fn raise_memlock(effective: u64) -> Result<(), PrivilegeError> {
    const IPC_LOCK: u8 = 14;
    if effective >> IPC_LOCK & 1 == 1
        && setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY).is_ok()
    {
        return Ok(());
    }
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_MEMLOCK).map_err(|e| PrivilegeError::Unreadable(e.to_string()))?;
    if soft < hard {
        // Up to the hard limit everyone may go; what that gives is judged below.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
    if effective >> IPC_LOCK & 1 == 1 || hard >= MEMLOCK {
        Ok(())
    } else {
        Err(PrivilegeError::Memlock { limit: hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named_with_what_needs_it() {
        let root = effective("Name:\tx\nCapEff:\t000001ffffffffff\n").unwrap();
        assert!(missing(root).is_empty());
        let without_raw = missing(root & !(1 << 13));
        assert_eq!(without_raw.iter().map(|c| c.name).collect::<Vec<_>>(), ["CAP_NET_RAW"]);
        let text = PrivilegeError::Missing(without_raw).to_string();
        assert!(
            text.contains("CAP_NET_RAW, which opens AF_XDP sockets") && text.contains("[NET_RAW]"),
            "{text}"
        );
        assert_eq!(missing(0).len(), 4);
    }

    #[test]
    fn sys_admin_stands_in_for_bpf() {
        assert!(missing(1 << 12 | 1 << 13 | 1 << SYS_ADMIN).is_empty());
        assert_eq!(missing(1 << 12 | 1 << 13)[0].name, "CAP_BPF");
        assert_eq!(effective("no such line"), None);
    }
}
