//! Who may do what: users by their bearer tokens, and the roles that are bound to them.
//!
//! Roles and bindings are objects like others, so that a test can load those of the chart and run under exactly these rights.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::kinds;
use super::status::{Refusal, details};
use super::store::Store;

/// Someone who sends requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its groups; `system:masters` may do everything.
    pub groups: Vec<String>,
}

impl User {
    /// A user with every right.
    #[must_use]
    pub fn admin() -> Self {
        Self { name: "admin".into(), groups: vec!["system:masters".into(), "system:authenticated".into()] }
    }

    /// A user by name; one of `system:serviceaccount:NAMESPACE:NAME` is in the groups of its service account.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut groups = vec!["system:authenticated".to_string()];
        if let Some(account) = name.strip_prefix("system:serviceaccount:") {
            let namespace = account.split(':').next().unwrap_or_default();
            groups.push("system:serviceaccounts".into());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        Self { name: name.into(), groups }
    }

    fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] }
    }
}

/// Who is known by which token. While no token is known, everyone is an administrator.
#[derive(Debug, Default)]
pub struct Users(HashMap<String, User>);

impl Users {
    /// Makes a token known.
    pub fn add(&mut self, token: &str, user: User) {
        self.0.insert(token.into(), user);
    }

    /// The user of an `Authorization` header.
    ///
    /// # Errors
    /// The token is not known (401).
    pub fn of(&self, header: Option<&str>) -> Result<User, Refusal> {
        if self.0.is_empty() {
            return Ok(User::admin());
        }
        let Some(header) = header else { return Ok(User::anonymous()) };
        let token = header.strip_prefix("Bearer ").unwrap_or_default();
        let unauthorized = || Refusal::new(401, "Unauthorized", "Unauthorized", Value::Null);
        self.0.get(token).cloned().ok_or_else(unauthorized)
    }
}

/// What someone wants to do.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Resource, with its subresource: `pods/status`.
    pub resource: &'a str,
    /// Empty for the whole cluster.
    pub namespace: &'a str,
    /// Empty for a collection.
    pub name: &'a str,
}

/// May this user do that?
#[must_use]
pub fn allowed(store: &Store, user: &User, attempt: &Attempt<'_>) -> bool {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if user.groups.iter().any(|group| group == "system:masters") {
        return true;
    }
    let objects = |plural: &str, namespace: &str| -> Vec<Value> {
        let Some(resource) = kinds::of_path(GROUP, "v1", plural) else { return Vec::new() };
        store.table(resource).range(namespace).map(|object| object.value(resource)).collect()
    };
    let mut bindings = objects("clusterrolebindings", "");
    if !attempt.namespace.is_empty() {
        bindings.extend(objects("rolebindings", attempt.namespace));
    }
    bindings.iter().filter(|binding| binds(binding, user)).any(|binding| {
        let role = &binding["roleRef"];
        let (plural, namespace) = if role["kind"] == "ClusterRole" {
            ("clusterroles", "")
        } else {
            ("roles", binding["metadata"]["namespace"].as_str().unwrap_or_default())
        };
        let roles = objects(plural, namespace);
        let roles = roles.iter().filter(|found| found["metadata"]["name"] == role["name"]);
        roles.flat_map(|role| list(&role["rules"])).any(|rule| permits(rule, attempt))
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn binds(binding: &Value, user: &User) -> bool {
    let namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
    list(&binding["subjects"]).any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("User") => user.name == name,
            Some("Group") => user.groups.iter().any(|group| group == name),
            Some("ServiceAccount") => {
                let namespace = subject["namespace"].as_str().unwrap_or(namespace);
                user.name == format!("system:serviceaccount:{namespace}:{name}")
            }
            _ => false,
        }
    })
}

fn permits(rule: &Value, attempt: &Attempt<'_>) -> bool {
    let has = |member: &str, word: &str| list(&rule[member]).any(|known| known == word || known == "*");
    let sub = attempt.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let names = list(&rule["resourceNames"]).count() == 0;
    has("verbs", attempt.verb)
        && has("apiGroups", attempt.group)
        && (has("resources", attempt.resource) || sub.is_some_and(|sub| has("resources", &sub)))
        && (names || list(&rule["resourceNames"]).any(|name| name == attempt.name))
}

/// 403.
#[must_use]
pub fn forbidden(resource: &kinds::Resource, user: &User, attempt: &Attempt<'_>) -> Refusal {
    let what = if attempt.name.is_empty() {
        resource.qualified()
    } else {
        format!("{} \"{}\"", resource.qualified(), attempt.name)
    };
    let place = if attempt.namespace.is_empty() {
        "at the cluster scope".into()
    } else {
        format!("in the namespace \"{}\"", attempt.namespace)
    };
    let message = format!(
        "{what} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
        user.name, attempt.verb, attempt.resource, attempt.group
    );
    Refusal::new(403, "Forbidden", message, details(resource, attempt.name))
}

/// Answers a `SelfSubjectAccessReview`.
#[must_use]
pub fn review(store: &Store, user: &User, body: &Value) -> Value {
    let asked = &body["spec"]["resourceAttributes"];
    let word = |member: &str| asked[member].as_str().unwrap_or_default();
    let resource = match word("subresource") {
        "" => word("resource").to_string(),
        sub => format!("{}/{sub}", word("resource")),
    };
    let attempt = Attempt {
        verb: word("verb"),
        group: word("group"),
        resource: &resource,
        namespace: word("namespace"),
        name: word("name"),
    };
    json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": body["spec"], "status": { "allowed": allowed(store, user, &attempt) },
    })
}
