//! The image, built and run: daemon and agent as containers of it in the lab's node, by runc, with the capabilities and the
//! seccomp profiles that the chart gives them, a read-only root file system, and nothing else. The agent's container is
//! replaced by its next one under traffic.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize as _;
use serde_json::{Value, json};
use sluice_tests::lab::cni::{Sandbox, address, answered};
use sluice_tests::lab::{
    Echoes, Lab, NODE, PATIENCE, PEER, Running, connect, eventually, greeting, is_open, program, tcp_peer,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The image's file system, mounted; it goes with this.
struct Image {
    files: tempfile::TempDir,
    container: String,
    root: PathBuf,
}

impl Image {
    /// Builds the image from the programs beside this test, as `make image` does from those of a release.
    fn build() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "needs root: mmdebstrap and buildah make a root file system"
        );
        let files = tempfile::tempdir().unwrap();
        let programs = program("sluiced").parent().unwrap().to_owned();
        let mut build = Command::new(root().join("deploy/image/build"));
        run(build.arg(&programs).arg("sluice:test").current_dir(files.path()));
        let archive = files.path().join("target/image/sluice.tar");
        assert!(archive.metadata().unwrap().len() > 10 << 20, "an image has more in it");
        let mut image = Self { files, container: String::new(), root: PathBuf::new() };
        image.container = image.buildah(&["from", "--pull-never", "sluice:test"]);
        image.root = image.buildah(&["mount", &image.container]).into();
        image
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let store = self.files.path().join("target/image");
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "vfs", "--root"]).arg(store.join("store"));
        command.arg("--runroot").arg(store.join("run")).args(arguments);
        text(&run(&mut command).stdout).trim().to_owned()
    }

    /// containerd's default seccomp profile, as it is for a container without capabilities that widen it.
    fn default_seccomp(&self) -> Value {
        let files = self.files.path().join("containerd");
        std::fs::create_dir(&files).unwrap();
        let path = |name: &str| files.join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let mut containerd = Command::new("containerd");
        containerd.arg("--config").arg(path("config.toml")).stdin(Stdio::null());
        containerd.stdout(Stdio::null()).stderr(std::fs::File::create(path("log")).unwrap());
        let containerd = Running(containerd.spawn().expect("containerd starts (Debian: containerd)"));
        eventually("containerd answers", || path("socket").exists());
        let ctr = |arguments: &[&str]| {
            let mut ctr = Command::new("ctr");
            text(&run(ctr.arg("--address").arg(path("socket")).args(["containers"]).args(arguments)).stdout)
        };
        // Of what `ctr` gives, the one capability that lets the profile allow more.
        ctr(&["create", "--seccomp", "--cap-drop", "CAP_SYS_CHROOT", "--rootfs", "/", "agent", "true"]);
        let info: Value = serde_json::from_str(&ctr(&["info", "agent"])).unwrap();
        ctr(&["rm", "agent"]);
        containerd.stop();
        let profile = info["Spec"]["linux"]["seccomp"].clone();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO", "{info}");
        assert!(!profile.to_string().contains("\"bpf\""), "it is the profile that has no bpf(2)");
        profile
    }

    /// A program that runs another one of the image as a container, with what the chart gives it.
    fn containerized(&self, name: &str, given: &Given, lab: &str, mounts: &[&Path]) -> PathBuf {
        let bundle = self.files.path().join(name);
        std::fs::create_dir(&bundle).unwrap();
        let mut binds = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
            json!({ "destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"] }),
        ];
        binds.extend(mounts.iter().map(
            |path| json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"] }),
        ));
        if name == "sluiced" {
            let tun = "/dev/net/tun";
            binds.push(json!({ "destination": tun, "type": "bind", "source": tun, "options": ["bind"] }));
        }
        let capabilities: Vec<String> = given.capabilities.iter().map(|name| format!("CAP_{name}")).collect();
        let seccomp = match given.seccomp.as_str() {
            "RuntimeDefault" => self.default_seccomp(),
            "Unconfined" => Value::Null,
            other => panic!("{name} has the seccomp profile {other}"),
        };
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "noNewPrivileges": true,
                "args": ["ARGUMENTS"],
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "IP_COOLDOWN_PERIOD=1"],
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities, "inheritable": [],
                },
            },
            "root": { "path": self.root, "readonly": true },
            "mounts": binds,
            "linux": {
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network", "path": format!("/run/netns/{lab}-node") },
                ],
                "resources": { "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm" },
                ] },
            },
        });
        if !seccomp.is_null() {
            config["linux"]["seccomp"] = seccomp;
        }
        std::fs::write(bundle.join("template.json"), config.to_string()).unwrap();
        // The arguments are those that the lab gives the program.
        let script = format!(
            "#!/bin/sh\nset -e\nargs='\"/usr/local/bin/{name}\"'\nfor a in \"$@\"; do args=\"$args,\\\"$a\\\"\"; done\n\
             sed \"s|\\\"ARGUMENTS\\\"|$args|\" {bundle}/template.json > {bundle}/config.json\n\
             exec runc --root {bundle}/state run --bundle {bundle} {lab}-{name}\n",
            bundle = bundle.display()
        );
        let program = self.files.path().join(format!("{name}-in-a-container"));
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if !self.container.is_empty() {
            self.buildah(&["umount", &self.container]);
            self.buildah(&["rm", &self.container]);
        }
    }
}

/// What the chart gives a container.
struct Given {
    capabilities: Vec<String>,
    seccomp: String,
}

/// What the chart gives a container of a DaemonSet; it drops every capability but those.
fn given(set: &str, container: &str) -> Given {
    let installed = run(Command::new(root().join("tests/pypi")).arg("chart"));
    drop(installed);
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut helm = Command::new(root().join(target).join("pypi/chart/bin/helm"));
    let rendered = run(helm.args(["template", "sluice"]).arg(root().join("deploy/helm/sluice")));
    let documents = text(&rendered.stdout);
    let objects = serde_yaml_ng::Deserializer::from_str(&documents);
    let objects: Vec<Value> = objects.map(|document| Value::deserialize(document).unwrap()).collect();
    let found = objects.iter().find(|o| o["kind"] == "DaemonSet" && o["metadata"]["name"] == set).unwrap();
    let pod = &found["spec"]["template"]["spec"];
    let containers = pod["containers"].as_array().unwrap();
    let context = &containers.iter().find(|c| c["name"] == container).unwrap()["securityContext"];
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().unwrap();
    let capabilities = added.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    // A container's own goes over its pod's.
    let profiles = [context, &pod["securityContext"]].map(|context| &context["seccompProfile"]["type"]);
    let seccomp = profiles.iter().find_map(|profile| profile.as_str()).expect("a seccomp profile");
    Given { capabilities, seccomp: seccomp.to_owned() }
}

#[test]
fn daemon_and_agent_run_as_the_charts_containers_and_the_agents_is_replaced_under_traffic() {
    let image = Image::build();
    for name in ["sluiced", "sluice-agent", "sluice-cni", "sluice"] {
        assert!(image.root.join("usr/local/bin").join(name).exists(), "{name}");
    }
    for compiler in ["usr/bin/gcc", "usr/bin/cc", "usr/bin/clang", "usr/bin/ld"] {
        assert!(!image.root.join(compiler).exists(), "{compiler} is in the image");
    }
    let manifests = image.files.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for name in ["p", "q", "r"] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: lab, name: {name}, labels: {{app: {name}}}}}\n\
             spec: {{containers: [{{name: c, image: i}}]}}\n"
        );
        std::fs::write(manifests.join(format!("{name}.yaml")), pod).unwrap();
    }
    let lab_name = format!("t{}ximg", std::process::id());
    let labs = Path::new("/run/sluice-lab");
    std::fs::create_dir_all(labs).unwrap();
    let daemon = image.containerized("sluiced", &given("sluiced", "sluiced"), &lab_name, &[labs]);
    let agent = given("sluice-agent", "agent");
    assert_eq!(agent.seccomp, "RuntimeDefault");
    let agent_program = image.containerized("sluice-agent", &agent, &lab_name, &[labs, &manifests]);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (daemon, agent, directory) = (path(&daemon), path(&agent_program), path(&manifests));
    let lab = Lab::up(
        "img",
        &[
            "--pods",
            "0",
            "--spare-addresses",
            "4",
            "--manifests",
            &directory,
            "--sluiced",
            &daemon,
            "--agent",
            &agent,
        ],
    );
    assert_eq!(lab.name(), lab_name);
    lab.has_a_conflist();
    let [p, q, r] = ["p", "q", "r"].map(|name| Sandbox::new(&lab, name, name));
    let before = lab.stats();
    let (at_p, at_q): (Ipv4Addr, Ipv4Addr) = (p.add(), q.add());
    assert_eq!(*lab.within("p", || tcp_peer(None, lab.address("host-x"), PEER)).ip(), NODE);
    assert_eq!(*lab.within("q", || tcp_peer(None, lab.address("host-v"), PEER)).ip(), at_q);
    assert_ne!(at_p, at_q);

    let mut state = Command::new("runc");
    state.arg("--root").arg(image.files.path().join("sluice-agent/state")).arg("state");
    let state: Value =
        serde_json::from_str(&text(&run(state.arg(format!("{lab_name}-sluice-agent"))).stdout)).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", state["pid"])).unwrap();
    assert!(status.contains("Seccomp:\t2"), "the agent is held to its profile:\n{status}");

    // The next release of the agent: its container comes after the old one has ended, the daemon's stays, and so does every packet.
    let (daemon, load) = (lab.pid("sluiced"), Echoes::start(&lab, "p"));
    let mut stream =
        lab.within("q", || connect(None, SocketAddrV4::new(lab.address("host-x"), PEER), PATIENCE).unwrap());
    greeting(&mut stream).unwrap();
    lab.stop_agent();
    let adding = r.begin("ADD", &r.configuration("1.0.0"));
    let mut next = lab.agent(&agent_program);
    next.arg("--manifests").arg(&manifests).arg("--inventory").arg(lab.path("inventory.toml"));
    let next = lab.on_the_node(&mut next);
    let at_r = address(
        &answered(&adding.wait_with_output().unwrap())
            .unwrap_or_else(|error| panic!("{error}; the agent says {}", lab.agent_log())),
    );
    assert!(at_r != at_p && at_r != at_q);
    assert!(is_open(&mut stream));
    load.lost_none(100);
    assert_eq!(lab.pid("sluiced"), daemon);
    p.del();
    eventually("what a DEL asks of the next agent is done", || {
        sluice_tests::node::pods(&lab).iter().all(|pod| pod["ip"] != at_p.to_string())
    });
    next.stop();

    // The engine carried it, and lost nothing.
    let _ = lab.since(&before);
    let log = std::fs::read_to_string(lab.path("sluiced.log")).unwrap_or_default();
    assert!(!log.contains("CAP_"), "the daemon misses something:\n{log}");
}
