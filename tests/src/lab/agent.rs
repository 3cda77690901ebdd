//! Processes that a test starts in a lab beside the lab's own, an agent above all.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Lab, Signal, eventually, signal};

/// A process; it ends with this.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Asks it to end, as a supervisor does, and waits until it has.
    ///
    /// # Panics
    /// It does not within 20 s.
    #[track_caller]
    pub fn stop(mut self) {
        signal(i32::try_from(self.0.id()).expect("a process id"), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.0.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "process {} does not end", self.0.id());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    /// An agent for this lab's daemon and plugins. Where pods come from is for the caller to add. What it says is
    /// [`Lab::agent_log`].
    ///
    /// # Panics
    /// The lab's directory cannot be written.
    #[must_use]
    pub fn agent(&self, program: &Path) -> Command {
        let log = std::fs::File::create(self.path("agent-again.log")).expect("a log");
        let mut command = Command::new(program);
        command.arg("--state-socket").arg(self.path("run/state.sock"));
        command.arg("--cni-socket").arg(self.path("cni/agent.sock"));
        command.arg("--cni-conf-dir").arg(self.path("net.d"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        command
    }

    /// What the agent of [`Lab::agent`] has said so far.
    #[must_use]
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.path("agent-again.log")).unwrap_or_default()
    }

    /// Starts a program on the node.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn on_the_node(&self, command: &mut Command) -> Running {
        self.within("node", || Running(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))))
    }

    /// Waits until an agent has written the CNI configuration, which it does when it is ready for the first time.
    #[track_caller]
    pub fn has_a_conflist(&self) {
        let conflist = self.path("net.d/05-sluice.conflist");
        eventually("the CNI configuration is there", || conflist.exists());
    }

    /// Ends the lab's own agent, as an upgrade does.
    #[track_caller]
    pub fn stop_agent(&self) {
        signal(self.pid("agent"), Signal::SIGTERM);
        eventually("the agent has ended", || !self.path("cni/agent.sock").exists());
    }
}
