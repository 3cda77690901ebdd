//! What outlives the process: a directory on a bpffs.
//!
//! ```text
//! PIN_DIR/maps_<layout>/<map>       the maps; the layout is a hash of their definitions, so another one is never adopted
//! PIN_DIR/link_<ifindex>_<role>     an XDP or tcx link
//! PIN_DIR/clsact_<ifindex>_<role>   the program behind a clsact filter: the filter itself persists in the kernel, this
//!                                   entry is how it is found again
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::attach::{Role, take_off_clsact};
use crate::{BpfError, shared, sys};

/// Where distributions mount the BPF filesystem.
const USUAL: &str = "/sys/fs/bpf";

/// Makes `path` a directory on a BPF filesystem: creates it where one is mounted, else mounts one (at `/sys/fs/bpf` for a
/// path below it, else at `path`). True when it had to mount.
///
/// # Errors
/// [`BpfError::Pin`], [`BpfError::NotBpffs`].
pub fn ensure_bpffs(path: &Path) -> Result<bool, BpfError> {
    let failed = |action| move |source| BpfError::Pin { action, path: path.to_owned(), source };
    let mut mounted = false;
    if !is_bpffs(nearest_existing(path)) {
        let at = if path.starts_with(USUAL) { Path::new(USUAL) } else { path };
        fs::create_dir_all(at).map_err(failed("create the directory"))?;
        mount(
            Some("bpf"),
            at,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|error| failed("mount a BPF filesystem for")(error.into()))?;
        mounted = true;
    }
    fs::create_dir_all(path).map_err(failed("create the directory"))?;
    if is_bpffs(path) { Ok(mounted) } else { Err(BpfError::NotBpffs { path: path.to_owned() }) }
}

fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|facts| facts.filesystem_type() == BPF_FS_MAGIC)
}

/// A pin directory.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

/// What is pinned at an interface.
pub(crate) struct Pinned {
    pub(crate) ifindex: u32,
    pub(crate) role: Role,
    pub(crate) object: OwnedFd,
    pub(crate) clsact: bool,
}

impl Pins {
    pub(crate) fn open(root: &Path) -> Result<Self, BpfError> {
        ensure_bpffs(root)?;
        let pins = Self { root: root.to_owned() };
        pins.forget_other_layouts()?;
        Ok(pins)
    }

    fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
        move |source| BpfError::Pin { action, path: path.to_owned(), source }
    }

    fn maps_dir(&self) -> PathBuf {
        self.root.join(format!("maps_{}", shared::LAYOUT))
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(name)
    }

    /// Before the object is loaded: did an earlier process leave maps of this layout?
    pub(crate) fn has_maps(&self) -> bool {
        self.map("config").exists()
    }

    /// The old programs keep their old maps alive as long as they are attached; only the names go.
    fn forget_other_layouts(&self) -> Result<(), BpfError> {
        for (name, path) in self.entries()? {
            if name.starts_with("maps_") && path != self.maps_dir() {
                fs::remove_dir_all(&path).map_err(Self::failed("remove maps of another layout in", &path))?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, BpfError> {
        let failed = || Self::failed("list", &self.root);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
        entries.sort();
        Ok(entries)
    }

    fn attachment(&self, ifindex: u32, role: Role, clsact: bool) -> PathBuf {
        self.root.join(format!("{}_{ifindex}_{}", if clsact { "clsact" } else { "link" }, role.name()))
    }

    pub(crate) fn keep(
        &self,
        ifindex: u32,
        role: Role,
        clsact: bool,
        object: BorrowedFd<'_>,
    ) -> Result<(), BpfError> {
        self.forget(ifindex, role, clsact)?;
        let path = self.attachment(ifindex, role, clsact);
        sys::pin(object, &path).map_err(Self::failed("pin", &path))
    }

    pub(crate) fn forget(&self, ifindex: u32, role: Role, clsact: bool) -> Result<(), BpfError> {
        remove(&self.attachment(ifindex, role, clsact))
    }

    /// Every attachment that is pinned.
    pub(crate) fn attachments(&self) -> Result<Vec<Pinned>, BpfError> {
        let mut pinned = Vec::new();
        for (name, path) in self.entries()? {
            let Some((clsact, ifindex, role)) = parse(&name) else { continue };
            let object = sys::open_pinned(&path).map_err(Self::failed("open", &path))?;
            pinned.push(Pinned { ifindex, role, object, clsact });
        }
        Ok(pinned)
    }

    /// Removes the maps' names and the directory, as far as it is empty then.
    pub(crate) fn remove_maps(&self) -> Result<(), BpfError> {
        for (name, path) in self.entries()? {
            if name.starts_with("maps_") {
                fs::remove_dir_all(&path).map_err(Self::failed("remove", &path))?;
            }
        }
        // A bpffs that is mounted right here stays, as does what is not ours.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Pins::failed("remove", path)(source)),
        _ => Ok(()),
    }
}

fn parse(name: &str) -> Option<(bool, u32, Role)> {
    let (kind, rest) = name.split_once('_')?;
    let (ifindex, role) = rest.split_once('_')?;
    let clsact = match kind {
        "link" => false,
        "clsact" => true,
        _ => return None,
    };
    Some((clsact, ifindex.parse().ok()?, Role::named(role)?))
}

/// Takes off everything that an earlier process left pinned at `pin_dir`, for `sluiced detach`. Returns a line for each
/// thing that was removed; none when there was nothing.
///
/// # Errors
/// [`BpfError::Pin`] or [`BpfError::Attach`]; what comes before it is removed.
pub fn detach_pinned(pin_dir: &Path) -> Result<Vec<String>, BpfError> {
    let mut removed = Vec::new();
    if !pin_dir.is_dir() || !is_bpffs(pin_dir) {
        return Ok(removed);
    }
    let pins = Pins { root: pin_dir.to_owned() };
    for Pinned { ifindex, role, object, clsact } in pins.attachments()? {
        let interface = crate::attach::interface_name(ifindex);
        if clsact {
            take_off_clsact(ifindex, role, Some(object.as_fd()))?;
        } else if let Err(source) = sys::link_detach(object.as_fd())
            && source.raw_os_error() != Some(libc::ENOLINK)
        {
            return Err(BpfError::Attach { action: "detach from", interface, source });
        }
        pins.forget(ifindex, role, clsact)?;
        removed.push(format!("{} from {interface}", role.name()));
    }
    if pins.entries()?.iter().any(|(name, _)| name.starts_with("maps_")) {
        pins.remove_maps()?;
        removed.push(format!("maps in {}", pin_dir.display()));
    }
    Ok(removed)
}
