//! What the VPC CNI left in iptables and nftables, told from everybody else's by exact match.
//!
//! The programs of iptables are asked and not the kernel, because their two backends keep rules in two places and only
//! each backend's own program reads what it wrote. A table's removals are one transaction of `iptables-restore`: there
//! is no moment with half of them.

use std::fmt;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use serde::Serialize;

/// The table of the VPC CNI's own in nftables (VPC CNI: `nftables_connmark.go`).
const NFT_TABLE: &str = "aws-cni";
/// How its chains begin; a number follows.
const CHAINS: [&str; 2] = ["AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"];
/// Comments of its rules outside of its chains that jump nowhere (VPC CNI: `iptables_connmark.go`).
const COMMENTS: [&str; 3] = ["AWS, primary ENI", "AWS, outbound connections", "AWS, CONNMARK"];
/// The tables that it writes to.
const TABLES: [&str; 2] = ["nat", "mangle"];

/// Where iptables keeps rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// In nftables.
    Nft,
    /// In `ip_tables`.
    Legacy,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// Why a table cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The program cannot be run.
    #[error("`{program}` cannot be run: {source}; Debian's packages iptables and nftables have it")]
    Run {
        /// Which.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The program failed.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// With its arguments.
        command: String,
        /// What it said.
        said: String,
    },
}

/// What of one table is the VPC CNI's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ours {
    pub(crate) backend: Backend,
    pub(crate) table: String,
    /// Rules outside of its chains, as `-S` prints them.
    pub(crate) rules: Vec<String>,
    /// Its chains that go, emptied first.
    pub(crate) chains: Vec<String>,
    /// Its chains that are emptied and stay, because a rule of somebody else's jumps to them: the chain, the rule.
    pub(crate) held: Vec<(String, String)>,
}

impl Ours {
    /// Tells the VPC CNI's from everybody else's in what `-S` prints.
    pub(crate) fn find(backend: Backend, table: &str, listing: &str) -> Self {
        let mut ours = Self { backend, table: table.into(), rules: vec![], chains: vec![], held: vec![] };
        for line in listing.lines() {
            let words = words(line);
            let word = |i: usize| words.get(i).map_or("", String::as_str);
            match word(0) {
                "-N" if is_chain(word(1)) => ours.chains.push(word(1).to_owned()),
                "-A" if !is_chain(word(1)) => {
                    let after = |flags: &[&str]| {
                        let at = words.iter().position(|w| flags.contains(&w.as_str()));
                        at.map(|at| word(at + 1)).unwrap_or_default()
                    };
                    let (target, comment) = (after(&["-j", "-g"]), after(&["--comment"]));
                    if is_chain(target) && !comment.starts_with("AWS") {
                        ours.held.push((target.to_owned(), line.to_owned()));
                    } else if is_chain(target) || target == "CONNMARK" && COMMENTS.contains(&comment) {
                        ours.rules.push(line.to_owned());
                    }
                }
                _ => {}
            }
        }
        ours.chains.retain(|chain| ours.held.iter().all(|(held, _)| held != chain));
        ours
    }

    /// Whether there is anything to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.chains.is_empty()
    }

    /// What `iptables-restore --noflush` takes.
    pub(crate) fn script(&self) -> String {
        let mut script = format!("*{}\n", self.table);
        for rule in &self.rules {
            script.push_str(&format!("-D{}\n", rule.trim_start_matches("-A")));
        }
        let emptied = self.chains.iter().chain(self.held.iter().map(|(chain, _)| chain));
        // Chains of older releases jump to one another: all are empty before the first goes.
        script.extend(emptied.map(|chain| format!("-F {chain}\n")));
        script.extend(self.chains.iter().map(|chain| format!("-X {chain}\n")));
        script.push_str("COMMIT\n");
        script
    }

    /// Removes it, all at once.
    pub(crate) fn remove(&self) -> Result<(), TablesError> {
        let program = format!("{}-restore", self.backend);
        run(&program, &["--noflush", "-w", "10"], Some(&self.script())).map(drop)
    }
}

/// The VPC CNI's chains have a number at their end.
fn is_chain(name: &str) -> bool {
    let number = CHAINS.iter().find_map(|prefix| name.strip_prefix(prefix));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The words of a line as `-S` quotes them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped, mut any) =
        (Vec::new(), String::new(), false, false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            _ => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}

/// What of the VPC CNI's is in the tables of this thread's network namespace; what there is nothing of is left out.
pub(crate) fn read() -> Result<Vec<Ours>, TablesError> {
    let mut found = Vec::new();
    for table in TABLES {
        let listing = run("iptables-nft", &["-w", "10", "-t", table, "-S"], None)?;
        found.push(Ours::find(Backend::Nft, table, &text(&listing.stdout)));
    }
    // To list a legacy table that is not there makes it, with its hooks in every packet's way.
    let there = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    for table in TABLES.into_iter().filter(|table| there.lines().any(|line| line == *table)) {
        let listing = run("iptables-legacy", &["-w", "10", "-t", table, "-S"], None)?;
        found.push(Ours::find(Backend::Legacy, table, &text(&listing.stdout)));
    }
    found.retain(|ours| !ours.is_empty());
    Ok(found)
}

/// Whether the VPC CNI's own table is in nftables.
pub(crate) fn nft_table() -> Result<bool, TablesError> {
    let listing = run("nft", &["list", "tables", "ip"], None)?;
    Ok(text(&listing.stdout).lines().any(|line| line.trim() == format!("table ip {NFT_TABLE}")))
}

/// Removes the VPC CNI's own table from nftables.
pub(crate) fn remove_nft_table() -> Result<(), TablesError> {
    run("nft", &["delete", "table", "ip", NFT_TABLE], None).map(drop)
}

fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<Output, TablesError> {
    let failed = |source| TablesError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that ends early says itself why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let said = text(&output.stderr).trim().replace('\n', "; ");
    let command = format!("{program} {}", args.join(" "));
    Err(TablesError::Failed { said: if said.is_empty() { output.status.to_string() } else { said }, command })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
