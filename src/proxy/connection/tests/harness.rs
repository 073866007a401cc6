//! A proxy with scripted surroundings: rules, names, journal.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::name::{CloisterName, ProjectName};
use crate::policy::{
    DomainName, DomainPattern, Origin, OriginKind, Pattern, Policy, PolicyInput, Question, Rule, Unlisted,
};
use crate::proxy::admission::tunnels::ConnectionId;
use crate::proxy::connect::{Inside, establish};
use crate::proxy::connection::Next;
use crate::proxy::connection::{Caller, Wire, open, serve};
use crate::proxy::{
    Client, Decider, Deciding, Descriptors, Event, EventKind, Identity, Journal, JournalError, Limits,
    Outbound, Policies, Resolve, ResolveError, Resolving, Services, Settings, Verdict,
};
use crate::token::{HashedToken, PlainToken};

/// Longer than any step of a test takes, so that a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the surroundings of a proxy are.
pub(super) struct Script {
    pub(super) allow: Vec<String>,
    pub(super) deny: Vec<String>,
    pub(super) unlisted: Unlisted,
    pub(super) private: Vec<String>,
    /// Names pinned to 127.0.0.1.
    pub(super) pins: Vec<String>,
    /// What the DNS answers, one question after the other.
    pub(super) answers: Vec<Result<Vec<IpAddr>, ResolveError>>,
    /// The addresses of this machine.
    pub(super) own: Vec<IpAddr>,
    pub(super) journal_fails: bool,
    pub(super) limits: Limits,
    pub(super) descriptors: Arc<Descriptors>,
    pub(super) outbound: Outbound,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            unlisted: Unlisted::Reject,
            private: Vec::new(),
            pins: vec!["origin.test".to_owned()],
            answers: Vec::new(),
            own: Vec::new(),
            journal_fails: false,
            limits: Limits::default(),
            descriptors: Arc::new(Descriptors::new(20_000)),
            outbound: Outbound::Direct,
        }
    }
}

impl Script {
    pub(super) fn allowing(pattern: impl Into<String>) -> Self {
        Self { allow: vec![pattern.into()], ..Self::default() }
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy_with(Vec::new())
    }

    /// The policy with more rules, such as answers.
    pub(super) fn policy_with(&self, more: Vec<Rule>) -> Policy {
        let origin = || Origin::new(OriginKind::Global);
        let pattern = |text: &String| Pattern::parse(text).unwrap();
        let allow = self.allow.iter().map(|text| Rule::allow(pattern(text), origin()));
        let deny = self.deny.iter().map(|text| Rule::deny(pattern(text), origin()));
        Policy::new(PolicyInput {
            rules: allow.chain(deny).chain(more).collect(),
            unlisted: self.unlisted,
            pins: self
                .pins
                .iter()
                .map(|name| (DomainName::parse(name).unwrap(), vec![IpAddr::from([127, 0, 0, 1])]))
                .collect::<BTreeMap<_, _>>(),
            private: self.private.iter().map(|text| DomainPattern::parse(text).unwrap()).collect(),
            listening: Vec::new(),
        })
    }

    pub(super) fn start(self) -> Proxy {
        let (lines, journal) = mpsc::unbounded_channel();
        let (human, questions) = mpsc::unbounded_channel();
        let policies = Arc::new(Rules(Mutex::new(Some(Arc::new(self.policy())))));
        let names = Arc::new(Names {
            answers: Mutex::new(self.answers.into()),
            asked: Mutex::default(),
            own: self.own,
        });
        let dialled: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let services = Services {
            policies: policies.clone(),
            decider: Arc::new(Human(human)),
            journal: Arc::new(Lines {
                sender: lines,
                fails: self.journal_fails,
                dialled: Arc::clone(&dialled),
            }),
            resolver: names.clone(),
            descriptors: self.descriptors,
        };
        let token = PlainToken::from_bytes([7; 32]);
        let identity = Identity {
            cloister: CloisterName::parse("demo-main").unwrap(),
            project: ProjectName::parse("demo").unwrap(),
            token: HashedToken::of(&token),
        };
        let client = Arc::new(Client::new(
            identity,
            services,
            Settings { limits: self.limits, outbound: self.outbound },
        ));
        Proxy { client, policies, names, journal, questions, dialled, token, connections: 0 }
    }
}

pub(super) struct Rules(Mutex<Option<Arc<Policy>>>);

impl Rules {
    pub(super) fn replace(&self, policy: Option<Policy>) {
        *self.0.lock().unwrap() = policy.map(Arc::new);
    }
}

impl Policies for Rules {
    fn current(&self) -> Option<Arc<Policy>> {
        self.0.lock().unwrap().clone()
    }
}

/// A human to whom every question is shown.
struct Human(mpsc::UnboundedSender<Shown>);

/// A question as the human sees it; dropping it leaves it unanswered.
pub(super) struct Shown {
    pub(super) authority: String,
    pub(super) user_agent: Option<String>,
    pub(super) answer: oneshot::Sender<Verdict>,
}

impl Decider for Human {
    fn decide<'a>(&'a self, question: &'a Question, user_agent: Option<&'a str>) -> Deciding<'a> {
        let (answer, answered) = oneshot::channel();
        let authority = question.request().authority.to_string();
        let shown = Shown { authority, user_agent: user_agent.map(str::to_owned), answer };
        self.0.send(shown).ok().unwrap();
        Box::pin(async move { answered.await.unwrap_or(Verdict::Unrecorded) })
    }
}

pub(super) struct Names {
    answers: Mutex<VecDeque<Result<Vec<IpAddr>, ResolveError>>>,
    asked: Mutex<Vec<String>>,
    own: Vec<IpAddr>,
}

impl Names {
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, name: &'a DomainName) -> Resolving<'a> {
        assert_ne!(name.as_str(), "panic.test", "as scripted");
        self.asked.lock().unwrap().push(name.to_string());
        if name.as_str() == "silent.test" {
            return Box::pin(std::future::pending());
        }
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Err(ResolveError::Failed(None)));
        Box::pin(std::future::ready(answer))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }
}

/// A journal that renders its events.
struct Lines {
    sender: mpsc::UnboundedSender<String>,
    fails: bool,
    dialled: Arc<Mutex<Option<SocketAddr>>>,
}

impl Journal for Lines {
    fn write(&self, event: &Event<'_>) -> Result<(), JournalError> {
        if self.fails {
            return Err(JournalError(Box::new(io::Error::from(io::ErrorKind::StorageFull))));
        }
        let authority = event.authority.map_or("-".to_owned(), ToString::to_string);
        let mut line = match &event.kind {
            EventKind::Allowed { rule, addresses } => {
                format!("allow {authority} by {rule} at {addresses:?}")
            }
            EventKind::Denied { reason, .. } => format!("deny {authority} {}", reason.code()),
            EventKind::Closed { reason, bytes_up, bytes_down, address, .. } => {
                *self.dialled.lock().unwrap() = *address;
                format!(
                    "close {authority} {} {bytes_up}/{bytes_down}",
                    reason.map_or("ok", |reason| reason.code())
                )
            }
        };
        if let EventKind::Denied { rule: Some(rule), .. } = &event.kind {
            write!(line, " by {rule}").unwrap();
        }
        if let EventKind::Denied { detail: Some(detail), .. }
        | EventKind::Closed { detail: Some(detail), .. } = &event.kind
        {
            write!(line, " ({detail})").unwrap();
        }
        // A test that has ended reads no more lines.
        let _ = self.sender.send(line);
        Ok(())
    }
}

/// A proxy for one sandbox.
pub(super) struct Proxy {
    pub(super) client: Arc<Client>,
    pub(super) policies: Arc<Rules>,
    pub(super) names: Arc<Names>,
    journal: mpsc::UnboundedReceiver<String>,
    questions: mpsc::UnboundedReceiver<Shown>,
    /// The address in the last record of an end.
    pub(super) dialled: Arc<Mutex<Option<SocketAddr>>>,
    token: PlainToken,
    connections: u64,
}

impl Proxy {
    pub(super) fn connect(&mut self) -> Peer {
        let (near, far) = UnixStream::pair().unwrap();
        self.connections += 1;
        let task = tokio::spawn(serve(far, Arc::clone(&self.client), ConnectionId(self.connections)));
        Peer { stream: near, _task: task }
    }

    /// A tunnel to `authority` that may carry only TLS to its host, whatever the port is.
    pub(super) async fn connect_tls(&mut self, authority: &str) -> Peer {
        let (near, far) = UnixStream::pair().unwrap();
        self.connections += 1;
        let caller = Caller::new(ConnectionId(self.connections));
        let client = Arc::clone(&self.client);
        let task = tokio::spawn(async move {
            let mut wire = Wire { stream: far, buffer: bytes::BytesMut::new() };
            let head = wire.read_head(&client).await.unwrap().unwrap();
            let dialled = open(&client, &caller, &head).await.unwrap();
            let inside = Inside::Tls(head.target.authority().host().clone());
            match establish(&mut wire, &client, inside, dialled).await {
                Next::Tunnel(tunnel) => tunnel.run(wire, &client.settings().limits).await,
                Next::Close => wire.close().await,
                Next::Request | Next::End | Next::Abort => {}
            }
        });
        let mut peer = Peer { stream: near, _task: task };
        peer.send(self.connect_head(authority)).await;
        assert_eq!(peer.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
        peer
    }

    /// A field that proves who the client is.
    pub(super) fn proof(&self) -> String {
        format!("Proxy-Authorization: Bearer {}\r\n", self.token.expose())
    }

    pub(super) fn connect_head(&self, authority: &str) -> String {
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{}\r\n", self.proof())
    }

    pub(super) fn get_head(&self, authority: &str, path: &str) -> String {
        format!("GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n{}\r\n", self.proof())
    }

    /// The next question to the human.
    pub(super) async fn question(&mut self) -> Shown {
        within(self.questions.recv()).await.unwrap()
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> String {
        within(self.journal.recv()).await.unwrap()
    }

    /// The events so far.
    pub(super) fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.journal.try_recv().ok()).collect()
    }
}

/// The client's end of a connection.
pub(super) struct Peer {
    pub(super) stream: UnixStream,
    _task: JoinHandle<()>,
}

impl Peer {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Bytes up to the empty line.
    pub(super) async fn head(&mut self) -> String {
        read_head(&mut self.stream).await
    }

    /// A head, and a body of the length that it tells.
    pub(super) async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ").map(|text| text.parse().unwrap())
            })
            .unwrap_or(0);
        let body = self.exactly(length).await;
        (head, String::from_utf8(body).unwrap())
    }

    pub(super) async fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        within(self.stream.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// What comes until the proxy ends its direction.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        within(self.stream.read_to_end(&mut bytes)).await.unwrap();
        bytes
    }
}

/// A server on loopback.
pub(super) struct Server {
    listener: TcpListener,
    pub(super) port: u16,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    /// The authority under which the proxy knows it.
    pub(super) fn authority(&self) -> String {
        format!("origin.test:{}", self.port)
    }

    pub(super) async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.unwrap().0
    }

    /// Whether nobody has connected.
    pub(super) fn stayed_untouched(self) -> bool {
        let listener = self.listener.into_std().unwrap();
        listener.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

pub(super) async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

pub(super) async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

pub(super) async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

/// Fails a test that would hang.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the step does not end")
}
