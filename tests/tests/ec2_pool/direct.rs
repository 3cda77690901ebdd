//! The fake world behind the allocator's traits, without HTTP and with a clock and a kill switch of the test's own.
//!
//! A kill is a future that never ends: the test polls a round once, finds it pending and drops the pool, as a process
//! that dies in the middle of a call drops everything.

use std::future::{Future, pending, ready};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sluice_ec2::checkpoint::Storage;
use sluice_ec2::cloud::{
    Action, Amount, AttachInterface, Attachment, AttachmentId, Card, Cloud, CloudError, CreateInterface,
    EniId, GroupId, Identity, Instance, InstanceId, Interface, InterfaceFilter, InterfaceKind,
    InterfaceStatus, Limits, Mac, Metadata, MetadataError, MetadataInterface, Placed, SecurityGroup, Subnet,
    SubnetFilter, Tags,
};
use sluice_ec2::moment::{Clock, Moment};
use sluice_tests::fakes::ec2::call::{Attribute, Create, Filter, Query, Wanted};
use sluice_tests::fakes::ec2::objects::{self, Progress};
use sluice_tests::fakes::ec2::{Answer, Call, World};

/// The world, the time, the disk and the kill switch.
pub(crate) struct Node {
    pub(crate) world: World,
    pub(crate) now: Duration,
    pub(crate) instance: String,
    pub(crate) disk: Option<Vec<u8>>,
    pub(crate) disk_full: bool,
    /// After so many calls and writes the process dies: before the last of them takes effect, or after.
    pub(crate) fuse: Option<(u32, bool)>,
    pub(crate) dead: bool,
    pub(crate) last_round_calls: u32,
}

/// A handle to a [`Node`], as the pool's cloud, metadata service and storage.
#[derive(Clone)]
pub(crate) struct Direct(Arc<Mutex<Node>>);

impl Direct {
    pub(crate) fn new(world: World, now: Duration, instance: &str) -> Self {
        let instance = instance.to_owned();
        Self(Arc::new(Mutex::new(Node {
            world,
            now,
            instance,
            disk: None,
            disk_full: false,
            fuse: None,
            dead: false,
            last_round_calls: 0,
        })))
    }

    pub(crate) fn node(&self) -> MutexGuard<'_, Node> {
        self.0.lock().unwrap()
    }

    pub(crate) fn clock(&self) -> Clock {
        let node = self.0.clone();
        Clock::new(move || Moment(u64::try_from(node.lock().unwrap().now.as_millis()).unwrap()))
    }

    fn call(
        &self,
        action: Action,
        call: &Call,
    ) -> impl Future<Output = Result<Answer, CloudError>> + Send + use<> {
        let outcome = self.node().call(action, call);
        async move {
            match outcome {
                Some(answer) => answer,
                None => pending().await,
            }
        }
    }
}

impl Node {
    /// Whether the process dies at this point, and if so whether what it was about to do still happens.
    fn burn(&mut self) -> Option<bool> {
        let (left, after) = self.fuse.as_mut()?;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        self.dead = true;
        Some(*after)
    }

    /// `None` where the process dies in the call.
    fn call(&mut self, action: Action, call: &Call) -> Option<Result<Answer, CloudError>> {
        if self.dead {
            return None;
        }
        self.last_round_calls += 1;
        let killed = self.burn();
        if killed == Some(false) {
            return None;
        }
        let reaction = self.world.call(self.now, "node", call, false);
        if killed.is_some() {
            return None;
        }
        if reaction.cut {
            return Some(Err(CloudError::unreachable(action, "connection reset")));
        }
        Some(reaction.answer.map_err(|r| CloudError::answered(action, r.status, r.code, r.message, None)))
    }

    pub(crate) fn identity(&self) -> Identity {
        let host = &self.world.instances()[&self.instance];
        Identity {
            instance: host.id.parse().unwrap(),
            instance_type: host.shape.name.to_owned(),
            zone: host.zone.clone(),
            region: self.world.region.clone(),
        }
    }
}

impl Storage for Direct {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.node().disk.clone())
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut node = self.node();
        if node.dead || node.burn() == Some(false) {
            return Err(io::Error::other("killed"));
        }
        if node.disk_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        node.disk = Some(text.to_vec());
        if node.dead { Err(io::Error::other("killed")) } else { Ok(()) }
    }

    fn set_aside(&self, _: Moment) -> io::Result<String> {
        self.node().disk = None;
        Ok("aside".to_owned())
    }
}

fn kind(word: &str) -> InterfaceKind {
    InterfaceKind::from_word(word)
}

pub(crate) fn interface(i: &objects::Interface) -> Interface {
    Interface {
        id: i.id.parse().unwrap(),
        mac: i.mac.parse().unwrap(),
        kind: kind(&i.kind),
        status: match i.status() {
            "available" => InterfaceStatus::Available,
            "detaching" => InterfaceStatus::Detaching,
            _ => InterfaceStatus::InUse,
        },
        subnet: i.subnet.parse().unwrap(),
        vpc: i.vpc.parse().unwrap(),
        zone: i.zone.clone(),
        groups: i.groups.iter().map(|g| g.parse().unwrap()).collect(),
        primary: i.primary,
        secondary: i.secondary.clone(),
        prefixes: i.prefixes.clone(),
        tags: i.tags.clone(),
        description: i.description.clone(),
        attachment: i.attachment.as_ref().map(|a| Attachment {
            id: a.id.parse().unwrap(),
            instance: a.instance.parse().ok(),
            device_index: a.device,
            network_card: a.card,
            delete_on_termination: a.delete_on_termination,
        }),
    }
}

fn query(ids: impl IntoIterator<Item = String>, filters: &[(&str, &str)]) -> Query {
    let filters = filters
        .iter()
        .map(|(name, value)| Filter { name: (*name).to_owned(), values: vec![(*value).to_owned()] });
    Query { ids: ids.into_iter().collect(), filters: filters.collect(), ..Query::default() }
}

fn wanted(amount: Amount) -> Wanted {
    match amount {
        Amount::Addresses(count) => Wanted { count, ..Wanted::default() },
        Amount::Prefixes(prefix_count) => Wanted { prefix_count, ..Wanted::default() },
    }
}

fn modify(eni: &EniId, attribute: Attribute) -> Call {
    Call::ModifyNetworkInterfaceAttribute { interface: eni.to_string(), attribute }
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

macro_rules! expect {
    ($answer:expr, $pattern:pat => $value:expr) => {
        match $answer? {
            $pattern => Ok($value),
            other => panic!("the world answers {other:?}"),
        }
    };
}

impl Cloud for Direct {
    async fn describe_instance(&self, instance: &InstanceId) -> Result<Instance, CloudError> {
        let call = Call::DescribeInstances(query([instance.to_string()], &[]));
        let answer = self.call(Action::DescribeInstances, &call).await;
        expect!(answer, Answer::Instances { items, .. } => Instance {
            id: items[0].id.parse().unwrap(),
            instance_type: items[0].shape.name.to_owned(),
            subnet: items[0].subnet.parse().unwrap(),
            vpc: items[0].vpc.parse().unwrap(),
            zone: items[0].zone.clone(),
            interfaces: vec![],
        })
    }

    async fn describe_instance_type(&self, instance_type: &str) -> Result<Limits, CloudError> {
        let call = Call::DescribeInstanceTypes(query([instance_type.to_owned()], &[]));
        let answer = self.call(Action::DescribeInstanceTypes, &call).await;
        expect!(answer, Answer::InstanceTypes { items, .. } => Limits {
            instance_type: items[0].name.to_owned(),
            interfaces: items[0].interfaces,
            addresses: items[0].addresses,
            default_card: 0,
            cards: (0..).zip(items[0].cards).map(|(index, n)| Card { index, interfaces: *n }).collect(),
            nitro: items[0].hypervisor == "nitro",
        })
    }

    async fn describe_interfaces(&self, filter: &InterfaceFilter) -> Result<Vec<Interface>, CloudError> {
        let query = match filter {
            InterfaceFilter::Ids(ids) => query(strings(ids), &[]),
            InterfaceFilter::AttachedTo(instance) => {
                query([], &[("attachment.instance-id", instance.as_str())])
            }
            InterfaceFilter::Available { vpc, tags } => {
                let mut query = query([], &[("status", "available"), ("vpc-id", vpc.as_str())]);
                query.filters.extend(tags.iter().map(|(key, value)| match value {
                    Some(value) => Filter { name: format!("tag:{key}"), values: vec![value.clone()] },
                    None => Filter { name: "tag-key".to_owned(), values: vec![key.clone()] },
                }));
                query
            }
        };
        let answer =
            self.call(Action::DescribeNetworkInterfaces, &Call::DescribeNetworkInterfaces(query)).await;
        expect!(answer, Answer::Interfaces { items, .. } => items.iter().map(|i| interface(i)).collect())
    }

    async fn describe_subnets(&self, filter: &SubnetFilter) -> Result<Vec<Subnet>, CloudError> {
        let query = match filter {
            SubnetFilter::Ids(ids) => query(strings(ids), &[]),
            SubnetFilter::Zone { vpc, zone } => {
                query([], &[("vpc-id", vpc.as_str()), ("availability-zone", zone)])
            }
        };
        let answer = self.call(Action::DescribeSubnets, &Call::DescribeSubnets(query)).await;
        let subnet = |s: sluice_tests::fakes::ec2::world::Subnet| Subnet {
            id: s.id.parse().unwrap(),
            vpc: s.vpc.parse().unwrap(),
            zone: s.zone.clone(),
            cidr: s.cidr,
            free: s.free(),
            tags: s.tags,
        };
        expect!(answer, Answer::Subnets { items, .. } => items.into_iter().map(subnet).collect())
    }

    async fn describe_security_groups(&self, groups: &[GroupId]) -> Result<Vec<SecurityGroup>, CloudError> {
        let call = Call::DescribeSecurityGroups(query(strings(groups), &[]));
        let answer = self.call(Action::DescribeSecurityGroups, &call).await;
        let group = |g: objects::Group| SecurityGroup {
            id: g.id.parse().unwrap(),
            vpc: g.vpc.parse().unwrap(),
            name: g.name,
        };
        expect!(answer, Answer::Groups { items, .. } => items.into_iter().map(group).collect())
    }

    async fn create_interface(&self, request: &CreateInterface) -> Result<Interface, CloudError> {
        let create = Create {
            subnet: request.subnet.to_string(),
            groups: strings(&request.groups),
            description: request.description.clone(),
            tags: request.tags.clone(),
            wanted: wanted(request.amount),
            client_token: Some(request.token.clone()),
            ..Create::default()
        };
        let answer = self.call(Action::CreateNetworkInterface, &Call::CreateNetworkInterface(create)).await;
        expect!(answer, Answer::Created(i) => interface(&i))
    }

    async fn attach_interface(&self, request: &AttachInterface) -> Result<AttachmentId, CloudError> {
        let call = Call::AttachNetworkInterface {
            interface: request.eni.to_string(),
            instance: request.instance.to_string(),
            device: request.device_index,
            card: request.network_card,
        };
        let answer = self.call(Action::AttachNetworkInterface, &call).await;
        expect!(answer, Answer::Attached { attachment, .. } => attachment.parse().unwrap())
    }

    async fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
        delete: bool,
    ) -> Result<(), CloudError> {
        let call = modify(eni, Attribute::DeleteOnTermination(attachment.to_string(), delete));
        self.call(Action::ModifyNetworkInterfaceAttribute, &call).await.map(drop)
    }

    async fn set_groups(&self, eni: &EniId, groups: &[GroupId]) -> Result<(), CloudError> {
        let call = modify(eni, Attribute::Groups(strings(groups)));
        self.call(Action::ModifyNetworkInterfaceAttribute, &call).await.map(drop)
    }

    async fn assign(&self, eni: &EniId, amount: Amount) -> Result<Placed, CloudError> {
        let call = Call::AssignPrivateIpAddresses { interface: eni.to_string(), wanted: wanted(amount) };
        let answer = self.call(Action::AssignPrivateIpAddresses, &call).await;
        expect!(answer, Answer::Assigned { addresses, prefixes, .. } => Placed { addresses, prefixes })
    }

    async fn unassign(&self, eni: &EniId, what: &Placed) -> Result<(), CloudError> {
        let call = Call::UnassignPrivateIpAddresses {
            interface: eni.to_string(),
            addresses: what.addresses.clone(),
            prefixes: what.prefixes.clone(),
        };
        self.call(Action::UnassignPrivateIpAddresses, &call).await.map(drop)
    }

    async fn detach_interface(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        let call = Call::DetachNetworkInterface { attachment: attachment.to_string(), force: false };
        self.call(Action::DetachNetworkInterface, &call).await.map(drop)
    }

    async fn delete_interface(&self, eni: &EniId) -> Result<(), CloudError> {
        let call = Call::DeleteNetworkInterface { interface: eni.to_string() };
        self.call(Action::DeleteNetworkInterface, &call).await.map(drop)
    }

    async fn create_tags(&self, eni: &EniId, tags: &Tags) -> Result<(), CloudError> {
        let call = Call::CreateTags { resources: vec![eni.to_string()], tags: tags.clone() };
        self.call(Action::CreateTags, &call).await.map(drop)
    }
}

impl Metadata for Direct {
    fn identity(&self) -> impl Future<Output = Result<Identity, MetadataError>> + Send {
        ready(Ok(self.node().identity()))
    }

    async fn primary_mac(&self) -> Result<Mac, MetadataError> {
        let node = self.node();
        let primary = &node.world.instances()[&node.instance].primary;
        Ok(node.world.interfaces()[primary].mac.parse().unwrap())
    }

    async fn interfaces(&self) -> Result<Vec<MetadataInterface>, MetadataError> {
        let node = &mut *self.node();
        node.world.settle(node.now);
        let (devices, contents) = node.world.metadata_views(node.now);
        let there = devices.values().filter_map(|device| {
            let at = device.attachment.as_ref().filter(|a| a.instance == node.instance)?;
            if matches!(at.progress, Progress::Attaching(_)) {
                return None;
            }
            let seen = contents.get(&device.id).filter(|i| i.is_on(&node.instance))?;
            Some(MetadataInterface {
                mac: device.mac.parse().unwrap(),
                id: device.id.parse().unwrap(),
                device_index: at.device,
                network_card: at.card,
                subnet: seen.subnet.parse().unwrap(),
                subnet_cidr: node.world.subnets()[&seen.subnet].cidr,
                vpc: seen.vpc.parse().unwrap(),
                vpc_cidrs: node.world.vpc(&seen.vpc)?.cidrs.clone(),
                groups: seen.groups.iter().map(|g| g.parse().unwrap()).collect(),
                addresses: std::iter::once(&seen.primary).chain(&seen.secondary).copied().collect(),
                prefixes: seen.prefixes.clone(),
            })
        });
        Ok(there.collect())
    }
}
