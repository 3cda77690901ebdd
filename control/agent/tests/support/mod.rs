//! An inventory, manifests, and a daemon that keeps what it is told.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use sluice_state::framing::{MAX_MESSAGE, read_message, write_message};
use sluice_state::push::{Hello, PUSH_VERSION, Push, PushReply};
use sluice_state::{Generation, Invalid, State};

/// An inventory with this many free places.
pub(crate) fn inventory(places: usize) -> String {
    let mut text = "version = 1\nnode.name = \"here\"\nnat.vpc_cidrs = [\"10.0.0.0/16\"]\n\
                    [[eni]]\nname = \"eth0\"\nprimary = true\naddress = \"10.0.9.5\"\nsubnet = \"10.0.9.0/24\"\ngateway = \"10.0.9.1\"\n"
        .to_owned();
    for i in 0..places {
        text += &format!(
            "[[pod]]\nip = \"10.0.1.{}\"\neni = \"eth0\"\ninterface = \"eni{i}\"\nmac = \"02:00:00:00:00:{i:02x}\"\n",
            i + 10
        );
    }
    text + "[[cluster.node]]\nname = \"there\"\naddress = \"10.0.9.6\"\npod_cidr = \"10.0.128.0/17\"\n"
}

pub(crate) fn pod(name: &str, label: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: n, name: {name}, labels: {{app: {label}}}}}\n\
         spec: {{containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 8080}}]}}]{more}}}\n---\n"
    )
}

pub(crate) fn policy(name: &str, subject: &str, from: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: n, name: {name}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {subject}}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]}}]}}\n---\n"
    )
}

#[allow(dead_code, reason = "not every test has a service")]
pub(crate) fn service(name: &str, selector: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: n, name: {name}}}\n\
         spec: {{selector: {{app: {selector}}}, ports: [{{port: 80, targetPort: web}}]}}\n---\n"
    )
}

/// The state as it is compared: order within lists means nothing.
#[allow(dead_code, reason = "not every test compares states")]
pub(crate) fn sorted(state: &State) -> State {
    let mut state = state.clone();
    state.pods.sort_by_key(|pod| pod.ip);
    state.policy.identities.sort_by_key(|identity| identity.id);
    state.policy.rules.sort_by_key(|rules| rules.id);
    state.policy.pods.sort_by_key(|pod| pod.ip);
    state.services.services.sort_by(|a, b| a.name.cmp(&b.name));
    state
}

/// One conversation of a daemon that keeps what it is told, and is told what to answer.
#[allow(dead_code, reason = "not every test has a daemon")]
pub(crate) struct Daemon {
    pub(crate) state: State,
    stream: UnixStream,
}

#[allow(dead_code, reason = "not every test has a daemon")]
impl Daemon {
    pub(crate) fn listen(socket: &Path) -> UnixListener {
        let _ = std::fs::remove_file(socket);
        UnixListener::bind(socket).unwrap()
    }

    /// Takes the next client, whose generations are after `generation`.
    pub(crate) fn accept(listener: &UnixListener, generation: u64) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        let hello: Hello = read_message(&mut stream, 4096).unwrap();
        assert_eq!(hello.version, PUSH_VERSION);
        write_message(
            &mut stream,
            &PushReply::Hello { version: PUSH_VERSION, daemon: "test".into(), generation },
        )
        .unwrap();
        Self { state: State::default(), stream }
    }

    /// The next generation; it is applied and accepted.
    pub(crate) fn take(&mut self) -> Generation {
        let generation = self.read();
        self.state = self.state.apply(&generation).unwrap_or_else(|e| panic!("{e}: {generation:?}"));
        let accepted =
            PushReply::Accepted { generation: generation.number, warnings: vec![], without_path: vec![] };
        write_message(&mut self.stream, &accepted).unwrap();
        generation
    }

    /// The next generation; it is applied and accepted, but this pod has no path.
    pub(crate) fn take_without_path(&mut self, ip: std::net::Ipv4Addr) -> Generation {
        let generation = self.read();
        self.state = self.state.apply(&generation).unwrap_or_else(|e| panic!("{e}: {generation:?}"));
        let number = generation.number;
        let accepted = PushReply::Accepted { generation: number, warnings: vec![], without_path: vec![ip] };
        write_message(&mut self.stream, &accepted).unwrap();
        generation
    }

    /// The next generation; it is refused.
    pub(crate) fn refuse(&mut self, stays: u64) -> Generation {
        let generation = self.read();
        let finding = Invalid { field: "pod[0].eni".into(), value: "x".into(), reason: "is none".into() };
        let refused = PushReply::Refused { generation: stays, reason: "no".into(), findings: vec![finding] };
        write_message(&mut self.stream, &refused).unwrap();
        generation
    }

    fn read(&mut self) -> Generation {
        self.stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let Push::Generation(generation) = read_message(&mut self.stream, MAX_MESSAGE).unwrap();
        generation
    }

    /// True when nothing is said for a while.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        read_message::<Push>(&mut self.stream, MAX_MESSAGE).is_err()
    }
}
