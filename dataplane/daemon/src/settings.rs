//! What the command line decides: everything that is this machine's and not the cluster's.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use sluice_state::PortRange;

use crate::ports::NODE_PORTS;

/// How packets are taken from ENIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum EniPort {
    /// AF_XDP, and the trunk where that is not to be had.
    #[default]
    Auto,
    /// AF_XDP or nothing.
    Xdp,
    /// tc and the trunk, without AF_XDP.
    Tap,
}

/// Which kind of AF_XDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum XdpMode {
    /// Zero-copy where the driver has it, otherwise native copy mode; never generic.
    #[default]
    Auto,
    /// Zero-copy or nothing.
    Zerocopy,
    /// The driver's own XDP, packets are copied.
    Native,
    /// XDP after the kernel has built its packet buffers: works everywhere, slowly. Switches GRO and LRO off meanwhile.
    Generic,
}

/// The options of `sluiced run`.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// State to start with: TOML, or JSON when the name ends in .json. Reloaded on SIGHUP. Without it the daemon waits
    /// for the control plane on RUN_DIR/state.sock.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Directory of the lock and the sockets, root's alone.
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    pub run_dir: PathBuf,
    /// Workers; the default is one for each queue of the ENI with most queues. Never more than there are allowed CPUs.
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// How packets are taken from ENIs.
    #[arg(long, value_name = "PORT", value_enum, default_value_t)]
    pub eni_port: EniPort,
    /// Which kind of AF_XDP.
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub xdp_mode: XdpMode,
    /// Name of the trunk's interface.
    #[arg(long, value_name = "NAME", default_value = "sluice0")]
    pub trunk: String,
    /// Directory below a bpffs where programs, links and maps are pinned, so that they outlive the daemon. Must be
    /// another one for each network namespace.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    pub bpffs: PathBuf,
    /// Bind tc programs by clsact filters although this kernel has tcx.
    #[arg(long)]
    pub force_clsact: bool,
    /// Microseconds that a worker polls without a packet before it sleeps. A sleeping worker takes some 40 us longer
    /// for the next packet.
    #[arg(long, value_name = "US", default_value_t = 40)]
    pub spin_us: u32,
    /// Niceness of the workers, -20 to 19. The kernel's own forwarding runs before every process; a worker that waits its
    /// turn behind them overruns the trunk's queue. Needs CAP_SYS_NICE below 0; without it the report says so.
    #[arg(long, value_name = "NICE", default_value_t = -10, allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    pub worker_nice: i8,
    /// Entries of each AF_XDP ring, a power of two; the default is 4096 for up to four queues and 2048 above.
    #[arg(long, value_name = "N", value_parser = ring)]
    pub xdp_ring: Option<u32>,
    /// The cluster's range of NodePorts; never used as a source, whatever the state says.
    #[arg(long, value_name = "FIRST-LAST", default_value_t = NODE_PORTS)]
    pub node_ports: PortRange,
    /// Lower the number of an ENI's queues where its driver needs that for XDP (ENA: half of the maximum).
    #[arg(long)]
    pub set_channels: bool,
    /// What becomes of the pods' connections that the kernel tracks when the first pods are taken over. `auto` makes flows of
    /// them, each with the address and port that its peer knows, so that none is cut; only where no daemon has left
    /// programs behind (after SIGKILL or --keep-on-exit the kernel knows nothing new).
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub import_conntrack: Import,
    /// On SIGTERM leave programs and trunk as they are. Pods' traffic is then dropped until the next start, as after
    /// SIGKILL; without this flag it is left to the kernel.
    #[arg(long)]
    pub keep_on_exit: bool,
    /// Write the start-up report to standard output in this form when every worker runs.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Whether connections of the kernel's are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Import {
    /// When the daemon begins on a node where no program of an earlier one is.
    #[default]
    Auto,
    /// Never: translated connections that are open then are cut.
    Off,
}

/// Form of the start-up report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Lines of the log only.
    #[default]
    Log,
    /// One JSON object on standard output, too.
    Json,
}

impl Settings {
    /// How long a worker polls.
    #[must_use]
    pub fn spin(&self) -> Duration {
        Duration::from_micros(u64::from(self.spin_us))
    }
}

fn ring(text: &str) -> Result<u32, String> {
    let refuse = || format!("`{text}` is not the size of a ring: a power of two from 64 to 16384");
    let n: u32 = text.parse().map_err(|_| refuse())?;
    (n.is_power_of_two() && (64..=16_384).contains(&n)).then_some(n).ok_or_else(refuse)
}
