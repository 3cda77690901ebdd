//! The agent as a process, against a daemon that is told what to answer.

mod support;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_state::Op;
use support::{Daemon, inventory, pod, policy, service, sorted};

struct Bed {
    files: tempfile::TempDir,
    listener: UnixListener,
}

impl Bed {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::create_dir(files.path().join("m")).unwrap();
        std::fs::write(files.path().join("node.toml"), inventory(3)).unwrap();
        let listener = Daemon::listen(&files.path().join("state.sock"));
        Self { files, listener }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path("m").join(file), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-agent"));
        command
            .args(args)
            .arg("--manifests")
            .arg(self.path("m"))
            .arg("--inventory")
            .arg(self.path("node.toml"));
        command.env_remove("NETWORK_POLICY_ENFORCING_MODE").env_remove("SLUICE_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.arg("--state-socket").arg(self.path("state.sock"));
        Running(command.spawn().unwrap())
    }

    fn accept(&self, generation: u64) -> Daemon {
        Daemon::accept(&self.listener, generation)
    }
}

struct Running(Child);

impl Running {
    fn signal(&self, signal: &str) {
        let done = Command::new("kill").arg(signal).arg(self.0.id().to_string()).status().unwrap();
        assert!(done.success());
    }

    /// Waits for its end; gives its exit code.
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn everything_first_then_only_what_changed_until_it_is_told_to_stop() {
    let bed = Bed::new();
    bed.write("a.yaml", &pod("a", "a", ""));
    let mut agent = bed.start(&[]);
    let mut daemon = bed.accept(7);
    let first = daemon.take();
    assert_eq!(first.number, 8);
    assert!(matches!(&first.ops[..], [Op::Replace(state)] if state.pods.len() == 1), "{first:?}");
    bed.write("b.yaml", &format!("{}{}", pod("b", "b", ""), service("web", "b")));
    let second = daemon.take();
    assert_eq!(second.number, 9);
    assert!(!second.ops.iter().any(|op| matches!(op, Op::Replace(_) | Op::Policy(_))), "{second:?}");
    assert_eq!((daemon.state.pods.len(), daemon.state.services.services.len()), (2, 1));
    bed.write("b.yaml", "kind: [\n");
    assert!(daemon.is_quiet(), "a malformed file changes nothing");
    std::fs::remove_file(bed.path("m").join("b.yaml")).unwrap();
    daemon.take();
    assert_eq!((daemon.state.pods.len(), daemon.state.services.services.len()), (1, 0));
    agent.signal("-TERM");
    assert_eq!(agent.end(), Some(0));
}

#[test]
fn changes_that_come_while_one_is_under_way_go_together() {
    let bed = Bed::new();
    let _agent = bed.start(&[]);
    let mut daemon = bed.accept(0);
    bed.write("a.yaml", &pod("a", "a", ""));
    std::thread::sleep(Duration::from_millis(100));
    bed.write("b.yaml", &pod("b", "b", ""));
    std::thread::sleep(Duration::from_millis(100));
    daemon.take();
    daemon.take();
    assert_eq!(daemon.state.pods.len(), 2);
    assert!(daemon.is_quiet());
}

#[test]
fn a_refused_change_is_followed_by_everything_and_refused_everything_by_silence() {
    let bed = Bed::new();
    bed.write("a.yaml", &pod("a", "a", ""));
    let _agent = bed.start(&[]);
    let mut daemon = bed.accept(0);
    daemon.take();
    bed.write("b.yaml", &pod("b", "b", ""));
    daemon.refuse(1);
    let again = daemon.refuse(1);
    assert!(matches!(again.ops[..], [Op::Replace(_)]));
    assert!(daemon.is_quiet(), "it would be refused again");
    bed.write("c.yaml", &pod("c", "c", ""));
    let third = daemon.take();
    assert!(matches!(&third.ops[..], [Op::Replace(state)] if state.pods.len() == 3), "{third:?}");
    bed.write("d.yaml", &policy("p", "a", "b"));
    daemon.take();
    assert_eq!(daemon.state.policy.pods.len(), 1);
}

#[test]
fn a_daemon_that_comes_back_is_told_everything() {
    let bed = Bed::new();
    bed.write("a.yaml", &pod("a", "a", ""));
    let _agent = bed.start(&[]);
    let mut daemon = bed.accept(0);
    daemon.take();
    let before = daemon.state.clone();
    drop(daemon);
    let mut daemon = bed.accept(41);
    let first = daemon.take();
    assert_eq!(first.number, 42);
    assert_eq!(sorted(&daemon.state), sorted(&before));
}

#[test]
fn sighup_reads_the_inventory_and_a_bad_one_changes_nothing() {
    let bed = Bed::new();
    bed.write("x.yaml", &(0..4).map(|i| pod(&format!("p{i}"), "a", "")).collect::<String>());
    let agent = bed.start(&[]);
    let mut daemon = bed.accept(0);
    daemon.take();
    assert_eq!(daemon.state.pods.len(), 3);
    std::fs::write(bed.path("node.toml"), "version = 9\n").unwrap();
    agent.signal("-HUP");
    assert!(daemon.is_quiet());
    std::fs::write(bed.path("node.toml"), inventory(4)).unwrap();
    agent.signal("-HUP");
    daemon.take();
    assert_eq!(daemon.state.pods.len(), 4);
}

#[test]
fn addresses_are_kept_over_a_restart() {
    let bed = Bed::new();
    bed.write("a.yaml", &pod("a", "a", ""));
    bed.write("b.yaml", &format!("{}{}", pod("b", "b", ""), service("web", "b")));
    for _ in 0..2 {
        let mut agent = bed.start(&["--once"]);
        let mut daemon = bed.accept(0);
        daemon.take();
        assert_eq!(agent.end(), Some(0));
        let b = daemon.state.pods.iter().find(|pod| pod.name == "b").unwrap();
        assert_eq!(b.ip, std::net::Ipv4Addr::new(10, 0, 1, 11));
        let _ = std::fs::remove_file(bed.path("m").join("a.yaml"));
    }
}

#[test]
fn once_ends_with_what_the_daemon_says() {
    let bed = Bed::new();
    let mut agent = bed.start(&["--once"]);
    bed.accept(0).refuse(0);
    assert_eq!(agent.end(), Some(3));
}

#[test]
fn check_and_dry_run_touch_nothing_and_say_everything() {
    let bed = Bed::new();
    bed.write("a.yaml", &format!("{}{}", pod("a", "a", ""), policy("p", "a", "b")));
    let dry = bed.command(&["--dry-run"]).output().unwrap();
    assert!(dry.status.success(), "{}", String::from_utf8_lossy(&dry.stderr));
    let state = sluice_state::State::from_toml(&String::from_utf8(dry.stdout).unwrap()).unwrap();
    assert_eq!((state.pods.len(), state.policy.pods.len()), (1, 1));
    let json = bed.command(&["--dry-run", "--output", "json"]).output().unwrap();
    assert_eq!(sluice_state::State::from_json(&String::from_utf8(json.stdout).unwrap()).unwrap(), state);
    let good = bed.command(&["check"]).output().unwrap();
    assert_eq!(good.status.code(), Some(0));
    let words = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(words.contains("1 pod(s) of this node have a path") && words.contains("0 error(s)"), "{words}");
    bed.write("b.yaml", "a: 1\nb: [\n");
    let bad = bed.command(&["check"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&bad.stdout).contains("b.yaml:3:1: error: "),
        "{}",
        String::from_utf8_lossy(&bad.stdout)
    );
    let bad = bed.command(&["check", "--output", "json"]).output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!((&findings[0]["severity"], &findings[0]["line"]), (&"error".into(), &3.into()));
    assert!(!bed.path("node.toml.allocations.json").exists());
    let mode = bed.command(&["check"]).env("NETWORK_POLICY_ENFORCING_MODE", "lax").output().unwrap();
    assert_eq!(mode.status.code(), Some(3));
    let said = String::from_utf8_lossy(&mode.stderr).into_owned();
    assert!(
        said.contains("NETWORK_POLICY_ENFORCING_MODE: `lax` is refused: one of standard, strict"),
        "{said}"
    );
}

#[test]
fn the_vpc_cnis_variables_reach_the_state() {
    let bed = Bed::new();
    let state = |variables: &[(&str, &str)]| {
        let command =
            bed.command(&["--dry-run", "--output", "json"]).envs(variables.iter().copied()).output();
        let output = command.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (serde_json::from_slice::<sluice_state::State>(&output.stdout).unwrap(), said)
    };
    let (before, _) = state(&[]);
    let (state, said) = state(&[
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "192.0.2.0/24"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "none"),
        ("DISABLE_POD_V6", "true"),
    ]);
    assert!(!before.nat.external_snat && state.nat.external_snat);
    assert_eq!(state.nat.exclude_cidrs, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(state.nat.randomize, sluice_state::RandomizeSnat::None);
    assert!(said.contains("DISABLE_POD_V6=true changes nothing"), "{said}");
    let listed =
        Command::new(env!("CARGO_BIN_EXE_sluice-agent")).arg("env").env("POD_MTU", "1400").output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("set to 1400") && listed.contains("ENABLE_POD_ENI"), "{listed}");
}

#[test]
fn without_a_daemon_it_says_where_it_looked_and_waits() {
    let bed = Bed::new();
    let mut command = bed.command(&[]);
    command.arg("--state-socket").arg(bed.path("none.sock"));
    let agent = Running(command.spawn().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    agent.signal("-TERM");
    let mut agent = agent;
    assert_eq!(agent.end(), Some(0));
    let mut words = String::new();
    std::io::Read::read_to_string(agent.0.stderr.as_mut().unwrap(), &mut words).unwrap();
    assert_eq!(words.matches("no daemon answers at").count(), 1, "once, not at every attempt: {words}");
    assert!(words.contains("none.sock") && words.contains("--state-socket"), "{words}");
}
