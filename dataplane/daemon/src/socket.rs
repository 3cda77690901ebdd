//! A unix socket that a bounded number of clients may use, each with a thread of its own.
//!
//! Both of the daemon's sockets are files of its run directory, root's alone. The bounds are here, once: clients at a
//! time, seconds for a message that has begun, messages per second.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

/// Seconds that a client has for a message once it has begun, and for taking an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(200);

/// A socket that is listened on until this is dropped; the file goes with it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    /// The stream, with timeouts set.
    pub stream: UnixStream,
    stop: Arc<AtomicBool>,
    rate: Rate,
}

impl Server {
    /// Listens on `path` for root's clients, at most `clients` at a time, and has `serve` talk to each in a thread of its
    /// own. `rate` bounds the messages per second of each.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(
        path: &Path,
        clients: usize,
        rate: u32,
        serve: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("sluice-{name}"))
            .spawn(move || accept(&listener, &stopped, clients, rate, &Arc::new(serve)))?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within its poll's timeout.
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn accept(
    listener: &UnixListener,
    stop: &Arc<AtomicBool>,
    clients: usize,
    rate: u32,
    serve: &Arc<impl Fn(&mut Connection) + Send + Sync + 'static>,
) {
    let connected = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        if !readable(listener, TICK) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        if !is_root(&stream) || connected.load(Ordering::Relaxed) >= clients {
            tracing::warn!(
                clients,
                "a client of a socket was refused: it is not root's, or there are too many"
            );
            continue;
        }
        let timeouts = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        if timeouts.is_err() {
            continue;
        }
        let mut connection = Connection { stream, stop: Arc::clone(stop), rate: Rate::new(rate) };
        let (serve, left) = (Arc::clone(serve), Arc::clone(&connected));
        connected.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("sluice-client".into()).spawn(move || {
            serve(&mut connection);
            left.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            connected.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn is_root(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}

impl Connection {
    /// Waits for the next message to begin; false when the client is gone, was silent for too long, or the daemon ends.
    /// A client that asks faster than its rate waits here.
    pub fn wait(&mut self, idle: Option<Duration>) -> bool {
        let since = Instant::now();
        std::thread::sleep(self.rate.delay());
        while !self.stop.load(Ordering::Relaxed) {
            if readable(&self.stream, TICK) {
                return true;
            }
            if idle.is_some_and(|idle| since.elapsed() >= idle) {
                return false;
            }
        }
        false
    }

    /// True once the daemon ends or the client has closed or said anything more, which ends a stream of records.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || readable(&self.stream, Duration::ZERO)
    }
}

fn readable(fd: &impl AsFd, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
    poll(&mut fds, timeout).is_ok_and(|n| n > 0)
}

/// A token bucket of one second's worth.
#[derive(Debug)]
struct Rate {
    each: Duration,
    burst: Duration,
    paid_until: Instant,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let each = Duration::from_secs(1) / per_second.max(1);
        Self { each, burst: Duration::from_secs(1), paid_until: Instant::now() }
    }

    /// How long the next message has to wait.
    fn delay(&mut self) -> Duration {
        let now = Instant::now();
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        self.paid_until = self.paid_until.max(earliest) + self.each;
        self.paid_until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_client_too_many_is_turned_away_and_the_others_are_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = Server::start(&path, 1, 1000, |connection| {
            while connection.wait(None) {
                let mut byte = [0];
                if connection.stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    connection.stream.write_all(&byte).unwrap();
                } else {
                    return;
                }
            }
        })
        .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut one = UnixStream::connect(&path).unwrap();
        let mut echo = [0];
        one.write_all(b"x").unwrap();
        one.read_exact(&mut echo).unwrap();
        let mut two = UnixStream::connect(&path).unwrap();
        assert_eq!(two.read(&mut echo).unwrap_or(0), 0, "the second is closed at once");
        drop(one);
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_fast_client_is_slowed_to_its_rate() {
        let mut rate = Rate::new(10);
        let waits: Vec<_> = (0..30).map(|_| rate.delay()).collect();
        assert!(waits[0] <= Duration::from_millis(100));
        let last = waits[29];
        assert!((Duration::from_millis(1_800)..=Duration::from_secs(3)).contains(&last), "{last:?}");
    }
}
