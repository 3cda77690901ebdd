//! The instance metadata service, version 2: a session token by `PUT`, then `GET`s with it.

use std::str::FromStr;
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::client::{Http, NoAnswer};
use super::ec2::Ec2Error;
use crate::cloud::{Identity, Mac, Metadata, MetadataError, MetadataInterface};

const ENDPOINT: &str = "http://169.254.169.254";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Seconds that a session lives, the most that IMDS gives.
const SESSION: &str = "21600";
/// How long an answer may take: it comes from the hypervisor within milliseconds, or never.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a question is asked that gets no answer, or a failure of the service's own.
const ATTEMPTS: u32 = 3;

/// The metadata service.
#[derive(Debug)]
pub struct Imds {
    endpoint: String,
    http: Http,
    token: Mutex<Option<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    instance_id: String,
    instance_type: String,
    availability_zone: String,
    region: String,
}

impl Imds {
    /// The service where the environment says (`AWS_EC2_METADATA_SERVICE_ENDPOINT`), or where it always is.
    ///
    /// # Errors
    /// TLS cannot be had, which the client is made with.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Ec2Error> {
        let set = lookup("AWS_EC2_METADATA_SERVICE_ENDPOINT").filter(|text| !text.trim().is_empty());
        let endpoint = set.unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        Ok(Self { endpoint, http: Http::new().map_err(Ec2Error::Tls)?, token: Mutex::new(None) })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
    ) -> Result<(u16, String), MetadataError> {
        let mut attempt = 1;
        loop {
            let request = Request::builder()
                .method(&method)
                .uri(format!("{}/latest/{path}", self.endpoint))
                .header(header.0, header.1)
                .body(Bytes::new());
            let unreachable =
                |message: String| MetadataError::Unreachable { endpoint: self.endpoint.clone(), message };
            let request = request.map_err(|error| unreachable(error.to_string()))?;
            match self.http.send(request, PATIENCE).await {
                Ok(answer) if answer.status().is_server_error() && attempt < ATTEMPTS => {}
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    return Ok((status, String::from_utf8_lossy(answer.body()).into_owned()));
                }
                Err(_) if attempt < ATTEMPTS => {}
                Err(NoAnswer { why, .. }) => {
                    // The token's answer is the one that the hop limit stops; nothing else tells the two apart.
                    let hint = if method == Method::PUT {
                        "; from a pod without hostNetwork it takes a hop limit of 2 (aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2)"
                    } else {
                        ""
                    };
                    return Err(unreachable(format!("{why}{hint}")));
                }
            }
            tokio::time::sleep(Duration::from_millis(100 * u64::from(attempt))).await;
            attempt += 1;
        }
    }

    async fn token(&self) -> Result<String, MetadataError> {
        let mut kept = self.token.lock().await;
        if let Some(token) = &*kept {
            return Ok(token.clone());
        }
        let path = "api/token";
        let (status, token) = self.send(Method::PUT, path, (TTL, SESSION)).await?;
        if status != 200 || token.is_empty() {
            return Err(MetadataError::Denied { path: path.to_owned(), status });
        }
        *kept = Some(token.clone());
        Ok(token)
    }

    /// The text at a path; nothing where there is no such path.
    async fn get(&self, path: &str) -> Result<Option<String>, MetadataError> {
        let mut fresh = false;
        loop {
            let token = self.token().await?;
            match self.send(Method::GET, path, (TOKEN, &token)).await? {
                (200, text) => return Ok(Some(text)),
                (404, _) => return Ok(None),
                // A session that the service has forgotten, or that is over: once more with a new one.
                (401, _) if !fresh => {
                    fresh = true;
                    *self.token.lock().await = None;
                }
                (status, _) => return Err(MetadataError::Denied { path: path.to_owned(), status }),
            }
        }
    }

    async fn needed(&self, path: &str) -> Result<String, MetadataError> {
        self.get(path).await?.ok_or_else(|| MetadataError::Missing { path: path.to_owned() })
    }

    async fn one<T: FromStr<Err: std::fmt::Display>>(&self, path: &str) -> Result<T, MetadataError> {
        parse(path, self.needed(path).await?.trim())
    }

    /// The items of a list, one a line; none where there is no such path.
    async fn list<T: FromStr<Err: std::fmt::Display>>(&self, path: &str) -> Result<Vec<T>, MetadataError> {
        let text = self.get(path).await?.unwrap_or_default();
        text.split_whitespace().map(|item| parse(path, item)).collect()
    }

    async fn interface(&self, mac: Mac) -> Result<Option<MetadataInterface>, MetadataError> {
        let at = |leaf: &str| format!("meta-data/network/interfaces/macs/{mac}/{leaf}");
        // The folder of an interface comes before what is in it, and goes after.
        let Some(id) = self.get(&at("interface-id")).await? else { return Ok(None) };
        let number = self.get(&at("device-number")).await?;
        let card = self.get(&at("network-card")).await?;
        let Some(subnet) = self.get(&at("subnet-id")).await? else { return Ok(None) };
        let Some(cidr) = self.get(&at("subnet-ipv4-cidr-block")).await? else { return Ok(None) };
        let Some(vpc) = self.get(&at("vpc-id")).await? else { return Ok(None) };
        let Some(number) = number else { return Ok(None) };
        Ok(Some(MetadataInterface {
            mac,
            id: parse(&at("interface-id"), id.trim())?,
            device_index: parse(&at("device-number"), number.trim())?,
            network_card: card.map_or(Ok(0), |card| parse(&at("network-card"), card.trim()))?,
            subnet: parse(&at("subnet-id"), subnet.trim())?,
            subnet_cidr: parse(&at("subnet-ipv4-cidr-block"), cidr.trim())?,
            vpc: parse(&at("vpc-id"), vpc.trim())?,
            vpc_cidrs: self.list(&at("vpc-ipv4-cidr-blocks")).await?,
            groups: self.list(&at("security-group-ids")).await?,
            addresses: self.list(&at("local-ipv4s")).await?,
            prefixes: self.list(&at("ipv4-prefix")).await?,
        }))
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(path: &str, text: &str) -> Result<T, MetadataError> {
    text.parse().map_err(|error: T::Err| MetadataError::Malformed {
        path: path.to_owned(),
        found: text.chars().take(80).collect(),
        message: error.to_string(),
    })
}

impl Metadata for Imds {
    async fn identity(&self) -> Result<Identity, MetadataError> {
        let path = "dynamic/instance-identity/document";
        let text = self.needed(path).await?;
        let malformed = |message: String| MetadataError::Malformed {
            path: path.to_owned(),
            found: text.chars().take(80).collect(),
            message,
        };
        let document: Document = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        Ok(Identity {
            instance: document
                .instance_id
                .parse()
                .map_err(|e: crate::cloud::IdError| malformed(e.to_string()))?,
            instance_type: document.instance_type,
            zone: document.availability_zone,
            region: document.region,
        })
    }

    async fn primary_mac(&self) -> Result<Mac, MetadataError> {
        self.one("meta-data/mac").await
    }

    async fn interfaces(&self) -> Result<Vec<MetadataInterface>, MetadataError> {
        let macs: Vec<Mac> = self.list("meta-data/network/interfaces/macs/").await?;
        let mut all = Vec::new();
        for mac in macs {
            all.extend(self.interface(mac).await?);
        }
        Ok(all)
    }
}
