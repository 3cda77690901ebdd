//! Who writes what is not a node's own: the holder of a Lease (coordination.k8s.io/v1).
//!
//! A Lease is looked at when there is something to write and not otherwise. Its holder renews it while something stands; who
//! finds it held looks again after it must have run out, each at a time of its own, so that thousands of nodes ask a few
//! times a second in all. Another's clock is not trusted to the minute: a Lease is taken over when it has not changed for as
//! long as it runs, or ran out long ago.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use super::words::labels;

/// How long a Lease runs.
const RUNS: Duration = Duration::from_secs(600);
const RUNS_SECONDS: i32 = 600;

/// Whose a Lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// Ours.
    Here,
    /// Another node's; looked at again then.
    Elsewhere(Instant),
}

/// The Leases that this node has asked for.
pub(super) struct Claims {
    api: Api<Lease>,
    holder: String,
    known: HashMap<String, Known>,
}

enum Known {
    Ours { renewed: Instant },
    Others { version: Option<String>, since: Instant, look: Instant },
}

impl Claims {
    /// Of a node, in the namespace of its service account.
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self { api: Api::default_namespaced(client), holder: node.to_owned(), known: HashMap::new() }
    }

    /// Whether this node may write, taking or renewing the Lease where it can.
    pub(super) async fn hold(&mut self, name: &str) -> Result<Held, kube::Error> {
        let now = Instant::now();
        let before = match self.known.get(name) {
            Some(Known::Ours { renewed }) if now.duration_since(*renewed) < RUNS / 2 => {
                return Ok(Held::Here);
            }
            Some(Known::Others { look, .. }) if *look > now => return Ok(Held::Elsewhere(*look)),
            Some(Known::Others { version, since, .. }) => Some((version.clone(), *since)),
            Some(Known::Ours { .. }) | None => None,
        };
        let found = self.api.get_opt(name).await?;
        let Some(lease) = found else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    labels: Some(labels()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            let made = self.api.create(&PostParams::default(), &lease).await;
            return self.settle(name, made, now);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let unchanged = before.as_ref().is_some_and(|(version, since)| {
            *version == lease.metadata.resource_version && now.duration_since(*since) >= RUNS
        });
        let may = holder.is_empty() || holder == self.holder || unchanged || ran_out_long_ago(&spec);
        if !may {
            let since = match before {
                Some((version, since)) if version == lease.metadata.resource_version => since,
                _ => now,
            };
            return Ok(self.elsewhere(name, lease.metadata.resource_version, since, now));
        }
        // With the version that was read: who else takes it has changed that.
        let taken = Lease { spec: Some(self.spec(Some(spec))), ..lease };
        let made = self.api.replace(name, &PostParams::default(), &taken).await;
        self.settle(name, made, now)
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let before = before.unwrap_or_default();
        let same = before.holder_identity.as_ref() == Some(&self.holder);
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(RUNS_SECONDS),
            acquire_time: before.acquire_time.filter(|_| same).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!same)),
            ..LeaseSpec::default()
        }
    }

    fn settle(
        &mut self,
        name: &str,
        made: Result<Lease, kube::Error>,
        now: Instant,
    ) -> Result<Held, kube::Error> {
        match made {
            Ok(_) => {
                self.known.insert(name.to_owned(), Known::Ours { renewed: now });
                Ok(Held::Here)
            }
            // Another was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(self.elsewhere(name, None, now, now)),
            Err(error) => Err(error),
        }
    }

    fn elsewhere(&mut self, name: &str, version: Option<String>, since: Instant, now: Instant) -> Held {
        let mut hasher = DefaultHasher::new();
        (name, &self.holder).hash(&mut hasher);
        let spread = u32::try_from(hasher.finish() % 1000).unwrap_or(0);
        let look = now + RUNS + RUNS / 2 * spread / 1000;
        self.known.insert(name.to_owned(), Known::Others { version, since, look });
        Held::Elsewhere(look)
    }
}

/// By the clock, with as much room for its error as the Lease runs.
fn ran_out_long_ago(spec: &LeaseSpec) -> bool {
    let runs = i64::from(spec.lease_duration_seconds.unwrap_or(RUNS_SECONDS));
    let until = |renewed: &MicroTime| renewed.0.checked_add(SignedDuration::from_secs(2 * runs)).ok();
    spec.renew_time.as_ref().and_then(until).is_none_or(|until| until < Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_not_anothers_for_ever() {
        let renewed = |ago: i64| LeaseSpec {
            renew_time: Some(MicroTime(Timestamp::now() - SignedDuration::from_secs(ago))),
            lease_duration_seconds: Some(600),
            ..LeaseSpec::default()
        };
        assert!(!ran_out_long_ago(&renewed(700)), "clocks differ");
        assert!(ran_out_long_ago(&renewed(1300)));
        assert!(ran_out_long_ago(&LeaseSpec::default()), "it was never renewed");
    }
}
