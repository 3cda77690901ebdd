//! Errors of EC2 and IMDS, by what the allocator may do next.
//!
//! EC2 has hundreds of error codes; the allocator acts on ten classes. The mapping from code to class stands here and
//! not in the SDK's implementation, so that every implementation of [`super::Cloud`] classes alike.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The EC2 actions of [`super::Cloud`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are EC2's own.
pub enum Action {
    DescribeInstances,
    DescribeInstanceTypes,
    DescribeNetworkInterfaces,
    DescribeSubnets,
    DescribeSecurityGroups,
    CreateNetworkInterface,
    AttachNetworkInterface,
    ModifyNetworkInterfaceAttribute,
    AssignPrivateIpAddresses,
    UnassignPrivateIpAddresses,
    DetachNetworkInterface,
    DeleteNetworkInterface,
    CreateTags,
}

impl Action {
    /// Every action, in the order of the documentation.
    pub const ALL: [Action; 13] = [
        Action::DescribeInstances,
        Action::DescribeInstanceTypes,
        Action::DescribeNetworkInterfaces,
        Action::DescribeSubnets,
        Action::DescribeSecurityGroups,
        Action::CreateNetworkInterface,
        Action::AttachNetworkInterface,
        Action::ModifyNetworkInterfaceAttribute,
        Action::AssignPrivateIpAddresses,
        Action::UnassignPrivateIpAddresses,
        Action::DetachNetworkInterface,
        Action::DeleteNetworkInterface,
        Action::CreateTags,
    ];

    /// EC2's name, as an IAM policy writes it after `ec2:`.
    pub fn name(self) -> &'static str {
        match self {
            Action::DescribeInstances => "DescribeInstances",
            Action::DescribeInstanceTypes => "DescribeInstanceTypes",
            Action::DescribeNetworkInterfaces => "DescribeNetworkInterfaces",
            Action::DescribeSubnets => "DescribeSubnets",
            Action::DescribeSecurityGroups => "DescribeSecurityGroups",
            Action::CreateNetworkInterface => "CreateNetworkInterface",
            Action::AttachNetworkInterface => "AttachNetworkInterface",
            Action::ModifyNetworkInterfaceAttribute => "ModifyNetworkInterfaceAttribute",
            Action::AssignPrivateIpAddresses => "AssignPrivateIpAddresses",
            Action::UnassignPrivateIpAddresses => "UnassignPrivateIpAddresses",
            Action::DetachNetworkInterface => "DetachNetworkInterface",
            Action::DeleteNetworkInterface => "DeleteNetworkInterface",
            Action::CreateTags => "CreateTags",
        }
    }

    /// Whether the action changes something at EC2.
    pub fn mutates(self) -> bool {
        !self.name().starts_with("Describe")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a subnet gives no more addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Shortage {
    /// `InsufficientFreeAddressesInSubnet`.
    FreeAddresses,
    /// `InsufficientCidrBlocks`: no free aligned /28.
    CidrBlocks,
}

/// Which limit a request would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Limit {
    /// `PrivateIpAddressLimitExceeded`: what the interface carries is not what we believe.
    Addresses,
    /// `AttachmentLimitExceeded`.
    Attachments,
    /// Interfaces of the account in the region (`NetworkInterfaceLimitExceeded`), and other quotas.
    Account,
}

/// What the allocator may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The identity may not use the action (`UnauthorizedOperation`, `AccessDenied…`).
    Denied,
    /// Too many requests (`RequestLimitExceeded`, `Throttling…`, HTTP 503): later, with jitter.
    Throttled,
    /// The subnet is out of addresses.
    Exhausted(Shortage),
    /// A limit of the instance, the interface or the account.
    Limit(Limit),
    /// What the request names does not exist (`….NotFound`).
    Gone,
    /// The interface is still attached, or its attachment is on the way (`InvalidNetworkInterface.InUse`,
    /// `IncorrectState`, `InvalidAttachment.InUse` …).
    InUse,
    /// The credentials are missing, wrong or expired (`AuthFailure`, `UnrecognizedClientException` …).
    Credentials,
    /// The node's clock is too far from EC2's (`RequestExpired`, `SignatureDoesNotMatch` with a skew …).
    ClockSkew,
    /// No answer: name resolution, connection, TLS, timeout. The call may or may not have taken effect.
    Unreachable,
    /// EC2 failed by itself (HTTP 500, `InternalError`). The call may or may not have taken effect.
    Server,
    /// EC2 refuses the request as it is; sending it again cannot help.
    Invalid,
}

impl ErrorKind {
    /// Classes an error of EC2 by its code; `status` is the answer's HTTP status. The message counts only where one
    /// code stands for two things: deleting an interface that is attached is `InvalidParameterValue` with the words
    /// "currently in use", and attaching at an index that is taken is `InvalidParameterValue` with "already has".
    ///
    /// Source: "Error codes for the Amazon EC2 API", and the errors common to all AWS query APIs.
    pub fn of(code: &str, message: &str, status: u16) -> Self {
        match code {
            "InvalidParameterValue" if message.contains("in use") || message.contains("already has") => {
                Self::InUse
            }
            "UnauthorizedOperation"
            | "AccessDenied"
            | "AccessDeniedException"
            | "OptInRequired"
            | "Blocked" => Self::Denied,
            "RequestLimitExceeded"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "SlowDown"
            | "BandwidthLimitExceeded"
            | "EC2ThrottledException"
            | "PriorRequestNotComplete"
            | "TransactionInProgressException" => Self::Throttled,
            code if code.starts_with("Throttl") || code.starts_with("TooManyRequests") => Self::Throttled,
            "InsufficientFreeAddressesInSubnet" => Self::Exhausted(Shortage::FreeAddresses),
            "InsufficientCidrBlocks" => Self::Exhausted(Shortage::CidrBlocks),
            "PrivateIpAddressLimitExceeded" => Self::Limit(Limit::Addresses),
            "AttachmentLimitExceeded" => Self::Limit(Limit::Attachments),
            // A device index that is taken is a limit of our own book-keeping, not a wrong request.
            "NetworkInterfaceLimitExceeded"
            | "ResourceLimitExceeded"
            | "TagLimitExceeded"
            | "ResourceCountExceeded" => Self::Limit(Limit::Account),
            "AuthFailure"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidClientToken"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "MissingAuthenticationToken"
            | "IncompleteSignature"
            | "PendingVerification" => Self::Credentials,
            "RequestExpired"
            | "SignatureDoesNotMatch"
            | "InvalidSignatureException"
            | "RequestTimeTooSkewed"
            | "RequestInTheFuture" => Self::ClockSkew,
            "InvalidNetworkInterface.InUse"
            | "InvalidParameterValue.InUse"
            | "IncorrectState"
            | "IncorrectInstanceState"
            | "InvalidInstanceID.IncorrectState"
            | "DependencyViolation"
            | "OperationNotPermitted.InUse" => Self::InUse,
            code if code.ends_with(".NotFound") || code.ends_with(".Gone") => Self::Gone,
            code if code.ends_with(".InUse") => Self::InUse,
            "InternalError"
            | "InternalFailure"
            | "ServiceUnavailable"
            | "Unavailable"
            | "InsufficientCapacity" => Self::Server,
            _ if status == 429 => Self::Throttled,
            _ if status >= 500 => Self::Server,
            _ => Self::Invalid,
        }
    }

    /// Whether the call may have taken effect although it failed.
    pub fn may_have_happened(self) -> bool {
        matches!(self, Self::Unreachable | Self::Server)
    }

    /// Whether EC2 is to be asked what there is before anything else is planned: the call may have taken effect, or what
    /// EC2 carries is not what it was thought to be.
    pub fn leaves_doubt(self) -> bool {
        let differs =
            matches!(self, Self::Limit(Limit::Addresses | Limit::Attachments) | Self::Gone | Self::Invalid);
        self.may_have_happened() || differs
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn passes(self) -> bool {
        matches!(self, Self::Throttled | Self::Unreachable | Self::Server | Self::InUse)
    }

    /// One word for it, as an Event has it (VPC CNI: `MissingIAMPermissions`).
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Denied => "MissingIAMPermissions",
            Self::Throttled => "EC2Throttles",
            Self::Exhausted(_) => "SubnetExhausted",
            Self::Limit(_) => "EC2LimitReached",
            Self::Gone => "EC2ObjectGone",
            Self::InUse => "EC2ObjectInUse",
            Self::Credentials => "AWSCredentialsRefused",
            Self::ClockSkew => "ClockSkew",
            Self::Unreachable => "EC2Unreachable",
            Self::Server => "EC2Fails",
            Self::Invalid => "EC2Refuses",
        }
    }

    /// What somebody can do about it, where EC2's own words do not say so.
    fn way_out(self) -> &'static str {
        match self {
            Self::Denied => {
                "; the IAM role of the agent's service account, or of the node, must allow it (AmazonEKS_CNI_Policy)"
            }
            Self::Credentials => "; `sluice-agent cloud` says whose credentials are used",
            Self::ClockSkew => "; is the node's clock right?",
            Self::Exhausted(_) => "; free addresses there, or tag another subnet for pods",
            _ => "",
        }
    }
}

/// What EC2 says of a denied call in addition, other at each call.
const ENCODED: &str = "Encoded authorization failure message";

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::Throttled => "throttled",
            Self::Exhausted(Shortage::FreeAddresses) => "no free address in the subnet",
            Self::Exhausted(Shortage::CidrBlocks) => "no free /28 in the subnet",
            Self::Limit(Limit::Addresses) => "address limit of the interface",
            Self::Limit(Limit::Attachments) => "attachment limit of the instance",
            Self::Limit(Limit::Account) => "limit of the account",
            Self::Gone => "gone",
            Self::InUse => "in use",
            Self::Credentials => "credentials",
            Self::ClockSkew => "clock skew",
            Self::Unreachable => "unreachable",
            Self::Server => "failure at EC2",
            Self::Invalid => "refused",
        })
    }
}

/// An EC2 call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ec2:{action} failed ({kind}): {code}: {message}{}", .request_id.as_deref().map(|id| format!(" (request {id})")).unwrap_or_default())]
pub struct CloudError {
    /// What was asked.
    pub action: Action,
    /// Its class.
    pub kind: ErrorKind,
    /// EC2's code, or a word of the transport where EC2 did not answer.
    pub code: String,
    /// EC2's message, or the transport's.
    pub message: String,
    /// EC2's request id, for support cases.
    pub request_id: Option<String>,
}

impl CloudError {
    /// What stands as long as the call fails alike: without what differs at each call, and with the way out.
    #[must_use]
    pub fn standing(&self) -> String {
        let message = self.message.split(ENCODED).next().unwrap_or_default().trim();
        let Self { action, kind, code, .. } = self;
        format!("ec2:{action} fails ({kind}): {code}: {message}{}", kind.way_out())
    }

    /// An answer of EC2: the class follows from `code` and the HTTP `status`.
    pub fn answered(
        action: Action,
        status: u16,
        code: impl Into<String>,
        message: impl Into<String>,
        request_id: Option<String>,
    ) -> Self {
        let (code, message) = (code.into(), message.into());
        Self { action, kind: ErrorKind::of(&code, &message, status), code, message, request_id }
    }

    /// No answer came.
    pub fn unreachable(action: Action, message: impl Into<String>) -> Self {
        Self {
            action,
            kind: ErrorKind::Unreachable,
            code: "Unreachable".to_owned(),
            message: message.into(),
            request_id: None,
        }
    }
}

/// A question to IMDS that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// No answer.
    #[error(
        "the instance metadata service does not answer at {endpoint}: {message}; is IMDS enabled for the instance?"
    )]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the transport said.
        message: String,
    },
    /// No session token, or the token was refused (HTTP 401 or 403).
    #[error(
        "the instance metadata service refuses {path} (HTTP {status}); IMDSv2 must be enabled for the instance"
    )]
    Denied {
        /// What was asked.
        path: String,
        /// HTTP status.
        status: u16,
    },
    /// The path does not exist (yet).
    #[error("the instance metadata service has no {path}")]
    Missing {
        /// What was asked.
        path: String,
    },
    /// The answer is not what the path promises.
    #[error("the instance metadata service answered {found:?} for {path}: {message}")]
    Malformed {
        /// What was asked.
        path: String,
        /// What came, shortened.
        found: String,
        /// What would be right.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_class_that_the_allocator_acts_on() {
        for (code, status, kind) in [
            ("UnauthorizedOperation", 403, ErrorKind::Denied),
            ("RequestLimitExceeded", 503, ErrorKind::Throttled),
            ("ThrottlingException", 400, ErrorKind::Throttled),
            ("InsufficientFreeAddressesInSubnet", 400, ErrorKind::Exhausted(Shortage::FreeAddresses)),
            ("InsufficientCidrBlocks", 400, ErrorKind::Exhausted(Shortage::CidrBlocks)),
            ("PrivateIpAddressLimitExceeded", 400, ErrorKind::Limit(Limit::Addresses)),
            ("AttachmentLimitExceeded", 400, ErrorKind::Limit(Limit::Attachments)),
            ("InvalidNetworkInterfaceID.NotFound", 400, ErrorKind::Gone),
            ("InvalidAttachmentID.NotFound", 400, ErrorKind::Gone),
            ("InvalidNetworkInterface.InUse", 400, ErrorKind::InUse),
            ("AuthFailure", 401, ErrorKind::Credentials),
            ("RequestExpired", 400, ErrorKind::ClockSkew),
            ("InternalError", 500, ErrorKind::Server),
            ("SomethingNew", 500, ErrorKind::Server),
            ("SomethingNew", 429, ErrorKind::Throttled),
            ("InvalidParameterValue", 400, ErrorKind::Invalid),
        ] {
            assert_eq!(ErrorKind::of(code, "", status), kind, "{code} {status}");
        }
        let message = "Network interface 'eni-1' is currently in use.";
        assert_eq!(ErrorKind::of("InvalidParameterValue", message, 400), ErrorKind::InUse);
    }

    #[test]
    fn what_stands_has_nothing_that_differs_at_each_call() {
        let of = |request: &str, blob: &str| {
            let message = format!("You are not authorized. Encoded authorization failure message: {blob}");
            let id = Some(request.to_owned());
            CloudError::answered(Action::CreateTags, 403, "UnauthorizedOperation", &message, id).standing()
        };
        assert_eq!(of("r-1", "abc"), of("r-2", "def"));
        assert!(
            of("r-1", "abc").contains("ec2:CreateTags") && of("r-1", "abc").contains("AmazonEKS_CNI_Policy")
        );
    }

    #[test]
    fn an_error_names_the_action_and_the_request() {
        let error = CloudError::answered(
            Action::AssignPrivateIpAddresses,
            403,
            "UnauthorizedOperation",
            "You are not authorized",
            Some("r-1".into()),
        );
        let text = error.to_string();
        assert!(
            text.contains("ec2:AssignPrivateIpAddresses") && text.contains("denied") && text.contains("r-1"),
            "{text}"
        );
        assert!(Action::ALL.iter().filter(|a| a.mutates()).count() == 8);
    }
}
