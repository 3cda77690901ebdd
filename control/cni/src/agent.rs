//! The plugin's side of the conversation with the agent, under one deadline.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sluice_state::framing::{FramingError, read_message, write_message};

use crate::error::{CniError, Code};
use crate::protocol::{Hello, MAX_MESSAGE, Reply, Request, VERSION};

/// How long an agent may take to greet back.
const GREETING: Duration = Duration::from_secs(8);
/// Between two attempts to reach it.
const AGAIN: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody answers.
    #[error("no agent answers at {}: {source}", path.display())]
    Away {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the agent at {} breaks off: {source}", path.display())]
    Broken {
        /// Where.
        path: PathBuf,
        /// Why.
        source: FramingError,
    },
    /// The agent refuses.
    #[error("{}", .0.message)]
    Refused(CniError),
}

impl From<AgentError> for CniError {
    fn from(error: AgentError) -> Self {
        let way = "is the sluice-agent pod of this node running? The runtime tries again";
        match error {
            AgentError::Refused(error) => error,
            other => Self::new(Code::TryAgain, other.to_string()).with(way),
        }
    }
}

/// A conversation.
#[derive(Debug)]
pub struct Agent {
    path: PathBuf,
    stream: UnixStream,
    deadline: Instant,
}

impl Agent {
    /// Greets the agent at `path`; waits so long for one that is being replaced.
    ///
    /// # Errors
    /// Nobody answers until then, or it speaks another version.
    pub fn greet(path: &Path, deadline: Instant, patience: Duration) -> Result<Self, AgentError> {
        let until = deadline.min(Instant::now() + patience);
        loop {
            match Self::try_greet(path, deadline) {
                Err(AgentError::Away { .. } | AgentError::Broken { .. })
                    if Instant::now() + AGAIN < until =>
                {
                    std::thread::sleep(AGAIN);
                }
                done => return done,
            }
        }
    }

    fn try_greet(path: &Path, deadline: Instant) -> Result<Self, AgentError> {
        let away = |source| AgentError::Away { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(away)?;
        let mut agent = Self { path: path.to_owned(), stream, deadline };
        agent.until(deadline.min(Instant::now() + GREETING))?;
        let plugin = env!("CARGO_PKG_VERSION").to_owned();
        match agent.exchange(&Hello { version: VERSION, plugin })? {
            Reply::Hello { .. } => Ok(agent),
            Reply::Refused { kind, message } => Err(AgentError::Refused(CniError::refused(kind, message))),
            other => Err(agent.unexpected(&other)),
        }
    }

    /// The answer to a question.
    ///
    /// # Errors
    /// The agent refuses, breaks off, or the deadline has passed.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, AgentError> {
        self.until(self.deadline)?;
        match self.exchange(request)? {
            Reply::Refused { kind, message } => Err(AgentError::Refused(CniError::refused(kind, message))),
            reply => Ok(reply),
        }
    }

    /// What an answer of the wrong kind comes to.
    #[must_use]
    pub fn unexpected(&self, reply: &Reply) -> AgentError {
        let why = format!("it answers {reply:?}, which is no answer to the question");
        let source = io::Error::new(io::ErrorKind::InvalidData, why).into();
        AgentError::Broken { path: self.path.clone(), source }
    }

    fn exchange(&mut self, message: &impl serde::Serialize) -> Result<Reply, AgentError> {
        let broken = |source| AgentError::Broken { path: self.path.clone(), source };
        write_message(&mut self.stream, message).map_err(broken)?;
        read_message(&mut self.stream, MAX_MESSAGE).map_err(broken)
    }

    fn until(&self, deadline: Instant) -> Result<(), AgentError> {
        // A timeout of zero is none for the system.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let set = self.stream.set_read_timeout(Some(left));
        set.and_then(|()| self.stream.set_write_timeout(Some(left)))
            .map_err(|source| AgentError::Away { path: self.path.clone(), source })
    }
}
