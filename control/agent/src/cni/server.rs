//! The socket: root's alone, a thread a conversation, a bound on how many.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use sluice_cni::protocol::{Hello, MAX_MESSAGE, Refusal, Reply, Request, VERSION};
use sluice_state::framing::{FramingError, read_message, write_message};

use super::CniError;
use super::desk::{Desk, Visit};

/// Conversations at once; kubelet starts some tens of pods together.
const CONVERSATIONS: usize = 512;

/// How long a plugin may be silent: it lays a veth between two questions.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a plugin may take to read an answer.
const SLOW: Duration = Duration::from_secs(5);

/// A socket that is answered, until this is dropped.
pub(super) struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

/// Makes the directory of the socket, for root alone.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))
}

/// Makes sure that nobody answers at a socket's place, and that nothing is in the way.
pub(super) fn take(path: &Path) -> Result<(), CniError> {
    let file = || CniError::file(path);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file()(error)),
        Ok(found) if !found.file_type().is_socket() => {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket");
            return Err(file()(error));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(CniError::Taken(path.to_owned())),
        // An agent that was killed has left it.
        Err(_) => std::fs::remove_file(path).map_err(file()),
    }
}

impl Server {
    pub(super) fn start(path: &Path, desk: Arc<Desk>) -> Result<Self, CniError> {
        let file = || CniError::file(path);
        let listener = UnixListener::bind(path).map_err(file())?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(file())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("sluice-cni".into())
            .spawn(move || listen(&listener, &desk, &stopped))
            .map_err(file())?;
        Ok(Self { path: path.to_owned(), stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread that listens has to be woken; if it cannot be, it ends with the process.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(listener: &UnixListener, desk: &Arc<Desk>, stop: &AtomicBool) {
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, for example: kubelet will ask again.
                tracing::warn!(%error, "a CNI plugin cannot be answered");
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if running.fetch_add(1, Ordering::Relaxed) >= CONVERSATIONS {
            running.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{CONVERSATIONS} conversations are under way: try again");
            refuse(stream, Refusal::TryAgain, message);
            continue;
        }
        let (desk, running) = (Arc::clone(desk), Arc::clone(&running));
        let spawned = std::thread::Builder::new().name("sluice-cni-ask".into()).spawn({
            let running = Arc::clone(&running);
            move || {
                match converse(stream, &desk) {
                    Ok(()) | Err(FramingError::Closed) => {}
                    Err(error) => tracing::warn!(%error, "a conversation with a CNI plugin ends"),
                }
                running.fetch_sub(1, Ordering::Relaxed);
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a CNI plugin");
            running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn refuse(mut stream: UnixStream, kind: Refusal, message: String) {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    // Whoever does not listen loses nothing.
    let _ = write_message(&mut stream, &Reply::Refused { kind, message });
}

fn converse(mut stream: UnixStream, desk: &Arc<Desk>) -> Result<(), FramingError> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SLOW))?;
    let peer = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?;
    if peer.uid() != 0 {
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a stranger on the CNI socket");
        refuse(stream, Refusal::Invalid, format!("only root may ask, not user {}", peer.uid()));
        return Ok(());
    }
    let hello: Hello = read_message(&mut stream, MAX_MESSAGE)?;
    if hello.version != VERSION {
        let message = format!(
            "the plugin ({}) speaks version {} of the protocol, this agent ({}) version {VERSION}: both are of one \
             image; wait for its roll-out, or put its sluice-cni into the CNI binaries' directory",
            hello.plugin,
            hello.version,
            env!("CARGO_PKG_VERSION"),
        );
        refuse(stream, Refusal::Version, message);
        return Ok(());
    }
    let agent = env!("CARGO_PKG_VERSION").to_owned();
    write_message(&mut stream, &Reply::Hello { version: VERSION, agent })?;
    let mut visit: Visit = desk.visit();
    loop {
        let request: Request = read_message(&mut stream, MAX_MESSAGE)?;
        write_message(&mut stream, &visit.answer(request))?;
    }
}
