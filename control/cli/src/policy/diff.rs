//! Which pairs change between two sets of manifests: what a merge request does to the cluster.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Serialize;

use super::ports::Ports;
use super::reach::Reach;
use crate::output::{self, Format};

/// Pairs whose ports change alike.
#[derive(Debug, Serialize)]
struct Change {
    change: Kind,
    from: Vec<String>,
    to: Vec<String>,
    before: Vec<String>,
    after: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Something is allowed that was not.
    Opens,
    /// Something is not allowed any more.
    Closes,
    /// Both.
    Changes,
}

impl Kind {
    const fn sign(self) -> &'static str {
        match self {
            Self::Opens => "+",
            Self::Closes => "-",
            Self::Changes => "~",
        }
    }
}

/// The parties of both ends, before and after.
type Groups = [(usize, usize); 2];

/// Prints what changes, and says whether anything does.
pub(super) fn print(old: &Reach, new: &Reach, format: Format) -> Result<bool> {
    let changes = changes(old, new);
    match format {
        Format::Json => output::print_json(&changes)?,
        Format::Table if changes.is_empty() => output::print("No pair changes.")?,
        Format::Table => {
            let rows = changes.iter().map(|c| {
                let text = |list: &[String]| if list.is_empty() { "nothing".into() } else { list.join(", ") };
                let sign = c.change.sign().to_owned();
                vec![sign, short(&c.from), short(&c.to), text(&c.before), text(&c.after)]
            });
            let table = output::table(&["", "FROM", "TO", "BEFORE", "AFTER"], rows);
            output::print(&format!("{table}\n\n+ opens, - closes, ~ both"))?;
        }
    }
    Ok(!changes.is_empty())
}

/// Compares pod by pod, so that a pod that changes its group is still itself, and brings together what changes alike. A pod
/// that is in one set only is not a change of policy, and nobody is said to lose what is not there any more.
fn changes(old: &Reach, new: &Reach) -> Vec<Change> {
    let (was, is) = (old.party_of(), new.party_of());
    let both: Vec<(&str, usize, usize)> =
        is.iter().filter_map(|(name, i)| was.get(name).map(|w| (*name, *w, *i))).collect();
    let mut known: BTreeMap<Groups, Option<(Ports, Ports)>> = BTreeMap::new();
    let mut sources: BTreeMap<Groups, BTreeSet<&str>> = BTreeMap::new();
    let mut destinations = sources.clone();
    for (from, from_was, from_is) in &both {
        for (to, to_was, to_is) in &both {
            let groups = [(*from_was, *from_is), (*to_was, *to_is)];
            let differs = known.entry(groups).or_insert_with(|| {
                let before = old.between(*from_was, *to_was)?;
                let after = new.between(*from_is, *to_is)?;
                (before != after).then_some((before, after))
            });
            if differs.is_some() && from != to {
                sources.entry(groups).or_default().insert(from);
                destinations.entry(groups).or_default().insert(to);
            }
        }
    }
    let mut changes = Vec::new();
    for (groups, from) in sources {
        let Some((before, after)) = known.get(&groups).cloned().flatten() else { continue };
        let common = before.and(&after);
        let change = match (common == before, common == after) {
            (true, _) => Kind::Opens,
            (false, true) => Kind::Closes,
            (false, false) => Kind::Changes,
        };
        let names = |set: &BTreeSet<&str>| set.iter().map(ToString::to_string).collect();
        let texts = |ports: Ports| if ports.is_empty() { Vec::new() } else { ports.texts() };
        changes.push(Change {
            change,
            from: names(&from),
            to: destinations.get(&groups).map(names).unwrap_or_default(),
            before: texts(before),
            after: texts(after),
        });
    }
    changes.sort_by(|a, b| (a.change, &a.from, &a.to).cmp(&(b.change, &b.from, &b.to)));
    changes
}

fn short(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}
