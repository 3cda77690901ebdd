//! The image, built and run: daemon and agent as containers of it in the lab's node, by runc, with the capabilities that the
//! chart gives them, a read-only root file system, and nothing else.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize as _;
use serde_json::{Value, json};
use sluice_tests::lab::cni::Sandbox;
use sluice_tests::lab::{Lab, NODE, PEER, eventually, program, tcp_peer};

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

    /// A program that runs another one of the image as a container, with what the chart gives it.
    fn containerized(&self, name: &str, capabilities: &[String], lab: &str, mounts: &[&Path]) -> PathBuf {
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
        let capabilities: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
        let config = json!({
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

/// What the chart adds to a container of a DaemonSet, and that it drops everything else.
fn capabilities(set: &str, container: &str) -> Vec<String> {
    let installed = run(Command::new(root().join("tests/pypi")).arg("chart"));
    drop(installed);
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut helm = Command::new(root().join(target).join("pypi/chart/bin/helm"));
    let rendered = run(helm.args(["template", "sluice"]).arg(root().join("deploy/helm/sluice")));
    let documents = text(&rendered.stdout);
    let objects = serde_yaml_ng::Deserializer::from_str(&documents);
    let objects: Vec<Value> = objects.map(|document| Value::deserialize(document).unwrap()).collect();
    let found = objects.iter().find(|o| o["kind"] == "DaemonSet" && o["metadata"]["name"] == set).unwrap();
    let containers = found["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let context = &containers.iter().find(|c| c["name"] == container).unwrap()["securityContext"];
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().unwrap();
    added.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn daemon_and_agent_run_as_containers_of_the_image_with_the_charts_capabilities() {
    let image = Image::build();
    for name in ["sluiced", "sluice-agent", "sluice-cni", "sluice"] {
        assert!(image.root.join("usr/local/bin").join(name).exists(), "{name}");
    }
    for compiler in ["usr/bin/gcc", "usr/bin/cc", "usr/bin/clang", "usr/bin/ld"] {
        assert!(!image.root.join(compiler).exists(), "{compiler} is in the image");
    }
    let manifests = image.files.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for name in ["p", "q"] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: lab, name: {name}, labels: {{app: {name}}}}}\n\
             spec: {{containers: [{{name: c, image: i}}]}}\n"
        );
        std::fs::write(manifests.join(format!("{name}.yaml")), pod).unwrap();
    }
    let lab_name = format!("t{}ximg", std::process::id());
    let labs = Path::new("/run/sluice-lab");
    std::fs::create_dir_all(labs).unwrap();
    let daemon = image.containerized("sluiced", &capabilities("sluiced", "sluiced"), &lab_name, &[labs]);
    let agent = capabilities("sluice-agent", "agent");
    let agent = image.containerized("sluice-agent", &agent, &lab_name, &[labs, &manifests]);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (daemon, agent, directory) = (path(&daemon), path(&agent), path(&manifests));
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
    eventually("the agent in its container is ready", || lab.path("net.d/05-sluice.conflist").exists());
    let (p, q) = (Sandbox::new(&lab, "p", "p"), Sandbox::new(&lab, "q", "q"));
    let before = lab.stats();
    let (at_p, at_q): (Ipv4Addr, Ipv4Addr) = (p.add(), q.add());
    assert_eq!(*lab.within("p", || tcp_peer(None, lab.address("host-x"), PEER)).ip(), NODE);
    assert_eq!(*lab.within("q", || tcp_peer(None, lab.address("host-v"), PEER)).ip(), at_q);
    assert_ne!(at_p, at_q);
    // The engine carried it, and lost nothing.
    let _ = lab.since(&before);
    let log = std::fs::read_to_string(lab.path("sluiced.log")).unwrap_or_default();
    assert!(!log.contains("CAP_"), "the daemon misses something:\n{log}");
}
