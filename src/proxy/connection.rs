//! One connection of a client: its requests one after the other, until it ends or becomes a tunnel.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::policy::{Authority, Rule};

use super::Client;
use super::admission::REFUSAL_PAUSE;
use super::admission::tunnels::ConnectionId;
use super::connect::splice::Spliceable;
use super::connect::{self, Inside, Tunnel};
use super::head::{Framing, Head, Parser, Target};
use super::journal::{Connected, Step};
use super::pipeline::{Accepted, Dialled, Reached, Recorded};
use super::plain::beat::Beat;
use super::plain::shared::{has_ended, has_hung_up};
use super::plain::{self, Exchange};
use super::refusal::{After, Reason, Refusal, Show};

/// How long, and for how many bytes, a client is listened to after the last answer, so that a close with bytes
/// unread does not destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;
/// What is read at once from a client that sends a request.
const READ_BYTES: usize = 4 << 10;

/// A connection to a client, by whatever socket.
pub trait Stream: AsyncRead + AsyncWrite + AsFd + Spliceable + Unpin + Send + Sync + 'static {
    /// Closes so that the peer does not take what it received for the whole, where the kind of socket can say so.
    fn abort(self);
}

/// A client's connection and what was read from it but not yet used.
pub(super) struct Wire<S> {
    pub(super) stream: S,
    pub(super) buffer: BytesMut,
}

/// The client as it is known while its request is judged.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) connection: ConnectionId,
    /// Whether it waits for a human.
    is_held: AtomicBool,
    /// Whether it ever did.
    was_held: AtomicBool,
}

/// Holds a client until a human has answered.
pub(super) struct Hold<'a>(&'a Caller);

impl Caller {
    pub(super) fn new(connection: ConnectionId) -> Self {
        Self { connection, is_held: AtomicBool::new(false), was_held: AtomicBool::new(false) }
    }

    pub(super) fn hold(&self) -> Hold<'_> {
        self.is_held.store(true, Ordering::Relaxed);
        self.was_held.store(true, Ordering::Relaxed);
        Hold(self)
    }

    /// Tells how long a step took that began at `since`, unless it was a human who took the time.
    fn measure(&self, client: &Client, step: Step, since: Instant) {
        if !self.was_held.load(Ordering::Relaxed) {
            client.measure(step, since.into_std());
        }
    }

    /// Waits until the client has gone. A human is not asked for one that has ended its own direction, either: behind
    /// the relay, that is all that shows of a client that was killed.
    async fn gone(&self, socket: &impl AsFd, beat: &Arc<Beat>) {
        loop {
            beat.next().await;
            if has_hung_up(socket) || self.is_held.load(Ordering::Relaxed) && has_ended(socket) {
                return;
            }
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.is_held.store(false, Ordering::Relaxed);
    }
}

/// How a connection goes on after a request.
pub(super) enum Next {
    /// With the next request.
    Request,
    /// It ends, and the client may still read what was sent.
    Close,
    /// It ends, and nothing is on its way to the client.
    End,
    /// It is broken off: what the client has received is not the whole.
    Abort,
    /// As a tunnel.
    Tunnel(Box<Tunnel>),
}

/// Serves one connection until it ends.
pub(super) async fn serve<S: Stream>(stream: S, client: Arc<Client>, id: ConnectionId) {
    let _connected = Connected::new(&client.services.journal);
    let mut wire = Wire { stream, buffer: BytesMut::new() };
    loop {
        // In a box, so that a tunnel does not carry the state of the request that opened it.
        match Box::pin(serve_request(&mut wire, &client, id)).await {
            Next::Request => {}
            Next::Close => return wire.close().await,
            Next::End => return,
            Next::Abort => return wire.stream.abort(),
            Next::Tunnel(tunnel) => return tunnel.run(wire, &client.settings().limits).await,
        }
    }
}

async fn serve_request<S: Stream>(wire: &mut Wire<S>, client: &Client, id: ConnectionId) -> Next {
    let mut ending = client.tunnels.ending();
    let head = tokio::select! {
        biased;
        _ = ending.wait_for(Option::is_some) => return Next::End,
        head = wire.read_head(client) => head,
    };
    let head = match head {
        Ok(Some(mut head)) => {
            head.keep_alive &= !client.is_draining();
            head
        }
        Ok(None) => return Next::End,
        Err(refusal) => {
            let refusal = client.refuse_stranger(refusal);
            return wire.refuse(client, &refusal, After::Close, Show::Whole).await;
        }
    };
    let started = Instant::now();
    let authority = head.target.authority();
    let caller = Caller::new(id);
    // Neither the name servers nor the upstream are waited for when nobody waits for them.
    let refusal = match &head.target {
        Target::Connect(authority) => {
            let opened = tokio::select! {
                biased;
                opened = open(client, &caller, &head) => opened,
                () = caller.gone(&wire.stream, &client.beat) => return Next::End,
            };
            caller.measure(client, Step::of(&opened), started);
            log_decision(authority, opened.as_ref().map(|dialled| &dialled.rule), started);
            match opened {
                Ok(dialled) => return connect::establish(wire, client, Inside::of(authority), dialled).await,
                Err(refusal) => refusal,
            }
        }
        Target::Plain(target) => {
            let reached = tokio::select! {
                biased;
                reached = reach(client, &caller, &head) => reached,
                () = caller.gone(&wire.stream, &client.beat) => return Next::End,
            };
            caller.measure(client, Step::of(&reached), started);
            log_decision(authority, reached.as_ref().map(|reached| reached.origin.rule()), started);
            match reached {
                Ok(reached) => {
                    return plain::exchange(wire, client, Exchange { target, head: &head }, reached).await;
                }
                Err(refusal) => refusal,
            }
        }
    };
    let (after, show) = wire.after_refusal(&head);
    wire.refuse(client, &refusal, after, show).await
}

/// The way of one request, readable from top to bottom.
async fn open(client: &Client, caller: &Caller, head: &Head) -> Result<Dialled, Refusal> {
    recorded(client, caller, head).await?.dial().await
}

async fn recorded<'a>(
    client: &'a Client,
    caller: &'a Caller,
    head: &'a Head,
) -> Result<Recorded<'a>, Refusal> {
    let started = Instant::now();
    let accepted = Accepted { client, caller, head };
    let recorded = accepted.authenticate()?.evaluate().await?.resolve().await?.record().await?;
    caller.measure(client, Step::Decide, started);
    Ok(recorded)
}

/// The same way for absolute-form, where a connection that was kept may serve.
async fn reach(client: &Client, caller: &Caller, head: &Head) -> Result<Reached, Refusal> {
    recorded(client, caller, head).await?.reach(plain::reuse(head)).await
}

/// For developers: what users see of it stands in the audit log.
fn log_decision(authority: &Authority, opened: Result<&Arc<Rule>, &Refusal>, started: Instant) {
    let (decision, reason, rule) = match opened {
        Ok(rule) => ("allow", None, Some(rule)),
        Err(refusal) => ("deny", Some(refusal.reason().code()), refusal.rule()),
    };
    tracing::info!(
        host = %authority.host(),
        port = authority.port(),
        decision,
        reason,
        rule = rule.map(tracing::field::display),
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    );
}

impl<S: Stream> Wire<S> {
    /// Reads the next request head; `None` when the client has ended or stayed silent between two requests.
    async fn read_head(&mut self, client: &Client) -> Result<Option<Head>, Refusal> {
        let settings = client.settings();
        let limits = &settings.limits;
        if self.buffer.is_empty() {
            let first = client.admission.idle(timeout(limits.keep_alive, self.read())).await;
            if !matches!(first, Some(Ok(Ok(1..)))) {
                return Ok(None);
            }
        }
        let deadline = Instant::now() + limits.head_timeout;
        let mut parser = Parser::default();
        loop {
            if let Some(head) = parser.parse(&mut self.buffer).map_err(|error| Refusal::bad_head(&error))? {
                return Ok(Some(head));
            }
            match timeout_at(deadline, self.read()).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return Ok(None),
                Err(_) => return Err(Refusal::head_timeout(limits.head_timeout)),
            }
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Writes the refusal into the audit log and to the client.
    pub(super) async fn refuse(
        &mut self,
        client: &Client,
        refusal: &Refusal,
        after: After,
        show: Show,
    ) -> Next {
        client.write_denial(refusal);
        if refusal.reason() == Reason::RateLimited {
            sleep(REFUSAL_PAUSE).await;
        }
        let answer = refusal.render(after, show);
        match (timeout(client.settings().limits.head_timeout, self.stream.write_all(&answer)).await, after) {
            (Ok(Ok(())), After::KeepAlive) => Next::Request,
            (Ok(Ok(())), After::Close) => Next::Close,
            (Ok(Err(_)) | Err(_), _) => Next::Abort,
        }
    }

    /// How a request is refused that was understood: the connection is kept only when nothing is left of it.
    pub(super) fn after_refusal(&self, head: &Head) -> (After, Show) {
        // Behind a CONNECT there may be bytes for the tunnel already, and behind the wish for a WebSocket its frames:
        // they are no request.
        let (certain, show) = match &head.target {
            Target::Connect(_) => (self.buffer.is_empty(), Show::Whole),
            Target::Plain(plain) if plain.method == http::Method::HEAD => (true, Show::HeadOnly),
            Target::Plain(_) => (!head.wants_websocket, Show::Whole),
        };
        let after = if certain && head.keep_alive && head.framing == Framing::None {
            After::KeepAlive
        } else {
            After::Close
        };
        (after, show)
    }

    /// Ends the connection so that the client can read the last answer to its end.
    pub(super) async fn close(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        // Whatever comes of it, the connection ends.
        let _ = timeout(LINGER, async {
            let mut left = LINGER_BYTES;
            while left > 0 {
                self.buffer.clear();
                match self.read().await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
