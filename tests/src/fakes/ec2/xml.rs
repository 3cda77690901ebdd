//! EC2's answers, written. The elements are those that the API's documentation gives, as far as the world knows their values.

use std::fmt::{Display, Write as _};

use super::call::{Answer, Refusal};
use super::objects::{Attachment, Interface, Tags};
use super::world::World;

/// A document in the making; text is escaped on the way in.
#[derive(Debug, Default)]
pub struct Xml(String);

impl Xml {
    /// An element with a value.
    pub fn leaf(&mut self, name: &str, value: impl Display) -> &mut Self {
        let value = value.to_string();
        let value = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = write!(self.0, "<{name}>{value}</{name}>");
        self
    }

    /// An element with elements in it.
    pub fn node(&mut self, name: &str, body: impl FnOnce(&mut Self)) -> &mut Self {
        let _ = write!(self.0, "<{name}>");
        body(self);
        let _ = write!(self.0, "</{name}>");
        self
    }

    /// The outermost element, in its namespace.
    pub fn root(&mut self, name: &str, space: &str, body: impl FnOnce(&mut Self)) {
        let _ = write!(self.0, "<{name} xmlns=\"{space}\">");
        body(self);
        let _ = write!(self.0, "</{name}>");
    }

    /// A list of `item`s.
    fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        each: impl Fn(&mut Self, T),
    ) -> &mut Self {
        self.node(name, |x| {
            for item in items {
                x.node("item", |x| each(x, item));
            }
        })
    }

    fn tags(&mut self, tags: &Tags) -> &mut Self {
        self.list("tagSet", tags, |x, (key, value)| {
            x.leaf("key", key).leaf("value", value);
        })
    }

    /// The document.
    #[must_use]
    pub fn finish(self) -> String {
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", self.0)
    }
}

/// An answer as EC2 writes it.
#[must_use]
pub fn answer(world: &World, action: &str, request: &str, answer: &Answer) -> String {
    let mut xml = Xml::default();
    xml.root(&format!("{action}Response"), "http://ec2.amazonaws.com/doc/2016-11-15/", |x| {
        x.leaf("requestId", request);
        body(x, world, answer);
    });
    xml.finish()
}

/// A refusal as EC2 writes it.
#[must_use]
pub fn refusal(request: &str, refusal: &Refusal) -> String {
    let mut xml = Xml::default();
    xml.node("Response", |x| {
        x.node("Errors", |x| {
            x.node("Error", |x| {
                x.leaf("Code", &refusal.code).leaf("Message", &refusal.message);
            });
        });
        x.leaf("RequestID", request);
    });
    xml.finish()
}

fn body(x: &mut Xml, world: &World, answer: &Answer) {
    let next = match answer {
        Answer::Interfaces { items, next } => {
            x.list("networkInterfaceSet", items, |x, i| interface(x, world, i));
            next
        }
        Answer::Instances { items, next } => {
            // One reservation an instance, as separate launches have it.
            x.list("reservationSet", items, |x, i| {
                x.leaf("reservationId", i.id.replacen("i-", "r-", 1)).leaf("ownerId", &world.account);
                x.list("instancesSet", [i], |x, i| instance(x, world, i));
            });
            next
        }
        Answer::InstanceTypes { items, next } => {
            x.list("instanceTypeSet", items, |x, shape| instance_type(x, shape));
            next
        }
        Answer::Subnets { items, next } => {
            x.list("subnetSet", items, |x, s| {
                x.leaf("subnetId", &s.id).leaf("vpcId", &s.vpc).leaf("state", "available");
                x.leaf("cidrBlock", s.cidr).leaf("availabilityZone", &s.zone);
                x.leaf("availableIpAddressCount", s.free()).leaf("ownerId", &world.account).tags(&s.tags);
            });
            next
        }
        Answer::Groups { items, next } => {
            x.list("securityGroupInfo", items, |x, g| {
                x.leaf("groupId", &g.id).leaf("groupName", &g.name).leaf("vpcId", &g.vpc);
                x.leaf("groupDescription", &g.name).leaf("ownerId", &world.account).tags(&g.tags);
            });
            next
        }
        Answer::Vpcs { items, next } => {
            x.list("vpcSet", items, |x, v| {
                x.leaf("vpcId", &v.id).leaf("state", "available").leaf("ownerId", &world.account);
                if let Some(first) = v.cidrs.first() {
                    x.leaf("cidrBlock", first);
                }
                x.list("cidrBlockAssociationSet", &v.cidrs, |x, cidr| {
                    x.leaf("cidrBlock", cidr).node("cidrBlockState", |x| {
                        x.leaf("state", "associated");
                    });
                });
                x.tags(&v.tags);
            });
            next
        }
        Answer::Tags { items, next } => {
            x.list("tagSet", items, |x, (id, key, value)| {
                let kind = match id.split('-').next() {
                    Some("eni") => "network-interface",
                    Some("subnet") => "subnet",
                    _ => "instance",
                };
                x.leaf("resourceId", id).leaf("resourceType", kind).leaf("key", key).leaf("value", value);
            });
            next
        }
        Answer::Created(i) => {
            x.node("networkInterface", |x| interface(x, world, i));
            &None
        }
        Answer::Attached { attachment, card } => {
            x.leaf("attachmentId", attachment).leaf("networkCardIndex", card);
            &None
        }
        Answer::Assigned { interface, addresses, prefixes } => {
            x.leaf("networkInterfaceId", interface);
            x.list("assignedPrivateIpAddressesSet", addresses, |x, a| {
                x.leaf("privateIpAddress", a);
            });
            x.list("assignedIpv4PrefixSet", prefixes, |x, p| {
                x.leaf("ipv4Prefix", p);
            });
            x.leaf("return", true);
            &None
        }
        Answer::Unassigned | Answer::Done => {
            x.leaf("return", true);
            &None
        }
    };
    if let Some(next) = next {
        x.leaf("nextToken", next);
    }
}

fn interface(x: &mut Xml, world: &World, i: &Interface) {
    x.leaf("networkInterfaceId", &i.id).leaf("subnetId", &i.subnet).leaf("vpcId", &i.vpc);
    x.leaf("availabilityZone", &i.zone).leaf("description", &i.description);
    x.leaf("ownerId", &world.account).leaf("requesterManaged", false);
    x.leaf("status", i.status()).leaf("macAddress", &i.mac).leaf("privateIpAddress", i.primary);
    x.leaf("sourceDestCheck", i.source_dest_check).leaf("interfaceType", &i.kind);
    x.list("groupSet", &i.groups, |x, id| {
        x.leaf("groupId", id).leaf("groupName", world.group(id).map_or("", |g| &g.name));
    });
    if let Some(a) = &i.attachment {
        x.node("attachment", |x| attachment(x, world, a));
    }
    x.tags(&i.tags);
    let addresses = std::iter::once((&i.primary, true)).chain(i.secondary.iter().map(|a| (a, false)));
    x.list("privateIpAddressesSet", addresses, |x, (address, primary)| {
        x.leaf("privateIpAddress", address).leaf("primary", primary);
    });
    x.list("ipv4PrefixSet", &i.prefixes, |x, p| {
        x.leaf("ipv4Prefix", p);
    });
    x.list("ipv6AddressesSet", [(); 0], |_, ()| {});
    if let Some(t) = &i.tracking {
        x.node("connectionTrackingConfiguration", |x| {
            let all = [
                ("tcpEstablishedTimeout", t.tcp_established),
                ("udpStreamTimeout", t.udp_stream),
                ("udpTimeout", t.udp),
            ];
            for (name, value) in all {
                if let Some(value) = value {
                    x.leaf(name, value);
                }
            }
        });
    }
}

fn attachment(x: &mut Xml, world: &World, a: &Attachment) {
    x.leaf("attachmentId", &a.id).leaf("instanceId", &a.instance).leaf("instanceOwnerId", &world.account);
    x.leaf("deviceIndex", a.device).leaf("networkCardIndex", a.card).leaf("status", a.progress);
    x.leaf("deleteOnTermination", a.delete_on_termination);
}

fn instance(x: &mut Xml, world: &World, i: &super::objects::Instance) {
    let (code, name) = if i.running { (16, "running") } else { (48, "terminated") };
    x.leaf("instanceId", &i.id).leaf("instanceType", i.shape.name);
    x.node("instanceState", |x| {
        x.leaf("code", code).leaf("name", name);
    });
    x.leaf("vpcId", &i.vpc).leaf("subnetId", &i.subnet).leaf("hypervisor", i.shape.hypervisor);
    x.node("placement", |x| {
        x.leaf("availabilityZone", &i.zone).leaf("tenancy", "default");
    });
    x.leaf("launchTime", super::http::iso8601(i.launched)).tags(&i.tags);
    let here = world.interfaces().values().filter(|e| e.is_on(&i.id));
    if let Some(primary) = world.interfaces().get(&i.primary) {
        x.leaf("privateIpAddress", primary.primary);
    }
    x.list("networkInterfaceSet", here, |x, e| interface(x, world, e));
}

fn instance_type(x: &mut Xml, shape: &super::shapes::Shape) {
    x.leaf("instanceType", shape.name).leaf("hypervisor", shape.hypervisor).leaf("bareMetal", false);
    x.node("networkInfo", |x| {
        x.leaf("maximumNetworkInterfaces", shape.interfaces);
        x.leaf("ipv4AddressesPerInterface", shape.addresses);
        x.leaf("maximumNetworkCards", shape.cards.len()).leaf("defaultNetworkCardIndex", 0);
        x.list("networkCards", shape.cards.iter().enumerate(), |x, (index, most)| {
            x.leaf("networkCardIndex", index).leaf("maximumNetworkInterfaces", most);
        });
    });
}
