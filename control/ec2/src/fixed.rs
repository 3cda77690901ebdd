//! A node whose interfaces and addresses somebody wrote down: a lab, or a machine that is no instance.
//!
//! The pool must not know the difference, so that leases, cool-downs and the checkpoint are the same everywhere: this is
//! an implementation of its two traits that tells what was written down, and refuses to change any of it. The pool's
//! settings must say that nothing is provisioned.

use crate::cloud::{
    Action, Amount, AttachInterface, AttachmentId, Card, Cloud, CloudError, CreateInterface, EniId, GroupId,
    IdError, Identity, Instance, InstanceId, Interface, InterfaceFilter, Limits, Mac, Metadata,
    MetadataError, MetadataInterface, Placed, SecurityGroup, Subnet, SubnetFilter, Tags,
};
use crate::settings::Settings;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// An interface as it was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedInterface {
    /// Its primary address, by which it is known.
    pub primary: Ipv4Addr,
    /// Whether it is the node's first.
    pub is_first: bool,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Addresses for pods.
    pub addresses: Vec<Ipv4Addr>,
    /// Prefixes for pods, /28.
    pub prefixes: Vec<Ipv4Net>,
}

impl FixedInterface {
    /// The id that it has in the pool.
    ///
    /// # Errors
    /// None: what is made of digits alone is an id.
    pub fn id(&self) -> Result<EniId, IdError> {
        format!("eni-{:08x}", self.primary.to_bits()).parse()
    }

    fn told(&self, index: u32) -> Result<MetadataInterface, IdError> {
        let [a, b, c, d] = self.primary.octets();
        Ok(MetadataInterface {
            mac: Mac([2, 0, a, b, c, d]),
            id: self.id()?,
            device_index: index,
            network_card: 0,
            subnet: format!("subnet-{:08x}", self.subnet.network().to_bits()).parse()?,
            subnet_cidr: self.subnet,
            vpc: "vpc-fixed".parse()?,
            vpc_cidrs: Vec::new(),
            groups: Vec::new(),
            addresses: std::iter::once(self.primary).chain(self.addresses.iter().copied()).collect(),
            prefixes: self.prefixes.clone(),
        })
    }
}

/// The interfaces of a node, written down. Clones share them.
#[derive(Debug, Clone)]
pub struct Fixed(Arc<Mutex<Vec<MetadataInterface>>>);

impl Fixed {
    /// These interfaces.
    ///
    /// # Errors
    /// As [`FixedInterface::id`].
    pub fn new(interfaces: &[FixedInterface]) -> Result<Self, IdError> {
        let fixed = Self(Arc::default());
        fixed.replace(interfaces)?;
        Ok(fixed)
    }

    /// Other interfaces from now on; the pool sees them when it looks the next time.
    ///
    /// # Errors
    /// As [`FixedInterface::id`]; then nothing has changed.
    pub fn replace(&self, interfaces: &[FixedInterface]) -> Result<(), IdError> {
        let mut index = 0;
        let told: Result<_, _> = interfaces
            .iter()
            .map(|interface| {
                index += u32::from(!interface.is_first);
                interface.told(if interface.is_first { 0 } else { index })
            })
            .collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = told?;
        Ok(())
    }

    /// Who the node is, for the pool.
    ///
    /// # Errors
    /// None: the id is one.
    pub fn identity() -> Result<Identity, IdError> {
        Ok(Identity {
            instance: "i-fixed".parse()?,
            instance_type: "fixed".to_owned(),
            zone: String::new(),
            region: String::new(),
        })
    }

    /// What it takes: as much as was written down.
    pub fn limits() -> Limits {
        Limits {
            instance_type: "fixed".to_owned(),
            interfaces: u32::from(u16::MAX),
            addresses: u32::from(u16::MAX),
            default_card: 0,
            cards: vec![Card { index: 0, interfaces: u32::from(u16::MAX) }],
            nitro: true,
        }
    }

    /// An operator's settings, as far as they concern what is written down: nothing is made, nothing is looked for.
    pub fn settings(settings: Settings) -> Settings {
        Settings { provision: false, sweep: false, custom: None, manage_untagged: true, ..settings }
    }
}

fn refused<T>(action: Action) -> Result<T, CloudError> {
    let why = "the node's interfaces come from a file: there is no EC2 to ask";
    Err(CloudError::answered(action, 400, "UnsupportedOperation", why, None))
}

impl Cloud for Fixed {
    async fn describe_instance(&self, _: &InstanceId) -> Result<Instance, CloudError> {
        refused(Action::DescribeInstances)
    }

    async fn describe_instance_type(&self, _: &str) -> Result<Limits, CloudError> {
        Ok(Self::limits())
    }

    async fn describe_interfaces(&self, _: &InterfaceFilter) -> Result<Vec<Interface>, CloudError> {
        refused(Action::DescribeNetworkInterfaces)
    }

    async fn describe_subnets(&self, _: &SubnetFilter) -> Result<Vec<Subnet>, CloudError> {
        refused(Action::DescribeSubnets)
    }

    async fn describe_security_groups(&self, _: &[GroupId]) -> Result<Vec<SecurityGroup>, CloudError> {
        refused(Action::DescribeSecurityGroups)
    }

    async fn create_interface(&self, _: &CreateInterface) -> Result<Interface, CloudError> {
        refused(Action::CreateNetworkInterface)
    }

    async fn attach_interface(&self, _: &AttachInterface) -> Result<AttachmentId, CloudError> {
        refused(Action::AttachNetworkInterface)
    }

    async fn set_delete_on_termination(
        &self,
        _: &EniId,
        _: &AttachmentId,
        _: bool,
    ) -> Result<(), CloudError> {
        refused(Action::ModifyNetworkInterfaceAttribute)
    }

    async fn set_groups(&self, _: &EniId, _: &[GroupId]) -> Result<(), CloudError> {
        refused(Action::ModifyNetworkInterfaceAttribute)
    }

    async fn assign(&self, _: &EniId, _: Amount) -> Result<Placed, CloudError> {
        refused(Action::AssignPrivateIpAddresses)
    }

    async fn unassign(&self, _: &EniId, _: &Placed) -> Result<(), CloudError> {
        refused(Action::UnassignPrivateIpAddresses)
    }

    async fn detach_interface(&self, _: &AttachmentId) -> Result<(), CloudError> {
        refused(Action::DetachNetworkInterface)
    }

    async fn delete_interface(&self, _: &EniId) -> Result<(), CloudError> {
        refused(Action::DeleteNetworkInterface)
    }

    async fn create_tags(&self, _: &EniId, _: &Tags) -> Result<(), CloudError> {
        refused(Action::CreateTags)
    }
}

impl Metadata for Fixed {
    async fn identity(&self) -> Result<Identity, MetadataError> {
        Self::identity().map_err(|error| malformed("identity", &error))
    }

    async fn primary_mac(&self) -> Result<Mac, MetadataError> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = told.iter().find(|interface| interface.device_index == 0);
        first.map(|interface| interface.mac).ok_or_else(|| MetadataError::Missing { path: "mac".to_owned() })
    }

    async fn interfaces(&self) -> Result<Vec<MetadataInterface>, MetadataError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn malformed(path: &str, error: &IdError) -> MetadataError {
    MetadataError::Malformed { path: path.to_owned(), found: error.found.clone(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::FileStorage;
    use crate::moment::{Clock, Moment};
    use crate::pool::{Parts, Pool};
    use crate::store::{LeaseKey, Pod};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    fn key(container: &str) -> LeaseKey {
        LeaseKey { network: "n".into(), container: container.into(), interface: "eth0".into() }
    }

    fn interfaces(addresses: &[&str]) -> [FixedInterface; 2] {
        let interface = |primary: &str, is_first, addresses: &[&str]| FixedInterface {
            primary: primary.parse().unwrap(),
            is_first,
            subnet: "10.0.0.0/16".parse().unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            prefixes: Vec::new(),
        };
        [interface("10.0.9.5", true, &["10.0.9.20"]), interface("10.0.10.5", false, addresses)]
    }

    #[tokio::test]
    async fn the_pool_lives_on_what_is_written_down_and_asks_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let fixed = Fixed::new(&interfaces(&["10.0.10.20"])).unwrap();
        let time = Arc::new(AtomicU64::new(1_000));
        let clock = {
            let time = Arc::clone(&time);
            Clock::new(move || Moment(time.load(Ordering::Relaxed)))
        };
        let parts = Parts {
            identity: Fixed::identity().unwrap(),
            limits: Fixed::limits(),
            settings: Fixed::settings(Settings::default()),
            max_pods: 110,
            boot: "b".into(),
            seed: 1,
            storage: Arc::new(FileStorage::new(folder.path().join("ipam.json"))),
        };
        let (pool, _) = Pool::open(fixed.clone(), fixed.clone(), clock, parts, &[]).unwrap();
        pool.step().await;
        assert!(pool.known() && pool.targets().settled, "{:?}", pool.troubles());
        let soon = Duration::from_millis(20);
        let first = pool.assign(key("a"), Pod::default(), soon).await.unwrap().lease;
        let second = pool.assign(key("b"), Pod::default(), soon).await.unwrap().lease;
        assert_ne!(first.address, second.address);
        assert!(pool.assign(key("c"), Pod::default(), soon).await.is_err());
        fixed.replace(&interfaces(&["10.0.10.20", "10.0.10.21"])).unwrap();
        time.store(80_000, Ordering::Relaxed);
        pool.step().await;
        let third = pool.assign(key("c"), Pod::default(), soon).await.unwrap().lease;
        assert_eq!(third.address, Ipv4Addr::new(10, 0, 10, 21));
        assert_eq!(third.eni, interfaces(&[])[1].id().unwrap());
        assert!(pool.troubles().is_empty() && pool.sequences().is_empty());
    }
}
