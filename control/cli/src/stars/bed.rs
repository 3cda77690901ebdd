//! The ground of the demo: a lab whose node has an agent, the stars in its pods' namespaces, and the directory of
//! manifests by which alone anything is changed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;
use serde_json::Value;
use sluice_state::query::{Answer, Client, PodStatus, Query};

use super::Stars;
use super::ask;
use super::bundle::{self, Container};
use super::expect::{Policies, Policy, Who};
use crate::lab::{self, Options, Paths, Progress, Record};
use crate::netns::Netns;
use crate::query::SOCKET;

/// The address of kube-dns, as on EKS.
const DNS: &str = "10.100.0.10";
/// Milliseconds between a star's rounds. Shorter than in a cluster: a step waits for two of them.
const INTERVAL: &str = "250";
/// How long the stars may take until all have probed once.
const START: Duration = Duration::from_secs(15);
/// How long two rounds may take.
const ROUNDS: Duration = Duration::from_secs(10);
/// A change that changes no rule brings no generation: this long one is waited for.
const GENERATION: Duration = Duration::from_millis(1500);

/// A pod of the demo.
#[derive(Debug, Clone)]
pub(super) struct Star {
    /// The network namespace that it runs in.
    pub(super) netns: String,
    /// Its address.
    pub(super) ip: Ipv4Addr,
    /// The lab's name of its place: `pod-a`.
    pub(super) place: String,
    /// The ENI that owns its address.
    pub(super) eni: String,
}

/// The lab with everything in it. It is taken down when this is dropped.
#[derive(Debug)]
pub(super) struct Bed {
    record: Record,
    paths: Paths,
    manifests: PathBuf,
    policies: Policies,
    stars: BTreeMap<Who, Star>,
    services: BTreeMap<String, Ipv4Addr>,
}

impl Bed {
    /// Brings everything up, at step S0.
    ///
    /// # Errors
    /// A program is missing, something did not start, or the user interrupted; nothing stays.
    pub(super) fn up(stars: &Stars, progress: &Progress) -> Result<Self> {
        let binary = stars.star.clone().map_or_else(|| lab::beside("star", "--star"), Ok)?;
        let paths = Paths::new(&stars.name);
        let manifests = paths.dir().join("manifests");
        let options = options(stars, &manifests);
        let record = lab::up_prepared(&stars.name, &options, progress, || bundle::write(&manifests))?;
        let mut bed = Self {
            record,
            paths,
            manifests,
            policies: Policies::default(),
            stars: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        progress.step("stars")?;
        bed.services = bed.read_services()?;
        let pods = bed.pods()?;
        bed.write_records()?;
        for container in bundle::containers()? {
            let star = bed.place(&container, &pods)?;
            bed.start(&binary, &container, &star)?;
            if let Some(who) = Who::PODS.into_iter().find(|who| is(*who, &container)) {
                bed.stars.insert(who, star);
            }
        }
        bed.wait_for_rounds(1, START, progress)?;
        Ok(bed)
    }

    /// The policies whose files are in the directory.
    pub(super) fn policies(&self) -> Policies {
        self.policies
    }

    /// A pod of the demo.
    ///
    /// # Errors
    /// It was not started: [`Bed::up`] starts all of them.
    pub(super) fn star(&self, who: Who) -> Result<&Star> {
        self.stars.get(&who).with_context(|| format!("no pod `{}` was started", who.name()))
    }

    /// Where a star's service answers.
    ///
    /// # Errors
    /// The agent has given it no address.
    pub(super) fn service(&self, who: Who) -> Result<SocketAddr> {
        let name = format!("{}/{}", who.namespace(), who.name());
        let ip = self.services.get(&name).with_context(|| format!("no service {name} has an address"))?;
        Ok(SocketAddr::from((*ip, who.port())))
    }

    /// The lab.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// The node's namespace.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn node(&self) -> Result<Netns> {
        Netns::open(&self.record.topology.node)
    }

    /// Brings exactly these policies into force, one file at a time, and waits until every pod has met them with two
    /// whole rounds of probes. Gives how long the daemon took to have what changed a rule; none where nothing did.
    ///
    /// # Errors
    /// A file cannot be written, a star has stopped, or the user interrupted.
    pub(super) fn bring(&mut self, wanted: Policies, progress: &Progress) -> Result<Option<Duration>> {
        let mut took = None;
        let before = self.policies;
        for policy in Policy::ALL.into_iter().filter(|p| wanted.has(*p) != before.has(*p)) {
            if let Some(more) = self.change(policy, wanted.has(policy))? {
                took = Some(took.unwrap_or_default() + more);
            }
        }
        self.wait_for_rounds(2, ROUNDS, progress)?;
        Ok(took)
    }

    /// Puts a policy's file into the directory or takes it out; gives how long the daemon took to have it, where it is
    /// anything new: a default deny after a policy that isolates the same pods is not.
    fn change(&mut self, policy: Policy, wanted: bool) -> Result<Option<Duration>> {
        let before = self.generation()?;
        let (name, text) = bundle::policy(policy);
        let path = self.manifests.join(name);
        let begun = Instant::now();
        if wanted {
            // By way of a rename, as `kubectl` and editors do: nobody reads half a file.
            let next = path.with_extension("new");
            std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &path))
        } else {
            std::fs::remove_file(&path)
        }
        .with_context(|| format!("cannot change {}", path.display()))?;
        self.policies = if wanted { self.policies.with(policy) } else { self.policies.without(policy) };
        while begun.elapsed() < GENERATION {
            if self.generation()? != before {
                return Ok(Some(begun.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Number of the generation in force.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub(super) fn generation(&self) -> Result<u64> {
        Ok(lab::report(&self.paths.run())?.generation)
    }

    /// What a star says, asked from the node as kubelet would: no policy can come between.
    ///
    /// # Errors
    /// It does not answer, which is a finding of its own.
    pub(super) fn status(&self, who: Who) -> Result<Result<Value, ask::Outcome>> {
        let at = SocketAddr::from((self.star(who)?.ip, who.port()));
        self.node()?.within(|| {
            let said = ask::status(at);
            Ok(said.and_then(|body| serde_json::from_str(&body).map_err(|_| ask::Outcome::Broken)))
        })
    }

    /// Waits until every star has ended so many rounds more than now; the first of them may have begun before.
    fn wait_for_rounds(&self, more: u64, limit: Duration, progress: &Progress) -> Result<()> {
        let deadline = Instant::now() + limit;
        let round =
            |who| -> Result<Option<u64>> { Ok(self.status(who)?.ok().and_then(|s| s["round"].as_u64())) };
        let mut waited = Vec::new();
        for who in Who::PODS {
            waited.push((who, round(who)?.unwrap_or(0) + more));
        }
        loop {
            let mut behind = Vec::new();
            for (who, wanted) in waited {
                if round(who)?.is_none_or(|now| now < wanted) {
                    behind.push((who, wanted));
                }
            }
            if behind.is_empty() {
                return Ok(());
            }
            waited = behind;
            progress.check()?;
            if Instant::now() >= deadline {
                let names: Vec<_> = waited.iter().map(|(who, _)| who.name()).collect();
                bail!(
                    "{} answered the node with no new round within {} s: the logs are in {}",
                    names.join(", "),
                    limit.as_secs(),
                    self.paths.dir().display()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often each reason for a drop has held.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub(super) fn drops(&self) -> Result<BTreeMap<String, u64>> {
        match self.ask(&Query::Stats)? {
            Answer::Stats(stats) => Ok(stats.drops),
            _ => bail!("the daemon answered another question"),
        }
    }

    /// The pods that the daemon has, which are those that the agent gave it.
    fn pods(&self) -> Result<Vec<PodStatus>> {
        match self.ask(&Query::Pods)? {
            Answer::Pods(pods) => Ok(pods),
            _ => bail!("the daemon answered another question"),
        }
    }

    fn ask(&self, query: &Query) -> Result<Answer> {
        let socket = self.paths.run().join(SOCKET);
        match Client::connect(&socket, "sluice lab stars", Duration::from_secs(2))?.ask(query)? {
            Answer::Refused(reason) => bail!("the daemon refuses: {reason}"),
            answer => Ok(answer),
        }
    }

    /// The place that the agent gave to a workload's pod.
    fn place(&self, container: &Container, pods: &[PodStatus]) -> Result<Star> {
        let pod = pods.iter().find(|pod| makes(container, pod)).with_context(|| {
            let there: Vec<_> = pods.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
            format!(
                "the agent made no pod of {}/{}; there are [{}]",
                container.namespace,
                container.name,
                there.join(", ")
            )
        })?;
        let link = self.record.topology.pods.iter().find(|link| link.address == pod.ip);
        let link =
            link.with_context(|| format!("{} has {}, an address of no pod of the lab", pod.name, pod.ip))?;
        Ok(Star {
            netns: link.namespace.clone(),
            ip: pod.ip,
            place: link.name.clone(),
            eni: link.eni.clone(),
        })
    }

    fn start(&mut self, binary: &Path, container: &Container, star: &Star) -> Result<()> {
        let name = format!("star-{}", container.name);
        let log = self.paths.log(&name);
        let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = std::process::Command::new(binary);
        command
            .args(&container.args)
            .env("STAR_DNS", DNS)
            .env("STAR_INTERVAL", INTERVAL)
            .env("STAR_RECORDS", self.records());
        let child = Netns::open(&star.netns)?.within(|| lab::spawn(&mut command, file))?;
        let process = lab::Process::new(&name, child.id());
        self.record
            .processes
            .push(process.with_context(|| format!("{name} is gone: see {}", log.display()))?);
        self.record.write(&self.paths)
    }

    fn records(&self) -> PathBuf {
        self.paths.dir().join("records")
    }

    /// What the name server answers: every service, by the names that a cluster gives it.
    fn write_records(&self) -> Result<()> {
        let mut text = String::new();
        for (service, address) in &self.services {
            let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
            text.push_str(&format!(
                "{address} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local\n"
            ));
        }
        let path = self.records();
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The ClusterIP of each service, as the agent allocates them from the same manifests and inventory.
    fn read_services(&self) -> Result<BTreeMap<String, Ipv4Addr>> {
        let mut command = lab::agent_command(&self.record.options, &self.paths, &self.manifests)?;
        let output = command.arg("--dry-run").output().context("cannot run sluice-agent --dry-run")?;
        ensure!(
            output.status.success(),
            "sluice-agent --dry-run: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8(output.stdout).context("sluice-agent --dry-run prints no text")?;
        let state: sluice_state::State =
            toml::from_str(&text).context("sluice-agent --dry-run prints no state")?;
        let mut found = BTreeMap::new();
        for service in &state.services.services {
            let name = service.name.split(':').next().unwrap_or_default();
            let address = service.frontends.iter().find(|f| !f.over_local).and_then(|f| f.address);
            if let Some(address) = address {
                found.insert(name.to_owned(), address);
            }
        }
        ensure!(!found.is_empty(), "the agent has made no service of the demo's manifests");
        Ok(found)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // In the middle of an error the first error is told; after a play `sluice lab down` says what stayed.
        let _ = lab::down(&self.record.topology.name);
    }
}

fn is(who: Who, container: &Container) -> bool {
    container.name == who.name() && container.namespace == who.namespace()
}

/// A pod is the workload's own name, or begins with it and a dash.
fn makes(container: &Container, pod: &PodStatus) -> bool {
    let rest = pod.name.strip_prefix(container.name.as_str());
    pod.namespace == container.namespace && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The lab's defaults, with a pod for each container.
fn options(stars: &Stars, manifests: &Path) -> Options {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        options: Options,
    }
    let Defaults { mut options } = Defaults::parse_from(["lab"]);
    options.pods = u16::try_from(Who::PODS.len() + 1).unwrap_or(u16::MAX);
    options.manifests = Some(manifests.to_owned());
    options.sluiced.clone_from(&stars.sluiced);
    options.sluiced_arg.clone_from(&stars.sluiced_arg);
    options.agent.clone_from(&stars.agent);
    options.agent_arg = vec![format!("--on-policy-change={}", stars.on_policy_change.word())];
    options.agent_arg.extend_from_slice(&stars.agent_arg);
    options
}

/// The error of a thread that panicked.
pub(super) fn panicked() -> anyhow::Error {
    anyhow!("a thread of the demo panicked")
}
