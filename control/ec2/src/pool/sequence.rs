//! One step of a sequence: one call, and what follows from its answer.
//!
//! The journal holds the step before its call is made. So each call here may be the second one of its kind, and an
//! answer that says "already" or "gone" is looked into, not believed: EC2 answers questions from an older view than it
//! carries out calls on.

use super::Pool;
use crate::backoff::{REST, delay};
use crate::cloud::{
    Action, AttachInterface, AttachmentId, Cloud, CloudError, CreateInterface, EniId, ErrorKind, Interface,
    InterfaceFilter, Metadata, MetadataInterface, SubnetId,
};
use crate::journal::{Freeing, Making, Sequence, Work};
use crate::moment::Moment;
use std::time::Duration;

/// How often EC2 may say that something is not there (yet) before it is believed.
const PATIENCE: u32 = 5;

/// How often IMDS is asked for a new interface (VPC CNI: 12 times from 100 ms).
const LOOKS: u32 = 12;

/// What a step leads to.
pub(super) enum Outcome {
    /// The sequence as it is now.
    Next(Sequence),
    /// The interface is the pool's; the sequence is over.
    Attached(Box<Interface>, Option<Box<MetadataInterface>>),
    /// The interface does not exist any more; the sequence is over.
    Deleted(EniId),
    /// Nothing was made, or somebody else has it; the sequence is over.
    Over,
}

/// A creation, taken apart.
struct Creation {
    request: Box<CreateInterface>,
    others: Vec<SubnetId>,
    device_index: u32,
}

impl Creation {
    fn at(&self, making: Making) -> Work {
        Work::Create {
            request: self.request.clone(),
            others: self.others.clone(),
            device_index: self.device_index,
            making: Box::new(making),
        }
    }
}

impl<C: Cloud, M: Metadata> Pool<C, M> {
    pub(super) async fn advance(&self, sequence: Sequence, now: Moment) -> Outcome {
        let tries = sequence.tries;
        match sequence.work.clone() {
            Work::Create { request, others, device_index, making } => {
                let creation = Creation { request, others, device_index };
                match *making {
                    Making::Intent => self.create(sequence, creation, now).await,
                    Making::Made { interface } => self.attach(sequence, &creation, interface, now).await,
                    Making::Attached { interface, attachment } => {
                        self.keep(sequence, &creation, interface, attachment, now).await
                    }
                    Making::Kept { interface, .. } => self.await_metadata(sequence, interface, now).await,
                }
            }
            Work::Free { eni, freeing: Freeing::Detach } => self.detach(sequence, eni, now).await,
            Work::Free { eni, freeing: Freeing::Delete } => self.delete(sequence, eni, tries, now).await,
        }
    }

    /// The same step again, after a delay that fits the error.
    fn again(&self, mut sequence: Sequence, error: Option<&CloudError>, now: Moment) -> Outcome {
        let mut state = self.state();
        let wait = match error {
            Some(error) if !error.kind.passes() && error.kind != ErrorKind::Gone => REST,
            _ => delay(Duration::from_millis(500), sequence.tries, &mut state.dice),
        };
        (sequence.tries, sequence.due) = (sequence.tries.saturating_add(1), now.after(wait));
        Outcome::Next(sequence)
    }

    /// What was made cannot be used: it goes again, and no other is made for a while.
    fn give_up(&self, eni: EniId, error: Option<&CloudError>, now: Moment) -> Outcome {
        tracing::warn!(%eni, error = error.map(tracing::field::display), "a new interface is given up");
        let mut state = self.state();
        state.holds.rest(Action::CreateNetworkInterface, now.after(REST));
        state.doubt(now);
        Outcome::Next(Sequence::new(Work::Free { eni, freeing: Freeing::Detach }, now))
    }

    fn failed(&self, error: &CloudError, now: Moment) {
        tracing::warn!(%error, "EC2");
        self.state().failed(error, now);
    }

    fn succeeded(&self, action: Action) {
        self.state().holds.succeeded(action);
    }

    async fn create(&self, mut sequence: Sequence, mut creation: Creation, now: Moment) -> Outcome {
        let error = match self.cloud.create_interface(&creation.request).await {
            Ok(interface) => {
                self.succeeded(Action::CreateNetworkInterface);
                sequence.advance(creation.at(Making::Made { interface }), now);
                return Outcome::Next(sequence);
            }
            Err(error) => error,
        };
        self.failed(&error, now);
        match error.kind {
            ErrorKind::Exhausted(_) => {
                let mut state = self.state();
                state.exhausted.insert(creation.request.subnet.clone(), now.after(REST));
                if creation.others.is_empty() {
                    return Outcome::Over;
                }
                // A token stands for one request: another subnet is another request.
                creation.request.subnet = creation.others.remove(0);
                creation.request.token = state.token(now);
                sequence.advance(creation.at(Making::Intent), now);
                Outcome::Next(sequence)
            }
            kind if kind.passes() => self.again(sequence, Some(&error), now),
            _ => Outcome::Over,
        }
    }

    async fn attach(
        &self,
        mut sequence: Sequence,
        creation: &Creation,
        interface: Interface,
        now: Moment,
    ) -> Outcome {
        let request = {
            let state = self.state();
            AttachInterface {
                eni: interface.id.clone(),
                instance: state.identity.instance.clone(),
                device_index: creation.device_index,
                network_card: state.limits.default_card,
            }
        };
        let error = match self.cloud.attach_interface(&request).await {
            Ok(attachment) => {
                self.succeeded(Action::AttachNetworkInterface);
                sequence.advance(creation.at(Making::Attached { interface, attachment }), now);
                return Outcome::Next(sequence);
            }
            Err(error) => error,
        };
        self.failed(&error, now);
        match error.kind {
            ErrorKind::InUse => {
                // An earlier try whose answer was lost; or something else has the device index.
                let filter = InterfaceFilter::Ids(vec![interface.id.clone()]);
                let found = self.cloud.describe_interfaces(&filter).await.unwrap_or_default();
                match found.into_iter().next().and_then(|i| i.attachment) {
                    Some(at) if at.instance.as_ref() == Some(&request.instance) => {
                        self.succeeded(Action::AttachNetworkInterface);
                        sequence.advance(creation.at(Making::Attached { interface, attachment: at.id }), now);
                        Outcome::Next(sequence)
                    }
                    None if sequence.tries < PATIENCE => self.again(sequence, Some(&error), now),
                    _ => self.give_up(interface.id, Some(&error), now),
                }
            }
            ErrorKind::Gone if sequence.tries < PATIENCE => self.again(sequence, Some(&error), now),
            kind if kind.passes() => self.again(sequence, Some(&error), now),
            _ => self.give_up(interface.id, Some(&error), now),
        }
    }

    async fn keep(
        &self,
        mut sequence: Sequence,
        creation: &Creation,
        interface: Interface,
        attachment: AttachmentId,
        now: Moment,
    ) -> Outcome {
        match self.cloud.set_delete_on_termination(&interface.id, &attachment, true).await {
            Ok(()) => {
                self.succeeded(Action::ModifyNetworkInterfaceAttribute);
                let first = now.after(Duration::from_millis(100));
                sequence.advance(creation.at(Making::Kept { interface, attachment }), first);
                Outcome::Next(sequence)
            }
            Err(error) => {
                self.failed(&error, now);
                let wait = error.kind.passes() || error.kind == ErrorKind::Gone && sequence.tries < PATIENCE;
                if wait {
                    self.again(sequence, Some(&error), now)
                } else {
                    self.give_up(interface.id, Some(&error), now)
                }
            }
        }
    }

    async fn await_metadata(&self, mut sequence: Sequence, interface: Interface, now: Moment) -> Outcome {
        let told = self.metadata.interfaces().await;
        if let Ok(told) = told
            && let Some(shown) = told.into_iter().find(|i| i.id == interface.id)
        {
            return Outcome::Attached(Box::new(interface), Some(Box::new(shown)));
        }
        if sequence.tries >= LOOKS {
            tracing::warn!(eni = %interface.id, "IMDS does not show the new interface");
            return self.give_up(interface.id, None, now);
        }
        let mut state = self.state();
        let wait = delay(Duration::from_millis(200), sequence.tries, &mut state.dice);
        (sequence.tries, sequence.due) = (sequence.tries + 1, now.after(wait));
        Outcome::Next(sequence)
    }

    async fn detach(&self, mut sequence: Sequence, eni: EniId, now: Moment) -> Outcome {
        let filter = InterfaceFilter::Ids(vec![eni.clone()]);
        let deletion = Work::Free { eni: eni.clone(), freeing: Freeing::Delete };
        let attachment = match self.cloud.describe_interfaces(&filter).await {
            Ok(found) => found.into_iter().next().and_then(|i| i.attachment),
            // The deletion finds out whether that is so: it acts on what is, not on what was.
            Err(error) if error.kind == ErrorKind::Gone => None,
            Err(error) => {
                self.failed(&error, now);
                return self.again(sequence, Some(&error), now);
            }
        };
        let Some(attachment) = attachment else {
            sequence.advance(deletion, now);
            return Outcome::Next(sequence);
        };
        if attachment.instance.as_ref() != Some(&self.state().identity.instance) {
            tracing::warn!(%eni, "an interface that was to be freed is on another instance and is left to it");
            return Outcome::Over;
        }
        match self.cloud.detach_interface(&attachment.id).await {
            Ok(()) => {
                self.succeeded(Action::DetachNetworkInterface);
                // VPC CNI: 2 s.
                sequence.advance(deletion, now.after(Duration::from_secs(2)));
                Outcome::Next(sequence)
            }
            Err(error) if error.kind == ErrorKind::Gone => {
                sequence.advance(deletion, now);
                Outcome::Next(sequence)
            }
            Err(error) => {
                self.failed(&error, now);
                self.again(sequence, Some(&error), now)
            }
        }
    }

    async fn delete(&self, mut sequence: Sequence, eni: EniId, tries: u32, now: Moment) -> Outcome {
        match self.cloud.delete_interface(&eni).await {
            Ok(()) => {
                self.succeeded(Action::DeleteNetworkInterface);
                Outcome::Deleted(eni)
            }
            Err(error) if error.kind == ErrorKind::Gone => Outcome::Deleted(eni),
            // Still on its way out; or it never began, because what we saw was an older view.
            Err(error) if error.kind == ErrorKind::InUse && tries >= PATIENCE => {
                self.failed(&error, now);
                sequence.advance(Work::Free { eni, freeing: Freeing::Detach }, now);
                Outcome::Next(sequence)
            }
            Err(error) => {
                self.failed(&error, now);
                self.again(sequence, Some(&error), now)
            }
        }
    }
}
