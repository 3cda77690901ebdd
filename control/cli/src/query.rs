//! Asking the daemon by its query socket.

/// The query socket's name in the daemon's run directory.
pub(crate) const SOCKET: &str = "query.sock";
