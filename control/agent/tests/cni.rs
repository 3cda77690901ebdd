//! The agent's answers to the CNI plugin, as a process, against a daemon that is told what to answer.
//!
//! Needs root: the socket answers nobody else.

mod support;

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_cni::protocol::{
    Assigned, Attachment, Hello, MAX_MESSAGE, Mac, Pod, Refusal, Reply, Request, VERSION,
};
use sluice_state::framing::{read_message, write_message};
use sluice_state::{Generation, Op};
use support::{Daemon, inventory, pod, policy};

struct Bed {
    files: tempfile::TempDir,
    listener: UnixListener,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn stop(mut self) {
        let done = Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        assert!(done.success());
        self.0.wait().unwrap();
    }
}

impl Bed {
    fn new(addresses: &str) -> Self {
        let root = Command::new("id").arg("-u").output().unwrap();
        assert_eq!(root.stdout, b"0\n", "needs root: the CNI socket answers nobody else");
        let files = tempfile::tempdir().unwrap();
        std::fs::create_dir(files.path().join("m")).unwrap();
        let gateway = "gateway = \"10.0.9.1\"\n";
        let text = inventory(0).replace(gateway, &format!("{gateway}pod_addresses = [{addresses}]\n"));
        std::fs::write(files.path().join("node.toml"), text).unwrap();
        let listener = Daemon::listen(&files.path().join("state.sock"));
        Self { files, listener }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path("m").join(file), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-agent"));
        let flags = [("--manifests", "m"), ("--inventory", "node.toml"), ("--state-socket", "state.sock")];
        for (flag, file) in flags {
            command.arg(flag).arg(self.path(file));
        }
        command.arg("--cni-socket").arg(self.path("cni/agent.sock"));
        command.arg("--cni-conf-dir").arg(self.path("net.d")).args(["--cni-wait", "0"]);
        // The ports of a node are one, and tests are many.
        let web = format!("unix:{}", self.path("web.sock").display());
        command.env("INTROSPECTION_BIND_ADDRESS", web).env("DISABLE_METRICS", "true");
        command.env("IP_COOLDOWN_PERIOD", "0").stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Running {
        // Nobody reads what it says, and a full pipe would stop it.
        Running(self.command().stderr(Stdio::null()).spawn().unwrap())
    }

    /// A page of introspection: status and body.
    fn page(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.path("web.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn plugin(&self) -> Plugin {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(self.path("cni/agent.sock")) {
                Ok(stream) => return Plugin::greet(stream, VERSION).0,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

struct Plugin(UnixStream);

impl Plugin {
    fn greet(mut stream: UnixStream, version: u32) -> (Self, Reply) {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write_message(&mut stream, &Hello { version, plugin: "test".into() }).unwrap();
        let reply = read_message(&mut stream, MAX_MESSAGE).unwrap();
        (Self(stream), reply)
    }

    fn say(&mut self, request: &Request) {
        write_message(&mut self.0, request).unwrap();
    }

    fn hear(&mut self) -> Reply {
        read_message(&mut self.0, MAX_MESSAGE).unwrap()
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.say(request);
        self.hear()
    }

    fn assign(&mut self, container: &str, pod: &str) -> Assigned {
        match self.ask(&assign(container, pod)) {
            Reply::Assigned(assigned) => assigned,
            other => panic!("{other:?}"),
        }
    }

    /// ADD, with the daemon's part.
    fn add(&mut self, daemon: &mut Daemon, container: &str, pod: &str) -> Assigned {
        let assigned = self.assign(container, pod);
        self.say(&attach(container, &assigned));
        while !daemon.take().ops.iter().any(|op| matches!(op, Op::UpsertPod(p) if p.ip == assigned.address)) {
        }
        assert!(matches!(self.hear(), Reply::Attached { .. }));
        assigned
    }
}

fn attachment(container: &str) -> Attachment {
    Attachment { network: "sluice".into(), container: container.into(), interface: "eth0".into() }
}

fn assign(container: &str, name: &str) -> Request {
    let pod = Pod { namespace: "n".into(), name: name.into(), uid: format!("uid-{name}") };
    Request::Assign { attachment: attachment(container), pod, netns: "/run/netns/x".into() }
}

fn attach(container: &str, assigned: &Assigned) -> Request {
    Request::Attach {
        attachment: attachment(container),
        host_interface: assigned.host_interface.clone(),
        host_ifindex: 7,
        mac: Mac([2, 0, 0, 0, 0, 9]),
    }
}

fn release(container: &str) -> Request {
    Request::Release { attachment: attachment(container) }
}

fn refusal(reply: Reply) -> (Refusal, String) {
    match reply {
        Reply::Refused { kind, message } => (kind, message),
        other => panic!("{other:?}"),
    }
}

fn upserts(generation: &Generation) -> Vec<Ipv4Addr> {
    let upserts = generation.ops.iter().filter_map(|op| match op {
        Op::UpsertPod(pod) => Some(pod.ip),
        _ => None,
    });
    upserts.collect()
}

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 20);

#[test]
fn add_returns_when_the_daemon_has_path_and_policy_and_del_ends_both() {
    let bed = Bed::new("\"10.0.9.20\"");
    bed.write("a.yaml", &format!("{}{}", pod("a", "a", ""), policy("only-b", "a", "b")));
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    assert!(daemon.state.pods.is_empty() && daemon.state.policy.pods.is_empty());
    let mut plugin = bed.plugin();
    let assigned = plugin.assign("c1", "a");
    assert_eq!((assigned.address, assigned.eni.as_str()), (FIRST, "eth0"));
    assert!(assigned.host_interface.starts_with("eni") && assigned.host_interface.len() == 14);
    plugin.say(&attach("c1", &assigned));
    plugin.0.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        read_message::<Reply>(&mut plugin.0, MAX_MESSAGE).is_err(),
        "nobody is told before the daemon has acknowledged"
    );
    plugin.0.set_nonblocking(false).unwrap();
    let generation = daemon.take();
    assert_eq!(upserts(&generation), [FIRST]);
    assert_eq!(daemon.state.policy.pods[0].ip, FIRST, "policy and path come together");
    assert_eq!(plugin.hear(), Reply::Attached { generation: generation.number });
    assert!(
        matches!(plugin.ask(&Request::Check { attachment: attachment("c1") }), Reply::Checked(a) if a == assigned)
    );
    let mut del = bed.plugin();
    assert_eq!(del.ask(&release("c1")), Reply::Released { host_interfaces: vec![assigned.host_interface] });
    daemon.take();
    assert!(daemon.state.pods.is_empty() && daemon.state.policy.pods.is_empty());
    assert_eq!(
        del.ask(&release("c1")),
        Reply::Released { host_interfaces: vec![] },
        "the second finds nothing"
    );
    let check = del.ask(&Request::Check { attachment: attachment("c1") });
    assert_eq!(refusal(check).0, Refusal::Unknown);
}

#[test]
fn an_add_that_is_broken_off_gives_its_address_back() {
    let bed = Bed::new("\"10.0.9.20\"");
    bed.write("a.yaml", &format!("{}{}", pod("a", "a", ""), pod("b", "b", "")));
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    let mut killed = bed.plugin();
    killed.assign("c1", "a");
    let (kind, message) = refusal(bed.plugin().ask(&assign("c2", "b")));
    assert_eq!(kind, Refusal::TryAgain);
    assert!(message.contains("no free address") && message.contains("1 of 1 are in use"), "{message}");
    drop(killed);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match bed.plugin().ask(&assign("c2", "b")) {
            Reply::Assigned(assigned) => break assert_eq!(assigned.address, FIRST),
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[test]
fn a_pod_that_nobody_knows_and_one_without_a_path_are_refused_for_now() {
    let bed = Bed::new("\"10.0.9.20\", \"10.0.9.32/28\"");
    bed.write("a.yaml", &pod("a", "a", ""));
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    let mut plugin = bed.plugin();
    let assigned = plugin.assign("c1", "stranger");
    let (kind, message) = refusal(plugin.ask(&attach("c1", &assigned)));
    assert_eq!(kind, Refusal::TryAgain);
    assert!(message.contains("no pod n/stranger of this node is known"), "{message}");
    assert_eq!(
        plugin.ask(&release("c1")),
        Reply::Released { host_interfaces: vec![assigned.host_interface.clone()] }
    );
    let mut wrong = assigned.clone();
    let assigned = plugin.assign("c2", "a");
    wrong.host_interface = "eth7".into();
    assert_eq!(refusal(plugin.ask(&attach("c2", &wrong))).0, Refusal::Invalid);
    plugin.say(&attach("c2", &assigned));
    daemon.take_without_path(assigned.address);
    let (kind, message) = refusal(plugin.hear());
    assert_eq!(kind, Refusal::TryAgain);
    assert!(message.contains("does not lead") && message.contains(&assigned.host_interface), "{message}");
    daemon.take();
    assert!(daemon.state.pods.is_empty(), "what has no path is taken back");
    plugin.say(&attach("c2", &assigned));
    daemon.refuse(1);
    let whole = daemon.refuse(1);
    assert!(matches!(whole.ops[..], [Op::Replace(_)]));
    let (kind, message) = refusal(plugin.hear());
    assert!(kind == Refusal::TryAgain && message.contains("refuses"), "{message}");
    let again = daemon.take();
    assert!(matches!(&again.ops[..], [Op::Replace(state)] if state.pods.is_empty()), "{again:?}");
}

#[test]
fn a_new_sandbox_supersedes_and_a_late_del_of_the_old_one_leaves_it_alone() {
    let bed = Bed::new("\"10.0.9.20\", \"10.0.9.21\"");
    bed.write("a.yaml", &pod("a", "a", ""));
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    let old = bed.plugin().add(&mut daemon, "old", "a");
    let new = bed.plugin().add(&mut daemon, "new", "a");
    assert_eq!(old.host_interface, new.host_interface);
    assert_ne!(old.address, new.address);
    let ips: Vec<_> = daemon.state.pods.iter().map(|pod| pod.ip).collect();
    assert_eq!(ips, [new.address]);
    assert_eq!(bed.plugin().ask(&release("old")), Reply::Released { host_interfaces: vec![] });
    assert!(daemon.is_quiet());
    assert!(matches!(bed.plugin().ask(&Request::Check { attachment: attachment("new") }), Reply::Checked(_)));
}

#[test]
fn gc_ends_what_is_not_listed_in_its_own_network_alone() {
    let bed = Bed::new("\"10.0.9.20\", \"10.0.9.21\", \"10.0.9.22\"");
    bed.write("a.yaml", &["a", "b", "c"].map(|name| pod(name, name, "")).concat());
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    bed.plugin().add(&mut daemon, "c1", "a");
    let gone = bed.plugin().add(&mut daemon, "c2", "b");
    let mut adding = bed.plugin();
    adding.assign("c3", "c");
    let other = Request::Gc { network: "other".into(), valid: vec![] };
    assert_eq!(bed.plugin().ask(&other), Reply::Released { host_interfaces: vec![] });
    let own = Request::Gc { network: "sluice".into(), valid: vec![attachment("c1")] };
    assert_eq!(bed.plugin().ask(&own), Reply::Released { host_interfaces: vec![gone.host_interface] });
    daemon.take();
    assert_eq!(daemon.state.pods.len(), 1);
    let assigned = adding.assign("c3", "c");
    adding.say(&attach("c3", &assigned));
    daemon.take();
    assert!(matches!(adding.hear(), Reply::Attached { .. }), "an ADD under way is nobody's garbage");
}

#[test]
fn the_configuration_comes_with_the_first_ready_and_outlives_the_agent() {
    let bed = Bed::new("\"10.0.9.20\"");
    bed.write("a.yaml", &pod("a", "a", ""));
    let agent = bed.start();
    let (kind, _) = refusal(bed.plugin().ask(&Request::Status));
    assert_eq!(kind, Refusal::NotReady);
    let conflist = bed.path("net.d/05-sluice.conflist");
    assert!(!conflist.exists() && !bed.path("cni/ready").exists());
    let mut daemon = bed.accept();
    daemon.take();
    let deadline = Instant::now() + Duration::from_secs(5);
    while bed.plugin().ask(&Request::Status) != Reply::Ready || !conflist.exists() {
        assert!(Instant::now() < deadline, "never ready");
    }
    let mode = |path: &str| std::fs::metadata(bed.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("cni"), mode("cni/agent.sock")), (0o700, 0o600));
    bed.plugin().add(&mut daemon, "c1", "a");
    agent.stop();
    assert!(conflist.exists() && bed.path("cni/ready").exists() && !bed.path("cni/agent.sock").exists());
    // This pod never had a veth, so a new agent finds it gone and has its address again.
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    assert!(daemon.state.pods.is_empty());
    assert_eq!(bed.plugin().add(&mut daemon, "c2", "a").address, FIRST);
}

#[test]
fn strangers_second_agents_and_plugins_of_another_time_are_refused() {
    let bed = Bed::new("\"10.0.9.20\"");
    let _agent = bed.start();
    drop(bed.plugin());
    let stream = UnixStream::connect(bed.path("cni/agent.sock")).unwrap();
    let (kind, message) = refusal(Plugin::greet(stream, VERSION + 1).1);
    assert_eq!(kind, Refusal::Version);
    assert!(message.contains(&format!("version {}", VERSION + 1)), "{message}");
    let second = bed.command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another agent answers"), "{said}");
    let mut plugin = bed.plugin();
    let nameless = Request::Assign {
        attachment: attachment("c1"),
        pod: Pod { namespace: String::new(), name: String::new(), uid: String::new() },
        netns: PathBuf::new(),
    };
    let (kind, message) = refusal(plugin.ask(&nameless));
    assert!(kind == Refusal::Invalid && message.contains("K8S_POD_NAMESPACE"), "{message}");
    let (kind, _) = refusal(plugin.ask(&assign("../../etc", "a")));
    assert_eq!(kind, Refusal::Invalid);
    // Garbage ends the conversation and nothing else.
    std::io::Write::write_all(&mut plugin.0, b"\x00\x00\x00\x04nono").unwrap();
    assert!(read_message::<Reply>(&mut plugin.0, MAX_MESSAGE).is_err());
    assert_eq!(refusal(bed.plugin().ask(&Request::Status)).0, Refusal::NotReady);
}

#[test]
fn a_hundred_adds_at_once_share_generations() {
    let addresses = (0..7).map(|n| format!("\"10.0.9.{}/28\"", 16 + n * 16)).collect::<Vec<_>>().join(", ");
    let bed = Bed::new(&addresses);
    bed.write("a.yaml", &(0..100).map(|n| pod(&format!("p{n}"), "a", "")).collect::<String>());
    let _agent = bed.start();
    let mut daemon = bed.accept();
    daemon.take();
    let adders: Vec<_> = (0..100)
        .map(|n| {
            let mut plugin = bed.plugin();
            std::thread::spawn(move || {
                let container = format!("c{n}");
                let assigned = plugin.assign(&container, &format!("p{n}"));
                let reply = plugin.ask(&attach(&container, &assigned));
                assert!(matches!(reply, Reply::Attached { .. }), "{reply:?}");
                assigned.address
            })
        })
        .collect();
    let mut generations = 0;
    while daemon.state.pods.len() < 100 {
        daemon.take();
        generations += 1;
    }
    let mut addresses: Vec<_> = adders.into_iter().map(|adder| adder.join().unwrap()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 100, "no address twice");
    assert!(generations <= 100, "{generations}");
}

impl Bed {
    fn accept(&self) -> Daemon {
        Daemon::accept(&self.listener, 0)
    }
}

#[test]
fn introspection_tells_how_the_agent_stands() {
    let bed = Bed::new("\"10.0.9.20\"");
    bed.write("a.yaml", &pod("a", "a", ""));
    let agent = bed.start();
    let mut daemon = bed.accept();
    let mut plugin = bed.plugin();
    assert_eq!(bed.page("GET", "/healthz"), (200, "ok\n".into()));
    // The daemon has been told, and has not answered yet.
    let (status, why) = bed.page("GET", "/readyz");
    assert!(status == 503 && why.contains("sluiced has not accepted"), "{status} {why}");
    daemon.take();
    let container = "c123456789abcdef";
    plugin.add(&mut daemon, container, "a");
    assert_eq!(bed.page("GET", "/readyz").0, 200);
    let (status, pods) = bed.page("GET", "/v1/pods");
    assert!(status == 200 && pods.contains("10.0.9.20") && pods.contains("c123456789a"), "{pods}");
    assert!(!pods.contains(container), "a container's ID opens the runtime's door");
    assert!(!bed.page("GET", "/v1/enis").1.contains(container));
    let refused = plugin.ask(&assign("c2", "b"));
    assert_eq!(refusal(refused).0, Refusal::TryAgain);
    let metrics = bed.page("GET", "/metrics").1;
    for line in [
        "sluice_agent_connected 1",
        "sluice_agent_pods 1",
        "sluice_agent_generations_total{outcome=\"accepted\"} 2",
        "sluice_cni_requests_total{request=\"attach\",outcome=\"ok\"} 1",
        "sluice_cni_add_seconds_count 1",
        "awscni_total_ip_addresses 1",
        "awscni_assigned_ip_addresses 1",
        "awscni_add_ip_req_count 2",
        "awscni_no_available_ip_addresses 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    let (_, settings) = bed.page("GET", "/v1/ipamd-env-settings");
    assert!(
        settings.contains("\"WARM_ENI_TARGET\": \"1\"") && settings.contains("\"IP_COOLDOWN_PERIOD\": \"0\"")
    );
    let listed = bed.page("GET", "/").1;
    for path in listed.lines().filter_map(|line| line.split(' ').next()) {
        assert_eq!(bed.page("GET", path).0, 200, "{path}");
    }
    assert_eq!(bed.page("GET", "/v2").0, 404);
    assert_eq!(bed.page("POST", "/readyz").0, 405);

    drop(daemon);
    let deadline = Instant::now() + Duration::from_secs(10);
    while bed.page("GET", "/readyz").0 == 200 {
        assert!(Instant::now() < deadline, "a daemon that is gone is not noticed");
    }
    assert_eq!(bed.page("GET", "/healthz").0, 200, "restarting the agent would help nobody");
    agent.stop();
    assert!(!bed.path("web.sock").exists());
}
