//! The lab's stand-in for CoreDNS: A records from a file like `/etc/hosts`, over UDP. The file is read again when it
//! changes, so that a service may come and go.

pub(crate) mod wire;

use std::collections::HashMap;
use std::io::Result;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::SystemTime;

use crate::args::Dns;

/// Answers until it is killed.
///
/// # Errors
/// The port cannot be had.
pub(crate) fn run(settings: &Dns) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, settings.port))?;
    crate::say(&format!("dns: listens on {}/udp, records of {}", settings.port, settings.records.display()));
    let mut records = Records::default();
    let mut buffer = [0; 1500];
    loop {
        let Ok((n, peer)) = socket.recv_from(&mut buffer) else { continue };
        records.follow(&settings.records);
        if let Some(answer) = wire::respond(&buffer[..n], |name| records.find(name)) {
            // An answer that cannot be sent is lost, as datagrams are: the client asks again.
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// Names, in lower case and without a dot at the end.
#[derive(Debug, Default)]
struct Records {
    names: HashMap<String, Ipv4Addr>,
    read: Option<SystemTime>,
}

impl Records {
    /// Reads the file again when it is another one. One that is gone for a moment leaves what was read.
    fn follow(&mut self, file: &Path) {
        let changed = std::fs::metadata(file).and_then(|m| m.modified()).ok();
        if changed.is_some()
            && changed != self.read
            && let Ok(text) = std::fs::read_to_string(file)
        {
            self.names = parse(&text);
            self.read = changed;
        }
    }

    fn find(&self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_ascii_lowercase();
        self.names.get(name.trim_end_matches('.')).copied()
    }
}

/// Lines of an address and its names; `#` begins a comment.
fn parse(text: &str) -> HashMap<String, Ipv4Addr> {
    let mut names = HashMap::new();
    for line in text.lines().filter_map(|line| line.split('#').next()) {
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        names.extend(words.map(|name| (name.trim_end_matches('.').to_ascii_lowercase(), address)));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_whatever_their_case_and_a_comment_is_none() {
        let names =
            parse("# lab\n10.100.0.7 frontend.stars frontend.stars.svc.cluster.local. # both\nnonsense x\n");
        let records = Records { names, read: None };
        assert_eq!(records.find("Frontend.Stars"), Some(Ipv4Addr::new(10, 100, 0, 7)));
        assert_eq!(records.find("frontend.stars.svc.cluster.local."), Some(Ipv4Addr::new(10, 100, 0, 7)));
        assert_eq!((records.find("x"), records.find("both")), (None, None));
    }

    #[test]
    fn a_question_over_a_socket_is_answered_from_the_file() {
        let dir = std::env::temp_dir().join(format!("star-dns-{}", std::process::id()));
        std::fs::write(&dir, "10.100.0.9 backend.stars\n").unwrap();
        let mut records = Records::default();
        records.follow(&dir);
        std::fs::remove_file(&dir).unwrap();
        records.follow(&dir);
        let question = wire::question(7, "backend.stars").unwrap();
        let answer = wire::respond(&question, |name| records.find(name)).unwrap();
        assert_eq!(wire::answer(7, &answer), Some(Some(Ipv4Addr::new(10, 100, 0, 9))));
    }
}
