//! What comes between the first `ClientHello` and a free tunnel: an upstream may ask for a second hello (RFC 8446,
//! 4.1.4), and goes by the name in that one. It has to be the authorised host, too (N10).
//!
//! Until the upstream has begun its answer, nothing of the client follows its first hello: a second one could be on
//! its way already. That holds back early data (RFC 8446, 2.3) for as long as the answer takes, and nothing else.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::hello::{self, HelloError};
use super::record::{self, Record};
use crate::policy::Host;
use crate::proxy::journal::Meter;
use crate::proxy::refusal::Reason;

/// What is read from a client that does not wait for the answer.
const MAX_HELD_BYTES: usize = 16 << 10;
/// How far into what the upstream says its hello is looked for: alerts may stand before it.
const MAX_BEFORE_HELLO_BYTES: usize = 1 << 10;
/// The largest request for another hello, in bytes with the headers of its records.
const MAX_RETRY_BYTES: usize = 64 << 10;
const SERVER_HELLO: u8 = 2;
/// Where the random of a hello begins: behind the header of the message and a version.
const RANDOM_AT: usize = record::MESSAGE_HEADER_BYTES + 2;
/// The random of a `ServerHello` that is a `HelloRetryRequest` (RFC 8446, 4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Why a tunnel does not become free.
#[derive(Debug)]
pub(super) enum Unsettled {
    Hello(HelloError),
    Broken(Reason),
}

/// The two ends of a tunnel that is not free yet.
pub(super) struct Ends<'a, C, U> {
    pub(super) client: &'a mut C,
    pub(super) upstream: &'a mut U,
    /// What was read from the client and not sent on.
    pub(super) buffer: &'a mut BytesMut,
    pub(super) meter: &'a Meter,
}

impl<C, U> Ends<'_, C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// Sends the first `hello_bytes` on, and returns once the rest may flow freely: it stays in the buffer.
    pub(super) async fn settle(
        &mut self,
        hello_bytes: usize,
        host: &Host,
        patience: Duration,
    ) -> Result<(), Unsettled> {
        self.send(hello_bytes).await?;
        match self.answer().await? {
            Answer::Final => Ok(()),
            Answer::Retry => {
                let late = |_| HelloError::NotTls("no second ClientHello came in time".to_owned());
                let second = timeout(patience, self.skip_to_hello()).await;
                match second.map_err(late).map_err(Unsettled::Hello)?? {
                    Client::Ended => Ok(()),
                    Client::Speaks => hello::check(self.client, self.buffer, host, patience)
                        .await
                        .map(drop)
                        .map_err(Unsettled::Hello),
                }
            }
        }
    }

    async fn send(&mut self, bytes: usize) -> Result<(), Unsettled> {
        let bytes = self.buffer.split_to(bytes);
        self.upstream.write_all(&bytes).await.map_err(|_| Unsettled::Broken(Reason::UpstreamReset))?;
        self.meter.add_up(bytes.len());
        Ok(())
    }

    /// Passes the beginning of the upstream's answer on, until it is known what that is.
    async fn answer(&mut self) -> Result<Answer, Unsettled> {
        let (mut seen, mut passed) = (BytesMut::with_capacity(MAX_BEFORE_HELLO_BYTES), 0);
        let mut client_speaks = true;
        loop {
            tokio::select! {
                biased;
                read = self.upstream.read_buf(&mut seen) => match read {
                    // It can't ask any more.
                    Ok(0) => return Ok(Answer::Final),
                    Ok(_) => {}
                    Err(_) => return Err(Unsettled::Broken(Reason::UpstreamReset)),
                },
                read = self.client.read_buf(self.buffer),
                    if client_speaks && self.buffer.len() < MAX_HELD_BYTES =>
                {
                    match read {
                        // No second hello can come.
                        Ok(0) if self.buffer.is_empty() => return Ok(Answer::Final),
                        Ok(0) => client_speaks = false,
                        Ok(_) => {}
                        Err(_) => return Err(Unsettled::Broken(Reason::ClientReset)),
                    }
                    continue;
                }
            }
            let written = self.client.write_all(&seen[passed..]).await;
            written.map_err(|_| Unsettled::Broken(Reason::ClientReset))?;
            self.meter.add_down(seen.len() - passed);
            passed = seen.len();
            match classify(&seen) {
                Progress::Known(answer) => return Ok(answer),
                Progress::Retrying if passed > MAX_RETRY_BYTES => {
                    return Err(Unsettled::Broken(Reason::UpstreamReset));
                }
                Progress::Unknown if passed > MAX_BEFORE_HELLO_BYTES => return Ok(Answer::Final),
                Progress::Retrying | Progress::Unknown => {}
            }
        }
    }

    /// Sends on what may stand before the second hello: records of other types, which name no host.
    async fn skip_to_hello(&mut self) -> Result<Client, Unsettled> {
        loop {
            match record::split(self.buffer) {
                Some((Record { kind: record::HANDSHAKE, .. }, _)) => return Ok(Client::Speaks),
                Some((record, _)) => match record.kind {
                    record::CHANGE_CIPHER_SPEC | record::ALERT | record::APPLICATION_DATA => {
                        if record.is_whole() {
                            let bytes = record.whole_bytes();
                            self.send(bytes).await?;
                            continue;
                        }
                    }
                    _ => {
                        let what = "something else than TLS follows the first ClientHello".to_owned();
                        return Err(Unsettled::Hello(HelloError::NotTls(what)));
                    }
                },
                None => {}
            }
            match self.client.read_buf(self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Ok(Client::Ended),
                Ok(0) => return Err(Unsettled::Hello(HelloError::Gone)),
                Ok(_) => {}
                Err(_) => return Err(Unsettled::Broken(Reason::ClientReset)),
            }
        }
    }
}

/// Whether a client goes on.
enum Client {
    Speaks,
    Ended,
}

/// What an upstream answered to the first hello.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It wants a second one.
    Retry,
    /// It takes the first, or does not: no other can follow.
    Final,
}

/// What is known of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Known(Answer),
    /// It asks for a second hello, and has not said all of it.
    Retrying,
    Unknown,
}

/// Looks for a `ServerHello` at the beginning of what an upstream said, behind alerts, in records of any size.
fn classify(bytes: &[u8]) -> Progress {
    let (mut message, mut rest) = (Vec::new(), bytes);
    while let Some((record, after)) = record::split(rest) {
        match record.kind {
            record::ALERT if message.is_empty() => {}
            record::HANDSHAKE => message.extend_from_slice(record.body),
            _ if message.is_empty() => return Progress::Known(Answer::Final),
            // What stands behind the hello says nothing: in compatibility mode a change_cipher_spec comes with a
            // request for another one, too (RFC 8446, D.4).
            _ => break,
        }
        if !record.is_whole() {
            break;
        }
        rest = after;
    }
    if message.first().is_some_and(|kind| *kind != SERVER_HELLO) {
        return Progress::Known(Answer::Final);
    }
    match message.get(RANDOM_AT..RANDOM_AT + RETRY_RANDOM.len()) {
        None => Progress::Unknown,
        Some(random) if *random != RETRY_RANDOM => Progress::Known(Answer::Final),
        Some(_) if record::message_bytes(&message).is_some_and(|whole| message.len() >= whole) => {
            Progress::Known(Answer::Retry)
        }
        Some(_) => Progress::Retrying,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE_CIPHER_SPEC: &[u8] = &[20, 3, 3, 0, 1, 1];

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        [&[SERVER_HELLO, 0, 0, 44, 3, 3][..], &random, &[0, 0x13, 1, 0, 0, 4, 0, 43, 0, 0]].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |piece: &[u8]| [&[22, 3, 3, 0, u8::try_from(piece.len()).unwrap()], piece].concat();
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn n10_a_hello_retry_request_is_known_in_records_of_any_size() {
        for size in 1..=48 {
            for alerts in [&b""[..], &[21, 3, 3, 0, 2, 1, 112]] {
                let retry = [alerts, &records(&server_hello(RETRY_RANDOM), size)].concat();
                assert_eq!(classify(&retry), Progress::Known(Answer::Retry), "{size}");
                // What an upstream says at once with it.
                for behind in [CHANGE_CIPHER_SPEC, &[21, 3, 3, 0, 2, 1, 0], &[23, 3, 3, 0, 1, 0]] {
                    let more = [&retry[..], behind].concat();
                    assert_eq!(classify(&more), Progress::Known(Answer::Retry), "{size} {behind:?}");
                }
                for cut in 0..retry.len() {
                    let progress = classify(&retry[..cut]);
                    assert!(!matches!(progress, Progress::Known(_)), "{size} {cut} {progress:?}");
                }
                let other = [alerts, &records(&server_hello([7; 32]), size)].concat();
                assert_eq!(classify(&other), Progress::Known(Answer::Final), "{size}");
            }
        }
    }

    #[test]
    fn n10_a_request_that_another_record_interrupts_frees_no_tunnel() {
        let begun = records(&server_hello(RETRY_RANDOM)[..40], 16);
        for behind in [CHANGE_CIPHER_SPEC, &[23, 3, 3, 0, 1, 0]] {
            assert_eq!(classify(&[&begun[..], behind].concat()), Progress::Retrying, "{behind:?}");
        }
    }

    #[test]
    fn n10_all_else_is_no_hello_retry_request() {
        for bytes in
            [&[23, 3, 3, 0, 1, 0][..], b"HTTP/1.1 400\r\n", &[22, 3, 3, 0, 1, 11], CHANGE_CIPHER_SPEC]
        {
            assert_eq!(classify(bytes), Progress::Known(Answer::Final), "{bytes:?}");
        }
        assert_eq!(classify(&[21, 3, 3, 0, 2, 2, 40]), Progress::Unknown);
    }
}
