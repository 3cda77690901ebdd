//! The fake's IMDS in front of moto's world, which has none of its own: before each answer it looks at what moto has.

use hyper::Request;
use hyper::body::Bytes;
use sluice_ec2::aws::Ec2;
use sluice_ec2::cloud::{Cloud as _, InterfaceFilter, SubnetFilter};
use sluice_tests::fakes::ec2::metadata::Metadata;
use sluice_tests::fakes::ec2::objects::{Attachment, Instance, Interface, Progress, Tags, Vpc};
use sluice_tests::fakes::ec2::serve::{Face, Reply, Shared};
use sluice_tests::fakes::ec2::world::Subnet;
use sluice_tests::fakes::ec2::{Delays, World, shapes};

use crate::server::{Moto, REGION};

pub(crate) struct Bridge {
    ec2: Ec2,
    instance: String,
    shape: &'static shapes::Shape,
    inner: Metadata,
}

impl Bridge {
    pub(crate) async fn new(ec2: Ec2, moto: &Moto) -> Self {
        let mut world = World::new(REGION);
        world.delays = Delays::NONE;
        let inner = Metadata::new(Shared::new(world), &moto.instance);
        let shape = shapes::shape(&moto.instance_type).unwrap();
        let bridge = Self { ec2, instance: moto.instance.clone(), shape, inner };
        bridge.look().await;
        bridge
    }

    async fn look(&self) {
        let filter = InterfaceFilter::AttachedTo(self.instance.parse().unwrap());
        let interfaces = self.ec2.describe_interfaces(&filter).await.unwrap();
        let first = &interfaces[0];
        let filter = SubnetFilter::Zone { vpc: first.vpc.clone(), zone: first.zone.clone() };
        let subnets = self.ec2.describe_subnets(&filter).await.unwrap();
        let now = self.inner.shared().now();
        let shown: Vec<Interface> = interfaces
            .iter()
            .map(|eni| {
                let at = eni.attachment.as_ref().unwrap();
                Interface {
                    id: eni.id.to_string(),
                    mac: eni.mac.to_string(),
                    subnet: eni.subnet.to_string(),
                    vpc: eni.vpc.to_string(),
                    zone: eni.zone.clone(),
                    groups: eni.groups.iter().map(ToString::to_string).collect(),
                    description: eni.description.clone(),
                    tags: eni.tags.clone(),
                    primary: eni.primary,
                    secondary: eni.secondary.clone(),
                    prefixes: eni.prefixes.clone(),
                    kind: "interface".to_owned(),
                    attachment: Some(Attachment {
                        id: at.id.to_string(),
                        instance: self.instance.clone(),
                        device: at.device_index,
                        card: at.network_card,
                        progress: Progress::Attached,
                        delete_on_termination: at.delete_on_termination,
                    }),
                    source_dest_check: true,
                    tracking: None,
                    created: now,
                }
            })
            .collect();
        let primary =
            shown.iter().find(|eni| eni.attachment.as_ref().is_some_and(|at| at.device == 0)).unwrap();
        let instance = Instance {
            id: self.instance.clone(),
            shape: self.shape,
            subnet: primary.subnet.clone(),
            vpc: primary.vpc.clone(),
            zone: primary.zone.clone(),
            primary: primary.id.clone(),
            tags: Tags::new(),
            role: "node".to_owned(),
            launched: now,
            running: true,
        };
        let vpc =
            Vpc { id: primary.vpc.clone(), cidrs: vec!["10.0.0.0/16".parse().unwrap()], tags: Tags::new() };
        let subnets = subnets
            .iter()
            .map(|s| Subnet::new(s.id.as_str(), s.vpc.as_str(), &s.zone, s.cidr, s.tags.clone()))
            .collect();
        self.inner.shared().world().mirror(now, instance, vpc, subnets, shown);
    }
}

impl Face for Bridge {
    async fn answer(&self, request: Request<Bytes>) -> Option<Reply> {
        self.look().await;
        self.inner.answer(request).await
    }

    fn shared(&self) -> &Shared {
        self.inner.shared()
    }
}
