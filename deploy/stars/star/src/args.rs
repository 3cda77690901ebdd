//! The command line. By hand: three commands with a handful of flags do not pay for a parser in a binary that is to be
//! tiny.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use crate::http::Url;

/// What `star --help` says.
pub(crate) const USAGE: &str = "\
The workload of the Stars demo.

Usage:
  star serve --name NAME --port PORT... [--probe URL...]     answer on /status, probe the URLs
  star collect --name NAME --port PORT... [--probe URL...]   the same, and keep what the URLs answer
  star dns --records FILE [--port 53]                        answer for the names of a file like /etc/hosts

Flags of serve and collect; each may be given in the environment, as STAR_DNS=10.100.0.10:
  --name NAME        what /status calls it
  --port PORT        where it listens; may be repeated
  --probe URL        http://HOST[:PORT]/PATH, asked anew in every round; may be repeated
  --interval MS      from the beginning of one round to that of the next (1000)
  --timeout MS       how long a probe may take, name and answer together (1000)
  --dns ADDRESS[:PORT]   the name server [default: the first of /etc/resolv.conf]

GET /status answers {\"name\", \"reachable\": {URL: true|false}, \"round\", \"probes\": {URL: {...}}}; collect adds
\"collected\": {URL: what it answered}. Exit codes: 0 ended, 1 failed, 2 wrong command line.";

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer and probe.
    Serve(Serve),
    /// Answer for names.
    Dns(Dns),
    /// Say what there is.
    Help,
}

/// `star serve` and `star collect`.
#[derive(Debug)]
pub(crate) struct Serve {
    /// What `/status` calls it.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) ports: Vec<u16>,
    /// What it asks.
    pub(crate) probes: Vec<Url>,
    /// From the beginning of a round to that of the next.
    pub(crate) interval: Duration,
    /// How long a probe may take.
    pub(crate) timeout: Duration,
    /// The name server; absent: that of `/etc/resolv.conf`.
    pub(crate) dns: Option<SocketAddr>,
    /// Keep what the probes were answered.
    pub(crate) collect: bool,
}

/// `star dns`.
#[derive(Debug)]
pub(crate) struct Dns {
    /// Names and addresses, as in `/etc/hosts`.
    pub(crate) records: PathBuf,
    /// Where it listens.
    pub(crate) port: u16,
}

/// Understands a command line.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut args = args;
    let command = args.next().ok_or("a command is missing: serve, collect or dns")?;
    let flags = Flags::read(args)?;
    match command.as_str() {
        "serve" | "collect" => serve(&flags, command == "collect").map(Command::Serve),
        "dns" => dns(&flags).map(Command::Dns),
        "help" | "--help" | "-h" => Ok(Command::Help),
        other => Err(format!("`{other}` is no command: serve, collect or dns")),
    }
}

fn serve(flags: &Flags, collect: bool) -> Result<Serve, String> {
    flags.only(&["name", "port", "probe", "interval", "timeout", "dns"])?;
    let probes = flags.all("probe").iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
    let ports = flags.all("port").iter().map(|p| port(p)).collect::<Result<Vec<_>, _>>()?;
    if ports.is_empty() {
        return Err("--port is missing: where it listens, as in --port 80".into());
    }
    Ok(Serve {
        name: flags.one("name").ok_or("--name is missing: what /status calls it")?,
        ports,
        probes,
        interval: millis(flags.one("interval"), "--interval")?,
        timeout: millis(flags.one("timeout"), "--timeout")?,
        dns: flags.one("dns").map(|at| server(&at)).transpose()?,
        collect,
    })
}

fn dns(flags: &Flags) -> Result<Dns, String> {
    flags.only(&["records", "port"])?;
    let records = flags.one("records").ok_or("--records is missing: a file of addresses and names")?;
    Ok(Dns { records: records.into(), port: flags.one("port").map_or(Ok(53), |p| port(&p))? })
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|p| *p != 0).ok_or_else(|| format!("`{text}` is no port: 1 to 65535"))
}

fn millis(text: Option<String>, flag: &str) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(Duration::from_secs(1)) };
    let ms = text.parse().ok().filter(|ms| (1..=60_000).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| format!("`{text}`: {flag} takes milliseconds, 1 to 60000"))
}

/// An address, on port 53 where none is given.
fn server(text: &str) -> Result<SocketAddr, String> {
    let at = text.parse::<SocketAddrV4>();
    let at = at.or_else(|_| text.parse::<Ipv4Addr>().map(|ip| SocketAddrV4::new(ip, 53)));
    at.map(SocketAddr::V4)
        .map_err(|_| format!("`{text}` is no name server: an IPv4 address, as in 10.100.0.10:53"))
}

/// Flags in the order in which they were given.
struct Flags(Vec<(String, String)>);

impl Flags {
    fn read(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags = Vec::new();
        while let Some(arg) = args.next() {
            let flag = arg
                .strip_prefix("--")
                .ok_or_else(|| format!("`{arg}` is unexpected: flags begin with --"))?;
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (flag.to_owned(), args.next().ok_or_else(|| format!("--{flag} needs a value"))?),
            };
            flags.push((name, value));
        }
        Ok(Self(flags))
    }

    fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => Err(format!("--{name} is no flag here: --{}", known.join(", --"))),
            None => Ok(()),
        }
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The last of that name, or what the environment says.
    fn one(&self, name: &str) -> Option<String> {
        let given = self.all(name).last().map(|value| (*value).to_owned());
        given.or_else(|| std::env::var(format!("STAR_{}", name.to_uppercase())).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Command, String> {
        parse(text.split(' ').map(str::to_owned))
    }

    #[test]
    fn a_whole_line_is_understood() {
        let line = line(
            "collect --name=ui --port 9001 --port 9002 --probe http://b.stars:6379/status --dns 10.100.0.10",
        );
        let Ok(Command::Serve(serve)) = line else { panic!("{line:?}") };
        assert!(serve.collect && serve.name == "ui" && serve.ports == [9001, 9002]);
        assert_eq!(serve.probes[0].to_string(), "http://b.stars:6379/status");
        assert_eq!(serve.dns.unwrap().to_string(), "10.100.0.10:53");
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, word) in [
            ("launch", "launch"),
            ("serve --port 80", "--name"),
            ("serve --name a", "--port"),
            ("serve --name a --port 0", "`0`"),
            ("serve --name a --port 80 --probe ftp://b", "ftp://b"),
            ("serve --name a --port 80 --interval soon", "soon"),
            ("serve --name a --port 80 --dns here", "here"),
            ("serve --name a --port 80 --records f", "--records"),
            ("serve --name", "--name"),
            ("dns --port 53", "--records"),
        ] {
            let error = line(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
