//! The one file that outlives the agent.
//!
//! It is written whole and swapped in by a rename after an fsync, before anything that it tells is promised to anybody
//! or asked of EC2. It carries the boot id, because a reboot ends every container, and the instance id, because disks
//! are cloned. A file that makes no sense is put aside, never deleted: an operator may want to know what happened.

use crate::cloud::InstanceId;
use crate::journal::Sequence;
use crate::moment::Moment;
use crate::store::Saved;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The version that is written and read.
pub const VERSION: &str = "sluice-ipam/1";

/// What stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    /// [`VERSION`].
    pub version: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Of which instance.
    pub instance: InstanceId,
    /// When it was written.
    pub written: Moment,
    /// Interfaces, addresses and leases.
    pub store: Saved,
    /// Sequences under way.
    pub journal: Vec<Sequence>,
}

impl Checkpoint {
    /// The file's text.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of strings, numbers and lists has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the file's text.
    pub fn decode(text: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if read.version == VERSION {
            Ok(read)
        } else {
            Err(format!("its version is {:?}; {VERSION:?} can be read", read.version))
        }
    }
}

/// Where the checkpoint is kept. The calls block; the pool makes them on a thread that may.
pub trait Storage: Send + Sync + 'static {
    /// What was written last; `None` if nothing was.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces what was written last. When it returns, a kill or a loss of power cannot undo it.
    fn write(&self, text: &[u8]) -> io::Result<()>;

    /// Puts what was written last aside and says where it is now.
    fn set_aside(&self, now: Moment) -> io::Result<String>;
}

/// A file, with its temporary sibling.
#[derive(Debug, Clone)]
pub struct FileStorage {
    path: PathBuf,
}

impl FileStorage {
    /// The file at `path`; its folder must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        self.path.with_file_name(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Storage for FileStorage {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let temporary = self.sibling(".tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        self.sync_folder()
    }

    fn set_aside(&self, now: Moment) -> io::Result<String> {
        let aside = self.sibling(&format!(".corrupt-{}", now.0));
        fs::rename(&self.path, &aside)?;
        self.sync_folder()?;
        Ok(aside.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_file_is_replaced_whole_and_put_aside_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let storage = FileStorage::new(folder.path().join("ipam.json"));
        assert_eq!(storage.read().unwrap(), None);
        storage.write(b"one, and longer").unwrap();
        storage.write(b"two").unwrap();
        assert_eq!(storage.read().unwrap().as_deref(), Some(&b"two"[..]));
        // What a kill in the middle leaves is not what is read.
        fs::write(folder.path().join("ipam.json.tmp"), b"hal").unwrap();
        assert_eq!(storage.read().unwrap().as_deref(), Some(&b"two"[..]));
        let aside = storage.set_aside(Moment(7)).unwrap();
        assert!(aside.ends_with("ipam.json.corrupt-7"), "{aside}");
        assert_eq!(fs::read(aside).unwrap(), b"two");
        assert_eq!(storage.read().unwrap(), None);
    }

    #[test]
    fn another_version_and_garbage_are_refused_with_a_reason() {
        let mut checkpoint = Checkpoint {
            version: VERSION.to_owned(),
            boot: "b".to_owned(),
            instance: "i-1".parse().unwrap(),
            written: Moment(1),
            store: Store::default().save(),
            journal: Vec::new(),
        };
        assert!(Checkpoint::decode(&checkpoint.encode()).is_ok());
        checkpoint.version = "sluice-ipam/9".to_owned();
        let error = Checkpoint::decode(&checkpoint.encode()).unwrap_err();
        assert!(error.contains("sluice-ipam/9") && error.contains(VERSION), "{error}");
        assert!(Checkpoint::decode(b"{\"version\":").is_err());
    }
}
