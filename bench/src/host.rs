//! The machine that figures were taken on, as far as it explains them.

use std::fmt;
use std::fs;

use serde::Serialize;

/// A machine.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// True when this program was compiled without optimisation.
    pub debug_build: bool,
}

impl Host {
    /// This machine. What /proc does not tell is `unknown`.
    #[must_use]
    pub fn this() -> Self {
        let unknown = || "unknown".to_owned();
        let read = |path: &str| fs::read_to_string(path).ok();
        let model = |text: String| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Self {
            kernel: read("/proc/sys/kernel/osrelease").map_or_else(unknown, |r| r.trim().to_owned()),
            cpu: read("/proc/cpuinfo").and_then(model).unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            debug_build: cfg!(debug_assertions),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, {} x {}", self.kernel, self.cpus, self.cpu)
    }
}
