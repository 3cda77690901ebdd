//! What an administrator builds: VPCs, subnets, groups, instances. It is no part of what a node may call.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::super::call::Refusal;
use super::super::faults::Policy;
use super::super::objects::{Attachment, Group, Instance, Interface, Progress, Tags, Vpc};
use super::super::shapes::{self, Shape};
use super::interfaces::missing;
use super::{Subnet, World};

/// A VPC with one instance in it: where most tests begin.
#[derive(Debug, Clone)]
pub struct Place {
    /// The VPC, 10.0.0.0/16 and 100.64.0.0/16.
    pub vpc: String,
    /// 10.0.0.0/20 in zone a: the instance's own.
    pub subnet: String,
    /// 100.64.0.0/19 in zone a, tagged for pods.
    pub pods: String,
    /// 10.0.16.0/20 in zone b.
    pub elsewhere: String,
    /// The nodes' security group.
    pub group: String,
    /// A group for pods.
    pub pod_group: String,
    /// The instance.
    pub instance: String,
}

impl World {
    /// A region with [`Place`]: a node whose role `node` has AmazonEKS_CNI_Policy, and a key `AKIATEST` of that role.
    ///
    /// # Errors
    /// For an instance type that is not in the table; it names those that are.
    pub fn with_node(now: Duration, instance_type: &str) -> Result<(Self, Place), String> {
        let Some(shape) = shapes::shape(instance_type) else {
            let names: Vec<_> = shapes::SHAPES.iter().map(|s| s.name).collect();
            return Err(format!(
                "the world has no instance type {instance_type}; it has {}",
                names.join(", ")
            ));
        };
        let mut world = Self::new("eu-central-1");
        world.grant("node", Policy::amazon_eks_cni());
        world.add_key("AKIATEST", "node");
        let cidr = |a, b, c, length| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), length);
        let vpc = world.add_vpc(vec![cidr(10, 0, 0, 16), cidr(100, 64, 0, 16)]);
        let pod_tags = Tags::from([("kubernetes.io/role/cni".to_owned(), "1".to_owned())]);
        let subnet = world.add_subnet(&vpc, "eu-central-1a", cidr(10, 0, 0, 20), Tags::new());
        let pods = world.add_subnet(&vpc, "eu-central-1a", cidr(100, 64, 0, 19), pod_tags);
        let elsewhere = world.add_subnet(&vpc, "eu-central-1b", cidr(10, 0, 16, 20), Tags::new());
        let group = world.add_group(&vpc, "nodes");
        let pod_group = world.add_group(&vpc, "pods");
        let instance = world
            .run_instance(now, shape, &subnet, &group, "node")
            .map_err(|e| format!("{}: {}", e.code, e.message))?;
        Ok((world, Place { vpc, subnet, pods, elsewhere, group, pod_group, instance }))
    }

    /// A VPC with its default security group.
    pub fn add_vpc(&mut self, cidrs: Vec<Ipv4Net>) -> String {
        let id = self.mint("vpc");
        self.vpcs.insert(id.clone(), Vpc { id: id.clone(), cidrs, tags: Tags::new() });
        self.add_group(&id, "default");
        id
    }

    /// A subnet of a VPC.
    pub fn add_subnet(&mut self, vpc: &str, zone: &str, cidr: Ipv4Net, tags: Tags) -> String {
        let id = self.mint("subnet");
        self.subnets.insert(id.clone(), Subnet::new(&id, vpc, zone, cidr, tags));
        id
    }

    /// A security group.
    pub fn add_group(&mut self, vpc: &str, name: &str) -> String {
        let id = self.mint("sg");
        let group = Group { id: id.clone(), name: name.to_owned(), vpc: vpc.to_owned(), tags: Tags::new() };
        self.groups.insert(id.clone(), group);
        id
    }

    /// A running instance with its primary ENI.
    ///
    /// # Errors
    /// As EC2: an unknown or full subnet.
    pub fn run_instance(
        &mut self,
        now: Duration,
        shape: &'static Shape,
        subnet: &str,
        group: &str,
        role: &str,
    ) -> Result<String, Refusal> {
        let home = self.subnets.get_mut(subnet).ok_or_else(|| missing("Subnet", subnet))?;
        let primary = home.take()?;
        let (vpc, zone) = (home.vpc.clone(), home.zone.clone());
        let instance = self.mint("i");
        let mac = self.mint_mac();
        let id = self.mint("eni");
        let attachment = Attachment {
            id: self.mint("eni-attach"),
            instance: instance.clone(),
            device: 0,
            card: 0,
            progress: Progress::Attached,
            delete_on_termination: true,
        };
        let interface = Interface {
            id: id.clone(),
            mac,
            subnet: subnet.to_owned(),
            vpc: vpc.clone(),
            zone: zone.clone(),
            groups: vec![group.to_owned()],
            description: String::new(),
            tags: Tags::new(),
            primary,
            secondary: Vec::new(),
            prefixes: Vec::new(),
            kind: "interface".to_owned(),
            attachment: Some(attachment),
            source_dest_check: true,
            tracking: None,
            created: now,
        };
        self.interfaces.insert(id.clone(), Arc::new(interface));
        let running = Instance {
            id: instance.clone(),
            shape,
            subnet: subnet.to_owned(),
            vpc,
            zone,
            primary: id,
            tags: Tags::new(),
            role: role.to_owned(),
            launched: now,
            running: true,
        };
        self.instances.insert(instance.clone(), running);
        self.remember(now);
        Ok(instance)
    }

    /// Makes the world what another one is, for a metadata service that shows it: one instance, its ENIs, and where they are.
    pub fn mirror(
        &mut self,
        now: Duration,
        instance: Instance,
        vpc: Vpc,
        subnets: Vec<Subnet>,
        interfaces: Vec<Interface>,
    ) {
        self.instances = [(instance.id.clone(), instance)].into();
        self.vpcs = [(vpc.id.clone(), vpc)].into();
        self.subnets = subnets.into_iter().map(|subnet| (subnet.id.clone(), subnet)).collect();
        self.interfaces = interfaces.into_iter().map(|eni| (eni.id.clone(), Arc::new(eni))).collect();
        self.remember(now);
    }

    /// Ends an instance: ENIs that are to die with it do, the others are free and cost money.
    pub fn terminate(&mut self, now: Duration, instance: &str) {
        self.settle(now);
        if let Some(i) = self.instances.get_mut(instance) {
            i.running = false;
        }
        let here: Vec<_> = self.interfaces.values().filter(|i| i.is_on(instance)).cloned().collect();
        for interface in here {
            if interface.attachment.as_ref().is_some_and(|a| a.delete_on_termination) {
                self.release(&interface);
            } else if let Ok(interface) = self.interface_mut(&interface.id) {
                interface.attachment = None;
            }
        }
        self.remember(now);
    }

    /// Tags an ENI from outside, as an operator does.
    ///
    /// # Errors
    /// `InvalidNetworkInterfaceID.NotFound`.
    pub fn tag_interface(&mut self, now: Duration, id: &str, key: &str, value: &str) -> Result<(), Refusal> {
        self.interface_mut(id)?.tags.insert(key.to_owned(), value.to_owned());
        self.remember(now);
        Ok(())
    }

    /// Takes addresses of a subnet away, as other machines in it do: one of each sixteen, so that prefixes go first.
    pub fn fragment(&mut self, subnet: &str) {
        let Some(subnet) = self.subnets.get_mut(subnet) else { return };
        let hosts: Vec<_> = subnet.cidr.hosts().step_by(16).collect();
        for address in hosts {
            // What is taken already is as good.
            let _ = subnet.take_this(address);
        }
    }
}
