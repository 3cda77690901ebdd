//! The lab for real: network namespaces are made and must be gone at the end, whatever happened in between.
//! Needs root; without it these tests fail where `CI=true` and say elsewhere that they did not run.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// A lab's name of this process' own, taken down at the end.
struct Lab(String);

impl Lab {
    fn named(what: &str) -> Option<Self> {
        if Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n") {
            return Some(Self(format!("slt{}{what}", std::process::id())));
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "the lab's tests need root");
        eprintln!("NOT RUN: the lab's tests need root");
        None
    }

    fn run(&self, args: &[&str]) -> Output {
        let (first, rest) = args.split_at(2.min(args.len()));
        let mut command = Command::new(SLUICE);
        command.args(first).args(["--name", &self.0]).args(rest);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["lab", "status", "--output", "json"])).unwrap()
    }

    /// Names of what is left of it anywhere.
    fn traces(&self) -> Vec<String> {
        let mut traces: Vec<_> = std::fs::read_dir("/run/netns")
            .map(|entries| entries.flatten().map(|e| e.file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        traces.retain(|name: &String| name.starts_with(&format!("{}-", self.0)));
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        traces.extend(mounts.lines().filter(|l| l.contains(&format!("/{}/", self.0))).map(str::to_owned));
        for path in [format!("/run/sluice-lab/{}", self.0), format!("/run/sluice-lab/{}.lock", self.0)] {
            if Path::new(&path).exists() {
                traces.push(path);
            }
        }
        traces
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run(&["lab", "down"]);
    }
}

#[test]
fn up_status_exec_and_down_do_what_they_say() {
    let Some(lab) = Lab::named("a") else { return };
    lab.ok(&["lab", "up", "--dataplane", "kernel", "--mtu", "3000", "--queues", "2"]);
    let status = lab.status();
    assert_eq!(status["condition"], "up");
    let pod = status["pods"].as_array().unwrap().iter().find(|p| p["name"] == "pod-c").unwrap();
    assert_eq!((pod["address"].as_str(), pod["eni"].as_str()), (Some("10.0.2.20"), Some("eni1")));

    // What is printed is what is there, and `exec` sees that namespace's own /sys.
    let mac = lab.ok(&["lab", "exec", "pod-c", "--", "cat", "/sys/class/net/eth0/address"]);
    assert_eq!(mac.trim(), pod["mac"].as_str().unwrap());
    assert_eq!(lab.ok(&["lab", "exec", "node", "--", "cat", "/sys/class/net/eni1/mtu"]).trim(), "3000");
    let queues = lab.ok(&["lab", "exec", "node", "--", "ls", "/sys/class/net/eni1/queues"]);
    assert_eq!(queues.lines().filter(|l| l.starts_with("rx-")).count(), 2);
    let threaded = lab.ok(&["lab", "exec", "vpc", "--", "cat", "/sys/class/net/eni1/threaded"]);
    assert_eq!(threaded.trim(), "1", "the fabric's end stands for another machine");

    let output = lab.run(&["lab", "exec", "node", "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "exec ends with the code of what it ran");
    let output = lab.run(&["lab", "exec", "pod-zz", "--", "true"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("pod-a"), "the names there are");
    let output = lab.run(&["lab", "up", "--dataplane", "kernel"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is up already"), "a living lab is not touched");
    let output = lab.run(&["demo", "--no-load", "--dataplane", "kernel"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is up already"), "nor does a demo take it");
    assert_eq!(lab.status()["condition"], "up");

    lab.ok(&["lab", "down"]);
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn what_does_not_own_its_source_is_dropped_and_counted() {
    let Some(lab) = Lab::named("b") else { return };
    lab.ok(&["lab", "up", "--dataplane", "kernel"]);
    let drops = || -> Vec<u64> {
        let status = lab.status();
        let enis = status["node"]["enis"].as_array().unwrap().clone();
        enis.iter().map(|e| e["source_check_drops"].as_u64().unwrap()).collect()
    };
    let send = "echo > /dev/udp/10.0.77.7/7";
    lab.ok(&["lab", "exec", "pod-c", "--", "bash", "-c", send]);
    assert_eq!(drops(), [0, 0], "its own address by its own ENI");
    let route = "ip addr add 10.0.2.99/32 dev eth0 && ip route replace default via 169.254.1.1 dev eth0 onlink src 10.0.2.99";
    lab.ok(&["lab", "exec", "pod-c", "--", "bash", "-c", &format!("{route} && {send}")]);
    let deadline = Instant::now() + Duration::from_secs(2);
    while drops() != [1, 0] && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        drops(),
        [1, 0],
        "the node has no rule for that address: it leaves by eni0, which does not own it"
    );
}

#[test]
fn a_killed_up_and_killed_servers_leave_nothing_that_the_next_up_minds() {
    let Some(lab) = Lab::named("c") else { return };
    for wait in [10, 30, 60] {
        let mut up = Command::new(SLUICE)
            .args(["lab", "up", "--dataplane", "kernel", "--name", &lab.0])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        up.kill().unwrap();
        up.wait().unwrap();
        // A killed process' own children end by themselves, on a loaded machine after a while, and make until then what
        // they were told to.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            std::thread::sleep(Duration::from_millis(200));
            lab.ok(&["lab", "down"]);
            if lab.traces().is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "killed after {wait} ms: {:?}", lab.traces());
        }
    }
    lab.ok(&["lab", "up", "--dataplane", "kernel"]);
    let pid = lab.status()["processes"][0]["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(2);
    while lab.run(&["lab", "status"]).status.success() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(lab.run(&["lab", "status"]).status.code(), Some(1), "a lab without its servers is not up");
    lab.ok(&["lab", "up", "--dataplane", "kernel"]);
    assert_eq!(lab.status()["condition"], "up");
}

#[test]
fn ctrl_c_in_the_middle_takes_everything_down_again() {
    let Some(lab) = Lab::named("d") else { return };
    // Many pods, so that there is a middle.
    let up = Command::new(SLUICE)
        .args(["lab", "up", "--dataplane", "kernel", "--pods", "150", "--name", &lab.0])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.traces().len() < 20 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap().success());
    let output = up.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("interrupted") && words.contains("removing what was built"), "{words}");
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn vpc_cnis_own_rules_pass_every_row_of_the_demo() {
    let Some(lab) = Lab::named("e") else { return };
    let output = Command::new(SLUICE)
        .args(["demo", "--no-load", "--dataplane", "iptables", "--output", "json", "--name", &lab.0])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let rows = report["rows"].as_array().unwrap();
    let failed: Vec<_> = rows.iter().filter(|r| r["ok"] != true).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(rows.len() > 100, "{} rows", rows.len());
    assert!(output.status.success());
    assert_eq!(lab.traces(), [""; 0]);
}
