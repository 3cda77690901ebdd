//! Who calls. Of a SigV4 signature the world checks what an operator gets wrong (unknown key, lost or expired session,
//! a clock that is off), not the cryptography, which is the SDK's and tested there.

use std::time::Duration;

use super::super::call::Refusal;
use super::super::faults::Policy;
use super::World;

/// How far a request's date may be from the service's, as EC2's documentation of `RequestExpired` has it.
const SKEW: Duration = Duration::from_secs(15 * 60);

/// An access key.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its id, `ASIA...` for a session.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// The session token that must come with it.
    pub token: Option<String>,
    /// When it ends, since the Unix epoch.
    pub expires: Option<Duration>,
    /// The role it acts as.
    pub role: String,
}

/// What a request says about who sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// The access key's id.
    pub key: String,
    /// The session token.
    pub token: Option<String>,
    /// When it was signed, since the Unix epoch.
    pub date: Duration,
}

impl World {
    /// Lets a role exist and do that much.
    pub fn grant(&mut self, role: &str, policy: Policy) {
        self.roles.insert(role.to_owned(), policy);
    }

    /// What a role may do.
    #[must_use]
    pub fn policy(&self, role: &str) -> Option<&Policy> {
        self.roles.get(role)
    }

    /// A key without an end, for tests that are about something else.
    pub fn add_key(&mut self, id: &str, role: &str) {
        let key = Key {
            id: id.to_owned(),
            secret: format!("secret-of-{id}"),
            token: None,
            expires: None,
            role: role.to_owned(),
        };
        self.keys.insert(key.id.clone(), key);
    }

    /// Lets who has this token take that role, at STS and at Pod Identity.
    pub fn trust(&mut self, token: &str, role: &str) {
        self.identities.insert(token.to_owned(), role.to_owned());
    }

    /// The role of a trusted token.
    #[must_use]
    pub fn identity(&self, token: &str) -> Option<&str> {
        self.identities.get(token).map(String::as_str)
    }

    /// A session of a role.
    pub fn session(&mut self, now: Duration, role: &str, lasts: Duration) -> Key {
        let n = self.next_id;
        self.next_id += 1;
        let key = Key {
            id: format!("ASIA{n:016X}"),
            secret: format!("secret{n:034x}"),
            token: Some(format!("session{n:025x}")),
            expires: Some(now + lasts),
            role: role.to_owned(),
        };
        self.keys.insert(key.id.clone(), key.clone());
        key
    }

    /// The role that a request acts as.
    ///
    /// # Errors
    /// `AuthFailure` for an unknown key or a wrong token; `RequestExpired` for a clock that is off by more than 15 minutes
    /// and for a session that has ended.
    pub fn authenticate(&self, now: Duration, signature: &Signature) -> Result<String, Refusal> {
        let failure =
            || Refusal::new("AuthFailure", "AWS was not able to validate the provided access credentials");
        let key = self.keys.get(&signature.key).ok_or_else(failure)?;
        if key.token != signature.token {
            return Err(failure());
        }
        if now.abs_diff(signature.date) > SKEW || key.expires.is_some_and(|end| end <= now) {
            return Err(Refusal::new("RequestExpired", "Request has expired."));
        }
        Ok(key.role.clone())
    }
}
