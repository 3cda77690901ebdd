//! EC2's query protocol, read. A parameter that the world does not know is refused by name: a fake that ignored it would let
//! a wrong request pass for a right one.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::call::{Attribute, Call, Create, Filter, Query, Refusal, Wanted};
use super::objects::{Tags, Tracking};

/// The parameters of a request; each is taken once.
#[derive(Debug, Clone, Default)]
pub struct Form(BTreeMap<String, String>);

impl Form {
    /// Reads `application/x-www-form-urlencoded`.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).map(|(k, v)| (k.into_owned(), v.into_owned())).collect())
    }

    /// Whether it is for STS.
    #[must_use]
    pub fn is_sts(&self) -> bool {
        self.0.get("Version").is_some_and(|v| v == "2011-06-15")
    }

    /// Takes a parameter.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a parameter that must be there.
    ///
    /// # Errors
    /// `MissingParameter`.
    pub fn required(&mut self, name: &str) -> Result<String, Refusal> {
        self.text(name).ok_or_else(|| {
            Refusal::new("MissingParameter", format!("The request must contain the parameter {name}"))
        })
    }

    fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        self.text(name).map(|text| parse(name, &text)).transpose()
    }

    fn texts(&mut self, name: &str) -> Vec<String> {
        (1..).map_while(|n| self.text(&format!("{name}.{n}"))).collect()
    }

    fn values<T: FromStr>(&mut self, name: &str) -> Result<Vec<T>, Refusal> {
        self.texts(name).iter().map(|text| parse(name, text)).collect()
    }

    fn tags(&mut self, name: &str) -> Tags {
        (1..)
            .map_while(|n| {
                let key = self.text(&format!("{name}.{n}.Key"))?;
                Some((key, self.text(&format!("{name}.{n}.Value")).unwrap_or_default()))
            })
            .collect()
    }

    fn tracking(&mut self, name: &str) -> Result<Option<Tracking>, Refusal> {
        let tracking = Tracking {
            tcp_established: self.value(&format!("{name}.TcpEstablishedTimeout"))?,
            udp_stream: self.value(&format!("{name}.UdpStreamTimeout"))?,
            udp: self.value(&format!("{name}.UdpTimeout"))?,
        };
        Ok((tracking != Tracking::default()).then_some(tracking))
    }

    fn query(&mut self, ids: &str) -> Result<Query, Refusal> {
        let filters = (1..)
            .map_while(|n| {
                let name = self.text(&format!("Filter.{n}.Name"))?;
                Some(Filter { name, values: self.texts(&format!("Filter.{n}.Value")) })
            })
            .collect();
        Ok(Query {
            ids: if ids.is_empty() { Vec::new() } else { self.texts(ids) },
            filters,
            max_results: self.value("MaxResults")?,
            next_token: self.text("NextToken"),
        })
    }

    fn create(&mut self) -> Result<Create, Refusal> {
        let mut tags = Tags::new();
        for n in 1.. {
            let name = format!("TagSpecification.{n}");
            match self.text(&format!("{name}.ResourceType")).as_deref() {
                Some("network-interface") => tags.extend(self.tags(&format!("{name}.Tag"))),
                Some(kind) => {
                    return Err(Refusal::new(
                        "InvalidParameterValue",
                        format!("'{kind}' is not a valid taggable resource type for this operation."),
                    ));
                }
                None => break,
            }
        }
        let prefixes = (1..).map_while(|n| self.text(&format!("Ipv4Prefix.{n}.Ipv4Prefix")));
        let prefixes: Vec<String> = prefixes.collect();
        let mut address = self.value("PrivateIpAddress")?;
        let mut addresses = Vec::new();
        for n in 1.. {
            let name = format!("PrivateIpAddresses.{n}");
            let Some(text) = self.text(&format!("{name}.PrivateIpAddress")) else { break };
            if self.value(&format!("{name}.Primary"))?.unwrap_or(false) {
                address = Some(parse(&name, &text)?);
            } else {
                addresses.push(parse(&name, &text)?);
            }
        }
        Ok(Create {
            subnet: self.required("SubnetId")?,
            groups: self.texts("SecurityGroupId"),
            description: self.text("Description").unwrap_or_default(),
            tags,
            kind: self.text("InterfaceType"),
            address,
            wanted: Wanted {
                count: self.value("SecondaryPrivateIpAddressCount")?.unwrap_or(0),
                addresses,
                prefix_count: self.value("Ipv4PrefixCount")?.unwrap_or(0),
                prefixes: prefixes.iter().map(|p| parse("Ipv4Prefix", p)).collect::<Result<_, _>>()?,
            },
            client_token: self.text("ClientToken"),
            tracking: self.tracking("ConnectionTrackingSpecification")?,
        })
    }

    fn attribute(&mut self) -> Result<Attribute, Refusal> {
        let mut all = Vec::new();
        if let Some(attachment) = self.text("Attachment.AttachmentId") {
            let value = self.required("Attachment.DeleteOnTermination")?;
            all.push(Attribute::DeleteOnTermination(attachment, parse("DeleteOnTermination", &value)?));
        }
        let groups = self.texts("SecurityGroupId");
        if !groups.is_empty() {
            all.push(Attribute::Groups(groups));
        }
        all.extend(self.value("SourceDestCheck.Value")?.map(Attribute::SourceDestCheck));
        all.extend(self.text("Description.Value").map(Attribute::Description));
        all.extend(self.tracking("ConnectionTrackingSpecification")?.map(Attribute::Tracking));
        match all.len() {
            1 => Ok(all.remove(0)),
            0 => Err(Refusal::new("MissingParameter", "No attributes specified.")),
            _ => Err(Refusal::new(
                "InvalidParameterCombination",
                "Fields for multiple attribute types specified.",
            )),
        }
    }

    /// The call of a request, and whether it is a dry run.
    ///
    /// # Errors
    /// `InvalidAction`, `MissingParameter`, `InvalidParameterValue`, `UnknownParameter`.
    pub fn call(mut self) -> Result<(Call, bool), Refusal> {
        let action = self.required("Action")?;
        let version = self.required("Version")?;
        if version != "2016-11-15" {
            return Err(Refusal::new(
                "InvalidAction",
                format!(
                    "The action {action} is not valid for version {version}; the world speaks 2016-11-15."
                ),
            ));
        }
        let dry_run = self.value("DryRun")?.unwrap_or(false);
        let call = match action.as_str() {
            "DescribeNetworkInterfaces" => Call::DescribeNetworkInterfaces(self.query("NetworkInterfaceId")?),
            "DescribeInstances" => Call::DescribeInstances(self.query("InstanceId")?),
            "DescribeInstanceTypes" => Call::DescribeInstanceTypes(self.query("InstanceType")?),
            "DescribeSubnets" => Call::DescribeSubnets(self.query("SubnetId")?),
            "DescribeSecurityGroups" => Call::DescribeSecurityGroups(self.query("GroupId")?),
            "DescribeVpcs" => Call::DescribeVpcs(self.query("VpcId")?),
            "DescribeTags" => Call::DescribeTags(self.query("")?),
            "CreateNetworkInterface" => Call::CreateNetworkInterface(self.create()?),
            "AttachNetworkInterface" => Call::AttachNetworkInterface {
                interface: self.required("NetworkInterfaceId")?,
                instance: self.required("InstanceId")?,
                device: parse("DeviceIndex", &self.required("DeviceIndex")?)?,
                card: self.value("NetworkCardIndex")?.unwrap_or(0),
            },
            "DetachNetworkInterface" => Call::DetachNetworkInterface {
                attachment: self.required("AttachmentId")?,
                force: self.value("Force")?.unwrap_or(false),
            },
            "DeleteNetworkInterface" => {
                Call::DeleteNetworkInterface { interface: self.required("NetworkInterfaceId")? }
            }
            "ModifyNetworkInterfaceAttribute" => Call::ModifyNetworkInterfaceAttribute {
                interface: self.required("NetworkInterfaceId")?,
                attribute: self.attribute()?,
            },
            "AssignPrivateIpAddresses" => Call::AssignPrivateIpAddresses {
                interface: self.required("NetworkInterfaceId")?,
                wanted: Wanted {
                    count: self.value("SecondaryPrivateIpAddressCount")?.unwrap_or(0),
                    addresses: self.values("PrivateIpAddress")?,
                    prefix_count: self.value("Ipv4PrefixCount")?.unwrap_or(0),
                    prefixes: self.values("Ipv4Prefix")?,
                },
            },
            "UnassignPrivateIpAddresses" => Call::UnassignPrivateIpAddresses {
                interface: self.required("NetworkInterfaceId")?,
                addresses: self.values("PrivateIpAddress")?,
                prefixes: self.values("Ipv4Prefix")?,
            },
            "CreateTags" => Call::CreateTags { resources: self.texts("ResourceId"), tags: self.tags("Tag") },
            _ => {
                return Err(Refusal::new(
                    "InvalidAction",
                    format!("The action {action} is not valid for this web service."),
                ));
            }
        };
        match self.0.keys().next() {
            None => Ok((call, dry_run)),
            Some(name) => {
                Err(Refusal::new("UnknownParameter", format!("The parameter {name} is not recognized")))
            }
        }
    }
}

fn parse<T: FromStr>(name: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new("InvalidParameterValue", format!("Value ({text}) for parameter {name} is invalid."))
    })
}
