//! Absolute-form: one plain HTTP request, sent upstream on a connection of its own.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Uri};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::policy::Authority;

use super::Client;
use super::connect::relay::Idle;
use super::connection::{Next, Stream, Wire};
use super::dial::upstream::Upstream;
use super::head::{Framing, PlainTarget, Version};
use super::journal::Meter;
use super::pipeline::Dialled;
use super::refusal::{After, Reason, Refusal, Show};
use answer::{Answer, Broken, Wanted};
use body::{BodyError, Decoder, Upload, upload};
use hang_up::Watch;

mod answer;
mod body;
mod hang_up;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// The default port of `http://`, which a `Host` field leaves out.
const HTTP_PORT: u16 = 80;

/// A request that may go upstream.
pub(super) struct Exchange {
    pub(super) target: PlainTarget,
    pub(super) framing: Framing,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

/// Sends the request upstream and the answer back, and says how the connection to the client goes on.
pub(super) async fn exchange<S: Stream>(
    wire: &mut Wire<S>,
    client: &Client,
    exchange: Exchange,
    dialled: Dialled,
) -> Next {
    let Dialled { upstream, record, mut registration, .. } = dialled;
    let meter = Arc::clone(record.meter());
    let show = if exchange.target.method == Method::HEAD { Show::HeadOnly } else { Show::Whole };
    let mut progress = Progress { answer_begun: false, decoder: Decoder::new(exchange.framing) };
    let idle = Idle::new(&meter, &client.settings().limits);
    let watch = Watch::new(&wire.stream);
    let ran = tokio::select! {
        biased;
        reason = registration.stopped() => Err(Failure::Ended(reason)),
        reason = idle.wait() => Err(Failure::Ended(reason)),
        ran = run(wire, exchange, Metered { upstream, meter: Arc::clone(&meter) }, &mut progress) => ran,
        () = watch.gone() => Err(Failure::Client),
    };
    match ran {
        Ok(keep_alive) => {
            record.close(None);
            // What is left of the body can't be told from another request.
            if keep_alive && progress.decoder.is_complete() { Next::Request } else { Next::Close }
        }
        Err(failure) => {
            let answer = (!progress.answer_begun).then(|| failure.refusal(record.authority())).flatten();
            record.close(Some(failure.reason()));
            match answer {
                Some(refusal) => wire.refuse(client, &refusal, After::Close, show).await,
                None => Next::Abort,
            }
        }
    }
}

/// How far an exchange has come.
struct Progress {
    answer_begun: bool,
    decoder: Decoder,
}

/// Why an exchange did not come to its end.
enum Failure {
    Upstream(&'static str),
    Client,
    Body(BodyError),
    Ended(Reason),
}

impl Failure {
    fn reason(&self) -> Reason {
        match self {
            Self::Upstream(_) => Reason::UpstreamReset,
            Self::Client | Self::Body(BodyError::Gone) => Reason::ClientReset,
            Self::Body(BodyError::Malformed(_)) => Reason::BadRequest,
            Self::Ended(reason) => *reason,
        }
    }

    /// What the client is told, if it can still be told anything.
    fn refusal(&self, authority: &Authority) -> Option<Refusal> {
        match self {
            Self::Upstream(what) => Some(Refusal::connect_failed(authority, what)),
            Self::Ended(Reason::IdleTimeout | Reason::MaxDuration) => {
                Some(Refusal::connect_failed(authority, "it did not answer in time"))
            }
            Self::Ended(reason) => Some(Refusal::ended(*reason, authority)),
            Self::Body(BodyError::Malformed(what)) => Some(Refusal::bad_body(what)),
            Self::Body(BodyError::Gone) | Self::Client => None,
        }
    }
}

/// Runs one exchange, and says whether the client may send another request after the answer.
async fn run<S: Stream>(
    wire: &mut Wire<S>,
    exchange: Exchange,
    upstream: Metered,
    progress: &mut Progress,
) -> Result<bool, Failure> {
    let meter = Arc::clone(&upstream.meter);
    let (mut from_client, mut to_client) = tokio::io::split(&mut wire.stream);
    if exchange.expects_continue && exchange.framing != Framing::None && wire.buffer.is_empty() {
        to_client.write_all(CONTINUE).await.map_err(|_| Failure::Client)?;
    }
    let wanted = Wanted {
        method: exchange.target.method.clone(),
        version: exchange.version,
        keep_alive: exchange.keep_alive,
    };
    let (pieces, body) = Upload::new(exchange.framing);
    let (mut sender, connection) = http1::handshake(TokioIo::new(upstream)).await.map_err(|_| BROKEN)?;
    let request = build_request(exchange, body)?;
    let Progress { answer_begun, decoder } = progress;
    let sending = async {
        match upload(decoder, &mut from_client, &mut wire.buffer, pieces).await {
            Ok(()) => pending().await,
            Err(error) => Failure::Body(error),
        }
    };
    let answering = async {
        let answer = receive_head(&mut sender, request, &wanted).await?;
        *answer_begun = true;
        let keep_alive = answer.keep_alive;
        match answer.send(&mut to_client, &meter).await {
            Ok(()) => Ok(keep_alive),
            Err(Broken::Upstream) => Err(BROKEN),
            Err(Broken::Client) => Err(Failure::Client),
        }
    };
    let both = async {
        tokio::select! {
            biased;
            answered = answering => answered,
            failure = sending => Err(failure),
        }
    };
    alongside(both, connection).await
}

const BROKEN: Failure = Failure::Upstream("it broke the connection off before it had answered");

async fn receive_head(
    sender: &mut SendRequest<Upload>,
    request: http::Request<Upload>,
    wanted: &Wanted,
) -> Result<Answer, Failure> {
    let response = sender.send_request(request).await.map_err(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "no answer");
        if error.is_parse() { Failure::Upstream("what it answers is not HTTP") } else { BROKEN }
    })?;
    Answer::new(response, wanted).map_err(Failure::Upstream)
}

/// The request as it goes upstream: `Host` and framing are written anew, all else is end-to-end.
fn build_request(exchange: Exchange, body: Upload) -> Result<http::Request<Upload>, Failure> {
    let PlainTarget { authority, method, path, fields } = exchange.target;
    let invalid = Failure::Upstream("its name does not fit into a Host field");
    let host = HeaderValue::try_from(host_field(&authority)).map_err(|_| invalid)?;
    let has_content = matches!(method, Method::POST | Method::PUT | Method::PATCH);
    let mut request = http::Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(path);
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    for (name, value) in fields {
        headers.append(name, value);
    }
    match exchange.framing {
        Framing::Length(length) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        Framing::Chunked => drop(headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
        Framing::None if has_content => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(0))),
        Framing::None => {}
    }
    Ok(request)
}

fn host_field(authority: &Authority) -> String {
    let whole = authority.to_string();
    match whole.rsplit_once(':') {
        Some((host, _)) if authority.port() == HTTP_PORT => host.to_owned(),
        _ => whole,
    }
}

/// Drives `connection` as long as `main` runs: its own end says nothing that `main` does not see.
async fn alongside<M: Future>(main: M, connection: impl Future) -> M::Output {
    let (mut main, mut connection) = (pin!(main), pin!(connection));
    let mut connected = true;
    poll_fn(|cx| {
        if let Poll::Ready(output) = main.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        if connected && connection.as_mut().poll(cx).is_ready() {
            connected = false;
        }
        Poll::Pending
    })
    .await
}

/// The connection to an upstream, with its bytes counted.
struct Metered {
    upstream: Upstream,
    meter: Arc<Meter>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.upstream).poll_read(cx, buffer))?;
        self.meter.add_down(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.upstream).poll_write(cx, bytes))?;
        self.meter.add_up(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.upstream).poll_write_vectored(cx, slices))?;
        self.meter.add_up(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.upstream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.upstream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.upstream).poll_shutdown(cx)
    }
}
