//! How EC2 is reached: what the environment says, with the names of the VPC CNI and of the SDK.

use std::time::Duration;

/// How EC2 is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The region, `eu-central-1`.
    pub region: String,
    /// A URL in place of the region's (VPC CNI: `AWS_EC2_ENDPOINT`).
    pub endpoint: Option<String>,
    /// How long one request may take (VPC CNI: `HTTP_TIMEOUT`, 10 s).
    pub timeout: Duration,
}

impl Settings {
    /// What the environment says; `region` is the instance's, for where the environment says none. A variable that is set to
    /// nothing counts as not set.
    pub fn from_env(region: &str, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set =
            |names: &[&str]| names.iter().find_map(|name| lookup(name).filter(|v| !v.trim().is_empty()));
        let seconds = set(&["HTTP_TIMEOUT"]).and_then(|text| text.parse().ok()).filter(|s| *s > 0);
        Self {
            region: set(&["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| region.to_owned()),
            endpoint: set(&["AWS_EC2_ENDPOINT", "AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"]),
            timeout: Duration::from_secs(seconds.unwrap_or(10)),
        }
    }

    pub(super) fn url(&self) -> String {
        // The partition of China has a domain of its own.
        let domain = if self.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        self.endpoint.clone().unwrap_or_else(|| format!("https://ec2.{}.{domain}", self.region))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_to_nothing_is_not_set() {
        let none = Settings::from_env("eu-west-1", |name| (name == "AWS_REGION").then(String::new));
        assert_eq!(
            (none.region.as_str(), none.url().as_str()),
            ("eu-west-1", "https://ec2.eu-west-1.amazonaws.com")
        );
        let set = Settings::from_env("x", |name| match name {
            "AWS_DEFAULT_REGION" => Some("cn-north-1".into()),
            "HTTP_TIMEOUT" => Some("3".into()),
            _ => None,
        });
        assert_eq!(
            (set.url().as_str(), set.timeout.as_secs()),
            ("https://ec2.cn-north-1.amazonaws.com.cn", 3)
        );
    }
}
