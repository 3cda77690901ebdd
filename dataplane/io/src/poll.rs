//! Waiting without wasting: spin while packets keep coming, sleep when they stop.
//!
//! A wake-up of an idle CPU costs some 40 us, more than everything else on a packet's way, so a worker spins for a while
//! after the last packet; and it costs nothing while nothing comes, because it then sleeps in `epoll_wait` on its ports and
//! on an eventfd by which other threads wake it. The time is an argument, so that the decision itself can be tested.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::borrowed;

/// Token of the eventfd among the ports' numbers.
const WAKER: u64 = u64::MAX;

/// Decides when a worker that finds nothing to do goes to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spin {
    budget: u64,
    idle_since: Option<u64>,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Look again at once.
    Spin,
    /// Nothing came for the whole budget: sleep.
    Sleep,
}

impl Spin {
    /// Spins for `budget` nanoseconds after the last packet; 0 sleeps at once.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Self { budget, idle_since: None }
    }

    /// Notes how many packets a round had at time `now` (nanoseconds) and says what is next.
    pub fn after(&mut self, packets: usize, now: u64) -> Next {
        if packets > 0 {
            self.idle_since = None;
            return Next::Spin;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.budget { Next::Sleep } else { Next::Spin }
    }

    /// A sleep is over; spinning begins anew.
    pub fn woke(&mut self) {
        self.idle_since = None;
    }
}

/// Where a worker sleeps.
#[derive(Debug)]
pub struct Sleeper {
    epoll: Epoll,
    event: Arc<EventFd>,
}

/// Wakes one worker, from any thread, whether it sleeps already or is about to.
#[derive(Debug, Clone)]
pub struct Waker {
    event: Arc<EventFd>,
}

/// Why a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Woken {
    /// A port has packets.
    pub port: bool,
    /// Somebody called [`Waker::wake`].
    pub waker: bool,
}

impl Sleeper {
    /// A sleeper that waits on nothing but its waker yet.
    ///
    /// # Errors
    /// What the kernel said (file descriptors used up, most likely).
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        epoll.add(event.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
        Ok(Self { epoll, event })
    }

    /// Waits on one more port. The descriptor must be open; closing it ends the watch by itself.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn watch(&self, fd: RawFd) -> io::Result<()> {
        Ok(self.epoll.add(borrowed(fd), EpollEvent::new(EpollFlags::EPOLLIN, fd as u64))?)
    }

    /// No longer waits on a port that is about to close.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn forget(&self, fd: RawFd) -> io::Result<()> {
        Ok(self.epoll.delete(borrowed(fd))?)
    }

    /// The handle for other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker { event: Arc::clone(&self.event) }
    }

    /// Sleeps until a port has packets, somebody wakes, or `limit` is over.
    ///
    /// # Errors
    /// What the kernel said; an interrupting signal is no error.
    pub fn sleep(&self, limit: Duration) -> io::Result<Woken> {
        let mut events = [EpollEvent::empty(); 16];
        let limit = EpollTimeout::try_from(limit).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut events, limit) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut woken = Woken::default();
        for event in &events[..count] {
            if event.data() == WAKER {
                woken.waker = true;
                let _ = self.event.read();
            } else {
                woken.port = true;
            }
        }
        Ok(woken)
    }
}

impl Waker {
    /// Ends the worker's sleep, or its next one.
    pub fn wake(&self) {
        // The one failure is a counter at its maximum, which wakes just as well.
        let _ = self.event.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn spins_for_its_budget_after_the_last_packet() {
        let mut spin = Spin::new(1000);
        assert_eq!(spin.after(3, 0), Next::Spin);
        assert_eq!(spin.after(0, 5_000), Next::Spin);
        assert_eq!(spin.after(0, 5_999), Next::Spin);
        assert_eq!(spin.after(0, 6_000), Next::Sleep);
        assert_eq!(spin.after(1, 6_001), Next::Spin);
        assert_eq!(spin.after(0, 6_500), Next::Spin);
        assert_eq!(spin.after(0, 7_500), Next::Sleep);
        spin.woke();
        assert_eq!(spin.after(0, 9_000), Next::Spin);
        assert_eq!(Spin::new(0).after(0, 1), Next::Sleep);
    }

    #[test]
    fn sleeps_until_woken_or_until_a_port_is_ready() {
        let sleeper = Sleeper::new().unwrap();
        assert_eq!(sleeper.sleep(Duration::from_millis(1)).unwrap(), Woken::default());
        let waker = sleeper.waker();
        waker.wake();
        waker.wake();
        let woken = sleeper.sleep(Duration::from_secs(10)).unwrap();
        assert_eq!(woken, Woken { port: false, waker: true });
        assert_eq!(sleeper.sleep(Duration::from_millis(1)).unwrap(), Woken::default());
        let (reader, writer) = nix::unistd::pipe().unwrap();
        sleeper.watch(reader.as_raw_fd()).unwrap();
        nix::unistd::write(&writer, b"x").unwrap();
        let woken = sleeper.sleep(Duration::from_secs(10)).unwrap();
        assert_eq!(woken, Woken { port: true, waker: false });
        sleeper.forget(reader.as_raw_fd()).unwrap();
        assert_eq!(sleeper.sleep(Duration::from_millis(1)).unwrap(), Woken::default());
        let from_afar = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        assert!(sleeper.sleep(Duration::from_secs(10)).unwrap().waker);
        from_afar.join().unwrap();
    }
}
