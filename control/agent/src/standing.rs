//! What is said of this node: whether its pods have a network, and what its interfaces and addresses lack.

use sluice_ec2::cloud::CloudError;
use sluice_ec2::store::Lease;
use sluice_kube::cluster::{EniConfigStanding, Unready};
use sluice_kube::manifests::{Finding, Severity, Topic};

/// What is to be said of the node's interfaces and addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNews {
    /// What is wrong with them.
    pub findings: Vec<Finding>,
    /// The `ENIConfig` that they are made by, or would be.
    pub eni_config: Option<EniConfigStanding>,
}

impl NodeNews {
    /// Of what the pool cannot do, of pods whose address has gone from its interface, and of the node's `ENIConfig`.
    pub(crate) fn of(
        node: &str,
        troubles: &[CloudError],
        lost: &[Lease],
        eni_config: Option<EniConfigStanding>,
    ) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        for error in troubles {
            // What passes by itself is told, but the node is no worse for it.
            let severity = if error.kind.passes() { Severity::Warning } else { Severity::Error };
            let topic = Topic::node(error.kind.word(), node);
            findings.push(Finding::new(severity, error.standing()).about(topic));
        }
        for lease in lost {
            let pod = &lease.pod;
            let message = format!(
                "address {} is no longer on {}: the pod has lost its network; delete it, and its successor gets another address",
                lease.address, lease.eni
            );
            let topic = Topic {
                reason: "AddressLost",
                kind: "Pod",
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                local: true,
            };
            findings.push(Finding::new(Severity::Error, message).about(topic));
        }
        if let Some(EniConfigStanding { name, problem: Some(problem) }) = &eni_config {
            let word = "ENIConfigUnusable";
            findings.push(Finding::new(Severity::Error, problem.as_str()).about(Topic::node(word, node)));
            let config = Topic {
                reason: word,
                kind: "ENIConfig",
                namespace: String::new(),
                name: name.clone(),
                local: false,
            };
            findings.push(Finding::new(Severity::Error, problem.as_str()).about(config));
        }
        Self { findings, eni_config }
    }
}

/// Why a node's pods may have no network: the cause that is nearest to all of them. `daemon` is why it is not connected, or
/// why it refuses everything.
pub(crate) fn unready(
    known: bool,
    daemon: Result<Option<&str>, &str>,
    findings: &[Finding],
) -> Option<Unready> {
    let say = |reason, message: String| Some(Unready { reason, message });
    match daemon {
        _ if !known => say("Syncing", "the cluster's objects are not all known yet".to_owned()),
        Err("") => say("DaemonUnreachable", "sluiced is not connected".to_owned()),
        Err(why) => say("DaemonUnreachable", why.to_owned()),
        Ok(Some(why)) => say("StateRefused", format!("sluiced refuses the node's state: {why}")),
        Ok(None) => {
            let of_node =
                |finding: &&Finding| finding.topic.as_ref().is_some_and(|topic| topic.kind == "Node");
            let worst =
                findings.iter().filter(of_node).find(|finding| finding.severity == Severity::Error)?;
            say(worst.topic.as_ref()?.reason, worst.message.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_ec2::cloud::Action;

    #[test]
    fn a_node_is_unready_for_what_an_operator_must_mend_and_not_for_what_passes() {
        let of = |code: &str| {
            let error = CloudError::answered(Action::CreateNetworkInterface, 400, code, "m", None);
            let news = NodeNews::of("n", &[error], &[], None);
            unready(true, Ok(None), &news.findings).map(|unready| unready.reason)
        };
        assert_eq!(of("UnauthorizedOperation"), Some("MissingIAMPermissions"));
        assert_eq!(of("RequestLimitExceeded"), None);
        let wrong = EniConfigStanding { name: "default".into(), problem: Some("no such subnet".into()) };
        let news = NodeNews::of("n", &[], &[], Some(wrong));
        let told: Vec<_> = news.findings.iter().filter_map(|f| f.topic.as_ref()).collect();
        assert_eq!(
            told.iter().map(|t| (t.kind, t.local)).collect::<Vec<_>>(),
            [("Node", true), ("ENIConfig", false)]
        );
        let why = unready(true, Ok(None), &news.findings).unwrap();
        assert_eq!((why.reason, &*why.message), ("ENIConfigUnusable", "no such subnet"));
        assert_eq!(unready(true, Err("gone"), &news.findings).unwrap().reason, "DaemonUnreachable");
    }
}
