//! Which veth an attachment has: what a restarted agent must know, and what a DEL may remove.
//!
//! The file needs no fsync: a boot leaves no veth, and what a killed process has written is there.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sluice_cni::protocol::{Attachment, Pod};
use sluice_ec2::cloud::EniId;
use sluice_state::Mac;

use crate::allocations::write;

/// The version of the file.
const VERSION: u32 = 1;

/// An attachment whose veth is laid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub attachment: Attachment,
    pub pod: Pod,
    pub address: Ipv4Addr,
    /// The ENI that has the address.
    pub eni: EniId,
    /// Its link.
    pub eni_link: String,
    pub host_interface: String,
    /// The pod's end.
    pub mac: Mac,
    /// `CNI_NETNS`, for people.
    pub netns: PathBuf,
}

impl Entry {
    /// The pod as the daemon takes it.
    pub(super) fn pod(&self) -> sluice_state::Pod {
        sluice_state::Pod {
            namespace: self.pod.namespace.clone(),
            name: self.pod.name.clone(),
            ip: self.address,
            eni: self.eni_link.clone(),
            interface: self.host_interface.clone(),
            mac: self.mac,
        }
    }
}

/// Every attachment whose veth is laid.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    entries: BTreeMap<Attachment, Entry>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    attachments: Vec<&'a Entry>,
}

#[derive(Deserialize)]
struct Read {
    version: u32,
    attachments: Vec<Entry>,
}

/// The file makes no sense: an empty book in its place, and what is to be said.
#[derive(Debug)]
pub(super) struct BookError {
    pub book: Book,
    pub why: String,
}

impl Book {
    /// Reads what was written; a file that makes no sense is put aside.
    pub(super) fn open(path: PathBuf) -> Result<Self, BookError> {
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Read>(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, entries: BTreeMap::new() });
            }
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(Read { version: VERSION, attachments }) => {
                let entries = attachments.into_iter().map(|entry| (entry.attachment.clone(), entry));
                Ok(Self { entries: entries.collect(), path })
            }
            Ok(Read { version, .. }) => {
                Err(Self::aside(path, &format!("its version is {version}, {VERSION} can be read")))
            }
            Err(why) => Err(Self::aside(path, &why)),
        }
    }

    fn aside(path: PathBuf, why: &str) -> BookError {
        let mut aside = path.clone().into_os_string();
        aside.push(".corrupt");
        let kept = match std::fs::rename(&path, &aside) {
            Ok(()) => format!("kept as {}", aside.display()),
            Err(error) => format!("cannot be kept: {error}"),
        };
        let why = format!(
            "{} makes no sense ({why}) and is {kept}: pods whose veth it named have no path until they are added again",
            path.display()
        );
        BookError { book: Self { path, entries: BTreeMap::new() }, why }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn of(&self, attachment: &Attachment) -> Option<&Entry> {
        self.entries.get(attachment)
    }

    /// Whether any attachment has a veth of this name.
    pub(super) fn uses(&self, host_interface: &str) -> bool {
        self.entries.values().any(|entry| entry.host_interface == host_interface)
    }

    /// Notes an attachment.
    pub(super) fn note(&mut self, entry: Entry) -> io::Result<()> {
        let key = entry.attachment.clone();
        let before = self.entries.insert(key.clone(), entry);
        self.write().inspect_err(|_| {
            match before {
                Some(before) => self.entries.insert(key, before),
                None => self.entries.remove(&key),
            };
        })
    }

    /// Strikes an attachment out. What cannot be written is found to be gone at the next start.
    pub(super) fn strike(&mut self, attachment: &Attachment) -> Option<Entry> {
        let entry = self.entries.remove(attachment)?;
        if let Err(error) = self.write() {
            tracing::warn!(file = %self.path.display(), %error, "the attachments cannot be written");
        }
        Some(entry)
    }

    fn write(&self) -> io::Result<()> {
        write(&self.path, &Written { version: VERSION, attachments: self.entries.values().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(container: &str) -> Entry {
        Entry {
            attachment: Attachment {
                network: "sluice".into(),
                container: container.into(),
                interface: "eth0".into(),
            },
            pod: Pod { namespace: "n".into(), name: "p".into(), uid: "u".into() },
            address: Ipv4Addr::new(10, 0, 9, 20),
            eni: "eni-1".parse().unwrap(),
            eni_link: "eth0".into(),
            host_interface: "eni1".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            netns: "/run/netns/x".into(),
        }
    }

    #[test]
    fn what_is_noted_is_read_back_and_what_is_struck_out_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attachments.json");
        let mut book = Book::open(path.clone()).unwrap();
        book.note(entry("a")).unwrap();
        book.note(entry("b")).unwrap();
        assert!(book.uses("eni1") && !book.uses("eni2"));
        book.strike(&entry("a").attachment).unwrap();
        assert!(book.strike(&entry("a").attachment).is_none());
        let again = Book::open(path.clone()).unwrap();
        assert_eq!(again.entries().collect::<Vec<_>>(), [&entry("b")]);
        std::fs::write(&path, "{\"version\":9,\"attachments\":[]}").unwrap();
        let error = Book::open(path.clone()).unwrap_err();
        assert!(error.why.contains("version is 9") && error.why.contains(".corrupt"), "{}", error.why);
        assert!(Book::open(path).unwrap().entries().next().is_none(), "it was put aside");
    }
}
