//! Loading: one object, its maps new or adopted from pins, each program as a descriptor of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libbpf_rs::{MapCore, MapHandle, ObjectBuilder};

use crate::attach::{Attachment, Role};
use crate::maps::Maps;
use crate::pins::Pins;
use crate::{BpfError, Options, log, sys};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sluice.bpf.o"));

/// The programs of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// XDP at an ENI, plain or `xdp.frags` as loaded.
    EniXdp,
    /// tc ingress of a pod's host veth.
    FromPod,
    /// tc egress of a pod's host veth.
    ToPod,
    /// tc egress of an ENI.
    EniEgress,
    /// tc ingress of an ENI (`--eni-port=tap`).
    EniIngress,
    /// tc ingress of the trunk.
    Trunk,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 6] =
        [Self::EniXdp, Self::FromPod, Self::ToPod, Self::EniEgress, Self::EniIngress, Self::Trunk];

    /// Its name in the object and in `bpftool prog`.
    #[must_use]
    pub fn name(self, frags: bool) -> &'static str {
        match self {
            Self::EniXdp if frags => "sluice_eni_xdp_frags",
            Self::EniXdp => "sluice_eni_xdp",
            Self::FromPod => "sluice_from_pod",
            Self::ToPod => "sluice_to_pod",
            Self::EniEgress => "sluice_eni_egress",
            Self::EniIngress => "sluice_eni_ingress",
            Self::Trunk => "sluice_trunk",
        }
    }
}

/// What a program did with a frame in a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// `XDP_*` or `TC_ACT_*`.
    pub verdict: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The context (`__sk_buff` or `xdp_md`) afterwards.
    pub context: Vec<u8>,
}

/// The loaded programs, their maps and their attachments. Owns descriptors only: it may move between threads.
#[derive(Debug)]
pub struct Programs {
    pub(crate) options: Options,
    pub(crate) maps: Maps,
    programs: BTreeMap<Program, OwnedFd>,
    pub(crate) pins: Option<Pins>,
    pub(crate) attachments: BTreeMap<(u32, Role), Attachment>,
}

impl Programs {
    /// Loads the programs. With [`Options::pin_dir`], adopts the maps and attachments that an earlier process left there and
    /// exchanges the programs behind them at once; where their layout differs, the old programs and maps stay in force on
    /// each interface until this object is attached to it.
    ///
    /// # Errors
    /// [`BpfError::Capability`], [`BpfError::Load`] with the verifier's whole log, or one about the pins.
    pub fn load(options: &Options) -> Result<Self, BpfError> {
        let pins = options.pin_dir.as_deref().map(Pins::open).transpose()?;
        let adopted = pins.as_ref().is_some_and(Pins::has_maps);
        let Loaded { maps, programs } = load_object(OBJECT, options.frags, pins.as_ref())?;
        let mut loaded =
            Self { options: options.clone(), maps, programs, pins, attachments: BTreeMap::new() };
        loaded.maps.choose_secrets()?;
        loaded.adopt(adopted)?;
        Ok(loaded)
    }

    /// Runs a program once on `frame` without attaching it (`BPF_PROG_TEST_RUN`). `context` is the leading bytes of a
    /// `__sk_buff` or `xdp_md`, or empty. The frame must have 14 bytes at least.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dry_run(&self, program: Program, frame: &[u8], context: &[u8]) -> io::Result<DryRun> {
        let fd = self.program(program).map_err(io::Error::other)?;
        sys::test_run(fd, frame, context)
    }

    pub(crate) fn program(&self, program: Program) -> Result<BorrowedFd<'_>, BpfError> {
        let missing = BpfError::Missing { kind: "program", name: program.name(self.options.frags) };
        self.programs.get(&program).map(AsFd::as_fd).ok_or(missing)
    }
}

struct Loaded {
    maps: Maps,
    programs: BTreeMap<Program, OwnedFd>,
}

fn load_object(image: &[u8], frags: bool, pins: Option<&Pins>) -> Result<Loaded, BpfError> {
    let (result, said) = log::listening(|| {
        let mut open = ObjectBuilder::default().name("sluice")?.open_memory(image)?;
        let unwanted = Program::EniXdp.name(!frags);
        for mut program in open.progs_mut() {
            if program.name() == unwanted {
                program.set_autoload(false);
            }
        }
        if let Some(pins) = pins {
            for mut map in open.maps_mut() {
                let path = pins.map(&map.name().to_string_lossy());
                map.set_pin_path(path)?;
            }
        }
        open.load()
    });
    let object = result.map_err(|source| load_error(source, said))?;

    let maps = Maps::of(|name| {
        let map = object.maps().find(|map| map.name() == name);
        let map = map.ok_or(BpfError::Missing { kind: "map", name })?;
        MapHandle::try_from(&map).map_err(|source| BpfError::Map { map: name, action: "open".into(), source })
    })?;
    let mut programs = BTreeMap::new();
    for program in Program::ALL {
        let name = program.name(frags);
        let found = object.progs().find(|candidate| candidate.name() == name);
        let found = found.ok_or(BpfError::Missing { kind: "program", name })?;
        let fd =
            found.as_fd().try_clone_to_owned().map_err(|source| load_error(source.into(), String::new()))?;
        programs.insert(program, fd);
    }
    Ok(Loaded { maps, programs })
}

/// A refusal for want of privilege comes with an empty log: say what is missing instead.
fn load_error(source: libbpf_rs::Error, log: String) -> BpfError {
    if source.kind() == libbpf_rs::ErrorKind::PermissionDenied {
        let missing = missing_capabilities(Path::new("/proc/thread-self/status"));
        if !missing.is_empty() {
            return BpfError::Capability { action: "loading the BPF programs", missing };
        }
    }
    BpfError::Load { source, log }
}

/// Capabilities that loading and attaching need and the process does not have. `CAP_SYS_ADMIN` stands in for `CAP_BPF`.
fn missing_capabilities(status: &Path) -> Vec<&'static str> {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;

    let text = fs::read_to_string(status).unwrap_or_default();
    let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(mask) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    let has = |capability: u32| mask >> capability & 1 == 1;
    let wanted = [
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_PERFMON", has(PERFMON) || has(SYS_ADMIN)),
    ];
    wanted.into_iter().filter(|&(_, held)| !held).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_refusal_carries_the_verifiers_whole_log() {
        assert!(nix::unistd::geteuid().is_root(), "the BPF tests need root: run them with sudo");
        let directory = tempfile::tempdir().expect("a directory");
        let (source, object) = (directory.path().join("bad.bpf.c"), directory.path().join("bad.bpf.o"));
        // Long enough that a log buffer of a fixed small size would cut it, and wrong in its last line.
        let steps: String = (0..3000).map(|step| format!("n = {step};\n")).collect();
        let text = format!(
            "__attribute__((section(\"xdp\"), used)) int sluice_eni_xdp(unsigned *ctx) {{\n\
             volatile unsigned long n; {steps}\nreturn *(char *)(unsigned long)ctx[0];\n}}\n"
        );
        fs::write(&source, text).expect("written");
        let compiled = Command::new("clang")
            .args(["-O2", "-g", "-target", "bpf", "-c", "-o"])
            .args([&object, &source])
            .status()
            .expect("clang is installed");
        assert!(compiled.success());

        let image = fs::read(&object).expect("an object");
        let error = load_object(&image, false, None).err().expect("refused").to_string();
        assert!(error.contains("invalid access to packet"), "{error}");
        assert!(
            error.contains("\n0: ") && error.contains("n = 2999;") && error.contains("processed 6"),
            "{error}"
        );
        assert!(error.len() > 100_000, "only {} bytes", error.len());
    }

    #[test]
    fn capabilities_are_read_as_the_kernel_writes_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let status = directory.path().join("status");
        for (mask, missing) in [
            ("000001ffffffffff", &[][..]),
            ("0000000000000000", &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]),
            ("0000000000201000", &[]),
            ("0000008000001000", &["CAP_PERFMON"]),
            ("000000c000000000", &["CAP_NET_ADMIN"]),
        ] {
            fs::write(&status, format!("Name:\tx\nCapEff:\t{mask}\n")).expect("written");
            assert_eq!(missing_capabilities(&status), missing);
        }
    }

    #[test]
    fn every_counter_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            crate::shared::TABLE.iter().map(|&(name, _)| name).collect();
        assert_eq!(names.len(), crate::shared::TABLE.len());
        assert_eq!(crate::counter_meaning("trunk_redirect_pod"), Some("from the engine into a pod"));
        assert_eq!(crate::counter_meaning("nonsense"), None);
    }

    #[test]
    fn the_programs_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Programs>();
    }
}
