//! CONNECT: the answer, the check of the `ClientHello`, the tunnel.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::policy::{Authority, Host};

use super::admission::tunnels::Registration;
use super::connection::{Next, Stream, Wire};
use super::dial::upstream::Upstream;
use super::journal::{Meter, OpenRecord};
use super::pipeline::Dialled;
use super::refusal::Reason;
use super::{Client, Limits};
use hello::HelloError;
use relay::{End, Idle, relay};
use retry::{Ends, Unsettled};

mod hello;
mod record;
pub(super) mod relay;
mod retry;
mod sni;
pub(super) mod splice;

#[cfg(fuzzing)]
pub(super) use hello::fuzz as fuzz_hello;

/// The port on which nothing but TLS may flow.
const TLS_PORT: u16 = 443;
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What may flow inside of a tunnel.
pub(super) enum Inside {
    /// TLS to this host, and nothing else (N10, T8).
    Tls(Host),
    /// Whatever the two ends like.
    Anything,
}

impl Inside {
    pub(super) fn of(authority: &Authority) -> Self {
        if authority.port() == TLS_PORT { Self::Tls(authority.host().clone()) } else { Self::Anything }
    }
}

/// A tunnel whose first bytes are checked and wait to go upstream.
pub(super) struct Tunnel {
    upstream: Upstream,
    record: OpenRecord,
    registration: Registration,
}

/// Tells the client that its tunnel stands, and lets no byte upstream before it is known where it belongs.
///
/// In a tunnel for TLS the first hello goes upstream here, and what the upstream says to it comes back.
pub(super) async fn establish<S: Stream>(
    wire: &mut Wire<S>,
    client: &Client,
    inside: Inside,
    dialled: Dialled,
) -> Next {
    let Dialled { mut upstream, record, mut registration, .. } = dialled;
    let prepared = tokio::select! {
        biased;
        reason = registration.stopped() => Err(Stopped::Ended(reason)),
        prepared = prepare(wire, client, &inside, &mut upstream, record.meter()) => prepared,
    };
    match prepared {
        Ok(()) => Next::Tunnel(Box::new(Tunnel { upstream, record, registration })),
        Err(Stopped::Ended(reason)) => {
            record.close(Some(reason));
            Next::Abort
        }
        Err(Stopped::Hello(error)) => {
            if let Some(reason) = error.reason() {
                let authority = record.authority();
                tracing::info!(
                    host = %authority.host(),
                    port = authority.port(),
                    decision = "deny",
                    reason = reason.code()
                );
                record.deny(reason, Some(&error.to_string()));
            }
            record.close(error.reason());
            Next::Close
        }
    }
}

/// Why a tunnel does not come to carry bytes freely.
enum Stopped {
    Ended(Reason),
    Hello(HelloError),
}

async fn prepare<S: Stream>(
    wire: &mut Wire<S>,
    client: &Client,
    inside: &Inside,
    upstream: &mut Upstream,
    meter: &Meter,
) -> Result<(), Stopped> {
    let patience = client.settings().limits.hello_timeout;
    match timeout(patience, wire.stream.write_all(ESTABLISHED)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return Err(Stopped::Ended(Reason::ClientReset)),
    }
    let Inside::Tls(host) = inside else { return Ok(()) };
    let idle = Idle::new(meter, &client.settings().limits);
    let checked = check_hellos(wire, host, upstream, idle, patience).await;
    if matches!(checked, Err(Stopped::Hello(HelloError::OtherName(_) | HelloError::NoName))) {
        // The tunnel is refused whether or not the client still hears why.
        let _ = timeout(patience, wire.stream.write_all(&hello::UNRECOGNIZED_NAME)).await;
    }
    checked
}

/// Checks the first hello before a byte goes upstream, and the second one, if the upstream asks for it.
async fn check_hellos<S: Stream>(
    wire: &mut Wire<S>,
    host: &Host,
    upstream: &mut Upstream,
    idle: Idle<'_>,
    patience: Duration,
) -> Result<(), Stopped> {
    let (stream, buffer) = (&mut wire.stream, &mut wire.buffer);
    let first = hello::check(stream, buffer, host, patience).await.map_err(Stopped::Hello)?;
    let mut ends = Ends { client: stream, upstream, buffer, meter: idle.meter };
    tokio::select! {
        biased;
        reason = idle.wait() => Err(Stopped::Ended(reason)),
        settled = ends.settle(first, host, patience) => settled.map_err(|error| match error {
            Unsettled::Hello(error) => Stopped::Hello(error),
            Unsettled::Broken(reason) => Stopped::Ended(reason),
        }),
    }
}

impl Tunnel {
    /// The tunnel that a request has become whose upstream agreed to change the protocol (T6).
    pub(super) fn upgraded(upstream: Upstream, record: OpenRecord, registration: Registration) -> Box<Self> {
        Box::new(Self { upstream, record, registration })
    }

    /// Carries bytes until the tunnel ends, and writes how it ended.
    pub(super) async fn run<S: Stream>(self: Box<Self>, wire: Wire<S>, limits: &Limits) {
        let Self { mut upstream, record, mut registration } = *self;
        let Wire { mut stream, buffer } = wire;
        let early = if buffer.is_empty() { Vec::new() } else { buffer.to_vec() };
        drop(buffer);
        let idle = Idle::new(record.meter(), limits);
        let end: End = tokio::select! {
            biased;
            reason = registration.stopped() => Err(reason),
            end = relay(&mut stream, &mut upstream, early, idle) => end,
        };
        if end.is_err() {
            stream.abort();
            upstream.abort();
        }
        record.close(end.err());
    }
}
