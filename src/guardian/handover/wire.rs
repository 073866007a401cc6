//! Messages over a socket: a length, then JSON; a descriptor travels with the first byte of its message.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message: more than the longest record.
const MAX_BYTES: u32 = 1024 * 1024;
/// How little time a message is given that is there already.
const LEAST: Duration = Duration::from_millis(1);

/// One end of the connection between two guardians.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// The same connection once more, to write while the other end is read.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()? })
    }

    /// Bounds the time that one call may take.
    pub(super) fn set_patience(&self, read: Option<Duration>, write: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(read)?;
        self.stream.set_write_timeout(Some(write))
    }

    /// Breaks the connection off, for both ends.
    pub(super) fn cut(&self) {
        // It may be broken off already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(super) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, None)
    }

    pub(super) fn send_with(
        &self,
        message: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, message)?;
        let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= MAX_BYTES);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        let sent = match descriptor {
            None => 0,
            Some(descriptor) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let descriptors = [descriptor];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
                sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?
            }
        };
        (&self.stream).write_all(&bytes[sent..])
    }

    /// Reads the next message; `None` at the end of the connection.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut length = [0; 4];
        let (read, descriptor) = self.receive_start(&mut length)?;
        if read == 0 {
            return Ok(None);
        }
        (&self.stream).read_exact(&mut length[read..])?;
        let length = u32::from_be_bytes(length);
        if length > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
        }
        let mut bytes = vec![0; length as usize];
        (&self.stream).read_exact(&mut bytes)?;
        Ok(Some((serde_json::from_slice(&bytes)?, descriptor)))
    }

    /// Reads the next message, at the latest until `deadline`; an end is an error.
    pub(super) fn receive_until<T: DeserializeOwned>(
        &self,
        deadline: Instant,
    ) -> io::Result<(T, Option<OwnedFd>)> {
        let left = deadline.saturating_duration_since(Instant::now()).max(LEAST);
        self.stream.set_read_timeout(Some(left))?;
        self.receive()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn receive_start(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let received = loop {
            match recvmsg(&self.stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok((received.bytes, descriptor))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().unwrap();
        (Wire::new(one), Wire::new(other))
    }

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (one, other) = pair();
        let (sent, kept) = UnixStream::pair().unwrap();
        one.send(&"first").unwrap();
        one.send_with(&"second", Some(sent.as_fd())).unwrap();
        one.send(&"third").unwrap();
        drop((one, sent));
        let (text, descriptor) = other.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), descriptor.is_none()), ("first", true));
        let (text, descriptor) = other.receive::<String>().unwrap().unwrap();
        assert_eq!(text, "second");
        (&UnixStream::from(descriptor.unwrap())).write_all(b"x").unwrap();
        (&kept).read_exact(&mut [0]).unwrap();
        assert_eq!(other.receive::<String>().unwrap().unwrap().0, "third");
        assert!(other.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let refused = |bytes: &[u8]| {
            let (one, other) = pair();
            (&one.stream).write_all(bytes).unwrap();
            drop(one);
            other.receive::<String>().unwrap_err().kind()
        };
        assert_eq!(refused(&[0, 0]), io::ErrorKind::UnexpectedEof);
        assert_eq!(refused(&[0xff, 0, 0, 0, b'"']), io::ErrorKind::InvalidData);
        assert_eq!(refused(&[0, 0, 0, 2, b'"']), io::ErrorKind::UnexpectedEof);
        assert_eq!(refused(&[0, 0, 0, 2, b'{', b'}']), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_silent_end_is_not_waited_for_for_ever() {
        let (one, _other) = pair();
        let late = one.receive_until::<String>(Instant::now()).unwrap_err().kind();
        assert!(matches!(late, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{late:?}");
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let (one, _other) = pair();
        let long = "x".repeat(MAX_BYTES as usize);
        assert_eq!(one.send(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
