//! The Helm chart as Helm renders it: linted, held against Kubernetes' schemas, and against what docs/deploy.md promises.
//! `UPDATE_DOCS=1` writes the table of settings anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize as _;
use serde_json::Value;
use sluice_tests::lab::{Lab, program};

/// Values that change every setting.
const EVERYTHING: &str = r#"
agent:
  image: {repository: 111122223333.dkr.ecr.eu-central-1.amazonaws.com/sluice-agent, tag: v1.2.3, pullPolicy: Always}
  env: {AWS_VPC_K8S_CNI_EXTERNALSNAT: true, WARM_ENI_TARGET: 2, ENI_CONFIG_LABEL_DEF: topology.kubernetes.io/zone}
  extraArgs: ["--on-policy-change=keep"]
  resources: {requests: {cpu: 50m}, limits: {memory: 300Mi}}
  serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::111122223333:role/sluice"}}
daemon:
  image: {repository: other/sluiced, tag: "2026", pullPolicy: Never}
  keepOnExit: false
  log: sluiced=debug
  extraArgs: ["--workers=4"]
  resources: {requests: {cpu: 200m}}
cni: {binDir: /usr/libexec/cni, confDir: /etc/cni/conf.d}
imagePullSecrets: [{name: registry}]
maxUnavailable: 1
podLabels: {team: network}
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// A program of the pinned packages.
fn tool(name: &str) -> Command {
    let installed = Command::new(root().join("tests/pypi")).arg("chart").output().expect("tests/pypi runs");
    assert!(installed.status.success(), "tests/pypi chart: {}", String::from_utf8_lossy(&installed.stderr));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Command::new(root().join(target).join("pypi/chart/bin").join(name))
}

fn helm_on(chart: &Path, arguments: &[&str], values: &str) -> Output {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
    std::fs::write(file.path(), values).expect("the values are written");
    let mut command = tool("helm");
    command.args(arguments).arg(chart).arg("--values").arg(file.path());
    command.args(["--namespace", "kube-system"]).output().expect("helm runs")
}

fn helm(arguments: &[&str], values: &str) -> Output {
    helm_on(&root().join("deploy/helm/sluice"), arguments, values)
}

fn rendered(values: &str) -> String {
    let output = helm(&["template", "sluice"], values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("helm writes UTF-8")
}

fn objects(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let parsed = documents.map(|document| Value::deserialize(document).expect("YAML"));
    parsed.filter(|object| !object.is_null()).collect()
}

fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Every container of a DaemonSet, init containers first.
fn containers(set: &Value) -> Vec<&Value> {
    let pod = &set["spec"]["template"]["spec"];
    ["initContainers", "containers"].iter().flat_map(|kind| pod[kind].as_array().expect("a list")).collect()
}

fn words(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/deploy.md")).expect("docs/deploy.md")
}

/// The rows of the table below a heading of docs/deploy.md, cell by cell, without backticks.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = |line: &str| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>()
    };
    section.lines().filter(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

#[test]
fn it_is_linted_and_every_object_is_kubernetes_own() {
    for values in ["", EVERYTHING] {
        let lint = helm(&["lint", "--strict"], values);
        assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
        let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
        let output = helm(&["template", "sluice", "--include-crds"], values);
        std::fs::write(file.path(), &output.stdout).expect("the objects are written");
        for version in ["1.31.0", "1.36.0"] {
            let mut validate = tool("kubernetes-validate");
            let result =
                validate.args(["--strict", "-k", version]).arg(file.path()).output().expect("it runs");
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&result.stdout),
                String::from_utf8_lossy(&result.stderr)
            );
            assert!(result.status.success(), "{said}");
            assert_eq!(said.matches("passed for resource").count(), 9, "{said}");
        }
    }
}

#[test]
fn capabilities_are_those_documented_and_one_container_is_privileged() {
    let objects = objects(&rendered(EVERYTHING));
    let mut found = BTreeMap::new();
    for name in ["sluice-agent", "sluiced"] {
        for container in containers(object(&objects, "DaemonSet", name)) {
            let context = &container["securityContext"];
            let key = format!("{name}/{}", container["name"].as_str().expect("a name"));
            assert_eq!(context["readOnlyRootFilesystem"], true, "{key}");
            if context["privileged"] == true {
                found.insert(key, BTreeSet::from(["privileged"]));
                continue;
            }
            assert_eq!(words(&context["capabilities"]["drop"]), BTreeSet::from(["ALL"]), "{key}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{key}");
            found.insert(key, words(&context["capabilities"]["add"]));
        }
    }
    let text = document();
    let mut promised: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows(&text, "Capabilities") {
        assert!(row[2].len() > 10, "no reason for {row:?}");
        let container = promised.entry(row[0].clone()).or_default();
        container.extend((row[1] != "none").then(|| row[1].clone()));
    }
    let found: BTreeMap<_, BTreeSet<_>> =
        found.into_iter().map(|(k, v)| (k, v.into_iter().map(str::to_owned).collect())).collect();
    assert_eq!(found, promised);
    assert_eq!(found["sluiced/node"], BTreeSet::from(["privileged".to_owned()]));
    assert_eq!(found.values().filter(|set| set.contains("privileged")).count(), 1);
}

/// The daemon's capabilities by setpriv(1)'s names: `+net_admin,+net_raw`.
fn granted(added: &[&str]) -> String {
    let names = added.iter().map(|name| format!(",+{}", name.to_lowercase()));
    names.collect::<String>()
}

/// A program that runs sluiced with these capabilities only, as a container of root's would have them.
fn confined(folder: &Path, added: &[&str]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("sluiced");
    let (grant, sluiced) = (granted(added), program("sluiced"));
    let text = format!(
        "#!/bin/sh\nulimit -l 8192\nexec setpriv --bounding-set=-all{grant} --inh-caps=-all{grant} {} \"$@\"\n",
        sluiced.display()
    );
    std::fs::write(&path, text).expect("the program is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it may be run");
    path
}

#[test]
fn the_daemon_carries_packets_with_the_charts_capabilities_and_not_with_one_less() {
    let objects = objects(&rendered(""));
    let daemon = containers(object(&objects, "DaemonSet", "sluiced"))[1];
    let added: Vec<&str> = words(&daemon["securityContext"]["capabilities"]["add"]).into_iter().collect();
    let folder = tempfile::tempdir().expect("a folder");
    let sluiced = confined(folder.path(), &added);
    let lab = Lab::up("chart", &["--sluiced", sluiced.to_str().expect("a plain path")]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.pid("sluiced"))).expect("it runs");
    let effective =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities").trim();
    let bits = u64::from_str_radix(effective, 16).expect("a number").count_ones();
    assert_eq!(bits as usize, added.len(), "{effective}");
    lab.sh("pod-a", &format!("ping -c 3 -i 0.2 -W 5 {}", lab.address("host-x")));
    let log = std::fs::read_to_string(lab.path("logs/sluiced.log")).unwrap_or_default();
    assert!(!log.contains("CAP_"), "the daemon misses something:\n{log}");
    drop(lab);
    // Each of them is needed: the daemon says so by name.
    for without in &added {
        let fewer: Vec<&str> = added.iter().copied().filter(|name| name != without).collect();
        let sluiced = confined(folder.path(), &fewer);
        let mut run = Command::new("timeout");
        run.arg("2").arg(sluiced).args(["run", "--run-dir"]).arg(folder.path().join("run"));
        run.arg("--bpffs").arg(folder.path().join("none"));
        let output = run.output().expect("timeout runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match *without {
            // Without it the workers run at an ordinary niceness; it is asked for once there are some.
            "SYS_NICE" => {}
            name => assert!(said.contains(&format!("CAP_{name}")), "without {name}: {said}"),
        }
    }
}

#[test]
fn the_daemon_knows_every_argument_that_it_is_given() {
    let objects = objects(&rendered(""));
    let daemon = containers(object(&objects, "DaemonSet", "sluiced"))[1];
    let help = Command::new(program("sluiced")).args(["run", "--help"]).output().expect("sluiced runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for argument in words(&daemon["args"]).into_iter().filter(|argument| argument.starts_with("--")) {
        let name = argument.split('=').next().unwrap_or_default();
        assert!(help.contains(&format!("{name} ")) || help.contains(&format!("{name}\n")), "{name}: {help}");
    }
    let probe = words(&daemon["readinessProbe"]["exec"]["command"]);
    let help = Command::new(program("sluice")).args(["stats", "--help"]).output().expect("sluice runs");
    assert!(probe.contains("stats") && String::from_utf8_lossy(&help.stdout).contains("--run-dir"));
}

#[test]
fn the_agent_knows_every_argument_that_it_is_given() {
    let objects = objects(&rendered(""));
    let all = containers(object(&objects, "DaemonSet", "sluice-agent"));
    let agent = all.last().expect("the agent");
    let help = Command::new(program("sluice-agent")).arg("--help").output().expect("sluice-agent runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for argument in words(&agent["args"]).into_iter().filter(|argument| argument.starts_with("--")) {
        let name = argument.split('=').next().unwrap_or_default();
        assert!(help.contains(&format!("{name} ")) || help.contains(&format!("{name}\n")), "{name}: {help}");
    }
}

#[test]
fn the_watches_get_by_with_the_charts_roles() {
    use sluice_kube::cluster::{Cluster, EniConfigStanding, Options, Server, Standing, Unready};
    use sluice_kube::manifests::{Finding, Severity, Topic};
    use sluice_tests::fakes::kubernetes::FakeApiServer;
    use sluice_tests::fakes::kubernetes::kinds;
    use sluice_tests::fakes::kubernetes::rbac::User;
    let server = FakeApiServer::start().expect("a server");
    server.apply(&serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-system" } }))
        .expect("the namespace");
    for object in objects(&rendered("")) {
        if object["apiVersion"].as_str().is_some_and(|version| version.starts_with("rbac.")) {
            server.apply(&object).unwrap_or_else(|error| panic!("{object}: {error:?}"));
        }
    }
    server.user("token", User::named("system:serviceaccount:kube-system:sluice-agent"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: s, user: u, namespace: kube-system}}}}]\n\
         clusters: [{{name: s, cluster: {{server: \"{}\"}}}}]\nusers: [{{name: u, user: {{token: token}}}}]\n",
        server.url()
    );
    std::fs::write(file.path(), kubeconfig).expect("the kubeconfig is written");
    let (tell, news) = std::sync::mpsc::channel();
    let options = Options {
        server: Server::Kubeconfig(file.path().to_owned()),
        endpoint: None,
        node: "n".into(),
        instance: "agent".into(),
        watch_seconds: 60,
    };
    let cluster = Cluster::start(&options, move |news| tell.send(news).is_ok()).expect("it starts");
    let told = news.recv_timeout(std::time::Duration::from_secs(20)).expect("something is told");
    assert!(told.synced, "refused: {:?}", told.findings);
    assert!(!cluster.fetch_pod("kube-system", "p", std::time::Duration::from_secs(5)).expect("it may ask"));

    // What operators must know is written under the same rights: Event, condition, an ENIConfig's status, the Lease for it.
    for object in [
        serde_json::json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } }),
        serde_json::json!({
            "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
            "metadata": { "name": "default" }, "spec": { "subnet": "subnet-1" },
        }),
    ] {
        server.apply(&object).expect("it is taken");
    }
    let why = "no such subnet".to_owned();
    let topic = Topic { name: "default".into(), kind: "ENIConfig", ..Topic::node("ENIConfigUnusable", "") };
    cluster.announce(Standing {
        unready: Some(Unready { reason: "ENIConfigUnusable", message: why.clone() }),
        findings: vec![Finding::new(Severity::Error, why.as_str()).about(topic)],
        eni_config: Some(EniConfigStanding { name: "default".into(), problem: Some(why) }),
    });
    let get = |group: &str, version: &str, plural: &str, name: &str| {
        let kind = kinds::of_path(group, version, plural).expect("a kind");
        server
            .world(|world| world.object(kind, "", name).map(|object| object.value(kind)))
            .expect("an object")
    };
    let told = || {
        let config = get("crd.k8s.amazonaws.com", "v1alpha1", "eniconfigs", "default");
        let node = get("", "v1", "nodes", "n");
        let events = kinds::of_path("events.k8s.io", "v1", "events").expect("a kind");
        let lease = kinds::of_path("coordination.k8s.io", "v1", "leases").expect("a kind");
        let (events, leases) = server.world(|world| {
            (world.store.table(events).len(), world.store.table(lease).range("kube-system").count())
        });
        (config["status"]["conditions"][0]["status"] == "False")
            && node["status"]["conditions"][0]["reason"] == "ENIConfigUnusable"
            && (events, leases) == (1, 1)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !told() {
        assert!(std::time::Instant::now() < deadline, "not everything is told");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn rights_are_those_documented_and_none_more() {
    let objects = objects(&rendered(""));
    let mut found = BTreeSet::new();
    for kind in ["ClusterRole", "Role"] {
        for rule in object(&objects, kind, "sluice-agent")["rules"].as_array().expect("rules") {
            let verbs = words(&rule["verbs"]).into_iter().collect::<Vec<_>>().join(", ");
            for group in words(&rule["apiGroups"]) {
                let group = if group.is_empty() { "core" } else { group };
                found.extend(
                    words(&rule["resources"])
                        .into_iter()
                        .map(|r| (kind, group.to_owned(), r.to_owned(), verbs.clone())),
                );
            }
        }
    }
    let text = document();
    let kind = |row: &[String]| if row[0] == "ClusterRole" { "ClusterRole" } else { "Role" };
    let promised: BTreeSet<_> = rows(&text, "Rights in the cluster")
        .iter()
        .map(|row| {
            let mut verbs: Vec<_> = row[3].split(", ").collect();
            verbs.sort_unstable();
            (kind(row), row[1].clone(), row[2].clone(), verbs.join(", "))
        })
        .collect();
    assert_eq!(found, promised);
    assert!(found.iter().all(|(.., verbs)| !verbs.contains('*')));
}

#[test]
fn an_upgrade_of_the_agent_leaves_the_daemons_pods_alone() {
    let before = objects(&rendered(""));
    let after = objects(&rendered("agent: {image: {tag: new}, env: {MAX_ENI: 3}, extraArgs: [--once]}"));
    assert_eq!(object(&before, "DaemonSet", "sluiced"), object(&after, "DaemonSet", "sluiced"));
    assert_ne!(object(&before, "DaemonSet", "sluice-agent"), object(&after, "DaemonSet", "sluice-agent"));
    let after = objects(&rendered("daemon: {image: {tag: new}, log: debug, keepOnExit: false}"));
    assert_eq!(object(&before, "DaemonSet", "sluice-agent"), object(&after, "DaemonSet", "sluice-agent"));
}

#[test]
fn a_new_chart_leaves_the_daemons_pods_alone_where_its_tag_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let copied =
        Command::new("cp").arg("-r").arg(root().join("deploy/helm/sluice")).arg(folder.path()).status();
    assert!(copied.expect("cp runs").success());
    let chart = folder.path().join("sluice");
    let text = std::fs::read_to_string(chart.join("Chart.yaml")).expect("Chart.yaml");
    let version = format!("ersion: {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(text.matches(&version).count(), 2, "chart and application are of the workspace's version");
    std::fs::write(chart.join("Chart.yaml"), text.replace(&version, "ersion: 99.0.0"))
        .expect("it is written");
    let pinned = "daemon: {image: {tag: running}}";
    let after = helm_on(&chart, &["template", "sluice"], pinned);
    let after = objects(&String::from_utf8(after.stdout).expect("helm writes UTF-8"));
    let before = objects(&rendered(pinned));
    let pod = |objects: &[Value], name: &str| object(objects, "DaemonSet", name)["spec"]["template"].clone();
    assert_eq!(pod(&before, "sluiced"), pod(&after, "sluiced"));
    assert!(pod(&after, "sluice-agent").to_string().contains("sluice:99.0.0"));
}

#[test]
fn both_run_on_every_ec2_node_before_its_network() {
    let objects = objects(&rendered(""));
    for name in ["sluice-agent", "sluiced"] {
        let set = &object(&objects, "DaemonSet", name)["spec"];
        assert_eq!(set["updateStrategy"]["rollingUpdate"]["maxUnavailable"], "10%");
        let pod = &set["template"]["spec"];
        assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&true.into(), &"Default".into()));
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]));
        let terms = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        let expressions = terms[0]["matchExpressions"].to_string();
        assert!(expressions.contains("fargate") && expressions.contains("amd64"), "{expressions}");
        for container in containers(object(&objects, "DaemonSet", name)) {
            assert!(container["resources"]["requests"]["memory"].is_string(), "{container}");
            let probed = container["readinessProbe"].is_object();
            assert_eq!(probed, pod["containers"][0]["name"] == container["name"], "{}", container["name"]);
        }
    }
    let arguments =
        |objects: &[Value]| containers(object(objects, "DaemonSet", "sluiced"))[1]["args"].clone();
    assert!(words(&arguments(&objects)).contains("--keep-on-exit"));
}

#[test]
fn probes_ask_where_the_agent_answers() {
    let agent = |values: &str| {
        containers(object(&objects(&rendered(values)), "DaemonSet", "sluice-agent"))[1].clone()
    };
    let usual = agent("");
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        let asked = &usual[probe]["httpGet"];
        assert_eq!(
            (&asked["host"], &asked["port"], &asked["path"]),
            (&"127.0.0.1".into(), &61679.into(), &path.into())
        );
    }
    assert_eq!(usual["ports"][0]["containerPort"], 61678);
    // Without introspection there is nobody to ask.
    let quiet = agent("agent: {env: {DISABLE_INTROSPECTION: true, DISABLE_METRICS: true}}");
    assert!(quiet["readinessProbe"]["exec"].is_object() && quiet.get("livenessProbe").is_none());
    assert!(quiet.get("ports").is_none());
}

#[test]
fn what_is_set_arrives() {
    let text = rendered(EVERYTHING);
    let objects = objects(&text);
    let agent = containers(object(&objects, "DaemonSet", "sluice-agent"))[1];
    let env = agent["env"].as_array().expect("variables");
    let value = |name: &str| env.iter().find(|e| e["name"] == name).map(|e| e["value"].clone());
    // As texts: Kubernetes refuses a variable that is a number or true.
    assert_eq!(value("AWS_VPC_K8S_CNI_EXTERNALSNAT"), Some("true".into()));
    assert_eq!(value("WARM_ENI_TARGET"), Some("2".into()));
    assert_eq!(agent["image"], "111122223333.dkr.ecr.eu-central-1.amazonaws.com/sluice-agent:v1.2.3");
    let daemon = containers(object(&objects, "DaemonSet", "sluiced"))[1];
    assert!(
        !words(&daemon["args"]).contains("--keep-on-exit") && words(&daemon["args"]).contains("--workers=4")
    );
    let account = &object(&objects, "ServiceAccount", "sluice-agent")["metadata"]["annotations"];
    assert_eq!(account["eks.amazonaws.com/role-arn"], "arn:aws:iam::111122223333:role/sluice");
    for set in [
        "/usr/libexec/cni",
        "/etc/cni/conf.d",
        "other/sluiced:2026",
        "sluiced=debug",
        "name: registry",
        "team: network",
    ] {
        assert!(text.contains(set), "{set} does not arrive");
    }
}

#[test]
fn an_installed_definition_is_never_overwritten() {
    // Helm installs crds/ only where absent and never touches it again; a template would be applied at every upgrade.
    for values in ["", EVERYTHING] {
        assert!(objects(&rendered(values)).iter().all(|o| o["kind"] != "CustomResourceDefinition"));
    }
    let text =
        std::fs::read_to_string(root().join("deploy/helm/sluice/crds/eniconfigs.yaml")).expect("crds/");
    let definition = &objects(&text)[0];
    assert_eq!(definition["metadata"]["name"], "eniconfigs.crd.k8s.amazonaws.com");
    assert_eq!(definition["spec"]["scope"], "Cluster");
    let version = &definition["spec"]["versions"][0];
    assert_eq!((&version["name"], version.get("subresources")), (&"v1alpha1".into(), None));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (values, named) in [
        ("agent: {env: {AWS_VPC_K8S_CNI_EXTERNALSNATS: true}}", "AWS_VPC_K8S_CNI_EXTERNALSNATS"),
        ("agent: {imgae: {}}", "imgae"),
        ("daemon: {keepOnExit: \"yes\"}", "keepOnExit"),
        ("maxUnavailable: 0%", "maxUnavailable"),
        ("cni: {binDir: opt/cni/bin}", "binDir"),
    ] {
        let output = helm(&["template", "sluice"], values);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{values}: {said}");
    }
}

#[test]
fn the_schema_knows_the_agents_variables() {
    let text =
        std::fs::read_to_string(root().join("deploy/helm/sluice/values.schema.json")).expect("a schema");
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    let known = &schema["properties"]["agent"]["properties"]["env"]["propertyNames"]["enum"];
    let own = ["MY_NODE_NAME", "MY_POD_NAME"];
    let variables =
        sluice_agent::environment::VARIABLES.iter().map(|v| v.name).filter(|name| !own.contains(name));
    assert_eq!(words(known), variables.chain(["SLUICE_LOG"]).collect());
}

/// Every setting of values.yaml: its path, its default, and the comment above it.
fn settings() -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(root().join("deploy/helm/sluice/values.yaml")).expect("values.yaml");
    let (mut path, mut comment, mut found) = (Vec::<(usize, String)>::new(), String::new(), Vec::new());
    for line in text.lines() {
        let (body, depth) = (line.trim_start(), line.len() - line.trim_start().len());
        if let Some(words) = body.strip_prefix('#') {
            comment.extend([if comment.is_empty() { "" } else { " " }, words.trim()]);
            continue;
        }
        let Some((key, default)) = body.split_once(':') else {
            comment.clear();
            continue;
        };
        path.retain(|(d, _)| *d < depth);
        path.push((depth, key.to_owned()));
        if !default.is_empty() || !comment.is_empty() {
            let name = path.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
            found.push((name, default.trim().to_owned(), std::mem::take(&mut comment)));
        }
    }
    found
}

#[test]
fn every_setting_is_in_the_table() {
    let mut table = "| setting | default | what it decides |\n|---|---|---|\n".to_owned();
    let mut above = String::new();
    for (name, default, comment) in settings() {
        // What is below a setting with a comment is its default.
        let below = !above.is_empty() && name.starts_with(&format!("{above}."));
        assert!(below || !comment.is_empty(), "{name} is not documented in values.yaml");
        let default = if default.is_empty() { "-".to_owned() } else { format!("`{default}`") };
        writeln!(table, "| `{name}` | {default} | {comment} |").expect("a string takes everything");
        if !comment.is_empty() && default == "-" {
            above = name;
        }
    }
    let (text, opening) = (document(), "<!-- generated: settings -->\n");
    let (before, rest) = text.split_once(opening).expect("the table's place");
    let (found, after) = rest.split_once("<!-- end -->").expect("the table's end");
    if found != table && std::env::var_os("UPDATE_DOCS").is_some() {
        let text = format!("{before}{opening}{table}<!-- end -->{after}");
        std::fs::write(root().join("docs/deploy.md"), text).expect("docs/deploy.md is written");
    } else {
        assert_eq!(found, table, "run: UPDATE_DOCS=1 cargo test -p sluice-tests --test chart");
    }
}
