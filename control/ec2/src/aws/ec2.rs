//! The thirteen actions: a form each, signed, sent, and sent again where that helps and harms nothing.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use http::{Method, Request, Uri};
use hyper::body::Bytes;
use roxmltree::{Document, Node};

use super::answer::{self, Malformed};
use super::calls::Calls;
use super::client::{Http, NoAnswer};
use super::credentials::{CredentialsError, Keys};
use super::settings::Settings;
use crate::backoff::Dice;
use crate::cloud::{
    Action, Amount, AttachInterface, AttachmentId, Cloud, CloudError, CreateInterface, EniId, ErrorKind,
    GroupId, Instance, InstanceId, Interface, InterfaceFilter, Limits, Placed, SecurityGroup, Subnet,
    SubnetFilter, Tags,
};

/// The API's version.
const VERSION: &str = "2016-11-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// How often a call is made before its error is told.
const ATTEMPTS: u32 = 4;
/// The wait before the second attempt at most; it doubles with each.
const PAUSE: Duration = Duration::from_millis(200);
/// Most items of a page.
const PAGE: &str = "1000";
/// Pages of one answer at most: a token that comes again and again must not keep the pool for ever.
const PAGES: usize = 1000;

/// Why EC2 cannot be called at all.
#[derive(Debug, thiserror::Error)]
pub enum Ec2Error {
    /// No credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The endpoint is no URL.
    #[error("the endpoint {url:?} is no URL: {why}; AWS_EC2_ENDPOINT names it, or AWS_REGION the region")]
    Endpoint {
        /// What it is.
        url: String,
        /// Why it is none.
        why: String,
    },
    /// TLS, the certificate authorities of the system among it.
    #[error("TLS cannot be had: {0}; are the system's certificate authorities there (ca-certificates)?")]
    Tls(std::io::Error),
}

/// EC2.
#[derive(Debug)]
pub struct Ec2 {
    settings: Settings,
    uri: Uri,
    http: Http,
    keys: Keys,
    dice: std::sync::Mutex<Dice>,
    calls: Arc<Calls>,
}

/// Parameters of a call.
struct Form(Vec<(String, String)>);

impl Form {
    fn of(action: Action) -> Self {
        Self(vec![("Action".into(), action.name().into()), ("Version".into(), VERSION.into())])
    }

    fn with(mut self, name: impl Into<String>, value: impl Display) -> Self {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// `NAME.1`, `NAME.2` ...
    fn list<T: Display>(mut self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        let numbered = (1..).zip(values).map(|(n, value)| (format!("{name}.{n}"), value.to_string()));
        self.0.extend(numbered);
        self
    }

    fn filters(self, filters: &[(String, String)]) -> Self {
        (1..).zip(filters).fold(self, |form, (n, (name, value))| {
            form.with(format!("Filter.{n}.Name"), name).with(format!("Filter.{n}.Value.1"), value)
        })
    }

    fn tags(self, prefix: &str, tags: &Tags) -> Self {
        (1..).zip(tags).fold(self, |form, (n, (key, value))| {
            form.with(format!("{prefix}.{n}.Key"), key).with(format!("{prefix}.{n}.Value"), value)
        })
    }

    fn amount(self, amount: Amount) -> Self {
        match amount {
            Amount::Addresses(0) | Amount::Prefixes(0) => self,
            Amount::Addresses(n) => self.with("SecondaryPrivateIpAddressCount", n),
            Amount::Prefixes(n) => self.with("Ipv4PrefixCount", n),
        }
    }

    fn encode(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }
}

impl Ec2 {
    /// Finds credentials' source; asks nobody yet but where the SDK's chain must.
    ///
    /// # Errors
    /// The endpoint is no URL, or TLS cannot be had.
    pub async fn connect(settings: Settings) -> Result<Self, Ec2Error> {
        let keys = Keys::find(&settings.region).await?;
        Self::with(settings, keys)
    }

    /// With an access key of the caller's own.
    ///
    /// # Errors
    /// As [`Ec2::connect`].
    pub fn with_access_key(settings: Settings, id: &str, secret: &str) -> Result<Self, Ec2Error> {
        Self::with(settings, Keys::fixed(id, secret))
    }

    fn with(settings: Settings, keys: Keys) -> Result<Self, Ec2Error> {
        let url = settings.url();
        let wrong = |why: String| Ec2Error::Endpoint { url: url.clone(), why };
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        if uri.host().is_none() || uri.scheme().is_none() {
            return Err(wrong("https://HOST is wanted".to_owned()));
        }
        let uri = if uri.path().is_empty() || uri.path() == "/" {
            format!("{}/", url.trim_end_matches('/')).parse().unwrap_or(uri)
        } else {
            uri
        };
        let http = Http::new().map_err(Ec2Error::Tls)?;
        let seed =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        Ok(Self {
            settings,
            uri,
            http,
            keys,
            dice: std::sync::Mutex::new(Dice::new(u64::from(seed))),
            calls: Arc::default(),
        })
    }

    /// The calls that were made.
    #[must_use]
    pub fn calls(&self) -> Arc<Calls> {
        Arc::clone(&self.calls)
    }

    /// A call and what its answer comes to, counted.
    async fn call<T>(
        &self,
        action: Action,
        form: Form,
        read: impl Fn(Node<'_, '_>) -> Result<T, Malformed>,
    ) -> Result<T, CloudError> {
        let begun = Instant::now();
        let outcome = self.attempts(action, form, read).await;
        self.calls.made(action, outcome.is_ok(), begun.elapsed());
        outcome
    }

    async fn attempts<T>(
        &self,
        action: Action,
        form: Form,
        read: impl Fn(Node<'_, '_>) -> Result<T, Malformed>,
    ) -> Result<T, CloudError> {
        let body = form.encode();
        let mut attempt = 1;
        loop {
            let error = match self.once(action, &body).await {
                Ok(text) => return self.read(action, &text, read),
                Err(failed) if attempt < ATTEMPTS && failed.again(action) => failed.error,
                Err(failed) => return Err(failed.error),
            };
            if error.kind == ErrorKind::Credentials {
                self.keys.forget().await;
            }
            // Jitter over the whole: nodes that were throttled together must not come back together.
            let most = PAUSE * 2_u32.pow(attempt - 1);
            let roll = self.dice.lock().unwrap_or_else(std::sync::PoisonError::into_inner).roll();
            let pause = Duration::from_millis(roll % u64::try_from(most.as_millis()).unwrap_or(1).max(1));
            tracing::debug!(%error, attempt, ?pause, "again");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    fn read<T>(
        &self,
        action: Action,
        text: &[u8],
        read: impl Fn(Node<'_, '_>) -> Result<T, Malformed>,
    ) -> Result<T, CloudError> {
        let parsed =
            std::str::from_utf8(text).map_err(|error| Malformed(error.to_string())).and_then(|text| {
                let document = Document::parse(text).map_err(|error| Malformed(error.to_string()))?;
                read(document.root_element())
            });
        parsed.map_err(|error| CloudError {
            action,
            // The call has happened; what came of it is not known.
            kind: ErrorKind::Server,
            code: "Malformed".to_owned(),
            message: format!("{error}; is {} EC2?", self.uri),
            request_id: None,
        })
    }

    async fn once(&self, action: Action, body: &str) -> Result<Bytes, Failed> {
        let keys = self.keys.get().await.map_err(|error| Failed {
            error: CloudError {
                action,
                kind: ErrorKind::Credentials,
                code: "NoCredentials".to_owned(),
                message: error.to_string(),
                request_id: None,
            },
            sent: false,
        })?;
        let request = self.signed(body, keys).map_err(|why| Failed {
            error: CloudError::unreachable(action, format!("the request cannot be signed: {why}")),
            sent: false,
        })?;
        let answer = match self.http.send(request, self.settings.timeout).await {
            Ok(answer) => answer,
            Err(NoAnswer { sent, why }) => {
                let message = format!("{why} ({})", self.uri);
                return Err(Failed { error: CloudError::unreachable(action, message), sent });
            }
        };
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let status = answer.status().as_u16();
        let date = answer
            .headers()
            .get(http::header::DATE)
            .and_then(|date| date.to_str().ok())
            .map(ToOwned::to_owned);
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        let told = Document::parse(&text).ok().and_then(|document| answer::error(&document));
        let (code, message, request) =
            told.unwrap_or_else(|| (format!("HTTP{status}"), shortened(&text), None));
        let mut error = CloudError::answered(action, status, code, message, request);
        if error.kind == ErrorKind::ClockSkew
            && let Some(date) = date
        {
            error.message = format!(
                "{}; EC2's clock says {date}: is this node's set (chrony, 169.254.169.123)?",
                error.message
            );
        }
        Err(Failed { error, sent: true })
    }

    fn signed(&self, body: &str, keys: Credentials) -> Result<Request<Bytes>, String> {
        let words = |error: &dyn std::error::Error| super::client::chain(error);
        let host = self.uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.uri)
            .header(http::header::CONTENT_TYPE, FORM)
            .header(http::header::HOST, &host)
            .header(http::header::USER_AGENT, concat!("sluice-agent/", env!("CARGO_PKG_VERSION")))
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .map_err(|error| words(&error))?;
        let identity: Identity = keys.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.settings.region)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| words(&error))?
            .into();
        let headers = [("content-type", FORM), ("host", host.as_str())];
        let uri = self.uri.to_string();
        let signable =
            SignableRequest::new("POST", &uri, headers.into_iter(), SignableBody::Bytes(body.as_bytes()))
                .map_err(|error| words(&error))?;
        let (instructions, _) = sign(signable, &parameters).map_err(|error| words(&error))?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }

    /// Every page of a Describe call.
    async fn pages<T>(
        &self,
        action: Action,
        form: impl Fn() -> Form,
        read: impl Fn(Node<'_, '_>) -> Result<Vec<T>, Malformed>,
    ) -> Result<Vec<T>, CloudError> {
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES {
            let form = match &token {
                Some(token) => form().with("NextToken", token),
                None => form(),
            };
            let (items, next) = self.call(action, form, |root| Ok((read(root)?, answer::next(root)))).await?;
            all.extend(items);
            match next {
                Some(next) => token = Some(next),
                None => return Ok(all),
            }
        }
        let message = format!("more than {PAGES} pages: the tokens lead in a circle");
        Err(CloudError::answered(action, 200, "TooManyPages", message, None))
    }
}

/// A call that failed, and whether it may have happened.
struct Failed {
    error: CloudError,
    sent: bool,
}

impl Failed {
    /// Whether making the call again can help and cannot harm.
    fn again(&self, action: Action) -> bool {
        // Repeated with its token, a creation finds what it made; what changes nothing may be asked at will.
        let repeatable = !action.mutates() || action == Action::CreateNetworkInterface;
        match self.error.kind {
            // EC2 counts a throttled call, and does nothing else about it.
            ErrorKind::Throttled => true,
            // Once more, with fresh ones; a call whose credentials are refused does nothing.
            ErrorKind::Credentials => self.sent,
            ErrorKind::Unreachable => repeatable || !self.sent,
            ErrorKind::Server => repeatable,
            _ => false,
        }
    }
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() { "no message".to_owned() } else { text.chars().take(200).collect() }
}

fn nothing(_: Node<'_, '_>) -> Result<(), Malformed> {
    Ok(())
}

impl Cloud for Ec2 {
    async fn describe_instance(&self, instance: &InstanceId) -> Result<Instance, CloudError> {
        let form = Form::of(Action::DescribeInstances).list("InstanceId", [instance]);
        self.call(Action::DescribeInstances, form, answer::instance).await
    }

    async fn describe_instance_type(&self, instance_type: &str) -> Result<Limits, CloudError> {
        let form = Form::of(Action::DescribeInstanceTypes).list("InstanceType", [instance_type]);
        self.call(Action::DescribeInstanceTypes, form, answer::limits).await
    }

    async fn describe_interfaces(&self, filter: &InterfaceFilter) -> Result<Vec<Interface>, CloudError> {
        const ACTION: Action = Action::DescribeNetworkInterfaces;
        let form = || match filter {
            InterfaceFilter::Ids(ids) => Form::of(ACTION).list("NetworkInterfaceId", ids),
            InterfaceFilter::AttachedTo(instance) => Form::of(ACTION)
                .filters(&[("attachment.instance-id".into(), instance.to_string())])
                .with("MaxResults", PAGE),
            InterfaceFilter::Available { vpc, tags } => {
                let mut filters = vec![
                    ("status".to_owned(), "available".to_owned()),
                    ("vpc-id".to_owned(), vpc.to_string()),
                ];
                filters.extend(tags.iter().map(|(key, value)| match value {
                    Some(value) => (format!("tag:{key}"), value.clone()),
                    None => ("tag-key".to_owned(), key.clone()),
                }));
                Form::of(ACTION).filters(&filters).with("MaxResults", PAGE)
            }
        };
        self.pages(ACTION, form, answer::interfaces).await
    }

    async fn describe_subnets(&self, filter: &SubnetFilter) -> Result<Vec<Subnet>, CloudError> {
        const ACTION: Action = Action::DescribeSubnets;
        let form = || match filter {
            SubnetFilter::Ids(ids) => Form::of(ACTION).list("SubnetId", ids),
            SubnetFilter::Zone { vpc, zone } => Form::of(ACTION)
                .filters(&[("vpc-id".into(), vpc.to_string()), ("availability-zone".into(), zone.clone())])
                .with("MaxResults", PAGE),
        };
        self.pages(ACTION, form, answer::subnets).await
    }

    async fn describe_security_groups(&self, groups: &[GroupId]) -> Result<Vec<SecurityGroup>, CloudError> {
        const ACTION: Action = Action::DescribeSecurityGroups;
        self.pages(ACTION, || Form::of(ACTION).list("GroupId", groups), answer::groups).await
    }

    async fn create_interface(&self, request: &CreateInterface) -> Result<Interface, CloudError> {
        let mut form = Form::of(Action::CreateNetworkInterface)
            .with("ClientToken", &request.token)
            .with("SubnetId", &request.subnet)
            .with("Description", &request.description)
            .list("SecurityGroupId", &request.groups)
            .amount(request.amount);
        if !request.tags.is_empty() {
            form = form
                .with("TagSpecification.1.ResourceType", "network-interface")
                .tags("TagSpecification.1.Tag", &request.tags);
        }
        self.call(Action::CreateNetworkInterface, form, answer::created).await
    }

    async fn attach_interface(&self, request: &AttachInterface) -> Result<AttachmentId, CloudError> {
        let form = Form::of(Action::AttachNetworkInterface)
            .with("NetworkInterfaceId", &request.eni)
            .with("InstanceId", &request.instance)
            .with("DeviceIndex", request.device_index)
            .with("NetworkCardIndex", request.network_card);
        self.call(Action::AttachNetworkInterface, form, answer::attached).await
    }

    async fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
        delete: bool,
    ) -> Result<(), CloudError> {
        let form = Form::of(Action::ModifyNetworkInterfaceAttribute)
            .with("NetworkInterfaceId", eni)
            .with("Attachment.AttachmentId", attachment)
            .with("Attachment.DeleteOnTermination", delete);
        self.call(Action::ModifyNetworkInterfaceAttribute, form, nothing).await
    }

    async fn set_groups(&self, eni: &EniId, groups: &[GroupId]) -> Result<(), CloudError> {
        let form = Form::of(Action::ModifyNetworkInterfaceAttribute)
            .with("NetworkInterfaceId", eni)
            .list("SecurityGroupId", groups);
        self.call(Action::ModifyNetworkInterfaceAttribute, form, nothing).await
    }

    async fn assign(&self, eni: &EniId, amount: Amount) -> Result<Placed, CloudError> {
        let form = Form::of(Action::AssignPrivateIpAddresses).with("NetworkInterfaceId", eni).amount(amount);
        self.call(Action::AssignPrivateIpAddresses, form, answer::placed).await
    }

    async fn unassign(&self, eni: &EniId, what: &Placed) -> Result<(), CloudError> {
        if !what.addresses.is_empty() && !what.prefixes.is_empty() {
            let message = "addresses and prefixes in one call";
            let code = "InvalidParameterCombination";
            return Err(CloudError::answered(Action::UnassignPrivateIpAddresses, 400, code, message, None));
        }
        let form = Form::of(Action::UnassignPrivateIpAddresses)
            .with("NetworkInterfaceId", eni)
            .list("PrivateIpAddress", &what.addresses)
            .list("Ipv4Prefix", &what.prefixes);
        self.call(Action::UnassignPrivateIpAddresses, form, nothing).await
    }

    async fn detach_interface(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        let form = Form::of(Action::DetachNetworkInterface).with("AttachmentId", attachment);
        self.call(Action::DetachNetworkInterface, form, nothing).await
    }

    async fn delete_interface(&self, eni: &EniId) -> Result<(), CloudError> {
        let form = Form::of(Action::DeleteNetworkInterface).with("NetworkInterfaceId", eni);
        self.call(Action::DeleteNetworkInterface, form, nothing).await
    }

    async fn create_tags(&self, eni: &EniId, tags: &Tags) -> Result<(), CloudError> {
        let form = Form::of(Action::CreateTags).list("ResourceId", [eni]).tags("Tag", tags);
        self.call(Action::CreateTags, form, nothing).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_harm_is_made_again() {
        let failed = |kind, sent| Failed {
            error: CloudError {
                action: Action::CreateTags,
                kind,
                code: String::new(),
                message: String::new(),
                request_id: None,
            },
            sent,
        };
        let attach = Action::AttachNetworkInterface;
        assert!(failed(ErrorKind::Throttled, true).again(attach));
        assert!(failed(ErrorKind::Unreachable, false).again(attach), "it was never sent");
        assert!(!failed(ErrorKind::Unreachable, true).again(attach), "it may have happened");
        assert!(!failed(ErrorKind::Server, true).again(attach));
        assert!(failed(ErrorKind::Server, true).again(Action::CreateNetworkInterface), "its token finds it");
        assert!(!failed(ErrorKind::Denied, true).again(Action::DescribeSubnets));
    }
}
