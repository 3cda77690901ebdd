//! The matrix: as a table, as JSON, as a page.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::reach::{Party, PartyKind, Reach};
use crate::output;

/// Parties up to which a table has a column for each; beyond, it is a list.
const COLUMNS: usize = 8;

const LEGEND: &str = "Always allowed and not shown: a pod to itself, and between a pod and its own node.";

#[derive(Serialize)]
struct Printed<'a> {
    parties: Vec<PrintedParty<'a>>,
    /// Every pair that may connect; what is not here may not.
    reach: Vec<Pair>,
}

#[derive(Serialize)]
struct PrintedParty<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<&'a sluice_policy::Labels>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pods: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    cidr: Option<ipnet::Ipv4Net>,
}

#[derive(Serialize)]
struct Pair {
    from: String,
    to: String,
    ports: Vec<String>,
}

pub(super) fn json(reach: &Reach) -> Result<()> {
    let parties = reach.parties.iter().map(|party| match &party.kind {
        PartyKind::Pods { namespace, labels, pods } => PrintedParty {
            name: &party.name,
            namespace: Some(namespace),
            labels: Some(labels),
            pods,
            cidr: None,
        },
        PartyKind::Net(net) => {
            PrintedParty { name: &party.name, namespace: None, labels: None, pods: &[], cidr: Some(*net) }
        }
    });
    output::print_json(&Printed { parties: parties.collect(), reach: pairs(reach) })
}

pub(super) fn table(reach: &Reach) -> Result<()> {
    let count = reach.parties.len();
    let text = if count <= COLUMNS {
        let header: Vec<String> = std::iter::once("FROM \\ TO".into())
            .chain(reach.parties.iter().enumerate().map(|(i, p)| format!("{}: {}", i + 1, p.name)))
            .collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let rows = (0..count).map(|from| {
            let cells = (0..count).map(|to| cell(reach, from, to).0);
            std::iter::once(format!("{}: {}", from + 1, reach.parties[from].name)).chain(cells).collect()
        });
        output::table(&header, rows)
    } else {
        let rows = pairs(reach).into_iter().map(|pair| vec![pair.from, pair.to, pair.ports.join(", ")]);
        output::table(&["FROM", "TO", "PORTS"], rows)
    };
    output::print(&format!("{text}\n\n{LEGEND}"))
}

pub(super) fn html(reach: &Reach) -> Result<()> {
    let mut page = String::from(HEAD);
    page.push_str("<table><tr><th>from \\ to</th>");
    for party in &reach.parties {
        let _ = write!(page, "<th title=\"{}\">{}</th>", escape(&title(party)), escape(&party.name));
    }
    page.push_str("</tr>\n");
    for (from, party) in reach.parties.iter().enumerate() {
        let _ = write!(page, "<tr><th title=\"{}\">{}</th>", escape(&title(party)), escape(&party.name));
        for to in 0..reach.parties.len() {
            let (text, class) = cell(reach, from, to);
            let _ = write!(page, "<td class=\"{class}\">{}</td>", escape(&text));
        }
        page.push_str("</tr>\n");
    }
    let _ = write!(page, "</table><p>{LEGEND}</p></body></html>");
    output::print(&page)
}

/// The page needs nothing from anywhere.
const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Who may reach whom</title><style>\
body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}\
th,td{border:1px solid #bbb;padding:.3em .6em;text-align:left;vertical-align:top}\
.all{background:#d9f2d9}.some{background:#fff3c4}.none{background:#f8d4d4}.self{background:#eee}\
</style></head><body><h1>Who may reach whom</h1>\n";

fn cell(reach: &Reach, from: usize, to: usize) -> (String, &'static str) {
    match reach.between(from, to) {
        None => ("·".into(), "self"),
        Some(ports) if ports.is_empty() => ("-".into(), "none"),
        Some(ports) if ports.is_all() => ("everything".into(), "all"),
        Some(ports) => (ports.to_string(), "some"),
    }
}

fn pairs(reach: &Reach) -> Vec<Pair> {
    let count = reach.parties.len();
    let all = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
    let mut pairs = Vec::new();
    for (from, to) in all {
        if let Some(ports) = reach.between(from, to).filter(|ports| !ports.is_empty()) {
            let name = |i: usize| reach.parties[i].name.clone();
            pairs.push(Pair { from: name(from), to: name(to), ports: ports.texts() });
        }
    }
    pairs
}

/// What a party is, in full.
fn title(party: &Party) -> String {
    match &party.kind {
        PartyKind::Net(net) => net.to_string(),
        PartyKind::Pods { labels, pods, .. } => {
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{} ({})", pods.join(", "), labels.join(", "))
        }
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}
