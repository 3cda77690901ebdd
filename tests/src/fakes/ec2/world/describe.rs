//! What Describe calls see: filters with wildcards, pages that go on where the last one ended whatever has changed since,
//! and ENIs as they were a while ago.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::super::call::{Answer, Call, Filter, Query, Refusal};
use super::super::objects::{Interface, Tags};
use super::super::shapes;
use super::World;
use super::interfaces::{missing, missing_interface};

/// The values of an item that a filter looks at; none when there is no such filter.
type Values = Option<Vec<String>>;

impl World {
    pub(super) fn describe(&self, now: Duration, call: &Call) -> Result<Answer, Refusal> {
        Ok(match call {
            Call::DescribeNetworkInterfaces(query) => {
                let seen = self.as_of(now, self.delays.describe);
                let unknown = query.ids.iter().find(|id| !seen.contains_key(*id));
                if let Some(id) = unknown {
                    return Err(missing_interface(id));
                }
                let all = seen.iter().map(|(id, i)| (id.clone(), i.clone()));
                let (items, next) = self.select(query, all, interface)?;
                Answer::Interfaces { items, next }
            }
            Call::DescribeSubnets(query) => {
                known(query, |id| self.subnets.contains_key(id), |id| missing("Subnet", id))?;
                let all = self.subnets.iter().map(|(id, s)| (id.clone(), s.clone()));
                let (items, next) = self.select(query, all, |s, f| match f {
                    "subnet-id" => one(&s.id),
                    "vpc-id" => one(&s.vpc),
                    "availability-zone" | "availabilityZone" => one(&s.zone),
                    "cidr-block" => one(s.cidr),
                    "state" => one("available"),
                    _ => tags(&s.tags, f),
                })?;
                Answer::Subnets { items, next }
            }
            Call::DescribeSecurityGroups(query) => {
                known(
                    query,
                    |id| self.groups.contains_key(id),
                    |id| {
                        Refusal::new(
                            "InvalidGroup.NotFound",
                            format!("The security group '{id}' does not exist"),
                        )
                    },
                )?;
                let all = self.groups.iter().map(|(id, g)| (id.clone(), g.clone()));
                let (items, next) = self.select(query, all, |g, f| match f {
                    "group-id" => one(&g.id),
                    "group-name" => one(&g.name),
                    "vpc-id" => one(&g.vpc),
                    _ => tags(&g.tags, f),
                })?;
                Answer::Groups { items, next }
            }
            Call::DescribeVpcs(query) => {
                known(query, |id| self.vpcs.contains_key(id), |id| missing("Vpc", id))?;
                let all = self.vpcs.iter().map(|(id, v)| (id.clone(), v.clone()));
                let (items, next) = self.select(query, all, |v, f| match f {
                    "vpc-id" => one(&v.id),
                    _ => tags(&v.tags, f),
                })?;
                Answer::Vpcs { items, next }
            }
            Call::DescribeInstances(query) => {
                let refusal = |id: &str| {
                    Refusal::new(
                        "InvalidInstanceID.NotFound",
                        format!("The instance ID '{id}' does not exist"),
                    )
                };
                known(query, |id| self.instances.contains_key(id), refusal)?;
                let all = self.instances.iter().map(|(id, i)| (id.clone(), i.clone()));
                let (items, next) = self.select(query, all, |i, f| match f {
                    "instance-id" => one(&i.id),
                    "instance-type" => one(i.shape.name),
                    "vpc-id" => one(&i.vpc),
                    "subnet-id" => one(&i.subnet),
                    "availability-zone" => one(&i.zone),
                    "instance-state-name" => one(if i.running { "running" } else { "terminated" }),
                    _ => tags(&i.tags, f),
                })?;
                Answer::Instances { items, next }
            }
            Call::DescribeInstanceTypes(query) => {
                let refusal = |id: &str| {
                    Refusal::new(
                        "InvalidInstanceType",
                        format!("The following supplied instance types do not exist: [{id}]"),
                    )
                };
                known(query, |id| shapes::shape(id).is_some(), refusal)?;
                let all = shapes::SHAPES.iter().map(|s| (s.name.to_owned(), s));
                let (items, next) = self.select(query, all, |s, f| match f {
                    "instance-type" => one(s.name),
                    "hypervisor" => one(s.hypervisor),
                    _ => None,
                })?;
                Answer::InstanceTypes { items, next }
            }
            Call::DescribeTags(query) => {
                let seen = self.as_of(now, self.delays.describe);
                let all = seen.values().map(|i| ("network-interface", &i.id, &i.tags));
                let all = all.chain(self.subnets.values().map(|s| ("subnet", &s.id, &s.tags)));
                let all = all.chain(self.instances.values().map(|i| ("instance", &i.id, &i.tags)));
                let all = all.flat_map(|(kind, id, tags)| {
                    let tag = move |(k, v): (&String, &String)| {
                        (format!("{id} {k}"), (kind, id.clone(), k.clone(), v.clone()))
                    };
                    tags.iter().map(tag)
                });
                let (items, next) = self.select(query, all, |(kind, id, key, value), f| match f {
                    "resource-type" => one(kind),
                    "resource-id" => one(id),
                    "key" => one(key),
                    "value" => one(value),
                    _ => None,
                })?;
                Answer::Tags { items: items.into_iter().map(|(_, id, k, v)| (id, k, v)).collect(), next }
            }
            _ => return Err(Refusal::new("InvalidAction", format!("{} describes nothing", call.action()))),
        })
    }

    /// The items that a query asks for, one page of them, in the order of their keys.
    fn select<T>(
        &self,
        query: &Query,
        items: impl Iterator<Item = (String, T)>,
        values: impl Fn(&T, &str) -> Values,
    ) -> Result<(Vec<T>, Option<String>), Refusal> {
        if !query.ids.is_empty() && query.max_results.is_some() {
            return Err(Refusal::new(
                "InvalidParameterCombination",
                "The parameter MaxResults cannot be used with a list of ids in the same request",
            ));
        }
        if let Some(n) = query.max_results.filter(|n| !(5..=1000).contains(n)) {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!(
                    "Value ( {n} ) for parameter maxResults is invalid. Expecting a value between 5 and 1000."
                ),
            ));
        }
        let query_hash = hash(query);
        let after = match &query.next_token {
            None => None,
            Some(token) => {
                Some(token.split_once('.').filter(|(h, _)| *h == query_hash).map(|(_, key)| key).ok_or_else(
                    || {
                        Refusal::new(
                            "InvalidPaginationToken",
                            "The specified pagination token is not valid or is expired.",
                        )
                    },
                )?)
            }
        };
        let mut found = Vec::new();
        for (key, item) in items {
            let named = query.ids.is_empty() || query.ids.contains(&key);
            if named
                && after.is_none_or(|a| key.as_str() > a)
                && matches(&query.filters, |f| values(&item, f))?
            {
                found.push((key, item));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let page = query.max_results.unwrap_or(usize::MAX).min(self.page_limit);
        let page = if query.ids.is_empty() { page } else { found.len() };
        let more = found.len() > page;
        found.truncate(page);
        let next = found.last().filter(|_| more).map(|(key, _)| format!("{query_hash}.{key}"));
        Ok((found.into_iter().map(|(_, item)| item).collect(), next))
    }
}

/// A token belongs to its query; what a page is cut to may change on the way.
fn hash(query: &Query) -> String {
    let mut hasher = DefaultHasher::new();
    query.ids.hash(&mut hasher);
    for filter in &query.filters {
        (&filter.name, &filter.values).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn known(query: &Query, has: impl Fn(&str) -> bool, refuse: impl Fn(&str) -> Refusal) -> Result<(), Refusal> {
    query.ids.iter().find(|id| !has(id)).map_or(Ok(()), |id| Err(refuse(id)))
}

fn matches(filters: &[Filter], values: impl Fn(&str) -> Values) -> Result<bool, Refusal> {
    for filter in filters {
        let Some(found) = values(&filter.name) else {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("The filter '{}' is invalid", filter.name),
            ));
        };
        if !found.iter().any(|v| filter.values.iter().any(|p| wild(p.as_bytes(), v.as_bytes()))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// EC2's wildcards: `*` is any run of characters, `?` one character.
fn wild(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => wild(&pattern[1..], text) || (!text.is_empty() && wild(pattern, &text[1..])),
        (Some(b'?'), Some(_)) => wild(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => wild(&pattern[1..], &text[1..]),
        _ => false,
    }
}

#[allow(
    clippy::unnecessary_wraps,
    clippy::needless_pass_by_value,
    reason = "an arm of the tables of filters, which say none for an unknown filter"
)]
fn one(value: impl ToString) -> Values {
    Some(vec![value.to_string()])
}

fn tags(tags: &Tags, filter: &str) -> Values {
    match filter.strip_prefix("tag:") {
        Some(key) => Some(tags.get(key).cloned().into_iter().collect()),
        None if filter == "tag-key" => Some(tags.keys().cloned().collect()),
        None => None,
    }
}

fn interface(i: &Arc<Interface>, filter: &str) -> Values {
    let attached = |value: fn(&super::super::objects::Attachment) -> String| {
        Some(i.attachment.iter().map(value).collect())
    };
    match filter {
        "network-interface-id" => one(&i.id),
        "vpc-id" => one(&i.vpc),
        "subnet-id" => one(&i.subnet),
        "availability-zone" => one(&i.zone),
        "status" => one(i.status()),
        "description" => one(&i.description),
        "mac-address" => one(&i.mac),
        "interface-type" => one(&i.kind),
        "group-id" => Some(i.groups.clone()),
        "private-ip-address" => one(i.primary),
        "addresses.private-ip-address" => {
            Some(std::iter::once(&i.primary).chain(&i.secondary).map(ToString::to_string).collect())
        }
        "attachment.instance-id" => attached(|a| a.instance.clone()),
        "attachment.attachment-id" => attached(|a| a.id.clone()),
        "attachment.status" => attached(|a| a.progress.to_string()),
        "attachment.device-index" => attached(|a| a.device.to_string()),
        _ => tags(&i.tags, filter),
    }
}
