//! Drives the built programs as a foreign tool would: `sluice lab up`, its JSON, programs and sockets in its
//! namespaces. Nothing here names a crate of ours, so that what these tests hold to is what a user gets.
//!
//! Everything panics with a message: this is support for tests, and a lab that cannot be had is a failed test.

mod agent;
pub mod cni;
mod frames;
mod netns;
mod push;
mod sniff;
mod stats;
mod talk;

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
pub use nix::sys::signal::Signal;
use serde_json::Value;

pub use agent::Running;
pub use frames::{ETHERTYPE_ARP, Sender, mac};
pub use netns::within;
pub use push::Pusher;
pub use sniff::{Seen, Sniffer};
pub use stats::{Delta, Stats};
pub use talk::{
    ECHO, Echoes, PATIENCE, PEER, Server, connect, greeting, is_open, tcp_peer, try_tcp_peer, udp_exchange,
    udp_peer,
};

/// The node's primary address in every lab.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);
/// The address of the node's secondary ENI.
pub const NODE_ENI1: Ipv4Addr = Ipv4Addr::new(10, 0, 10, 5);
/// The address that answers like IMDS.
pub const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How long something that should happen may take.
const SOON: Duration = Duration::from_secs(3);

/// A lab of this test's own, taken down at the end whatever happens.
#[derive(Debug)]
pub struct Lab {
    name: String,
    status: Value,
    _turn: Flock<File>,
}

impl Lab {
    /// Brings a lab up. `tag` tells labs of one process apart, `args` go to `sluice lab up`.
    ///
    /// # Panics
    /// Not root, the programs are not built, or the lab does not come up.
    #[must_use]
    pub fn up(tag: &str, args: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the lab's tests need root, for network namespaces and BPF: run them with sudo"
        );
        let turn = turn();
        let name = format!("t{}x{tag}", std::process::id());
        // Before `up`, so that what a failed one leaves goes too.
        let mut lab = Self { name, status: Value::Null, _turn: turn };
        let output = sluice(&["lab", "up", "--name", &lab.name], args);
        assert!(output.status.success(), "sluice lab up {args:?}:\n{}", text(&output.stderr));
        lab.status = lab.json(&["lab", "status", "--name", &lab.name]);
        assert_eq!(lab.status["condition"], "up");
        lab
    }

    /// Its name, prefix of its namespaces.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `sluice lab status` said when it came up.
    #[must_use]
    pub fn status(&self) -> &Value {
        &self.status
    }

    /// What `sluice lab status` says now.
    #[must_use]
    pub fn status_now(&self) -> Value {
        self.json(&["lab", "status", "--name", &self.name])
    }

    /// A pod or host of the status, by name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn member(&self, name: &str) -> &Value {
        let all =
            ["pods", "hosts"].iter().flat_map(|kind| self.status[*kind].as_array().into_iter().flatten());
        all.clone().find(|m| m["name"] == name).unwrap_or_else(|| panic!("the lab has no {name}"))
    }

    /// The address of a pod, a host or the node.
    #[must_use]
    pub fn address(&self, member: &str) -> Ipv4Addr {
        if member == "node" {
            NODE
        } else {
            string(&self.member(member)["address"]).parse().expect("an address")
        }
    }

    /// The ENI that owns a pod's address.
    #[must_use]
    pub fn eni(&self, pod: &str) -> &str {
        string(&self.member(pod)["eni"])
    }

    /// Name of the host's end of a pod's veth.
    #[must_use]
    pub fn host_interface(&self, pod: &str) -> &str {
        string(&self.status["node"]["pod_interfaces"][pod]["name"])
    }

    /// The namespace of a member: `node`, `vpc`, `pod-a`, `host-x`, `imds`.
    #[must_use]
    pub fn namespace(&self, member: &str) -> String {
        format!("{}-{member}", self.name)
    }

    /// Runs `work` in a member's namespace, on a thread of its own, and gives what it gave.
    ///
    /// # Panics
    /// When the work does, with its message.
    pub fn within<T: Send>(&self, member: &str, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace(member), work)
    }

    /// Runs a shell command in a member's namespace as a foreign tool would; it must succeed.
    ///
    /// # Panics
    /// It does not.
    pub fn sh(&self, member: &str, script: &str) -> String {
        let output = self.try_sh(member, script);
        assert!(
            output.status.success(),
            "{member}: {script}\n{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs a shell command in a member's namespace.
    ///
    /// # Panics
    /// `ip netns exec` cannot be run.
    pub fn try_sh(&self, member: &str, script: &str) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(member), "sh", "-c", script]);
        command.stdin(Stdio::null()).output().expect("ip netns exec runs")
    }

    /// Loads a ruleset of nft in the node. It may be written in one line: ` }` and ` };` are given lines of their own.
    pub fn nft(&self, rules: &str) {
        let rules = rules.replace(" };", "\n}\n").replace(" }", "\n}");
        self.sh("node", &format!("nft -f - <<'EOF'\n{rules}\nEOF"));
    }

    /// Lays VPC CNI's rules for node ports on the node, as its agent does in every mode (`AWS_VPC_CNI_NODE_PORT_SUPPORT`):
    /// what enters by the primary ENI for the node is marked, and what comes back from its pod goes by the main table.
    pub fn mark_node_ports(&self) {
        self.nft(
            "table ip aws-cni { chain marks { type filter hook prerouting priority mangle; policy accept;\n\
             iifname \"eni0\" fib daddr . iif type local ct mark set ct mark or 0x80\n\
             iifname \"enia*\" meta mark set ct mark and 0x80 } }",
        );
    }

    /// Begins to sniff all of the fabric, frame by frame: its ENIs' ends stop merging segments.
    #[must_use]
    pub fn sniff(&self) -> Sniffer {
        self.sh("vpc", "for i in $(ls /sys/class/net | grep ^eni); do ethtool -K $i gro off; done");
        Sniffer::start(&self.namespace("vpc"))
    }

    /// Begins to sniff in a member's namespace.
    #[must_use]
    pub fn sniff_in(&self, member: &str) -> Sniffer {
        Sniffer::start(&self.namespace(member))
    }

    /// Every counter, as `sluice stats` prints them.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::read(&self.json(&["stats", "--lab", &self.name]))
    }

    /// What has changed since, once the daemon is at rest, which is when two readings are equal. Checks conservation.
    ///
    /// # Panics
    /// Packets in are not packets out, dropped and held.
    #[must_use]
    pub fn since(&self, before: &Stats) -> Delta {
        let deadline = Instant::now() + SOON;
        let mut last = self.stats();
        loop {
            std::thread::sleep(Duration::from_millis(60));
            let now = self.stats();
            if now.at_rest(&last) || Instant::now() > deadline {
                assert!(now.is_balanced(), "packets got lost: {}", now.conservation());
                return now.since(before);
            }
            last = now;
        }
    }

    /// The flow table, as `sluice flows` prints it.
    #[must_use]
    pub fn flows(&self, filter: &[&str]) -> Vec<Value> {
        let args = [&["flows", "--lab", self.name.as_str(), "--limit", "5000"], filter].concat();
        self.json(&args)["rows"].as_array().cloned().expect("rows")
    }

    /// The port contract, as `sluice ports` prints it.
    #[must_use]
    pub fn ports(&self) -> Value {
        self.json(&["ports", "--lab", &self.name])
    }

    /// Packets that the fabric dropped because their ENI does not own their source: EC2 would drop them.
    #[must_use]
    pub fn source_check_drops(&self) -> u64 {
        let enis = self.status_now()["node"]["enis"].as_array().cloned().expect("ENIs");
        enis.iter().map(|eni| eni["source_check_drops"].as_u64().expect("a count")).sum()
    }

    /// The process id of a process of the lab: `sluiced`, `server`.
    #[must_use]
    pub fn pid(&self, process: &str) -> i32 {
        let status = self.status_now();
        let found = status["processes"].as_array().into_iter().flatten().find(|p| p["name"] == process);
        let pid = found.and_then(|p| p["pid"].as_i64()).unwrap_or_else(|| panic!("no {process} in {status}"));
        i32::try_from(pid).expect("a process id")
    }

    /// A path of the lab's directory.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(string(&self.status["directory"])).join(file)
    }

    /// Starts a daemon on the lab's state and directories, as `sluice lab up` does, and gives its process id. It ends
    /// with the lab.
    ///
    /// # Panics
    /// It does not come up within 20 s; the message has its log.
    pub fn start_daemon(&self, args: &[&str]) -> i32 {
        let log = self.path("again.log");
        let file = File::create(&log).expect("a log");
        let errors = file.try_clone().expect("the same log");
        let mut command = Command::new(program("sluiced"));
        command.arg("run").arg("--state").arg(self.path("state.toml"));
        command.arg("--run-dir").arg(self.path("run")).arg("--bpffs").arg(self.path("bpf")).args(args);
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let mut child = self.within("node", || command.spawn().expect("sluiced starts"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !sluice(&["stats", "--lab", &self.name], &[]).status.success() {
            let ended = child.try_wait().expect("a child");
            let words = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "sluiced did not come up: {ended:?}\n{}",
                words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = i32::try_from(child.id()).expect("a process id");
        // Reaped when it ends, or `sluice lab down` would wait for a zombie.
        std::thread::spawn(move || child.wait());
        pid
    }

    /// Runs `sluiced` once in the node's namespace: `detach`, `check`.
    ///
    /// # Panics
    /// It cannot be run.
    pub fn sluiced(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("sluiced"));
        command.args(args).stdin(Stdio::null());
        self.within("node", || command.output().expect("sluiced runs"))
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = sluice(args, &["--output", "json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("sluice {args:?}: {e}: {}", text(&output.stderr)))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = sluice(&["lab", "down", "--name", &self.name], &[]);
        if !output.status.success() && !std::thread::panicking() {
            panic!("sluice lab down: {}", text(&output.stderr));
        }
    }
}

/// Runs `sluice`.
///
/// # Panics
/// It is not built.
#[must_use]
pub fn sluice(args: &[&str], more: &[&str]) -> Output {
    let mut command = Command::new(program("sluice"));
    command.args(args).args(more).stdin(Stdio::null());
    command.output().expect("sluice runs")
}

/// Ends a process with SIGKILL and waits until it is gone.
///
/// # Panics
/// There is no such process.
pub fn kill(pid: i32) {
    signal(pid, Signal::SIGKILL);
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    };
    eventually("the killed process is gone", gone);
}

/// Sends a signal to a process.
///
/// # Panics
/// There is no such process.
pub fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("the process is there");
}

/// Waits until `holds`, for moments.
///
/// # Panics
/// It does not come to hold.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", SOON.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program of ours, beside the tests' own: `target/debug/deps/lab_x-0123` has `target/debug/sluice`.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this test's own file");
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        let release = if own.components().any(|c| c.as_os_str() == "release") { " --release" } else { "" };
        panic!("`{name}` is not built beside {}: cargo build{release} -p sluice -p sluiced -p sluice-agent -p sluice-cni -p sluice-star", own.display())
    })
}

/// Waits for this lab's turn: as many at once as half the machine's CPUs, or what the tests time is only each other.
///
/// # Panics
/// The lock's file cannot be had.
#[must_use]
pub fn turn() -> Flock<File> {
    let slots = std::thread::available_parallelism().map_or(1, |n| n.get() / 2).max(1);
    loop {
        for slot in 0..slots {
            let path = std::env::temp_dir().join(format!("sluice-lab-test-{slot}.lock"));
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return lock;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text but {value}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
