//! How messages travel over the daemon's sockets: a length of four bytes, big endian, then that many bytes of JSON.
//!
//! Both sides of both sockets use these two functions, so that the bound on a message's size is enforced before a byte
//! of it is allocated, and so that nobody invents a second framing.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message that a client of the query socket may send, in bytes.
pub const MAX_QUERY: usize = 64 * 1024;
/// Largest message of the state socket, and largest answer of the query socket, in bytes. A full resync is one message: in
/// a cluster of 100,000 pods, 20,000 identities of 100 selectors each and 5,000 services with 20 endpoints each it is
/// 19 MB, which a test measures.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// The other side closed the connection between two messages.
    #[error("the connection was closed")]
    Closed,
    /// The socket failed, timed out or ended inside a message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The message is larger than the bound.
    #[error("a message of {len} bytes is larger than the {max} bytes that are allowed")]
    TooLarge {
        /// Bytes of the message.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The message is not the JSON that was expected.
    #[error("the message does not parse: {0}")]
    Syntax(#[from] serde_json::Error),
}

/// Writes one message.
///
/// # Errors
/// It is larger than [`MAX_MESSAGE`] (nothing is written then), or the socket fails.
pub fn write_message<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FramingError> {
    let mut buffer = vec![0; 4];
    serde_json::to_writer(&mut buffer, message)?;
    let len = buffer.len() - 4;
    let header = u32::try_from(len).ok().filter(|_| len <= MAX_MESSAGE);
    let Some(header) = header else { return Err(FramingError::TooLarge { len, max: MAX_MESSAGE }) };
    buffer[..4].copy_from_slice(&header.to_be_bytes());
    to.write_all(&buffer)?;
    to.flush()?;
    Ok(())
}

/// Reads one message of at most `max` bytes.
///
/// # Errors
/// [`FramingError::Closed`] at a clean end, otherwise what was wrong with the message or the socket.
pub fn read_message<T: DeserializeOwned>(from: &mut impl Read, max: usize) -> Result<T, FramingError> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Err(FramingError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let len = u32::from_be_bytes(header) as usize;
    if len > max {
        return Err(FramingError::TooLarge { len, max });
    }
    let mut body = Vec::new();
    from.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_and_a_clean_end_is_told_from_a_torn_one() {
        let mut wire = Vec::new();
        write_message(&mut wire, &vec![1, 2, 3]).unwrap();
        let mut reader = wire.as_slice();
        assert_eq!(read_message::<Vec<u8>>(&mut reader, 100).unwrap(), [1, 2, 3]);
        assert!(matches!(read_message::<Vec<u8>>(&mut reader, 100), Err(FramingError::Closed)));
        for cut in 1..wire.len() {
            let torn = read_message::<Vec<u8>>(&mut &wire[..cut], 100);
            assert!(matches!(torn, Err(FramingError::Io(_))), "cut at {cut}: {torn:?}");
        }
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_its_body_is_read() {
        let refused = read_message::<String>(&mut [0xff_u8; 4].as_slice(), MAX_QUERY);
        assert!(matches!(refused, Err(FramingError::TooLarge { len: 0xffff_ffff, max: MAX_QUERY })));
        let mut wire = Vec::new();
        let big = "x".repeat(MAX_MESSAGE);
        assert!(matches!(write_message(&mut wire, &big), Err(FramingError::TooLarge { .. })));
        assert!(wire.is_empty());
    }
}
