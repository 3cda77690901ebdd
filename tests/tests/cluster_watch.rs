//! The watches of an API server, against the fake that behaves as a real one and breaks on demand.
//!
//! The oracle of what is known after a storm is a first look by somebody who saw none of it.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_kube::cluster::{Cluster, EniConfig, NodeFacts, Options, Server};
use sluice_policy::{Change, Object, ObjectId};
use sluice_tests::fakes::kubernetes::crowd::Crowd;
use sluice_tests::fakes::kubernetes::faults::{End, Fault, Order, What};
use sluice_tests::fakes::kubernetes::rbac::User;
use sluice_tests::fakes::kubernetes::{FakeApiServer, Options as FakeOptions};

/// How long something that must happen may take: the longest wait between attempts is 30 s, but only after many.
const SOON: Duration = Duration::from_secs(20);

/// Somebody who follows a server, and what he knows.
struct Follower {
    cluster: Cluster,
    news: Receiver<sluice_kube::cluster::News>,
    synced: bool,
    objects: BTreeMap<ObjectId, String>,
    findings: Vec<String>,
    node: Option<NodeFacts>,
    eni_configs: Vec<EniConfig>,
    /// Changes in all, and in how many messages.
    told: (usize, usize),
}

impl Follower {
    fn of(server: &FakeApiServer) -> Self {
        Self::with(Server::Url(server.url()), 60)
    }

    fn with(server: Server, watch_seconds: u32) -> Self {
        let (tell, news) = channel();
        let options = Options {
            server,
            endpoint: None,
            node: "node-0".into(),
            instance: "agent".into(),
            watch_seconds,
        };
        let cluster = Cluster::start(&options, move |news| tell.send(news).is_ok()).unwrap();
        Self {
            cluster,
            news,
            synced: false,
            objects: BTreeMap::new(),
            findings: Vec::new(),
            node: None,
            eni_configs: Vec::new(),
            told: (0, 0),
        }
    }

    /// Takes what comes within this time; false when nothing did.
    fn hear(&mut self, patience: Duration) -> bool {
        let news = match self.news.recv_timeout(patience) {
            Ok(news) => news,
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => panic!("the watches have ended"),
        };
        assert!(news.synced || news.changes.is_empty(), "changes before everything is known");
        self.synced |= news.synced;
        self.told.0 += news.changes.len();
        self.told.1 += 1;
        for change in news.changes {
            match change {
                Change::Upsert(object) => self.objects.insert(object.id(), words(&object)),
                Change::Delete(id) => self.objects.remove(&id),
            };
        }
        if let Some(findings) = news.findings {
            self.findings = findings.iter().map(ToString::to_string).collect();
        }
        self.node = news.node.or(self.node.take());
        self.eni_configs = news.eni_configs.unwrap_or(std::mem::take(&mut self.eni_configs));
        true
    }

    #[track_caller]
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds(self) {
            self.hear(Duration::from_millis(100));
            assert!(Instant::now() < deadline, "{what}: {} objects, {:?}", self.objects.len(), self.findings);
        }
    }

    #[track_caller]
    fn synced(mut self) -> Self {
        self.until("synced", |me| me.synced);
        self
    }

    fn knows(&self, name: &str) -> bool {
        self.objects.keys().any(|id| *id.name == *name)
    }
}

/// An object as it is compared: a policy has versions and dates that mean nothing.
fn words(object: &Object) -> String {
    match object {
        Object::NetworkPolicy(policy) => format!("{:?}", policy.spec),
        other => format!("{other:?}"),
    }
}

/// What somebody sees who comes now.
#[track_caller]
fn first_look(server: &FakeApiServer) -> BTreeMap<ObjectId, String> {
    Follower::of(server).synced().objects
}

fn pod(name: &str, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "team-0", "name": name, "labels": { "app": label } },
        "spec": { "nodeName": "node-0", "containers": [{ "name": "c", "image": "i" }] },
        "status": { "phase": "Running", "podIP": "10.1.2.3", "podIPs": [{ "ip": "10.1.2.3" }] },
    })
}

fn delete(server: &FakeApiServer, path: &str) {
    let status = send_delete(&server.url(), path);
    assert!(status.contains("200") || status.contains("202"), "{path}: {status}");
}

/// A DELETE by hand: the status line of the answer.
fn send_delete(url: &str, path: &str) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "DELETE {path}?gracePeriodSeconds=0 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

fn small() -> Crowd {
    Crowd { pods: 60, nodes: 5, namespaces: 3, ..Crowd::default() }
}

#[test]
fn everything_comes_first_and_then_what_changes() {
    let server = FakeApiServer::start().unwrap();
    server.fill(&small()).unwrap();
    let mut follower = Follower::of(&server).synced();
    assert_eq!(follower.told.1, 1, "everything in one message");
    let pods = follower.objects.keys().filter(|id| id.kind == sluice_policy::Kind::Pod).count();
    assert_eq!(pods, 60);
    server.apply(&pod("late", "a")).unwrap();
    follower.until("the new pod", |me| me.knows("late"));
    server.apply(&pod("late", "b")).unwrap();
    follower.until("its new label", |me| {
        me.objects.iter().any(|(id, words)| *id.name == *"late" && words.contains("\"app\": \"b\""))
    });
    delete(&server, "/api/v1/namespaces/team-0/pods/late");
    follower.until("it is gone", |me| !me.knows("late"));
    assert!(follower.findings.is_empty(), "{:?}", follower.findings);
    assert_eq!(follower.objects, first_look(&server));
}

#[test]
fn the_own_node_and_the_eni_configs_are_told_with_what_decides_about_interfaces() {
    let server = FakeApiServer::start().unwrap();
    server.fill(&small()).unwrap();
    let mut follower = Follower::of(&server).synced();
    assert!(!follower.node.as_ref().unwrap().unschedulable && follower.eni_configs.is_empty());
    server
        .apply(&json!({
            "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": { "name": "zone-a" },
            "spec": { "subnet": "subnet-0a", "securityGroups": ["sg-0b"] },
        }))
        .unwrap();
    follower.until("the ENIConfig", |me| me.eni_configs.len() == 1);
    assert_eq!(follower.eni_configs[0].spec.subnet.as_deref(), Some("subnet-0a"));
    server
        .apply(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-0", "annotations": { "k": "v" } },
            "spec": { "unschedulable": true },
        }))
        .unwrap();
    follower.until("the cordon", |me| me.node.as_ref().is_some_and(|node| node.unschedulable));
    assert_eq!(follower.node.as_ref().unwrap().annotations["k"], "v");
    delete(&server, "/apis/crd.k8s.amazonaws.com/v1alpha1/eniconfigs/zone-a");
    follower.until("no ENIConfig", |me| me.eni_configs.is_empty());
}

#[test]
fn a_cluster_without_the_crd_is_a_cluster() {
    let options = FakeOptions { custom: false, ..FakeOptions::default() };
    let server = FakeApiServer::start_with(&options).unwrap();
    server.fill(&small()).unwrap();
    let follower = Follower::of(&server).synced();
    assert!(follower.findings.is_empty() && follower.eni_configs.is_empty(), "{:?}", follower.findings);
}

#[test]
fn nothing_is_told_before_every_watch_has_synced_and_what_is_missing_is_named() {
    let server = FakeApiServer::start().unwrap();
    server.fill(&small()).unwrap();
    let refused = Fault {
        resource: Some("services".into()),
        verb: None,
        times: None,
        what: What::Fail { status: 403 },
    };
    server.fault(refused);
    let mut follower = Follower::of(&server);
    follower.until("a finding", |me| !me.findings.is_empty());
    assert!(!follower.synced);
    let said = follower.findings.join("\n");
    assert!(said.contains("services cannot be watched") && said.contains("ClusterRole"), "{said}");
    assert!(said.contains("nothing is told to the daemon"), "{said}");
    server.faults().clear();
    follower.until("synced", |me| me.synced && me.findings.is_empty());
}

#[test]
fn an_api_server_that_is_away_is_waited_for_and_said() {
    let server = FakeApiServer::start().unwrap();
    server.fill(&small()).unwrap();
    server.go_away();
    let mut follower = Follower::of(&server);
    follower.until("a finding", |me| me.findings.len() >= 7);
    assert!(follower.findings[0].contains("CLUSTER_ENDPOINT"), "{:?}", follower.findings);
    server.come_back().unwrap();
    follower.until("synced", |me| me.synced && me.findings.is_empty());
    // Away again, with changes meanwhile: what went is told as gone.
    server.apply(&pod("goes", "a")).unwrap();
    follower.until("the pod", |me| me.knows("goes"));
    server.go_away();
    server.world(|world| {
        world.store.restart();
    });
    server.come_back().unwrap();
    delete(&server, "/api/v1/namespaces/team-0/pods/goes");
    server.apply(&pod("comes", "a")).unwrap();
    follower.until("both", |me| me.knows("comes") && !me.knows("goes"));
    assert_eq!(follower.objects, first_look(&server));
}

#[test]
fn a_token_that_is_refused_and_a_role_that_grants_too_little_are_told_apart() {
    let server = FakeApiServer::start().unwrap();
    server.user("right", User::named("system:serviceaccount:kube-system:sluice-agent"));
    let files = tempfile::tempdir().unwrap();
    let kubeconfig = |token: &str| {
        let path = files.path().join(format!("{token}.yaml"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: s, user: u}}}}]\n\
             clusters: [{{name: s, cluster: {{server: \"{}\"}}}}]\nusers: [{{name: u, user: {{token: {token}}}}}]\n",
            server.url()
        );
        std::fs::write(&path, text).unwrap();
        Server::Kubeconfig(path)
    };
    let mut wrong = Follower::with(kubeconfig("wrong"), 60);
    wrong.until("a finding", |me| !me.findings.is_empty());
    assert!(wrong.findings[0].contains("credentials are refused"), "{:?}", wrong.findings);
    let mut right = Follower::with(kubeconfig("right"), 60);
    right.until("a finding", |me| me.findings.iter().any(|f| f.contains("pods")));
    let said = right.findings.join("\n");
    assert!(said.contains("forbidden") && said.contains("ClusterRole sluice-agent"), "{said}");
    let missing = Options {
        server: Server::Kubeconfig(files.path().join("none.yaml")),
        endpoint: None,
        node: "n".into(),
        instance: "agent".into(),
        watch_seconds: 60,
    };
    let error = Cluster::start(&missing, |_| true).unwrap_err().to_string();
    assert!(error.contains("none.yaml"), "{error}");
}

#[test]
fn a_pod_is_fetched_before_its_watch_has_it_and_the_past_does_not_undo_that() {
    let server = FakeApiServer::start().unwrap();
    server.fill(&small()).unwrap();
    server.apply(&pod("again", "old")).unwrap();
    let lag = Fault::new("pods", "watch", 1, What::Lag { millis: 1_500 });
    server.fault(lag);
    let mut follower = Follower::of(&server).synced();
    assert!(follower.knows("again"));
    let patience = Duration::from_secs(5);
    assert!(!follower.cluster.fetch_pod("team-0", "nobody", patience).unwrap());
    // The pod is another one under its name, which the watch tells late: first that the old one went, then the new one.
    delete(&server, "/api/v1/namespaces/team-0/pods/again");
    server.apply(&pod("again", "new")).unwrap();
    assert!(follower.cluster.fetch_pod("team-0", "again", patience).unwrap());
    let is_new = |me: &Follower| {
        me.objects.iter().any(|(id, words)| *id.name == *"again" && words.contains("\"app\": \"new\""))
    };
    assert!(follower.hear(Duration::from_millis(10)), "it is told before the fetch returns");
    assert!(is_new(&follower));
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        follower.hear(Duration::from_millis(20));
        assert!(is_new(&follower), "the past has undone what was fetched");
    }
    delete(&server, "/api/v1/namespaces/team-0/pods/again");
    follower.until("it is gone", |me| !me.knows("again"));
    server.go_away();
    let error = follower.cluster.fetch_pod("team-0", "again", patience).unwrap_err().to_string();
    assert!(error.contains("API server"), "{error}");
}

#[test]
fn after_any_storm_what_is_known_is_what_is_there() {
    let seed = std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    });
    println!("SLUICE_SEED={seed}");
    let mut state = seed | 1;
    let mut roll = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let bookmarks = FakeOptions { bookmark_every: Duration::from_millis(200), ..FakeOptions::default() };
    let server = FakeApiServer::start_with(&bookmarks).unwrap();
    server.fill(&small()).unwrap();
    let mut follower = Follower::with(Server::Url(server.url()), 2).synced();
    let mut there: Vec<String> = Vec::new();
    for step in 0..400 {
        match roll(20) {
            0 => server.fault(Fault::new("pods", "watch", 1, What::Expired)),
            1 => server.fault(Fault::new("pods", "list", 1, What::TooManyRequests { retry_after: 0 })),
            2 => server.fault(Fault::new("pods", "watch", 1, What::Cut { after: roll(4) as usize })),
            3 => server.fault(Fault::new("services", "watch", 1, What::Close { after: roll(3) as usize })),
            4 => server.fault(Fault::new("pods", "watch", 1, What::Duplicate)),
            5 => server.fault(Fault::new("pods", "watch", 1, What::Stall { millis: 300 })),
            6 => {
                let end = [End::Cut, End::Close, End::Expire][roll(3) as usize];
                server.order(Order { resource: None, end });
            }
            7 if step % 7 == 0 => server.restart(),
            8 if step % 7 == 0 => server.kill().unwrap(),
            9..=12 if !there.is_empty() => {
                let name = there.swap_remove(roll(there.len() as u64) as usize);
                delete(&server, &format!("/api/v1/namespaces/team-0/pods/{name}"));
            }
            _ => {
                let name = format!("s{}", roll(40));
                server.apply(&pod(&name, &format!("l{}", roll(5)))).unwrap();
                if !there.contains(&name) {
                    there.push(name);
                }
            }
        }
        while follower.hear(Duration::from_millis(1)) {}
    }
    server.faults().clear();
    server.apply(&pod("last", "x")).unwrap();
    let wanted = first_look(&server);
    follower.until("everything that is there", |me| me.objects == wanted);
    assert!(follower.objects.keys().any(|id| *id.name == *"last"), "seed {seed}");
}
