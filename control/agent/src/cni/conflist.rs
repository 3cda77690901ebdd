//! The CNI configuration: its being there tells kubelet that the node has a network.

use std::io::{self, Write as _};
use std::path::PathBuf;

use serde_json::json;

/// The file's name; runtimes take the first in the order of names.
const NAME: &str = "05-sluice.conflist";

/// The network's name, which leases are keyed by.
pub(super) const NETWORK: &str = "sluice";

/// Where the configuration goes, and what is in it.
#[derive(Debug)]
pub(super) struct Conflist {
    pub directory: PathBuf,
    pub socket: PathBuf,
}

impl Conflist {
    /// Writes it, unless it is there as it must be. Nobody ever reads half of it.
    pub(super) fn write(&self) -> io::Result<()> {
        let path = self.directory.join(NAME);
        let text = self.text();
        if std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.directory)?;
        // Runtimes read by suffix: what is being written must not end like a configuration.
        let beside = self.directory.join(format!(".{NAME}.new"));
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        tracing::info!(file = %path.display(), "the node has its CNI configuration");
        Ok(())
    }

    fn text(&self) -> String {
        let list = json!({
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "plugins": [
                { "type": "sluice-cni", "socket": self.socket },
                { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            ],
        });
        format!("{list:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_and_mended_where_somebody_changed_it() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("net.d");
        let conflist = Conflist { directory: directory.clone(), socket: "/run/sluice/cni/agent.sock".into() };
        conflist.write().unwrap();
        let path = directory.join(NAME);
        let first = std::fs::metadata(&path).unwrap().modified().unwrap();
        conflist.write().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), first);
        std::fs::write(&path, "{}").unwrap();
        conflist.write().unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["cniVersion"], "1.0.0");
        assert_eq!(read["plugins"][0]["type"], "sluice-cni");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
    }
}
