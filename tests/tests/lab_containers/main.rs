//! Real containers: Debian's containerd and runc in the lab's node, asked over CRI as kubelet asks, with the CNI configuration
//! that the agent wrote. Pods come and go through sluice-cni, the agent and the daemon; what containers see decides.

mod cri;

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::{Message, call, fields, number};
use sluice_tests::lab::{Lab, NODE, PEER, connect, eventually, program};
use tokio::runtime::Runtime;

/// Where Debian has the reference plugins: containerd wants loopback, the configuration portmap.
const PLUGINS: &str = "/usr/lib/cni";
/// What sandboxes and containers are made of: one static busybox.
const IMAGE: &str = "localhost/sluice-test:latest";

/// containerd in the lab's node; it ends with this.
struct Bed {
    lab: Lab,
    child: Child,
    files: tempfile::TempDir,
    runtime: Runtime,
}

/// A pod that runs.
struct Pod {
    sandbox: String,
    container: String,
    address: Ipv4Addr,
    config: Message,
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: lab, name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{containers: [{{name: c, image: i}}]}}\n"
    )
}

impl Bed {
    fn up(tag: &str, pods: &[&str], more: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let manifests = files.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        for name in pods {
            std::fs::write(manifests.join(format!("{name}.yaml")), pod(name)).unwrap();
        }
        std::fs::write(manifests.join("more.yaml"), more).unwrap();
        let directory = manifests.to_str().unwrap();
        let lab = Lab::up(tag, &["--pods", "0", "--spare-addresses", "6", "--manifests", directory]);
        eventually("the CNI configuration is there", || lab.path("net.d/05-sluice.conflist").exists());
        let path = |name: &str| files.path().join(name);
        std::fs::create_dir(path("bin")).unwrap();
        for plugin in ["loopback", "portmap"] {
            std::os::unix::fs::symlink(Path::new(PLUGINS).join(plugin), path("bin").join(plugin)).unwrap();
        }
        std::os::unix::fs::symlink(program("sluice-cni"), path("bin/sluice-cni")).unwrap();
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\n\
             restrict_oom_score_adj = true\nstream_server_address = \"127.0.0.1\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {bin:?}\nconf_dir = {conf:?}\n",
            root = path("root"),
            state = path("state"),
            socket = path("containerd.sock"),
            bin = path("bin"),
            conf = lab.path("net.d"),
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let log = std::fs::File::create(path("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(path("config.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = lab.within("node", || command.spawn().expect("containerd starts (Debian: containerd)"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bed = Self { lab, child, files, runtime };
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = bed.call("Version", &Message::default()) {
            assert!(Instant::now() < deadline, "{error}\n{}", bed.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        bed.import();
        bed
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join("containerd.log")).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.files.path().join("containerd.sock")
    }

    fn call(&self, method: &str, message: &Message) -> Result<Vec<u8>, String> {
        self.runtime.block_on(async {
            let patience = Duration::from_secs(60);
            let called = tokio::time::timeout(patience, call(&self.socket(), method, message)).await;
            called.unwrap_or_else(|_| Err(format!("{method}: no answer in {} s", patience.as_secs())))
        })
    }

    #[track_caller]
    fn must(&self, method: &str, message: &Message) -> Vec<u8> {
        self.call(method, message).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// An image of one static busybox, made and imported.
    fn import(&self) {
        let store = self.files.path().join("images");
        let buildah = |arguments: &[&str]| {
            let mut command = Command::new("buildah");
            command.args(["--storage-driver", "vfs", "--root"]).arg(store.join("store"));
            command.arg("--runroot").arg(store.join("run")).args(arguments);
            run(&mut command).trim().to_owned()
        };
        let container = buildah(&["from", "scratch"]);
        buildah(&["copy", "-q", &container, "/bin/busybox", "/bin/busybox"]);
        buildah(&["config", "--cmd", "[\"/bin/busybox\",\"sleep\",\"100000\"]", &container]);
        buildah(&["commit", "-q", "--rm", &container, IMAGE]);
        let archive = store.join("image.tar");
        buildah(&["push", "-q", IMAGE, &format!("docker-archive:{}:{IMAGE}", archive.display())]);
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.socket()).args([
            "--namespace",
            "k8s.io",
            "images",
            "import",
            "--snapshotter",
            "native",
        ]);
        run(ctr.arg(&archive));
        // CRI lists what containerd has a moment later.
        std::thread::sleep(Duration::from_millis(500));
    }

    fn sandbox_config(name: &str, attempt: u64) -> Message {
        let metadata = Message::default()
            .bytes(1, name)
            .bytes(2, format!("uid-{name}"))
            .bytes(3, "lab")
            .number(4, attempt);
        // What the chained portmap plugin is given: the node's port 8088 leads to this pod's own.
        let port = Message::default().number(2, u64::from(PEER)).number(3, 8088);
        let config = Message::default().message(1, &metadata).bytes(2, name);
        let config = if name == "open" { config.message(5, &port) } else { config };
        config.message(8, &Message::default())
    }

    /// A pod whose container runs a script of busybox's shell from its first instruction on.
    fn try_start(&self, name: &str, attempt: u64, script: &str) -> Result<Pod, String> {
        let config = Self::sandbox_config(name, attempt);
        let answer = self.call("RunPodSandbox", &Message::default().message(1, &config))?;
        let sandbox = text(&fields(&answer, 1)[0]);
        let metadata = Message::default().bytes(1, "c").number(2, attempt);
        let container = Message::default()
            .message(1, &metadata)
            .message(2, &Message::default().bytes(1, IMAGE))
            .bytes(3, "/bin/busybox")
            .bytes(3, "sh")
            .bytes(4, "-c")
            .bytes(4, format!("{script}\nexec /bin/busybox sleep 100000"))
            .message(15, &Message::default());
        let create = Message::default().bytes(1, &sandbox).message(2, &container).message(3, &config);
        let answer = self.must("CreateContainer", &create);
        let container = text(&fields(&answer, 1)[0]);
        self.must("StartContainer", &Message::default().bytes(1, &container));
        let status = self.must("PodSandboxStatus", &Message::default().bytes(1, &sandbox));
        let network = &fields(&fields(&status, 1)[0], 5)[0];
        let address = text(&fields(network, 1)[0]).parse().unwrap();
        Ok(Pod { sandbox, container, address, config })
    }

    #[track_caller]
    fn start(&self, name: &str, attempt: u64, script: &str) -> Pod {
        let started = self.try_start(name, attempt, script);
        started.unwrap_or_else(|error| panic!("pod {name}: {error}\n{}", self.log()))
    }

    /// Runs a script in a pod's container: its exit code and what it printed.
    fn exec(&self, pod: &Pod, script: &str) -> (u64, String) {
        let message = Message::default()
            .bytes(1, &pod.container)
            .bytes(2, "/bin/busybox")
            .bytes(2, "sh")
            .bytes(2, "-c")
            .bytes(2, script)
            .number(3, 10);
        let answer = self.must("ExecSync", &message);
        let out = fields(&answer, 1).first().map(|bytes| text(bytes)).unwrap_or_default();
        (number(&answer, 3), out)
    }

    /// The address that a server of port 8 sees of a pod.
    fn seen(&self, pod: &Pod, to: Ipv4Addr) -> String {
        let (_, said) =
            self.exec(pod, &format!("echo | /bin/busybox nc -w 3 {to} {PEER} | /bin/busybox head -n 1"));
        said.split(':').next().unwrap_or_default().trim().to_owned()
    }

    fn stop(&self, pod: &Pod) {
        let id = Message::default().bytes(1, &pod.sandbox);
        self.must("StopPodSandbox", &id);
        self.must("RemovePodSandbox", &id);
    }

    fn paths(&self) -> Vec<Ipv4Addr> {
        let pods = sluice_tests::node::pods(&self.lab);
        pods.iter().map(|pod| pod["ip"].as_str().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Sandboxes outlive containerd, and with them their processes.
        let list = self.call("ListPodSandbox", &Message::default()).unwrap_or_default();
        for sandbox in fields(&list, 1) {
            let id = fields(&sandbox, 1).first().cloned().unwrap_or_default();
            let _ = self.call("StopPodSandbox", &Message::default().bytes(1, &id));
            let _ = self.call("RemovePodSandbox", &Message::default().bytes(1, &id));
        }
        let pid = i32::try_from(self.child.id()).unwrap_or(0);
        sluice_tests::lab::signal(pid, sluice_tests::lab::Signal::SIGTERM);
        let _ = self.child.wait();
        for mount in ["root", "state"] {
            let _ = Command::new("umount")
                .args(["-R", "-l"])
                .arg(self.files.path().join(mount))
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Pods `q` take nothing but from pods `p`.
const ONLY_P: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: lab, name: only-p}\n\
    spec: {podSelector: {matchLabels: {app: q}}, ingress: [{from: [{podSelector: {matchLabels: {app: p}}}]}]}\n";

#[test]
fn containers_speak_through_sluice_from_their_first_instruction_on() {
    let bed = Bed::up("ctr", &["p", "q", "r", "open"], ONLY_P);
    let serve = format!("while true; do echo hello | /bin/busybox nc -l -p {PEER}; done &");
    let q = bed.start("q", 0, &serve);
    // The very first thing that either does is to send: one is let in, the other never is.
    let send = format!("/bin/busybox nc -w 2 {} {PEER} </dev/null >/out; echo $? >/code", q.address);
    let p = bed.start("p", 0, &send);
    let r = bed.start("r", 0, &send);
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(bed.exec(&p, "/bin/busybox cat /out /code").1, "hello\n0\n", "{}", bed.log());
    assert_eq!(bed.exec(&r, "/bin/busybox cat /out").1, "", "r is not among those that q takes");

    assert_eq!(bed.seen(&p, bed.lab.address("host-v")), p.address.to_string());
    assert_eq!(bed.seen(&p, bed.lab.address("host-x")), NODE.to_string());
    assert_eq!(bed.seen(&r, bed.lab.address("host-x")), NODE.to_string());
    assert_eq!(bed.lab.source_check_drops(), 0);

    // The sandbox is made again under the pod's name while the old one is there, as after a crash; the old one goes late.
    let again = bed.start("p", 1, "true");
    assert_ne!(again.address, p.address);
    assert_eq!(bed.seen(&again, bed.lab.address("host-v")), again.address.to_string());
    bed.stop(&p);
    assert_eq!(
        bed.seen(&again, bed.lab.address("host-v")),
        again.address.to_string(),
        "a late DEL leaves the new one alone"
    );
    let paths = bed.paths();
    assert!(paths.contains(&again.address) && !paths.contains(&p.address), "{paths:?}");

    // Deleted and made again: the address cools down.
    bed.stop(&r);
    eventually("r has no path", || !bed.paths().contains(&r.address));
    let r_again = bed.start("r", 1, "true");
    assert_ne!(r_again.address, r.address);
    assert_eq!(bed.seen(&r_again, bed.lab.address("host-v")), r_again.address.to_string());

    // The chained portmap plugin: a client from outside comes in by the node's port, through the kernel's rules and back.
    let open = bed.start("open", 0, &serve);
    let through = || {
        bed.lab.within("host-x", || {
            let to = SocketAddrV4::new(NODE, 8088);
            let mut said = String::new();
            let stream = connect(None, to, Duration::from_secs(1));
            stream.is_ok_and(|mut stream| stream.read_to_string(&mut said).is_ok() && said == "hello\n")
        })
    };
    eventually("the node's port leads to the pod", through);
    bed.stop(&open);
    assert!(!through(), "a port goes with its pod");

    // A pod that nobody knows gets no network, and its sandbox none of it.
    let error = bed.try_start("stranger", 0, "true").err().expect("no network");
    assert!(error.contains("lab/stranger"), "{error}");
    let _ = &again.config;
}
