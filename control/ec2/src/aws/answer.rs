//! EC2's XML, read into the allocator's types. An element that the API promises and that is not there, or makes no sense, is an
//! error that names it: half an interface would be a wrong plan.

use std::fmt::Display;
use std::str::FromStr;

use roxmltree::{Document, Node};

use crate::cloud::{
    Attachment, Card, Instance, Interface, InterfaceKind, InterfaceStatus, Limits, Placed, SecurityGroup,
    Subnet, Tags,
};

/// An answer that is not what the API promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not what the API promises: {0}")]
pub(super) struct Malformed(pub String);

type Read<T> = Result<T, Malformed>;

/// EC2's error: code, message and request id.
pub(super) fn error(document: &Document<'_>) -> Option<(String, String, Option<String>)> {
    let find = |name: &str| {
        document.descendants().find(|node| node.has_tag_name(name) || node.tag_name().name() == name)
    };
    let text = |name: &str| find(name).and_then(|node| node.text()).map(ToOwned::to_owned);
    let code = text("Code")?;
    Some((code, text("Message").unwrap_or_default(), text("RequestID").or_else(|| text("RequestId"))))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.tag_name().name() == name)
}

fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name).and_then(|child| child.text()).map(str::trim).filter(|text| !text.is_empty())
}

fn needed<'a>(node: Node<'a, '_>, name: &str) -> Read<&'a str> {
    text(node, name).ok_or_else(|| Malformed(format!("{} has no {name}", node.tag_name().name())))
}

fn parse<T: FromStr<Err: Display>>(node: Node<'_, '_>, name: &str) -> Read<T> {
    let text = needed(node, name)?;
    text.parse().map_err(|error| Malformed(format!("{name} is {text:?}: {error}")))
}

fn number(node: Node<'_, '_>, name: &str, absent: u32) -> Read<u32> {
    match text(node, name) {
        None => Ok(absent),
        Some(_) => parse(node, name),
    }
}

/// The items of a list, which may be absent.
fn items<'a, 'i>(node: Node<'a, 'i>, list: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    child(node, list)
        .into_iter()
        .flat_map(|list| list.children().filter(|item| item.tag_name().name() == "item"))
}

fn tags(node: Node<'_, '_>) -> Tags {
    let pair =
        |item| Some((text(item, "key")?.to_owned(), text(item, "value").unwrap_or_default().to_owned()));
    items(node, "tagSet").filter_map(pair).collect()
}

/// The token of the next page.
pub(super) fn next(root: Node<'_, '_>) -> Option<String> {
    text(root, "nextToken").map(ToOwned::to_owned)
}

pub(super) fn interfaces(root: Node<'_, '_>) -> Read<Vec<Interface>> {
    items(root, "networkInterfaceSet").map(interface).collect()
}

pub(super) fn created(root: Node<'_, '_>) -> Read<Interface> {
    let node = child(root, "networkInterface");
    interface(node.ok_or_else(|| Malformed("there is no networkInterface".to_owned()))?)
}

fn interface(node: Node<'_, '_>) -> Read<Interface> {
    let primary = parse(node, "privateIpAddress")?;
    let secondary = items(node, "privateIpAddressesSet")
        .filter(|item| text(*item, "primary") != Some("true"))
        .map(|item| parse(item, "privateIpAddress"))
        .collect::<Read<Vec<_>>>()?;
    let prefixes: Vec<ipnet::Ipv4Net> =
        items(node, "ipv4PrefixSet").map(|item| parse(item, "ipv4Prefix")).collect::<Read<_>>()?;
    Ok(Interface {
        id: parse(node, "networkInterfaceId")?,
        mac: parse(node, "macAddress")?,
        kind: text(node, "interfaceType").map_or(InterfaceKind::Standard, InterfaceKind::from_word),
        status: status(needed(node, "status")?)?,
        subnet: parse(node, "subnetId")?,
        vpc: parse(node, "vpcId")?,
        zone: text(node, "availabilityZone").unwrap_or_default().to_owned(),
        groups: items(node, "groupSet").map(|item| parse(item, "groupId")).collect::<Read<_>>()?,
        primary,
        // EC2 lists the addresses inside of a prefix nowhere; should it begin to, they are no addresses of their own.
        secondary: secondary
            .into_iter()
            .filter(|address| *address != primary && !prefixes.iter().any(|prefix| prefix.contains(address)))
            .collect(),
        prefixes,
        tags: tags(node),
        description: text(node, "description").unwrap_or_default().to_owned(),
        attachment: child(node, "attachment")
            .filter(|a| text(*a, "attachmentId").is_some())
            .map(attachment)
            .transpose()?,
    })
}

fn status(word: &str) -> Read<InterfaceStatus> {
    match word {
        "pending" => Ok(InterfaceStatus::Pending),
        "available" => Ok(InterfaceStatus::Available),
        "associated" | "attaching" => Ok(InterfaceStatus::Attaching),
        "in-use" => Ok(InterfaceStatus::InUse),
        "detaching" => Ok(InterfaceStatus::Detaching),
        _ => Err(Malformed(format!("status is {word:?}, which is none of the API's"))),
    }
}

fn attachment(node: Node<'_, '_>) -> Read<Attachment> {
    let id = needed(node, "attachmentId")?;
    Ok(Attachment {
        // Those of AWS services have ids of another kind; nothing is ever done with them.
        id: id
            .parse()
            .or_else(|_| "eni-attach-service".parse())
            .map_err(|error: crate::cloud::IdError| Malformed(error.to_string()))?,
        instance: text(node, "instanceId").and_then(|id| id.parse().ok()),
        device_index: number(node, "deviceIndex", 0)?,
        network_card: number(node, "networkCardIndex", 0)?,
        delete_on_termination: text(node, "deleteOnTermination") == Some("true"),
    })
}

pub(super) fn instance(root: Node<'_, '_>) -> Read<Instance> {
    let found =
        items(root, "reservationSet").flat_map(|reservation| items(reservation, "instancesSet")).next();
    let node = found.ok_or_else(|| Malformed("there is no instance in it".to_owned()))?;
    let placement = child(node, "placement").and_then(|placement| text(placement, "availabilityZone"));
    let interfaces = items(node, "networkInterfaceSet").map(|item| {
        let at = child(item, "attachment");
        let index = |name| at.map_or(Ok(0), |at| number(at, name, 0));
        Ok((parse(item, "networkInterfaceId")?, index("deviceIndex")?, index("networkCardIndex")?))
    });
    Ok(Instance {
        id: parse(node, "instanceId")?,
        instance_type: needed(node, "instanceType")?.to_owned(),
        subnet: parse(node, "subnetId")?,
        vpc: parse(node, "vpcId")?,
        zone: placement.unwrap_or_default().to_owned(),
        interfaces: interfaces.collect::<Read<_>>()?,
    })
}

pub(super) fn limits(root: Node<'_, '_>) -> Read<Limits> {
    let node = items(root, "instanceTypeSet").next();
    let node = node.ok_or_else(|| Malformed("there is no instance type in it".to_owned()))?;
    let network = child(node, "networkInfo")
        .ok_or_else(|| Malformed("the instance type has no networkInfo".to_owned()))?;
    let interfaces = parse(network, "maximumNetworkInterfaces")?;
    let card = |item| {
        Ok(Card {
            index: parse(item, "networkCardIndex")?,
            interfaces: parse(item, "maximumNetworkInterfaces")?,
        })
    };
    let mut cards: Vec<Card> = items(network, "networkCards").map(card).collect::<Read<_>>()?;
    if cards.is_empty() {
        cards.push(Card { index: 0, interfaces });
    }
    cards.sort_by_key(|card| card.index);
    Ok(Limits {
        instance_type: needed(node, "instanceType")?.to_owned(),
        interfaces,
        addresses: parse(network, "ipv4AddressesPerInterface")?,
        default_card: number(network, "defaultNetworkCardIndex", 0)?,
        cards,
        nitro: text(node, "hypervisor") == Some("nitro") || text(node, "bareMetal") == Some("true"),
    })
}

pub(super) fn subnets(root: Node<'_, '_>) -> Read<Vec<Subnet>> {
    let subnet = |node| {
        Ok(Subnet {
            id: parse(node, "subnetId")?,
            vpc: parse(node, "vpcId")?,
            zone: needed(node, "availabilityZone")?.to_owned(),
            cidr: parse(node, "cidrBlock")?,
            free: parse(node, "availableIpAddressCount")?,
            tags: tags(node),
        })
    };
    items(root, "subnetSet").map(subnet).collect()
}

pub(super) fn groups(root: Node<'_, '_>) -> Read<Vec<SecurityGroup>> {
    let group = |node| {
        Ok(SecurityGroup {
            id: parse(node, "groupId")?,
            // A group of EC2-Classic has none, and there is no EC2-Classic any more.
            vpc: parse(node, "vpcId")?,
            name: text(node, "groupName").unwrap_or_default().to_owned(),
        })
    };
    items(root, "securityGroupInfo").map(group).collect()
}

pub(super) fn placed(root: Node<'_, '_>) -> Read<Placed> {
    let addresses = items(root, "assignedPrivateIpAddressesSet").map(|item| parse(item, "privateIpAddress"));
    let prefixes = items(root, "assignedIpv4PrefixSet").map(|item| parse(item, "ipv4Prefix"));
    Ok(Placed { addresses: addresses.collect::<Read<_>>()?, prefixes: prefixes.collect::<Read<_>>()? })
}

pub(super) fn attached(root: Node<'_, '_>) -> Read<crate::cloud::AttachmentId> {
    parse(root, "attachmentId")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_of_ec2s_documentation_is_read_and_a_broken_one_is_named() {
        let item = r"<item><networkInterfaceId>eni-0f62866</networkInterfaceId><subnetId>subnet-cd8a35a4</subnetId>
            <vpcId>vpc-f28a359b</vpcId><availabilityZone>ap-southeast-1b</availabilityZone><description/>
            <status>in-use</status><macAddress>02:81:60:cb:27:37</macAddress><privateIpAddress>10.0.0.146</privateIpAddress>
            <groupSet><item><groupId>sg-3f4b5653</groupId><groupName>default</groupName></item></groupSet>
            <attachment><attachmentId>eni-attach-6537fc0c</attachmentId><instanceId>i-1234567890abcdef0</instanceId>
              <deviceIndex>1</deviceIndex><status>attached</status><deleteOnTermination>true</deleteOnTermination></attachment>
            <tagSet><item><key>k</key><value/></item></tagSet>
            <privateIpAddressesSet><item><privateIpAddress>10.0.0.146</privateIpAddress><primary>true</primary></item>
              <item><privateIpAddress>10.0.0.148</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>
            <ipv4PrefixSet><item><ipv4Prefix>10.0.1.16/28</ipv4Prefix></item></ipv4PrefixSet>
            <interfaceType>interface</interfaceType></item>";
        let whole = |item: &str| {
            format!(
                "<DescribeNetworkInterfacesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><networkInterfaceSet>{item}</networkInterfaceSet><nextToken>t</nextToken></DescribeNetworkInterfacesResponse>"
            )
        };
        let text = whole(item);
        let document = Document::parse(&text).unwrap();
        let read = interfaces(document.root_element()).unwrap();
        let one = &read[0];
        assert_eq!((one.secondary.len(), one.prefixes.len(), one.tags["k"].as_str()), (1, 1, ""));
        assert_eq!(one.attachment.as_ref().unwrap().device_index, 1);
        assert_eq!(next(document.root_element()).as_deref(), Some("t"));
        for (from, to, name) in [
            ("<macAddress>02:81:60:cb:27:37</macAddress>", "", "macAddress"),
            ("10.0.1.16/28", "ten", "ipv4Prefix"),
            ("<status>in-use</status>", "<status>odd</status>", "odd"),
            ("subnet-cd8a35a4", "net-1", "subnetId"),
        ] {
            let text = whole(&item.replacen(from, to, 1));
            let document = Document::parse(&text).unwrap();
            let said = interfaces(document.root_element()).unwrap_err().to_string();
            assert!(said.contains(name), "`{name}` in {said}");
        }
    }

    #[test]
    fn an_error_has_its_code_its_message_and_its_request() {
        let text = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors><RequestID>r-1</RequestID></Response>";
        let document = Document::parse(text).unwrap();
        let expected = ("UnauthorizedOperation".to_owned(), "no".to_owned(), Some("r-1".to_owned()));
        assert_eq!(error(&document), Some(expected));
    }
}
