//! Attaching: XDP and tcx by links, clsact by a filter with a fixed handle, and the adoption of what an earlier process
//! left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};

use crate::load::Program;
use crate::pins::{Pinned, Pins};
use crate::sys::{self, Point};
use crate::{BpfError, Programs, TcHook, XdpMode, log};

/// What a program does on the interface that it is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// XDP at an ENI.
    Xdp,
    /// Ingress of a pod's host veth.
    FromPod,
    /// Egress of a pod's host veth.
    ToPod,
    /// Ingress of the trunk.
    Trunk,
    /// Egress of an ENI.
    EniEgress,
    /// Ingress of an ENI (`--eni-port=tap`).
    EniIngress,
}

impl Role {
    const ALL: [Self; 6] =
        [Self::Xdp, Self::FromPod, Self::ToPod, Self::Trunk, Self::EniEgress, Self::EniIngress];

    /// Its name in reports and in the pin directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::FromPod => "from-pod",
            Self::ToPod => "to-pod",
            Self::Trunk => "trunk",
            Self::EniEgress => "eni-egress",
            Self::EniIngress => "eni-ingress",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    fn program(self) -> Program {
        match self {
            Self::Xdp => Program::EniXdp,
            Self::FromPod => Program::FromPod,
            Self::ToPod => Program::ToPod,
            Self::Trunk => Program::Trunk,
            Self::EniEgress => Program::EniEgress,
            Self::EniIngress => Program::EniIngress,
        }
    }

    fn point(self) -> Point {
        match self {
            Self::Xdp => Point::Xdp,
            Self::FromPod | Self::Trunk | Self::EniIngress => Point::Ingress,
            Self::ToPod | Self::EniEgress => Point::Egress,
        }
    }
}

/// New pods at once from which on clsact is used: below, tcx costs half a second at most.
const MANY_PODS: usize = 16;

/// How a program is held on its interface.
#[derive(Debug)]
pub(crate) enum Attachment {
    /// By this link: it goes when the last descriptor and the last pin go.
    Link(OwnedFd),
    /// By a filter that stays until it is taken off.
    Clsact,
}

impl Programs {
    /// Attaches the XDP program to an ENI, or exchanges it for this one where ours is attached. Another mode than the one in
    /// force takes it off for a moment.
    ///
    /// # Errors
    /// [`BpfError::OtherXdpProgram`], [`BpfError::XdpUnsupported`], [`BpfError::NoInterface`].
    pub fn attach_xdp(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), BpfError> {
        let interface = existing_interface(ifindex)?;
        let attach_error = |action| {
            let interface = interface.clone();
            move |source| BpfError::Attach { action, interface, source }
        };
        let present = sys::xdp_query(ifindex).map_err(attach_error("ask for the XDP program of"))?;

        if let Some(Attachment::Link(link)) = self.attachments.get(&(ifindex, Role::Xdp)) {
            let facts = sys::link_facts(link.as_fd()).map_err(attach_error("ask for the XDP link of"))?;
            let same_mode = present.is_some_and(|xdp| xdp.generic == (mode == XdpMode::Generic));
            if facts.ifindex == ifindex && same_mode {
                let program = self.program(Program::EniXdp)?;
                if sys::link_update(link.as_fd(), program).is_ok() {
                    return Ok(());
                }
            }
            // Another mode, or a driver that cannot exchange plain for frags in place.
            self.take_off(ifindex, Role::Xdp)?;
        }
        if let Some(xdp) = sys::xdp_query(ifindex).map_err(attach_error("ask for the XDP program of"))? {
            return Err(other_program(interface, xdp.program_id));
        }

        let flags = match mode {
            XdpMode::Native => XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let program = self.program(Program::EniXdp)?;
        let (created, _) = log::listening(|| sys::link_create(program, ifindex, Point::Xdp, flags));
        let link = created.map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => attach_error("attach XDP to")(source),
            _ => BpfError::XdpUnsupported { interface: interface.clone(), mode, source },
        })?;
        self.hold_link(ifindex, Role::Xdp, link)
    }

    /// Attaches both programs of a pod's host veth. What the kernel forwards into the pod and what the pod sends is the
    /// engine's from then on.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::NoInterface`].
    pub fn attach_pod(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.attach_pods(&[ifindex])
    }

    /// Attaches both programs of every one of these host veths, as [`Programs::attach_pod`] does for one. Many new ones are
    /// attached by clsact even where tcx works: the kernel waits for an RCU grace period, with the lock of all network
    /// configuration held, for each tcx program (250 pods: 7.5 s, by clsact 0.06 s).
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::NoInterface`]; what comes before it stays attached.
    pub fn attach_pods(&mut self, ifindexes: &[u32]) -> Result<(), BpfError> {
        let new = |ifindex: &&u32| !self.attachments.contains_key(&(**ifindex, Role::FromPod));
        let many = ifindexes.iter().filter(new).count() > MANY_PODS;
        let hook = if many { TcHook::Clsact } else { TcHook::Tcx };
        for &ifindex in ifindexes {
            self.attach_tc(ifindex, Role::FromPod, hook)?;
            self.attach_tc(ifindex, Role::ToPod, hook)?;
        }
        Ok(())
    }

    /// Attaches the program that takes what the engine writes to the trunk.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::NoInterface`].
    pub fn attach_trunk(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.attach_tc(ifindex, Role::Trunk, TcHook::Tcx)
    }

    /// Attaches the program that keeps the kernel off our ports on an ENI.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::NoInterface`].
    pub fn attach_eni_egress(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.attach_tc(ifindex, Role::EniEgress, TcHook::Tcx)
    }

    /// Attaches the XDP program's rules as a tc program, for an ENI without AF_XDP.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::NoInterface`].
    pub fn attach_eni_ingress(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.attach_tc(ifindex, Role::EniIngress, TcHook::Tcx)
    }

    /// Takes every program of ours off an interface. Not an error when there is none, or the interface is gone.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::Pin`].
    pub fn detach(&mut self, ifindex: u32) -> Result<(), BpfError> {
        for role in Role::ALL {
            self.take_off(ifindex, role)?;
        }
        Ok(())
    }

    /// Takes every program of ours off every interface, and removes all pins.
    ///
    /// # Errors
    /// [`BpfError::Attach`], [`BpfError::Pin`].
    pub fn detach_all(&mut self) -> Result<(), BpfError> {
        let everything: Vec<_> = self.attachments.keys().copied().collect();
        for (ifindex, role) in everything {
            self.take_off(ifindex, role)?;
        }
        self.pins.as_ref().map_or(Ok(()), Pins::remove_maps)
    }

    /// What is attached where, adopted attachments included, so that a restart can take off what belongs to no pod any more.
    #[must_use]
    pub fn attached(&self) -> Vec<(u32, Role)> {
        self.attachments.keys().copied().collect()
    }

    /// How a tc program is attached; `None` for XDP and for what is not attached.
    #[must_use]
    pub fn hook(&self, ifindex: u32, role: Role) -> Option<TcHook> {
        match self.attachments.get(&(ifindex, role))? {
            Attachment::Link(_) => (role != Role::Xdp).then_some(TcHook::Tcx),
            Attachment::Clsact => Some(TcHook::Clsact),
        }
    }

    /// `hook` is a wish: what is attached already keeps its own, and a kernel without tcx gets clsact.
    fn attach_tc(&mut self, ifindex: u32, role: Role, hook: TcHook) -> Result<(), BpfError> {
        let interface = existing_interface(ifindex)?;
        let program = self.program(role.program())?;
        let present = self.attachments.get(&(ifindex, role));
        let hook = match present {
            _ if self.options.force_clsact => TcHook::Clsact,
            Some(Attachment::Link(_)) => TcHook::Tcx,
            Some(Attachment::Clsact) => TcHook::Clsact,
            None => hook,
        };

        if hook == TcHook::Tcx {
            if let Some(Attachment::Link(link)) = present
                && sys::link_facts(link.as_fd()).is_ok_and(|facts| facts.ifindex == ifindex)
                && sys::link_update(link.as_fd(), program).is_ok()
            {
                return Ok(());
            }
            let (created, _) = log::listening(|| sys::link_create(program, ifindex, role.point(), 0));
            match created {
                Ok(link) => {
                    // The new one first: between the two the packet meets both, never none.
                    self.take_off(ifindex, role)?;
                    return self.hold_link(ifindex, role, link);
                }
                // What a kernel before 6.6, or one built without it, says to an attach type that it does not know.
                Err(source) if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
                Err(source) => return Err(BpfError::Attach { action: "attach tcx to", interface, source }),
            }
        }

        let (attached, said) = log::listening(|| sys::clsact_attach(program, ifindex, role.point()));
        attached.map_err(|source| {
            let source = std::io::Error::new(source.kind(), format!("{source} {}", said.trim()));
            BpfError::Attach { action: "attach a clsact filter to", interface, source }
        })?;
        if let Some(pins) = &self.pins {
            pins.keep(ifindex, role, true, self.program(role.program())?)?;
        }
        let before = self.attachments.insert((ifindex, role), Attachment::Clsact);
        if let Some(Attachment::Link(link)) = before {
            self.let_go(ifindex, role, &link)?;
        }
        Ok(())
    }

    fn hold_link(&mut self, ifindex: u32, role: Role, link: OwnedFd) -> Result<(), BpfError> {
        if let Some(pins) = &self.pins {
            pins.keep(ifindex, role, false, link.as_fd())?;
        }
        self.attachments.insert((ifindex, role), Attachment::Link(link));
        Ok(())
    }

    fn take_off(&mut self, ifindex: u32, role: Role) -> Result<(), BpfError> {
        match self.attachments.remove(&(ifindex, role)) {
            None => Ok(()),
            Some(Attachment::Link(link)) => self.let_go(ifindex, role, &link),
            Some(Attachment::Clsact) => {
                take_off_clsact(ifindex, role, None)?;
                self.pins.as_ref().map_or(Ok(()), |pins| pins.forget(ifindex, role, true))
            }
        }
    }

    fn let_go(&self, ifindex: u32, role: Role, link: &OwnedFd) -> Result<(), BpfError> {
        // Already off (ENOLINK), or the interface is gone: what was wanted.
        if let Err(source) = sys::link_detach(link.as_fd())
            && !matches!(source.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV))
        {
            return Err(BpfError::Attach {
                action: "detach from",
                interface: interface_name(ifindex),
                source,
            });
        }
        self.pins.as_ref().map_or(Ok(()), |pins| pins.forget(ifindex, role, false))
    }

    /// Takes over what is pinned. With maps of the same layout the programs are exchanged at once: old and new agree on
    /// every map. Otherwise the old ones stay until something is attached in their place.
    pub(crate) fn adopt(&mut self, same_maps: bool) -> Result<(), BpfError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for Pinned { ifindex, role, object, clsact } in pins.attachments()? {
            let lives = if clsact {
                clsact_is(ifindex, role, object.as_fd())
            } else {
                sys::link_facts(object.as_fd()).is_ok_and(|facts| facts.ifindex == ifindex)
            };
            if !lives {
                pins.forget(ifindex, role, clsact)?;
                continue;
            }
            let program = self.program(role.program())?;
            if same_maps && clsact {
                let (attached, _) = log::listening(|| sys::clsact_attach(program, ifindex, role.point()));
                if attached.is_ok() {
                    pins.keep(ifindex, role, true, program)?;
                }
            } else if same_maps {
                // A driver may refuse frags for plain in place: attach_xdp takes it off and on then.
                let _ = sys::link_update(object.as_fd(), program);
            }
            let attachment = if clsact { Attachment::Clsact } else { Attachment::Link(object) };
            self.attachments.insert((ifindex, role), attachment);
        }
        Ok(())
    }
}

impl Drop for Programs {
    /// Links end with their descriptors; filters would stay. With pins both are meant to stay.
    fn drop(&mut self) {
        if self.pins.is_none() {
            for (&(ifindex, role), attachment) in &self.attachments {
                if matches!(attachment, Attachment::Clsact) {
                    let _ = take_off_clsact(ifindex, role, None);
                }
            }
        }
    }
}

fn other_program(interface: String, id: u32) -> BpfError {
    let facts = sys::program_by_id(id).and_then(|program| sys::program_facts(program.as_fd()));
    let name = facts.map_or_else(|_| "unknown".to_owned(), |(_, name)| name);
    BpfError::OtherXdpProgram { interface, id, name }
}

/// True when our filter on this interface runs this program.
fn clsact_is(ifindex: u32, role: Role, program: BorrowedFd<'_>) -> bool {
    let (found, _) = log::listening(|| sys::clsact_query(ifindex, role.point()));
    match (found, sys::program_facts(program)) {
        (Ok(Some(id)), Ok((ours, _))) => id == ours,
        _ => false,
    }
}

/// Takes our filter off; where `program` is given only if it is the one that runs there.
pub(crate) fn take_off_clsact(
    ifindex: u32,
    role: Role,
    program: Option<BorrowedFd<'_>>,
) -> Result<(), BpfError> {
    if program.is_some_and(|program| !clsact_is(ifindex, role, program)) {
        return Ok(());
    }
    let (off, _) = log::listening(|| sys::clsact_detach(ifindex, role.point()));
    match off {
        // No such filter, no such qdisc, no such interface: what was wanted.
        Err(source) if !matches!(source.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Err(BpfError::Attach {
                action: "take the clsact filter off",
                interface: interface_name(ifindex),
                source,
            })
        }
        _ => Ok(()),
    }
}

fn existing_interface(ifindex: u32) -> Result<String, BpfError> {
    // nix 0.30 answers an unknown index with an empty name.
    let name = nix::net::if_::if_indextoname(ifindex).ok().filter(|name| !name.is_empty());
    name.map(|name| name.to_string_lossy().into_owned()).ok_or(BpfError::NoInterface { ifindex })
}

/// Its name, or its number when it is gone.
pub(crate) fn interface_name(ifindex: u32) -> String {
    existing_interface(ifindex).unwrap_or_else(|_| format!("interface {ifindex}"))
}
