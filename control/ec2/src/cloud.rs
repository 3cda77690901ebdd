//! What the allocator asks of EC2 and of the instance metadata service.
//!
//! The two traits are the whole border to AWS: one method per EC2 action, typed answers, one error class that says
//! what the allocator may do next. They exist so that nothing that decides depends on an SDK, and so that every
//! decision can be tested against a world that fails on purpose. Retrying is *not* the allocator's promise to an
//! implementation nor the other way round: an implementation may retry what EC2 calls retryable within seconds, and
//! then reports the last error; the allocator backs off by class.

mod error;
mod id;
mod interface;
mod request;

pub use error::{Action, CloudError, ErrorKind, Limit, MetadataError, Shortage};
pub use id::{AttachmentId, EniId, GroupId, IdError, InstanceId, Mac, MacError, SubnetId, VpcId};
pub use interface::{
    Attachment, Card, Identity, Instance, Interface, InterfaceKind, InterfaceStatus, Limits,
    MetadataInterface, SecurityGroup, Subnet, Tags,
};
pub use request::{Amount, AttachInterface, CreateInterface, InterfaceFilter, Placed, SubnetFilter};

use std::future::Future;

/// The EC2 actions that the allocator uses, each method one action of the EC2 API (2016-11-15).
///
/// Answers that EC2 pages are whole: an implementation follows `NextToken` to the end. Every call may be repeated by
/// the allocator after a crash, so an implementation must not remember anything between calls that an answer depends on.
pub trait Cloud: Send + Sync + 'static {
    /// `DescribeInstances` of one instance.
    fn describe_instance(
        &self,
        instance: &InstanceId,
    ) -> impl Future<Output = Result<Instance, CloudError>> + Send;

    /// `DescribeInstanceTypes` of one type. A type that EC2 does not know is [`ErrorKind::Invalid`].
    fn describe_instance_type(
        &self,
        instance_type: &str,
    ) -> impl Future<Output = Result<Limits, CloudError>> + Send;

    /// `DescribeNetworkInterfaces`. Ids that do not exist are [`ErrorKind::Gone`] as EC2 has it
    /// (`InvalidNetworkInterfaceID.NotFound`), even if others in the same request exist.
    fn describe_interfaces(
        &self,
        filter: &InterfaceFilter,
    ) -> impl Future<Output = Result<Vec<Interface>, CloudError>> + Send;

    /// `DescribeSubnets`.
    fn describe_subnets(
        &self,
        filter: &SubnetFilter,
    ) -> impl Future<Output = Result<Vec<Subnet>, CloudError>> + Send;

    /// `DescribeSecurityGroups` by id. Only the validation of an ENIConfig asks; AmazonEKS_CNI_Policy may not grant it.
    fn describe_security_groups(
        &self,
        groups: &[GroupId],
    ) -> impl Future<Output = Result<Vec<SecurityGroup>, CloudError>> + Send;

    /// `CreateNetworkInterface`. The request carries its client token: repeated with the same token it answers with
    /// the interface that the first call made.
    fn create_interface(
        &self,
        request: &CreateInterface,
    ) -> impl Future<Output = Result<Interface, CloudError>> + Send;

    /// `AttachNetworkInterface`. The attachment goes on asynchronously at EC2 after the answer.
    fn attach_interface(
        &self,
        request: &AttachInterface,
    ) -> impl Future<Output = Result<AttachmentId, CloudError>> + Send;

    /// `ModifyNetworkInterfaceAttribute` with `Attachment.DeleteOnTermination`.
    fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
        delete: bool,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// `ModifyNetworkInterfaceAttribute` with `SecurityGroupId.N`: replaces all groups.
    fn set_groups(
        &self,
        eni: &EniId,
        groups: &[GroupId],
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// `AssignPrivateIpAddresses` by count (addresses or /28 prefixes, EC2 chooses them). Returns what this call added.
    fn assign(&self, eni: &EniId, amount: Amount) -> impl Future<Output = Result<Placed, CloudError>> + Send;

    /// `UnassignPrivateIpAddresses` of addresses and prefixes; never both in one call (EC2 refuses that), so a
    /// [`Placed`] with both is [`ErrorKind::Invalid`].
    fn unassign(&self, eni: &EniId, what: &Placed) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// `DetachNetworkInterface`, not forced. The detachment goes on asynchronously at EC2 after the answer.
    fn detach_interface(
        &self,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// `DeleteNetworkInterface`. While the interface is attached: [`ErrorKind::InUse`].
    fn delete_interface(&self, eni: &EniId) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// `CreateTags` on one interface.
    fn create_tags(&self, eni: &EniId, tags: &Tags) -> impl Future<Output = Result<(), CloudError>> + Send;
}

/// The instance metadata service, version 2 (`http://169.254.169.254/latest/meta-data/`, session token by `PUT`).
///
/// It may lag behind EC2 by seconds to minutes and may leave out paths that exist a moment later: the allocator never
/// deletes anything because of its answer alone.
pub trait Metadata: Send + Sync + 'static {
    /// `dynamic/instance-identity/document`.
    fn identity(&self) -> impl Future<Output = Result<Identity, MetadataError>> + Send;

    /// `meta-data/mac`: the MAC address of the primary interface.
    fn primary_mac(&self) -> impl Future<Output = Result<Mac, MetadataError>> + Send;

    /// `meta-data/network/interfaces/macs/` and what the allocator reads below each MAC, in no particular order.
    fn interfaces(&self) -> impl Future<Output = Result<Vec<MetadataInterface>, MetadataError>> + Send;
}
