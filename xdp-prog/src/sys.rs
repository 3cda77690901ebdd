//! The system calls that libbpf-rs 0.25 has no form of, and the only `unsafe` of this crate: links with an explicit XDP
//! mode, tcx links, clsact filters with a fixed handle, and who is attached already. Everything goes in and comes out as
//! owned descriptors and plain values.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_sys as bpf;

/// Where on an interface a program sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Point {
    Xdp,
    Ingress,
    Egress,
}

/// libbpf returns a negative errno or, in its low-level calls, a descriptor.
fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn owned(result: c_int) -> io::Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: the kernel has just handed this descriptor to us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Attaches a program to an interface by a link. `xdp_flags` are `XDP_FLAGS_*`, 0 for tcx.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    point: Point,
    xdp_flags: u32,
) -> io::Result<OwnedFd> {
    let kind = match point {
        Point::Xdp => bpf::BPF_XDP,
        Point::Ingress => bpf::BPF_TCX_INGRESS,
        Point::Egress => bpf::BPF_TCX_EGRESS,
    };
    // SAFETY: all zero is this C struct's documented default.
    let mut options: bpf::bpf_link_create_opts = unsafe { mem::zeroed() };
    options.sz = mem::size_of_val(&options) as bpf::size_t;
    options.flags = xdp_flags;
    // SAFETY: both descriptors are what the call asks for (an interface index stands in for the target), and the options
    // live until it returns.
    owned(unsafe {
        bpf::bpf_link_create(program.as_raw_fd(), ifindex.cast_signed(), kind, &raw const options)
    })
}

/// Exchanges the program behind a link, atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open for the time of the call; no options are passed.
    checked(unsafe { bpf::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) })
        .map(drop)
}

/// Takes the program off the interface although others may hold the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the time of the call.
    checked(unsafe { bpf::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// What a link of XDP or tcx is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkFacts {
    /// 0: the interface is gone.
    pub(crate) ifindex: u32,
    pub(crate) program_id: u32,
}

pub(crate) fn link_facts(link: BorrowedFd<'_>) -> io::Result<LinkFacts> {
    let mut info = bpf::bpf_link_info::default();
    let mut length = mem::size_of_val(&info) as u32;
    // SAFETY: `info` is writable for `length` bytes.
    checked(unsafe { bpf::bpf_link_get_info_by_fd(link.as_raw_fd(), &raw mut info, &raw mut length) })?;
    let ifindex = match info.type_ {
        // SAFETY: the type says that the kernel wrote this member; any bits are a valid u32.
        bpf::BPF_LINK_TYPE_XDP => unsafe { info.__bindgen_anon_1.xdp.ifindex },
        // SAFETY: as above.
        bpf::BPF_LINK_TYPE_TCX => unsafe { info.__bindgen_anon_1.tcx.ifindex },
        _ => 0,
    };
    Ok(LinkFacts { ifindex, program_id: info.prog_id })
}

/// Gives a BPF object a name in a bpffs.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the descriptor is open and the path NUL-terminated for the time of the call.
    checked(unsafe { bpf::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the path is NUL-terminated for the time of the call.
    owned(unsafe { bpf::bpf_obj_get(path.as_ptr()) })
}

/// An XDP program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct XdpFacts {
    pub(crate) program_id: u32,
    pub(crate) generic: bool,
}

/// The XDP program of an interface, if it has one.
pub(crate) fn xdp_query(ifindex: u32) -> io::Result<Option<XdpFacts>> {
    // SAFETY: all zero is this C struct's documented default.
    let mut options: bpf::bpf_xdp_query_opts = unsafe { mem::zeroed() };
    options.sz = mem::size_of_val(&options) as bpf::size_t;
    // SAFETY: the options are writable for the size they state.
    checked(unsafe { bpf::bpf_xdp_query(ifindex.cast_signed(), 0, &raw mut options) })?;
    let ids = [options.prog_id, options.drv_prog_id, options.skb_prog_id, options.hw_prog_id];
    Ok(ids.into_iter().find(|&id| id != 0).map(|program_id| XdpFacts {
        program_id,
        generic: u32::from(options.attach_mode) == bpf::XDP_ATTACHED_SKB,
    }))
}

/// Number of the program behind a descriptor, and its name.
pub(crate) fn program_facts(program: BorrowedFd<'_>) -> io::Result<(u32, String)> {
    let mut info = bpf::bpf_prog_info::default();
    let mut length = mem::size_of_val(&info) as u32;
    // SAFETY: `info` is writable for `length` bytes, and asks for no array.
    checked(unsafe { bpf::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut length) })?;
    // SAFETY: the kernel terminates the name within the array, which was all zero before.
    let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
    Ok((info.id, name.to_string_lossy().into_owned()))
}

/// The program with this number.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes a number only.
    owned(unsafe { bpf::bpf_prog_get_fd_by_id(id) })
}

/// Fixed, so that a filter of an earlier process is found again: `SLU`.
const CLSACT_HANDLE: u32 = 0x53_4c55;
/// Early, and unlikely to be somebody's; the kernel gives out priorities from 49152 down.
const CLSACT_PRIORITY: u32 = 0x53;

fn clsact_hook(ifindex: u32, point: Point) -> bpf::bpf_tc_hook {
    let mut hook = bpf::bpf_tc_hook::default();
    hook.sz = mem::size_of_val(&hook) as bpf::size_t;
    hook.ifindex = ifindex.cast_signed();
    hook.attach_point = if point == Point::Egress { bpf::BPF_TC_EGRESS } else { bpf::BPF_TC_INGRESS };
    hook
}

fn clsact_options() -> bpf::bpf_tc_opts {
    let mut options = bpf::bpf_tc_opts::default();
    options.sz = mem::size_of_val(&options) as bpf::size_t;
    options.handle = CLSACT_HANDLE;
    options.priority = CLSACT_PRIORITY;
    options
}

/// Attaches a program as a direct-action filter of the clsact qdisc, in the place of our earlier one.
pub(crate) fn clsact_attach(program: BorrowedFd<'_>, ifindex: u32, point: Point) -> io::Result<()> {
    let mut hook = clsact_hook(ifindex, point);
    // SAFETY: the hook states its size and is writable for the time of the call.
    match checked(unsafe { bpf::bpf_tc_hook_create(&raw mut hook) }) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let mut options = clsact_options();
    options.prog_fd = program.as_raw_fd();
    options.flags = bpf::BPF_TC_F_REPLACE;
    // SAFETY: hook and options state their sizes and live until the call returns.
    checked(unsafe { bpf::bpf_tc_attach(&raw const hook, &raw mut options) }).map(drop)
}

/// Takes our filter off again. The qdisc stays: others may use it.
pub(crate) fn clsact_detach(ifindex: u32, point: Point) -> io::Result<()> {
    let hook = clsact_hook(ifindex, point);
    let options = clsact_options();
    // SAFETY: hook and options state their sizes and live until the call returns.
    checked(unsafe { bpf::bpf_tc_detach(&raw const hook, &raw const options) }).map(drop)
}

/// Number of the program behind our filter, if it is there.
pub(crate) fn clsact_query(ifindex: u32, point: Point) -> io::Result<Option<u32>> {
    let hook = clsact_hook(ifindex, point);
    let mut options = clsact_options();
    // SAFETY: hook and options state their sizes and live until the call returns.
    match checked(unsafe { bpf::bpf_tc_query(&raw const hook, &raw mut options) }) {
        Ok(_) => Ok(Some(options.prog_id)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs a program on `frame`. Room for the frame to grow is not needed: no program of ours adds bytes.
pub(crate) fn test_run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> io::Result<crate::DryRun> {
    let mut out = vec![0u8; frame.len().max(64) + 256];
    let mut context_out = vec![0u8; context.len()];
    // SAFETY: all zero is this C struct's documented default.
    let mut options: bpf::bpf_test_run_opts = unsafe { mem::zeroed() };
    options.sz = mem::size_of_val(&options) as bpf::size_t;
    options.data_in = frame.as_ptr().cast();
    options.data_size_in = frame.len() as u32;
    options.data_out = out.as_mut_ptr().cast();
    options.data_size_out = out.len() as u32;
    options.repeat = 1;
    if !context.is_empty() {
        options.ctx_in = context.as_ptr().cast();
        options.ctx_size_in = context.len() as u32;
        options.ctx_out = context_out.as_mut_ptr().cast();
        options.ctx_size_out = context_out.len() as u32;
    }
    // SAFETY: every pointer in the options is valid for the size beside it until the call returns.
    checked(unsafe { bpf::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) })?;
    out.truncate(options.data_size_out as usize);
    context_out.truncate(options.ctx_size_out as usize);
    Ok(crate::DryRun { verdict: options.retval.cast_signed(), frame: out, context: context_out })
}
