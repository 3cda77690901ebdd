//! One kind's watch, for ever: listed, watched, and listed anew where the server has forgotten where we were.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::gather::{SharedGather, Watched, lock};
use super::trouble::{self, Trouble};

/// How long a kind that the server does not know is left alone: a CRD may be installed one day.
const UNKNOWN_KIND: Duration = Duration::from_secs(300);

/// Follows a kind.
pub(super) async fn follow<K>(api: Api<K>, gather: &SharedGather, seconds: u32)
where
    K: Watched + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut streaming = true;
    loop {
        let config = config(seconds, streaming);
        if take(pin!(watcher(api.clone(), config).default_backoff()), gather, &mut streaming).await {
            return;
        }
    }
}

fn config(seconds: u32, streaming: bool) -> Config {
    let config = Config::default().timeout(seconds);
    if streaming { config.streaming_lists() } else { config }
}

/// Takes what a watch says until it has to be opened in another way; true when nobody listens any more.
async fn take<K: Watched>(
    mut stream: std::pin::Pin<&mut impl Stream<Item = Result<Event<K>, watcher::Error>>>,
    gather: &SharedGather,
    streaming: &mut bool,
) -> bool {
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => lock(gather).take(event),
            Err(error) => match trouble::of(&error, K::PLURAL, *streaming) {
                Trouble::NoStreamingLists => {
                    *streaming = false;
                    return false;
                }
                Trouble::NoSuchKind if K::OPTIONAL => {
                    lock(gather).absent::<K>();
                    tokio::time::sleep(UNKNOWN_KIND).await;
                    return false;
                }
                Trouble::Expired => {}
                Trouble::NoSuchKind => {
                    let why = format!(
                        "{} cannot be watched: the server does not know them; is it a Kubernetes API?",
                        K::PLURAL
                    );
                    lock(gather).trouble::<K>(why);
                }
                Trouble::Wrong(why) => lock(gather).trouble::<K>(why),
            },
        }
        if lock(gather).is_over() {
            return true;
        }
    }
    false
}
