//! Opening ENIs: which mode can be had, what was tried, and what it costs.
//!
//! Zero-copy is tried first, then native copy mode, then tc and the trunk. Every failure is kept with its reason, because
//! "it is slow" is a question that the start-up report must answer by itself.

use std::collections::BTreeMap;

use crossbeam::channel::bounded;
use sluice_bpf::XdpMode as Attach;
use sluice_io::Port;
use sluice_io::xsk::{Mode, Umem, XskOptions, XskPort};
use sluice_state::query::{Attempt, EniReport, Finding};
use sluice_state::{Invalid, State};

use super::{Control, lock};
use crate::expedite::Expedited;
use crate::host::Link;
use crate::plane::{Order, Route};
use crate::settings::{EniPort, XdpMode};
use crate::sys::Channels;

/// Queues of one ENI that the XSKMAP has room for.
const MAX_QUEUES: u32 = 64;
/// ENIs that the XSKMAP has room for.
const MAX_SLOTS: u16 = 64;
/// The loopback interface's index, the same in every network namespace.
const LOOPBACK: u32 = 1;
/// Chunks and ring of the UMEM that zero-copy is tried with.
const PROBE_CHUNKS: u32 = 256;
const PROBE_RING: u32 = 64;
/// Largest MTU that ENA's XDP takes without multi-buffer (amzn-drivers, README: "XDP").
const ENA_MAX_MTU: u32 = 3498;

/// How an ENI's packets are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    ZeroCopy,
    Native,
    Generic,
    Tap,
}

impl Taken {
    /// The name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "xdp zero-copy",
            Self::Native => "xdp native",
            Self::Generic => "xdp generic",
            Self::Tap => "tap",
        }
    }
}

/// An ENI whose packets are taken.
#[derive(Debug)]
pub(super) struct OpenEni {
    pub(super) ifindex: u32,
    pub(super) slot: u16,
    pub(super) queues: u32,
    pub(super) taken: Taken,
    pub(super) findings: Vec<Finding>,
    workers: u16,
    mtu: u32,
    channels: Option<Channels>,
    tried: Vec<Attempt>,
    driver: (String, String),
    /// GRO and LRO as they were before, where they were switched off.
    restore: BTreeMap<&'static str, bool>,
}

impl OpenEni {
    /// The worker that owns a queue; none for an ENI on the trunk.
    pub(super) fn owner(&self, queue: u32) -> Option<u16> {
        (self.taken != Taken::Tap).then(|| u16::try_from(queue % u32::from(self.workers)).ok())?
    }
}

impl Control {
    /// Opens the ENIs of a state that are not open yet, or that have another interface or MTU now. All, or none.
    pub(super) fn open_new_enis(&mut self, next: &State) -> Result<Vec<String>, Vec<Invalid>> {
        let mut opened = Vec::new();
        let mut findings = Vec::new();
        for (i, eni) in next.enis.iter().enumerate() {
            let Some(link) = self.host.link(&eni.name).cloned() else { continue };
            let as_it_is = |open: &OpenEni| open.ifindex == link.ifindex && open.mtu == link.mtu;
            if self.enis.get(&eni.name).is_some_and(as_it_is) {
                continue;
            }
            if self.enis.contains_key(&eni.name) {
                tracing::info!(eni = eni.name, "its interface or MTU changed: it is opened again");
                self.close_eni(&eni.name);
            }
            match self.open_eni(&link, eni.address) {
                Ok(open) => {
                    tracing::info!(eni = eni.name, mode = open.taken.name(), queues = open.queues, "opened");
                    self.enis.insert(eni.name.clone(), open);
                    opened.push(eni.name.clone());
                }
                Err(tried) => {
                    let reasons = tried
                        .iter()
                        .map(|t| format!("{}: {}", t.mode, t.reason))
                        .collect::<Vec<_>>()
                        .join("; ");
                    findings.push(Invalid {
                        field: format!("eni[{i}].name"),
                        value: eni.name.clone(),
                        reason: format!("cannot be opened. {reasons}"),
                    });
                }
            }
        }
        if findings.is_empty() {
            return Ok(opened);
        }
        opened.iter().for_each(|name| self.close_eni(name));
        Err(findings)
    }

    /// Closes what the state in force does not have.
    pub(super) fn close_gone_enis(&mut self) {
        let gone: Vec<String> = self
            .enis
            .keys()
            .filter(|name| !self.state.enis.iter().any(|eni| eni.name == **name))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.close_eni(name));
    }

    /// An ENI whose queues were changed needs sockets on the new ones: it is opened again.
    pub(super) fn check_queues(&mut self) {
        let changed: Vec<String> = self
            .enis
            .iter()
            .filter(|(name, eni)| {
                let now = self.ethtool.channels(name).ok();
                eni.taken != Taken::Tap && now.is_some_and(|now| now.rx != eni.queues)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in changed {
            let Some(link) = self.host.link(&name).cloned() else { continue };
            let Some(address) = self.state.enis.iter().find(|e| e.name == name).map(|e| e.address) else {
                continue;
            };
            tracing::info!(eni = name, "its number of queues changed: it is opened again");
            self.close_eni(&name);
            match self.open_eni(&link, address) {
                Ok(open) => {
                    self.enis.insert(name, open);
                }
                Err(tried) => tracing::error!(eni = name, ?tried, "it cannot be opened again"),
            }
        }
    }

    /// Detaches everything that was attached, for a clean end.
    pub(super) fn detach_everything(&mut self) {
        let _expedited = Expedited::during(2 * self.pods.len());
        let names: Vec<String> = self.enis.keys().cloned().collect();
        names.iter().for_each(|name| self.close_eni(name));
        if let Err(error) = lock(&self.programs).detach_all() {
            tracing::error!(%error, "something stays attached: run `sluiced detach`");
        }
    }

    fn close_eni(&mut self, name: &str) {
        let Some(eni) = self.enis.remove(name) else { return };
        {
            let mut programs = lock(&self.programs);
            if let Err(error) = programs.detach(eni.ifindex) {
                tracing::debug!(eni = name, %error, "nothing could be detached");
            }
            for queue in 0..eni.queues {
                let _ = programs.clear_xsk(eni.slot, queue);
            }
            let _ = programs.remove_link(eni.ifindex);
        }
        let (done, closed) = bounded::<()>(0);
        for seat in &self.plane.seats {
            seat.order(Order::Close(eni.ifindex, done.clone()));
        }
        drop(done);
        // Returns when every worker has dropped its sender; a worker that hangs must not hang this thread.
        let _ = closed.recv_timeout(std::time::Duration::from_secs(2));
        self.restore_offloads(name, &eni.restore);
    }

    fn open_eni(&mut self, link: &Link, address: std::net::Ipv4Addr) -> Result<OpenEni, Vec<Attempt>> {
        let used: Vec<u16> = self.enis.values().map(|eni| eni.slot).collect();
        let Some(slot) = (0..MAX_SLOTS).find(|slot| !used.contains(slot)) else {
            let reason = format!("{MAX_SLOTS} ENIs are open already");
            return Err(vec![Attempt { mode: "any".into(), reason }]);
        };
        let driver = self.ethtool.driver(&link.name).unwrap_or_else(|_| ("unknown".into(), String::new()));
        let channels = self.fit_channels(link, &driver.0);
        let mut open = OpenEni {
            ifindex: link.ifindex,
            slot,
            queues: channels.map_or(1, |c| c.rx).clamp(1, MAX_QUEUES),
            taken: Taken::Tap,
            findings: Vec::new(),
            workers: u16::try_from(self.plane.seats.len()).unwrap_or(u16::MAX),
            mtu: link.mtu,
            channels,
            tried: Vec::new(),
            driver,
            restore: BTreeMap::new(),
        };
        let entry = sluice_bpf::Link {
            mac: link.mac.0,
            peer_mac: [0; 6],
            ip: address,
            kind: sluice_bpf::LinkKind::Eni { slot },
        };
        if let Err(error) = lock(&self.programs).upsert_link(link.ifindex, &entry) {
            return Err(vec![Attempt { mode: "any".into(), reason: error.to_string() }]);
        }
        let candidates = candidates(self.settings.eni_port, self.settings.xdp_mode);
        for (n, taken) in candidates.iter().copied().enumerate() {
            match self.try_open(link, taken, &mut open) {
                Ok(()) => {
                    open.taken = taken;
                    open.findings = findings(&link.name, &open);
                    return Ok(open);
                }
                Err(reason) => {
                    tracing::debug!(eni = link.name, mode = taken.name(), reason, "not to be had");
                    // Both kinds of native AF_XDP have one program: what an earlier daemon left attached stays so, and no
                    // packet of a pod finds the ENI without it.
                    if taken != Taken::ZeroCopy || candidates.get(n + 1) != Some(&Taken::Native) {
                        let _ = lock(&self.programs).detach(link.ifindex);
                    }
                    self.restore_offloads(&link.name, &std::mem::take(&mut open.restore));
                    open.tried.push(Attempt { mode: taken.name().into(), reason });
                }
            }
        }
        let _ = lock(&self.programs).remove_link(link.ifindex);
        Err(open.tried)
    }

    /// Attaches the programs and gives the workers their queues.
    fn try_open(&mut self, link: &Link, taken: Taken, open: &mut OpenEni) -> Result<(), String> {
        let egress = |control: &Self| {
            lock(&control.programs).attach_eni_egress(link.ifindex).map_err(|error| error.to_string())
        };
        if taken == Taken::Tap {
            lock(&self.programs).attach_eni_ingress(link.ifindex).map_err(|error| error.to_string())?;
            egress(self)?;
            for seat in &self.plane.seats {
                seat.order(Order::Route(link.ifindex, Route::Trunk));
            }
            return Ok(());
        }
        if let Some(obstacle) = obstacle(&link.name, &open.driver.0, open.channels, link.mtu, self.frags) {
            return Err(obstacle);
        }
        if taken == Taken::Generic {
            open.restore = self.switch_off_coalescing(&link.name);
        }
        let attach = if taken == Taken::Generic { Attach::Generic } else { Attach::Native };
        lock(&self.programs).attach_xdp(link.ifindex, attach).map_err(|error| error.to_string())?;
        let options = XskOptions {
            mode: if taken == Taken::ZeroCopy { Mode::ZeroCopy } else { Mode::Copy },
            multi_buffer: self.frags,
            mtu: link.mtu,
            busy_poll: None,
        };
        if taken == Taken::ZeroCopy {
            probe(link, &options)?;
        }
        if taken != Taken::ZeroCopy {
            self.anchor(&options);
        }
        let umem = self.umem.as_ref().ok_or("there is no UMEM: no ENI was to use AF_XDP at the start")?;
        let ports = (0..open.queues)
            .map(|queue| XskPort::open(umem, &link.name, link.ifindex, queue, &options))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        egress(self)?;
        self.seat_ports(link, open, ports)
    }

    /// libxdp closes a UMEM's first socket only with the UMEM, so an ENI whose queue had it could not be opened again. The
    /// loopback interface takes the first one in copy mode; no packet ever comes by it. Without it only reopening is lost.
    fn anchor(&mut self, options: &XskOptions) {
        let (None, Some(umem)) = (&self.anchor, &self.umem) else { return };
        match XskPort::open(umem, "lo", LOOPBACK, 0, options) {
            Ok(port) => self.anchor = Some(port),
            Err(error) => {
                tracing::debug!(%error, "no anchor for the UMEM: the first ENI cannot be opened twice");
            }
        }
    }

    /// Tells the XSKMAP of the sockets and gives each to its worker.
    fn seat_ports(&self, link: &Link, open: &OpenEni, ports: Vec<XskPort>) -> Result<(), String> {
        let programs = lock(&self.programs);
        for (queue, port) in (0u32..).zip(&ports) {
            let fd = port.fd().ok_or("an AF_XDP socket without a descriptor")?;
            programs.set_xsk(open.slot, queue, fd).map_err(|error| error.to_string())?;
        }
        drop(programs);
        for (worker, seat) in (0u16..).zip(&self.plane.seats) {
            seat.order(Order::Route(link.ifindex, Self::route(worker, open.queues, open.workers)));
        }
        for (queue, port) in (0u32..).zip(ports) {
            let seat = &self.plane.seats[(queue % u32::from(open.workers)) as usize];
            let label = format!("{}:{queue}", link.name);
            seat.order(Order::Open { ifindex: link.ifindex, label, port: Box::new(port) });
        }
        Ok(())
    }

    /// The queues of an ENI, lowered where its driver needs that and it is allowed.
    fn fit_channels(&self, link: &Link, driver: &str) -> Option<Channels> {
        let channels = self.ethtool.channels(&link.name).ok()?;
        if self.settings.set_channels && driver == "ena" && channels.combined > channels.max_combined / 2 {
            let half = (channels.max_combined / 2).max(1);
            match self.ethtool.set_combined(&link.name, half) {
                Ok(()) => tracing::info!(
                    eni = link.name,
                    from = channels.combined,
                    to = half,
                    "queues lowered for XDP"
                ),
                Err(error) => {
                    tracing::warn!(eni = link.name, %error, "its queues cannot be lowered to {half}");
                }
            }
            return self.ethtool.channels(&link.name).ok();
        }
        Some(channels)
    }

    /// Generic XDP runs after GRO, and a super-packet does not fit a frame.
    fn switch_off_coalescing(&self, name: &str) -> BTreeMap<&'static str, bool> {
        let offloads = self.ethtool.offloads(name);
        let on = |offload: &str| offloads.get(offload).copied().unwrap_or(false);
        let mut restore = BTreeMap::new();
        if on("generic-receive-offload") && self.ethtool.set_gro(name, false).is_ok() {
            restore.insert("gro", true);
        }
        if on("large-receive-offload") && self.ethtool.set_lro(name, false).is_ok() {
            restore.insert("lro", true);
        }
        restore
    }

    fn restore_offloads(&self, name: &str, restore: &BTreeMap<&'static str, bool>) {
        for (offload, on) in restore {
            let done = match *offload {
                "gro" => self.ethtool.set_gro(name, *on),
                _ => self.ethtool.set_lro(name, *on),
            };
            if let Err(error) = done {
                tracing::warn!(eni = name, offload, %error, "it cannot be switched on again");
            }
        }
    }

    /// The ENIs of the state in force, for the report.
    pub(super) fn eni_reports(&self) -> Vec<EniReport> {
        let report = |eni: &sluice_state::Eni| {
            let open = self.enis.get(&eni.name)?;
            let link = self.host.link_at(open.ifindex)?;
            Some(EniReport {
                name: eni.name.clone(),
                ifindex: open.ifindex,
                mac: link.mac,
                primary: eni.primary,
                driver: open.driver.0.clone(),
                driver_version: open.driver.1.clone(),
                mtu: link.mtu,
                queues: open.queues,
                max_queues: open.channels.map(|c| c.max_rx),
                mode: open.taken.name().into(),
                tried: open.tried.clone(),
                offloads: self.ethtool.offloads(&eni.name),
            })
        };
        self.state.enis.iter().filter_map(report).collect()
    }
}

/// What to try, in order.
fn candidates(port: EniPort, mode: XdpMode) -> Vec<Taken> {
    if port == EniPort::Tap {
        return vec![Taken::Tap];
    }
    let mut candidates = match mode {
        XdpMode::Auto => vec![Taken::ZeroCopy, Taken::Native],
        XdpMode::Zerocopy => vec![Taken::ZeroCopy],
        XdpMode::Native => vec![Taken::Native],
        XdpMode::Generic => vec![Taken::Generic],
    };
    if port == EniPort::Auto {
        candidates.push(Taken::Tap);
    }
    candidates
}

/// Whether a device can write a UMEM itself, tried with one of its own: the kernel takes the mode of the real one's first
/// socket for all that follow.
fn probe(link: &Link, options: &XskOptions) -> Result<(), String> {
    let umem = Umem::new(PROBE_CHUNKS, PROBE_RING, false).map_err(|error| error.to_string())?;
    XskPort::open(&umem, &link.name, link.ifindex, 0, options).map(drop).map_err(|error| error.to_string())
}

/// What is known to stand in XDP's way, with the command that removes it.
fn obstacle(name: &str, driver: &str, channels: Option<Channels>, mtu: u32, frags: bool) -> Option<String> {
    if driver != "ena" {
        return None;
    }
    if let Some(c) = channels
        && c.combined > c.max_combined / 2
    {
        let half = (c.max_combined / 2).max(1);
        return Some(format!(
            "the ENA driver needs half of its {} queues for XDP and {} are in use: run `ethtool -L {name} combined {half}`, \
             or start with --set-channels",
            c.max_combined, c.combined
        ));
    }
    (mtu > ENA_MAX_MTU && !frags).then(|| {
        format!(
            "the ENA driver takes an MTU of at most {ENA_MAX_MTU} for XDP and it is {mtu}: run `ip link set dev {name} mtu \
             {ENA_MAX_MTU}`, or use --eni-port=tap"
        )
    })
}

/// What is degraded about an ENI, and what to do.
fn findings(name: &str, open: &OpenEni) -> Vec<Finding> {
    let why = open.tried.iter().map(|t| format!("{}: {}", t.mode, t.reason)).collect::<Vec<_>>().join("; ");
    let mut findings = Vec::new();
    let mut add = |what: String, remedy: &str| {
        findings.push(Finding { subject: name.into(), what, remedy: remedy.into() });
    };
    let ena = open.driver.0 == "ena";
    match open.taken {
        Taken::ZeroCopy => {}
        Taken::Native if ena => add(
            format!("AF_XDP copies every packet: this ENA driver has no zero-copy ({why})"),
            "Amazon's out-of-tree ENA driver has it from version 2.13",
        ),
        Taken::Native => add(format!("AF_XDP copies every packet ({why})"), "a driver with AF_XDP zero-copy"),
        Taken::Generic => add(
            "generic XDP: packets are built by the kernel first, and GRO and LRO are off while the daemon runs".into(),
            "--xdp-mode=auto where the driver has XDP",
        ),
        Taken::Tap if open.tried.is_empty() => {}
        Taken::Tap => add(
            format!("no AF_XDP: its packets take tc and the trunk, about 1.5 times the CPU ({why})"),
            "remove the reason, or choose --eni-port=tap to accept it",
        ),
    }
    if open.taken != Taken::Tap && open.queues < u32::from(open.workers) {
        add(
            format!("{} queues for {} workers: the others send by way of these", open.queues, open.workers),
            "raise the queues (ethtool -L), or lower --workers",
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_is_never_tried_unasked_and_the_trunk_comes_last() {
        use Taken::{Generic, Native, Tap, ZeroCopy};
        assert_eq!(candidates(EniPort::Auto, XdpMode::Auto), [ZeroCopy, Native, Tap]);
        assert_eq!(candidates(EniPort::Xdp, XdpMode::Auto), [ZeroCopy, Native]);
        assert_eq!(candidates(EniPort::Xdp, XdpMode::Generic), [Generic]);
        assert_eq!(candidates(EniPort::Tap, XdpMode::Zerocopy), [Tap]);
    }

    #[test]
    fn what_ena_needs_is_said_with_the_command() {
        let channels = |combined| Some(Channels { rx: combined, max_rx: 8, combined, max_combined: 8 });
        let queues = obstacle("eth0", "ena", channels(8), 1500, false).unwrap();
        assert!(queues.contains("ethtool -L eth0 combined 4"), "{queues}");
        let mtu = obstacle("eth0", "ena", channels(4), 9001, false).unwrap();
        assert!(mtu.contains("mtu 3498") && mtu.contains("9001"), "{mtu}");
        assert_eq!(obstacle("eth0", "ena", channels(4), 3498, false), None);
        assert_eq!(obstacle("eth0", "veth", channels(8), 9001, false), None);
    }

    #[test]
    fn every_worker_reaches_every_eni() {
        for (queues, workers) in [(1, 1), (1, 4), (3, 4), (4, 4), (8, 3)] {
            for worker in 0..workers {
                match Control::route(worker, queues, workers) {
                    Route::Own => assert!((0..queues).any(|q| q % u32::from(workers) == u32::from(worker))),
                    Route::Worker(other) => {
                        assert_eq!(
                            Control::route(other, queues, workers),
                            Route::Own,
                            "{queues} {workers} {worker}"
                        );
                    }
                    Route::Trunk => panic!("{queues} queues, {workers} workers, worker {worker}"),
                }
            }
        }
    }
}
