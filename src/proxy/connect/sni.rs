//! The server name in a `ClientHello` (RFC 6066, 3), read strictly: exactly one entry, and that a host name.
//!
//! rustls accepts more, such as an entry of a type that nobody knows besides or instead of the name; another
//! implementation at the other end could go by that.

use super::record::MESSAGE_HEADER_BYTES;

const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// The version and the random of a hello.
const FIXED_BYTES: usize = 2 + 32;

/// The hello can't be read, or its server name in more than one way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Doubtful;

/// Gives the name of the `ClientHello` in `message`, if it has one.
///
/// # Errors
/// [`Doubtful`] unless every length fits and the extension, where there is one, stands once with one host name.
pub(super) fn server_name(message: &[u8]) -> Result<Option<&str>, Doubtful> {
    let mut hello = Reader(message);
    hello.take(MESSAGE_HEADER_BYTES + FIXED_BYTES)?;
    let _session = hello.short()?;
    let _ciphers = hello.long()?;
    let _compressions = hello.short()?;
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = hello.long()?;
    hello.end()?;
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let body = extensions.long()?;
        if kind == SERVER_NAME && found.replace(host_name(body)?).is_some() {
            return Err(Doubtful);
        }
    }
    Ok(found)
}

/// The one entry of the list.
fn host_name(mut extension: Reader<'_>) -> Result<&str, Doubtful> {
    let mut list = extension.long()?;
    extension.end()?;
    if list.take(1)? != [HOST_NAME] {
        return Err(Doubtful);
    }
    let name = list.long()?.0;
    list.end()?;
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() && name.is_ascii() => Ok(name),
        Ok(_) | Err(_) => Err(Doubtful),
    }
}

/// What is left to read.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Doubtful> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Doubtful)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, Doubtful> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector whose length has one byte.
    fn short(&mut self) -> Result<Self, Doubtful> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length).map(Self)
    }

    /// A vector whose length has two bytes.
    fn long(&mut self) -> Result<Self, Doubtful> {
        let length = usize::from(self.number()?);
        self.take(length).map(Self)
    }

    fn end(self) -> Result<(), Doubtful> {
        if self.0.is_empty() { Ok(()) } else { Err(Doubtful) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `ClientHello` with these extensions.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, body) in extensions {
            list.extend(kind.to_be_bytes());
            list.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            list.extend_from_slice(body);
        }
        let mut hello = vec![1, 0, 0, 0, 3, 3];
        hello.extend([5; 32]);
        hello.extend([1, 9, 0, 2, 0x13, 1, 1, 0]);
        hello.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        hello.extend(list);
        hello
    }

    #[test]
    fn n10_the_extension_holds_exactly_one_host_name() {
        let good: &[u8] = b"\0\x07\0\0\x04a.bc";
        assert_eq!(server_name(&hello(&[(10, b"x"), (0, good), (43, b"")])), Ok(Some("a.bc")));
        assert_eq!(server_name(&hello(&[(10, b"x")])), Ok(None));
        assert_eq!(server_name(&hello(&[])), Ok(None));
        let bare = hello(&[]);
        assert_eq!(server_name(&bare[..bare.len() - 2]), Ok(None), "no extensions at all");
        for body in [
            &b""[..],
            b"\0\0",
            b"\0\x03\0\0\0",
            // Another type of name; two names; a name and one of another type, in both orders.
            b"\0\x07\x01\0\x04a.bc",
            b"\0\x0e\0\0\x04a.bc\0\0\x04d.ef",
            b"\0\x0e\0\0\x04a.bc\x01\0\x04d.ef",
            b"\0\x0e\x01\0\x04d.ef\0\0\x04a.bc",
            // Lengths that don't fit, and bytes behind the list.
            b"\0\x08\0\0\x04a.bc",
            b"\0\x06\0\0\x04a.bc",
            b"\0\x07\0\0\x05a.bc",
            b"\0\x07\0\0\x04a.bcx",
            b"\0\x07\0\0\x04a.b\xc3",
        ] {
            assert_eq!(server_name(&hello(&[(0, body)])), Err(Doubtful), "{body:?}");
        }
        assert_eq!(server_name(&hello(&[(0, good), (0, good)])), Err(Doubtful));
        for cut in 0..bare.len() - 2 {
            assert_eq!(server_name(&bare[..cut]), Err(Doubtful));
        }
        assert_eq!(server_name(&[hello(&[(0, good)]), vec![0]].concat()), Err(Doubtful));
    }
}
