//! The daemon's state socket: one connection, its answers in a thread of their own, so that an end is seen at once.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_state::framing::{FramingError, MAX_MESSAGE, read_message, write_message};
use sluice_state::push::{Hello, PUSH_VERSION, Push, PushReply};
use sluice_state::{Generation, Op};

/// How long the daemon may take for its hello and for taking a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no conversation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("no daemon answers at {}: {source} (is sluiced running with this --run-dir? another place is --state-socket PATH; it is root's alone)", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the daemon at {} breaks off: {source}", path.display())]
    Framing { path: PathBuf, source: FramingError },
    #[error("the daemon at {} refuses this agent: {reason}", path.display())]
    Hello { path: PathBuf, reason: String },
}

/// A connection on which generations are sent.
#[derive(Debug)]
pub(crate) struct Daemon {
    path: PathBuf,
    stream: UnixStream,
    /// The last number that was used, by whomever.
    number: u64,
}

impl Daemon {
    /// Connects and greets. `tell` is given each answer, and at last none, in a thread of its own.
    pub(crate) fn connect(
        path: &Path,
        mut tell: impl FnMut(Option<PushReply>) + Send + 'static,
    ) -> Result<Self, DaemonError> {
        let connect = |source| DaemonError::Connect { path: path.to_owned(), source };
        let framing = |source| DaemonError::Framing { path: path.to_owned(), source };
        let mut stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(connect)?;
        let client = concat!("sluice-agent ", env!("CARGO_PKG_VERSION")).to_owned();
        write_message(&mut stream, &Hello { version: PUSH_VERSION, client }).map_err(framing)?;
        let number = match read_message(&mut stream, MAX_MESSAGE).map_err(framing)? {
            PushReply::Hello { generation, daemon, .. } => {
                tracing::info!(daemon, generation, "connected to the daemon");
                generation
            }
            PushReply::Refused { reason, .. } => {
                return Err(DaemonError::Hello { path: path.to_owned(), reason });
            }
            PushReply::Accepted { .. } => {
                let reason = "it answered a hello with an acknowledgement".into();
                return Err(DaemonError::Hello { path: path.to_owned(), reason });
            }
        };
        stream.set_read_timeout(None).map_err(connect)?;
        let mut answers = stream.try_clone().map_err(connect)?;
        std::thread::Builder::new()
            .name("sluice-answers".into())
            .spawn(move || {
                loop {
                    let answer = read_message(&mut answers, MAX_MESSAGE).ok();
                    let last = answer.is_none();
                    tell(answer);
                    if last {
                        return;
                    }
                }
            })
            .map_err(connect)?;
        Ok(Self { path: path.to_owned(), stream, number })
    }

    /// Sends the next generation; gives its number.
    pub(crate) fn send(&mut self, ops: Vec<Op>) -> Result<u64, DaemonError> {
        self.number += 1;
        let push = Push::Generation(Generation { number: self.number, ops });
        write_message(&mut self.stream, &push)
            .map_err(|source| DaemonError::Framing { path: self.path.clone(), source })?;
        Ok(self.number)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ends the thread that waits for answers.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
