//! What an API server that does not serve us is told as: the cause, and the way out.

use std::error::Error;

use kube::runtime::watcher;

/// What is to be thought of an error of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The kind is not known to the server: a CRD that nobody has installed.
    NoSuchKind,
    /// The server does not stream lists: they have to be listed.
    NoStreamingLists,
    /// Nothing is wrong: the version that was watched from is gone, as versions go; what there is will be listed.
    Expired,
    /// Something that an operator must know.
    Wrong(String),
}

/// Sorts an error of a watch of a kind, `pods` for example.
pub(super) fn of(error: &watcher::Error, plural: &str, streaming: bool) -> Trouble {
    let status = match error {
        watcher::Error::WatchError(status)
        | watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(&**status),
        _ => None,
    };
    match status.map(|status| status.code) {
        Some(404) => Trouble::NoSuchKind,
        Some(410) => Trouble::Expired,
        // Before 1.27, or with the gate WatchList off (`sendInitialEvents is forbidden`).
        Some(400 | 422) if streaming => Trouble::NoStreamingLists,
        _ => {
            let why = match error {
                watcher::Error::InitialListFailed(e)
                | watcher::Error::WatchStartFailed(e)
                | watcher::Error::WatchFailed(e) => words(e),
                watcher::Error::WatchError(status) => of_status(status),
                watcher::Error::NoResourceVersion => chain(error),
            };
            Trouble::Wrong(format!("{plural} cannot be watched: {why}"))
        }
    }
}

/// An error of the API in words.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => of_status(status),
        other => {
            let chain = chain(other);
            let way = if chain.contains("certificate") {
                "is the certificate authority of the kubeconfig, or of the service account, the server's, and the node's clock right?"
            } else if chain.contains("dns") || chain.contains("resolve") || chain.contains("lookup") {
                "CLUSTER_ENDPOINT names the server where its name or service is not to be had yet"
            } else {
                "is the server up, and reachable from this node? CLUSTER_ENDPOINT names another way to it"
            };
            format!("{chain}; {way}")
        }
    }
}

fn of_status(status: &kube::core::Status) -> String {
    let message = status.message.trim();
    match status.code {
        401 => format!(
            "the credentials are refused ({message}); is the token of this cluster, and not expired, and the node's clock right?"
        ),
        403 => {
            format!("{message}; the chart's ClusterRole sluice-agent grants it: is it bound to this user?")
        }
        429 => "the server has too many requests; it is asked again later".to_owned(),
        code => format!("{message} ({code})"),
    }
}

/// An error with its causes, each once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
