//! Absolute-form: one plain HTTP request, its answer, and what the connection to the upstream becomes: kept for
//! another request, a tunnel (WebSocket), or nothing.

use std::future::pending;
use std::sync::Arc;

use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Uri};
use tokio::io::AsyncWriteExt as _;

use crate::policy::{Authority, Via};

use super::Client;
use super::connect::Tunnel;
use super::connect::relay::Idle;
use super::connection::{Next, Stream, Wire};
use super::dial::failure::DialError;
use super::dial::upstream::Upstream as Dialled;
use super::head::{Framing, Head, PlainTarget, Target};
use super::journal::{Meter, OpenRecord};
use super::pipeline::{self, Line, Reached, Reuse};
use super::refusal::{After, Reason, Refusal, Show};
use answer::{Answer, Broken, Wanted};
use body::{BodyError, Decoder, Upload, upload};
use shared::{Lost, Shared};
use upstream::Upstream;

pub(super) use pool::{Origin, Pool, Taken};

mod answer;
pub(super) mod beat;
mod body;
mod pool;
pub(super) mod shared;
mod upstream;

#[cfg(fuzzing)]
pub(super) use body::fuzz as fuzz_chunked;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request that may go upstream.
#[derive(Clone, Copy)]
pub(super) struct Exchange<'a> {
    pub(super) target: &'a PlainTarget,
    pub(super) head: &'a Head,
}

/// Whether a request may use a kept connection: only if it could be sent again, should that prove closed.
pub(super) fn reuse(head: &Head) -> Reuse {
    let repeats =
        |method: &Method| matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
    match &head.target {
        Target::Plain(plain) if head.framing == Framing::None && repeats(&plain.method) => Reuse::Allowed,
        _ => Reuse::Never,
    }
}

/// Sends the request upstream and the answer back, and says how the connection to the client goes on.
pub(super) async fn exchange<S: Stream>(
    wire: &mut Wire<S>,
    client: &Client,
    exchange: Exchange<'_>,
    reached: Reached,
) -> Next {
    let Reached { upstream, origin, mut record, mut registration, passage } = reached;
    let meter = Arc::clone(record.meter());
    let show = if exchange.target.method == Method::HEAD { Show::HeadOnly } else { Show::Whole };
    let mut progress = Progress { answer_begun: false, decoder: Decoder::new(exchange.head.framing) };
    let idle = Idle::new(&meter, &client.settings().limits);
    let shared = Shared::new(&mut wire.stream);
    let ends = Ends { client, shared: &shared, buffer: &mut wire.buffer, meter: &meter, record: &mut record };
    let ran = tokio::select! {
        biased;
        reason = registration.stopped() => Err(Failure::Ended(reason)),
        ran = run(ends, exchange, upstream, &mut progress) => ran,
        lost = shared.lost(idle, &client.beat) => Err(match lost {
            Lost::Client => Failure::Client,
            Lost::Patience(reason) => Failure::Ended(reason),
        }),
    };
    match ran {
        Ok(Outcome::Answered { keep_alive, upstream }) => {
            if let Some(upstream) = upstream {
                client.pool.keep(upstream, origin, passage);
            }
            record.close(None);
            // What is left of the body can't be told from another request.
            if keep_alive && progress.decoder.is_complete() { Next::Request } else { Next::Close }
        }
        Ok(Outcome::Switched(upstream)) => Next::Tunnel(Tunnel::upgraded(upstream, record, registration)),
        Err(failure) => {
            let answer = (!progress.answer_begun).then(|| failure.refusal(record.authority())).flatten();
            match failure.detail() {
                Some(detail) => record.fail(failure.reason(), detail),
                None => record.close(Some(failure.reason())),
            }
            match answer {
                Some(refusal) => wire.refuse(client, &refusal, After::Close, show).await,
                None => Next::Abort,
            }
        }
    }
}

/// What an exchange works with besides its request and its upstream.
struct Ends<'a, S> {
    client: &'a Client,
    shared: &'a Shared<'a, S>,
    buffer: &'a mut BytesMut,
    meter: &'a Arc<Meter>,
    record: &'a mut OpenRecord,
}

/// How far an exchange has come.
struct Progress {
    answer_begun: bool,
    decoder: Decoder,
}

/// How an exchange came to its end.
enum Outcome {
    Answered {
        /// Whether the client may send another request.
        keep_alive: bool,
        /// The connection, when it may serve another request.
        upstream: Option<Box<Upstream>>,
    },
    /// What follows is no HTTP.
    Switched(Dialled),
}

/// Why an exchange did not come to its end.
enum Failure {
    /// The kept connection was closed, and there is no other one.
    Dial(DialError),
    /// The upstream broke the connection off.
    Broken,
    /// What the upstream answers can't be passed on.
    Answer(&'static str),
    Client,
    Body(BodyError),
    Ended(Reason),
}

impl Failure {
    /// Says why there is no answer that could be read.
    fn unanswered(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            Self::Answer("the head of its answer is too large")
        } else if error.is_parse() {
            Self::Answer("what it answers is not HTTP")
        } else {
            Self::Broken
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Dial(DialError::Exhausted(_)) => Reason::Overloaded,
            Self::Dial(DialError::Unconnected(_) | DialError::Proxy(_)) | Self::Answer(_) => {
                Reason::ConnectFailed
            }
            Self::Broken => Reason::UpstreamReset,
            Self::Client | Self::Body(BodyError::Gone) => Reason::ClientReset,
            Self::Body(BodyError::Malformed(_)) => Reason::BadRequest,
            Self::Ended(reason) => *reason,
        }
    }

    /// What the audit log keeps besides the reason.
    fn detail(&self) -> Option<String> {
        match self {
            Self::Dial(error) => Some(error.detail()),
            Self::Answer(what) => Some((*what).to_owned()),
            Self::Broken | Self::Client | Self::Body(_) | Self::Ended(_) => None,
        }
    }

    /// What the client is told, if it can still be told anything.
    fn refusal(&self, authority: &Authority) -> Option<Refusal> {
        match self {
            Self::Dial(error) => Some(Refusal::undialled(authority, error)),
            Self::Broken => {
                let what = "it broke the connection off before it had answered";
                Some(Refusal::connect_failed(authority, what))
            }
            Self::Answer(what) => Some(Refusal::connect_failed(authority, what)),
            Self::Ended(Reason::IdleTimeout | Reason::MaxDuration) => {
                Some(Refusal::connect_failed(authority, "it did not answer in time"))
            }
            Self::Ended(reason) => Some(Refusal::ended(*reason, authority).closed()),
            Self::Body(BodyError::Malformed(what)) => Some(Refusal::bad_body(what).closed()),
            Self::Body(BodyError::Gone) | Self::Client => None,
        }
    }
}

/// Runs one exchange. A request that dies with a kept connection, before a byte of its answer, is sent once more.
async fn run<S: Stream>(
    mut ends: Ends<'_, S>,
    exchange: Exchange<'_>,
    line: Line,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let head = exchange.head;
    if head.expects_continue && head.framing != Framing::None && ends.buffer.is_empty() {
        let mut to_client = ends.shared;
        to_client.write_all(CONTINUE).await.map_err(|_| Failure::Client)?;
    }
    let (stream, address) = match line {
        Line::Fresh(stream, address) => (stream, address),
        Line::Kept(mut taken) => {
            taken.upstream.count_for(ends.meter);
            match attempt(&mut taken.upstream, exchange, &mut ends, progress).await {
                Err(Failure::Broken) if ends.meter.bytes_down() == 0 => {
                    let dialled = pipeline::connect(ends.client, taken.give_up()).await;
                    let (stream, address) = dialled.map_err(Failure::Dial)?;
                    ends.record.connected(address);
                    (stream, address)
                }
                answered => return conclude(taken.upstream, answered?, &ends).await,
            }
        }
    };
    let mut upstream = Upstream::new(stream, address, ends.meter).await.map_err(|_| Failure::Broken)?;
    let answered = attempt(&mut upstream, exchange, &mut ends, progress).await?;
    conclude(upstream, answered, &ends).await
}

/// What the client has been given.
enum Answered {
    Whole { keep_alive: bool, has_certain_end: bool },
    Switch,
}

/// Sends the request over `upstream` and the answer to the client.
async fn attempt<S: Stream>(
    upstream: &mut Upstream,
    exchange: Exchange<'_>,
    ends: &mut Ends<'_, S>,
    progress: &mut Progress,
) -> Result<Answered, Failure> {
    let wanted = Wanted::of(exchange);
    let (pieces, body) = Upload::new(exchange.head.framing);
    let response = upstream.send(build_request(exchange, body));
    let (mut from_client, mut to_client) = (ends.shared, ends.shared);
    let Progress { answer_begun, decoder } = progress;
    let sending = async {
        match upload(decoder, &mut from_client, ends.buffer, pieces).await {
            Ok(()) => pending().await,
            Err(error) => Failure::Body(error),
        }
    };
    let answering = async {
        let response = response.await.map_err(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "no answer");
            Failure::unanswered(&error)
        })?;
        let answer = Answer::new(response, &wanted).map_err(Failure::Answer)?;
        *answer_begun = true;
        let answered = if answer.begins_tunnel() {
            Answered::Switch
        } else {
            Answered::Whole { keep_alive: answer.keep_alive, has_certain_end: answer.has_certain_end }
        };
        match answer.send(&mut to_client, ends.meter).await {
            Ok(()) => Ok(answered),
            Err(Broken::Upstream) => Err(Failure::Broken),
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
    upstream.alongside(both).await
}

/// Decides what becomes of the connection to the upstream after an answer.
async fn conclude<S: Stream>(
    mut upstream: Box<Upstream>,
    answered: Answered,
    ends: &Ends<'_, S>,
) -> Result<Outcome, Failure> {
    match answered {
        Answered::Whole { keep_alive, has_certain_end } => {
            let is_settled = has_certain_end && upstream.is_settled().await;
            Ok(Outcome::Answered { keep_alive, upstream: is_settled.then_some(upstream) })
        }
        Answered::Switch => {
            let (stream, early) = upstream.into_stream().await;
            let mut to_client = ends.shared;
            to_client.write_all(&early).await.map_err(|_| Failure::Client)?;
            Ok(Outcome::Switched(stream))
        }
    }
}

/// The request as it goes upstream: `Host` and framing are written anew, all else is end-to-end.
fn build_request(exchange: Exchange<'_>, body: Upload) -> http::Request<Upload> {
    let PlainTarget { authority, method, path, fields } = exchange.target;
    let host = HeaderValue::try_from(host_field(authority)).expect("an authority is printable ASCII");
    let has_content = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    let mut request = http::Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = Uri::from(path.clone());
    let headers = request.headers_mut();
    headers.reserve(fields.len() + 3);
    headers.insert(HOST, host);
    for (name, value) in fields {
        headers.append(name.clone(), value.clone());
    }
    if exchange.head.wants_websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    match exchange.head.framing {
        Framing::Length(length) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        Framing::Chunked => drop(headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
        Framing::None if has_content => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(0))),
        Framing::None => {}
    }
    request
}

fn host_field(authority: &Authority) -> String {
    let whole = authority.to_string();
    match whole.rsplit_once(':') {
        Some((host, _)) if authority.port() == Via::Plain.default_port() => host.to_owned(),
        _ => whole,
    }
}
