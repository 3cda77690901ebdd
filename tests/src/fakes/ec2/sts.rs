//! STS as far as IAM roles for service accounts need it: AssumeRoleWithWebIdentity, which nobody signs. A token is trusted
//! when the world was told so; its signature is the cluster's business.

use std::time::Duration;

use super::form::Form;
use super::http::iso8601;
use super::serve::{Reply, reply};
use super::world::World;
use super::xml::Xml;

const XML: &str = "text/xml";
const SPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Answers a request of version 2011-06-15.
pub fn answer(world: &mut World, now: Duration, form: &mut Form) -> Reply {
    match assume(world, now, form) {
        Ok(text) => reply(200, XML, text),
        Err((status, code, message)) => {
            let mut xml = Xml::default();
            xml.root("ErrorResponse", SPACE, |x| {
                x.node("Error", |x| {
                    x.leaf("Type", "Sender").leaf("Code", code).leaf("Message", message);
                });
                x.leaf("RequestId", format!("{:032x}", now.as_nanos()));
            });
            reply(status, XML, xml.finish())
        }
    }
}

fn assume(world: &mut World, now: Duration, form: &mut Form) -> Result<String, (u16, &'static str, String)> {
    let action = form.text("Action").unwrap_or_default();
    if action != "AssumeRoleWithWebIdentity" {
        return Err((
            400,
            "InvalidAction",
            format!("Could not find operation {action} for version 2011-06-15"),
        ));
    }
    let mut need = |name: &str| {
        form.text(name).ok_or_else(|| {
            (400, "ValidationError", format!("1 validation error detected: {name} must not be null"))
        })
    };
    let arn = need("RoleArn")?;
    let session = need("RoleSessionName")?;
    let token = need("WebIdentityToken")?;
    let lasts = form.text("DurationSeconds").and_then(|s| s.parse().ok()).unwrap_or(3600);
    let Some(trusted) = world.identity(&token) else {
        return Err((
            400,
            "InvalidIdentityToken",
            "No OpenIDConnect provider vouches for this token".to_owned(),
        ));
    };
    let role = arn.rsplit('/').next().unwrap_or_default().to_owned();
    if role != trusted || world.policy(&role).is_none() {
        return Err((
            403,
            "AccessDenied",
            "Not authorized to perform sts:AssumeRoleWithWebIdentity".to_owned(),
        ));
    }
    let key = world.session(now, &role, Duration::from_secs(lasts));
    let mut xml = Xml::default();
    xml.root("AssumeRoleWithWebIdentityResponse", SPACE, |x| {
        x.node("AssumeRoleWithWebIdentityResult", |x| {
            x.node("Credentials", |x| {
                x.leaf("AccessKeyId", &key.id).leaf("SecretAccessKey", &key.secret);
                x.leaf("SessionToken", key.token.as_deref().unwrap_or_default());
                x.leaf("Expiration", iso8601(key.expires.unwrap_or(now)));
            });
            x.node("AssumedRoleUser", |x| {
                let who = format!("arn:aws:sts::{}:assumed-role/{role}/{session}", world.account);
                x.leaf("Arn", who).leaf("AssumedRoleId", format!("AROATEST:{session}"));
            });
        });
    });
    Ok(xml.finish())
}
