//! What changes ENIs, with EC2's limits and EC2's refusals.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::super::call::{Answer, Attribute, Call, Create, Refusal, Wanted};
use super::super::objects::{Attachment, Interface, Progress};
use super::World;

impl World {
    pub(super) fn change(&mut self, now: Duration, call: &Call) -> Result<Answer, Refusal> {
        match call {
            Call::CreateNetworkInterface(create) => self.create(now, create),
            Call::AttachNetworkInterface { interface, instance, device, card } => {
                self.attach(now, interface, instance, *device, *card)
            }
            Call::DetachNetworkInterface { attachment, force } => self.detach(now, attachment, *force),
            Call::DeleteNetworkInterface { interface } => self.delete(interface),
            Call::ModifyNetworkInterfaceAttribute { interface, attribute } => {
                self.modify(interface, attribute)
            }
            Call::AssignPrivateIpAddresses { interface, wanted } => self.assign(interface, wanted),
            Call::UnassignPrivateIpAddresses { interface, addresses, prefixes } => {
                self.unassign(interface, addresses, prefixes)
            }
            Call::CreateTags { resources, tags } => self.tag(resources, tags),
            _ => Err(Refusal::new("InvalidAction", format!("{} changes nothing", call.action()))),
        }
    }

    fn create(&mut self, now: Duration, create: &Create) -> Result<Answer, Refusal> {
        if let Some((before, id)) = create.client_token.as_ref().and_then(|t| self.created.get(t)) {
            return match self.interfaces.get(id) {
                Some(interface) if before == create => Ok(Answer::Created(interface.clone())),
                _ => Err(Refusal::new(
                    "IdempotentParameterMismatch",
                    "The client token was used with other parameters, or for an interface that is gone.",
                )),
            };
        }
        let subnet = self.subnets.get(&create.subnet).ok_or_else(|| missing("Subnet", &create.subnet))?;
        let (vpc, zone) = (subnet.vpc.clone(), subnet.zone.clone());
        let groups = self.groups_of(&create.groups, &vpc, &create.subnet)?;
        let Some(subnet) = self.subnets.get_mut(&create.subnet) else {
            return Err(missing("Subnet", &create.subnet));
        };
        let before = subnet.clone();
        let taken = (|| {
            let primary = match create.address {
                Some(address) => subnet.take_this(address).map(|()| address)?,
                None => subnet.take()?,
            };
            let (secondary, prefixes) = take(subnet, &create.wanted)?;
            Ok((primary, secondary, prefixes))
        })();
        let (primary, secondary, prefixes) = taken.inspect_err(|_| *subnet = before)?;
        let mac = self.mint_mac();
        let id = self.mint("eni");
        let interface = Arc::new(Interface {
            id: id.clone(),
            mac,
            subnet: create.subnet.clone(),
            vpc,
            zone,
            groups,
            description: create.description.clone(),
            tags: create.tags.clone(),
            primary,
            secondary,
            prefixes,
            kind: create.kind.clone().unwrap_or_else(|| "interface".to_owned()),
            attachment: None,
            source_dest_check: true,
            tracking: create.tracking,
            created: now,
        });
        self.interfaces.insert(id.clone(), interface.clone());
        if let Some(token) = &create.client_token {
            self.created.insert(token.clone(), (create.clone(), id));
        }
        Ok(Answer::Created(interface))
    }

    fn groups_of(&self, wanted: &[String], vpc: &str, subnet: &str) -> Result<Vec<String>, Refusal> {
        for id in wanted {
            let group = self.groups.get(id).ok_or_else(|| {
                Refusal::new("InvalidGroup.NotFound", format!("The security group '{id}' does not exist"))
            })?;
            if group.vpc != vpc {
                return Err(Refusal::new(
                    "InvalidParameter",
                    format!("Security group {id} and subnet {subnet} belong to different networks."),
                ));
            }
        }
        if !wanted.is_empty() {
            return Ok(wanted.to_vec());
        }
        Ok(self
            .groups
            .values()
            .filter(|g| g.vpc == vpc && g.name == "default")
            .map(|g| g.id.clone())
            .collect())
    }

    fn attach(
        &mut self,
        now: Duration,
        interface: &str,
        instance: &str,
        device: u32,
        card: u32,
    ) -> Result<Answer, Refusal> {
        let host = self.instances.get(instance).filter(|i| i.running).ok_or_else(|| {
            Refusal::new("InvalidInstanceID.NotFound", format!("The instance ID '{instance}' does not exist"))
        })?;
        let eni = self.interfaces.get(interface).ok_or_else(|| missing_interface(interface))?;
        if eni.attachment.is_some() {
            return Err(Refusal::new(
                "InvalidNetworkInterface.InUse",
                format!("Interface: [{interface}] in use."),
            ));
        }
        if eni.zone != host.zone {
            return Err(Refusal::new(
                "InvalidParameterCombination",
                "You may not attach a network interface to an instance if they are not in the same availability zone",
            ));
        }
        let shape = host.shape;
        let Some(room) = usize::try_from(card).ok().and_then(|c| shape.cards.get(c)) else {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("Network card index {card} is not valid: {} has {}.", shape.name, shape.cards.len()),
            ));
        };
        let here: Vec<&Attachment> = self
            .interfaces
            .values()
            .filter_map(|i| i.attachment.as_ref())
            .filter(|a| a.instance == instance)
            .collect();
        // What is going still counts: its slot is free when it is gone.
        if here.len() >= shape.interfaces as usize
            || here.iter().filter(|a| a.card == card).count() >= *room as usize
        {
            return Err(Refusal::new(
                "AttachmentLimitExceeded",
                format!("Interface count {} exceeds the limit for {}", here.len() + 1, shape.name),
            ));
        }
        if here.iter().any(|a| a.device == device && a.card == card) {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!(
                    "Instance '{instance}' already has an interface attached at device index '{device}'."
                ),
            ));
        }
        slots_within(eni.slots(), shape.addresses)?;
        prefixes_allowed(shape.hypervisor, eni.prefixes.len())?;
        let progress = if self.delays.attach.is_zero() {
            Progress::Attached
        } else {
            Progress::Attaching(now + self.delays.attach)
        };
        let id = self.mint("eni-attach");
        let attachment = Attachment {
            id: id.clone(),
            instance: instance.to_owned(),
            device,
            card,
            progress,
            delete_on_termination: false,
        };
        self.interface_mut(interface)?.attachment = Some(attachment);
        Ok(Answer::Attached { attachment: id, card })
    }

    fn detach(&mut self, now: Duration, attachment: &str, _force: bool) -> Result<Answer, Refusal> {
        let delay = self.delays.detach;
        let found = self
            .interfaces
            .values()
            .find(|i| i.attachment.as_ref().is_some_and(|a| a.id == attachment))
            .map(|i| i.id.clone());
        let id = found.ok_or_else(|| {
            Refusal::new(
                "InvalidAttachmentID.NotFound",
                format!("The attachment '{attachment}' does not exist"),
            )
        })?;
        let interface = self.interface_mut(&id)?;
        let Some(a) = &mut interface.attachment else { return Err(missing_interface(&id)) };
        if a.device == 0 && a.card == 0 {
            return Err(Refusal::new(
                "OperationNotPermitted",
                "The network interface at device index 0 and networkCard index 0 cannot be detached.",
            ));
        }
        match a.progress {
            Progress::Attached => a.progress = Progress::Detaching(now + delay),
            Progress::Detaching(_) => {}
            Progress::Attaching(_) => {
                return Err(Refusal::new(
                    "IncorrectState",
                    format!("The attachment '{attachment}' is attaching"),
                ));
            }
        }
        if delay.is_zero() {
            interface.attachment = None;
        }
        Ok(Answer::Done)
    }

    fn delete(&mut self, id: &str) -> Result<Answer, Refusal> {
        let interface = self.interfaces.get(id).ok_or_else(|| missing_interface(id))?.clone();
        if interface.attachment.is_some() {
            // EC2 has a code for this and answers with another; both are documented.
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("Network interface '{id}' is currently in use."),
            ));
        }
        self.release(&interface);
        Ok(Answer::Done)
    }

    /// Takes an ENI out of the world with everything that it holds.
    pub(super) fn release(&mut self, interface: &Interface) {
        if let Some(subnet) = self.subnets.get_mut(&interface.subnet) {
            subnet.give_back(interface.primary);
            interface.secondary.iter().for_each(|a| subnet.give_back(*a));
            interface.prefixes.iter().for_each(|p| subnet.give_back_prefix(*p));
        }
        self.interfaces.remove(&interface.id);
    }

    fn modify(&mut self, id: &str, attribute: &Attribute) -> Result<Answer, Refusal> {
        if let Attribute::Groups(groups) = attribute {
            let eni = self.interfaces.get(id).ok_or_else(|| missing_interface(id))?;
            let groups = self.groups_of(groups, &eni.vpc, &eni.subnet)?;
            self.interface_mut(id)?.groups = groups;
            return Ok(Answer::Done);
        }
        let interface = self.interface_mut(id)?;
        match attribute {
            Attribute::DeleteOnTermination(attachment, value) => match &mut interface.attachment {
                Some(a) if a.id == *attachment => a.delete_on_termination = *value,
                _ => {
                    return Err(Refusal::new(
                        "InvalidAttachmentID.NotFound",
                        format!("The attachment '{attachment}' does not exist"),
                    ));
                }
            },
            Attribute::SourceDestCheck(value) => interface.source_dest_check = *value,
            Attribute::Description(text) => interface.description.clone_from(text),
            Attribute::Tracking(tracking) => interface.tracking = Some(*tracking),
            Attribute::Groups(_) => {}
        }
        Ok(Answer::Done)
    }

    fn assign(&mut self, id: &str, wanted: &Wanted) -> Result<Answer, Refusal> {
        let eni = self.interfaces.get(id).ok_or_else(|| missing_interface(id))?;
        let more = wanted.count as usize + wanted.addresses.len();
        let more_prefixes = wanted.prefix_count as usize + wanted.prefixes.len();
        if more + more_prefixes == 0 || (more > 0 && more_prefixes > 0) {
            return Err(Refusal::new(
                "InvalidParameterCombination",
                "Either private IP addresses or prefixes are to be assigned, by number or by name.",
            ));
        }
        if let Some(shape) =
            eni.attachment.as_ref().and_then(|a| self.instances.get(&a.instance)).map(|i| i.shape)
        {
            let slots = eni.slots().saturating_add(u32::try_from(more + more_prefixes).unwrap_or(u32::MAX));
            slots_within(slots, shape.addresses)?;
            prefixes_allowed(shape.hypervisor, more_prefixes)?;
        }
        let subnet_id = eni.subnet.clone();
        let Some(subnet) = self.subnets.get_mut(&subnet_id) else {
            return Err(missing("Subnet", &subnet_id));
        };
        let before = subnet.clone();
        let (addresses, prefixes) = take(subnet, wanted).inspect_err(|_| *subnet = before)?;
        let interface = self.interface_mut(id)?;
        interface.secondary.extend(&addresses);
        interface.prefixes.extend(&prefixes);
        Ok(Answer::Assigned { interface: id.to_owned(), addresses, prefixes })
    }

    fn unassign(
        &mut self,
        id: &str,
        addresses: &[Ipv4Addr],
        prefixes: &[Ipv4Net],
    ) -> Result<Answer, Refusal> {
        if addresses.is_empty() == prefixes.is_empty() {
            return Err(Refusal::new(
                "InvalidParameterCombination",
                "Either private IP addresses or prefixes are to be unassigned.",
            ));
        }
        let interface = self.interface_mut(id)?;
        let strange = addresses.iter().find(|a| !interface.secondary.contains(a)).map(ToString::to_string);
        let strange = strange
            .or_else(|| prefixes.iter().find(|p| !interface.prefixes.contains(p)).map(ToString::to_string));
        if let Some(strange) = strange {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("Some of the specified addresses are not assigned to interface {id}: [{strange}]"),
            ));
        }
        interface.secondary.retain(|a| !addresses.contains(a));
        interface.prefixes.retain(|p| !prefixes.contains(p));
        let subnet = interface.subnet.clone();
        if let Some(subnet) = self.subnets.get_mut(&subnet) {
            addresses.iter().for_each(|a| subnet.give_back(*a));
            prefixes.iter().for_each(|p| subnet.give_back_prefix(*p));
        }
        Ok(Answer::Unassigned)
    }

    fn tag(&mut self, resources: &[String], tags: &super::super::objects::Tags) -> Result<Answer, Refusal> {
        // All or none: every resource is looked at before the first is changed.
        for id in resources {
            let interface = self.interfaces.get(id).ok_or_else(|| missing_interface(id))?;
            let new = tags.keys().filter(|k| !interface.tags.contains_key(*k)).count();
            if interface.tags.len() + new > 50 {
                return Err(Refusal::new("TagLimitExceeded", "More than 50 tags on a resource."));
            }
        }
        for id in resources {
            self.interface_mut(id)?.tags.extend(tags.clone());
        }
        Ok(Answer::Done)
    }

    pub(super) fn interface_mut(&mut self, id: &str) -> Result<&mut Interface, Refusal> {
        self.interfaces.get_mut(id).map(Arc::make_mut).ok_or_else(|| missing_interface(id))
    }
}

fn take(subnet: &mut super::Subnet, wanted: &Wanted) -> Result<(Vec<Ipv4Addr>, Vec<Ipv4Net>), Refusal> {
    let mut addresses = wanted.addresses.clone();
    for address in &addresses {
        subnet.take_this(*address)?;
    }
    let mut prefixes = wanted.prefixes.clone();
    for prefix in &prefixes {
        subnet.take_this_prefix(*prefix)?;
    }
    addresses.extend(subnet.take_many(wanted.count)?);
    prefixes.extend(subnet.take_prefixes(wanted.prefix_count)?);
    Ok((addresses, prefixes))
}

fn slots_within(slots: u32, limit: u32) -> Result<(), Refusal> {
    if slots <= limit {
        return Ok(());
    }
    Err(Refusal::new(
        "PrivateIpAddressLimitExceeded",
        format!("Number of private addresses will exceed limit: {slots} of {limit}."),
    ))
}

fn prefixes_allowed(hypervisor: &str, prefixes: usize) -> Result<(), Refusal> {
    if prefixes == 0 || hypervisor == "nitro" {
        return Ok(());
    }
    Err(Refusal::new("UnsupportedOperation", "Prefixes are for instances of the Nitro system alone."))
}

pub(super) fn missing_interface(id: &str) -> Refusal {
    Refusal::new(
        "InvalidNetworkInterfaceID.NotFound",
        format!("The networkInterface ID '{id}' does not exist"),
    )
}

pub(super) fn missing(kind: &str, id: &str) -> Refusal {
    let words = format!("The {} ID '{id}' does not exist", kind.to_lowercase());
    Refusal::new(&format!("Invalid{kind}ID.NotFound"), words)
}
