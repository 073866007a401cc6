//! Names into addresses: asked only after the verdict (D3), once per request (D5), without search domains (D7).
//!
//! Names stand in `/etc/hosts`, or the DNS has them; both are read anew when their files change. Answers are kept as
//! long as their TTL says, and at most five minutes; what is kept are answers and no verdicts: every request has
//! its addresses checked. The cache is shared, so a sandbox can learn from the time that an answer takes that a name
//! was asked for before, and nothing else. There is no DNSSEC and no case randomisation: whoever can forge answers
//! can only lead to a public address, and TLS does the rest.

use std::fs::File;
use std::future::Future;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::hosts::Hosts;
use super::own::{OwnAddresses, belongs_here};
use super::servers::{Servers, Settings};
use crate::policy::DomainName;

/// The longest time a name is waited for, with all name servers and all attempts.
pub(in crate::proxy) const TIMEOUT: Duration = Duration::from_secs(10);
/// How many names are asked for at the same time, for all sandboxes together: each takes two sockets.
const MAX_LOOKUPS: usize = 256;
/// How many addresses a name may have.
const MAX_ADDRESSES: usize = 256;
/// What is read of a file at most.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Finds the addresses of names.
pub trait Resolve: Send + Sync + 'static {
    /// Asks once for all addresses of `name`, of both families; an answer is never empty.
    ///
    /// # Errors
    /// Says whether the name servers had no address, no time, or no wish to answer.
    fn resolve<'a>(&'a self, name: &'a DomainName) -> Resolving<'a>;

    /// Tells whether an address belongs to this machine now: what listens there is as near as on loopback (T11).
    fn is_own(&self, address: IpAddr) -> bool {
        belongs_here(address)
    }
}

/// A question to the name servers on its way.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send + 'a>>;

/// Why a name has no addresses.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such name, it has no address, or the name servers failed.
    #[error("cannot resolve the name")]
    Failed(#[source] Option<NetError>),
    /// The name servers did not answer in time.
    #[error("the name servers did not answer in time")]
    Timeout,
    /// It has so many addresses that somebody plays a game.
    #[error("the name has more addresses than make sense")]
    TooMany,
    /// A name server refused to answer.
    #[error("the name server refused to answer")]
    Refused,
}

impl ResolveError {
    /// What the audit log keeps.
    pub(in crate::proxy) fn detail(&self) -> String {
        match self {
            Self::Failed(Some(cause)) => cause.to_string(),
            Self::Failed(None) => "no address".to_owned(),
            Self::TooMany | Self::Timeout | Self::Refused => self.to_string(),
        }
    }
}

impl From<NetError> for ResolveError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Timeout => Self::Timeout,
            NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => Self::Refused,
            other => Self::Failed(Some(other)),
        }
    }
}

/// The names of this machine, as its files tell them now: a machine moves from network to network, and a guardian
/// runs on.
pub struct SystemResolver {
    names: Arc<Names>,
    /// Where the questions are asked: what a sandbox does to its own thread must not keep the others from theirs.
    runtime: Handle,
}

impl SystemResolver {
    /// The names of this machine, asked for on this runtime.
    pub fn on(runtime: Handle) -> Self {
        let names = Names::new(Path::new("/etc/hosts"), Path::new("/etc/resolv.conf"));
        Self { names: Arc::new(names), runtime }
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a DomainName) -> Resolving<'a> {
        let (names, name) = (Arc::clone(&self.names), name.clone());
        // It ends with whoever waits for it.
        let mut question = JoinSet::new();
        question.spawn_on(async move { names.resolve(&name).await }, &self.runtime);
        Box::pin(async move {
            match question.join_next().await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) | None => Err(ResolveError::Failed(None)),
            }
        })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.names.own.contain(address)
    }
}

/// Files and name servers, with what they said.
struct Names {
    hosts: Watched<Hosts>,
    servers: Watched<Servers>,
    lookups: Semaphore,
    own: OwnAddresses,
}

impl Names {
    fn new(hosts: &Path, settings: &Path) -> Self {
        Self {
            hosts: Watched::new(hosts),
            servers: Watched::new(settings),
            lookups: Semaphore::new(MAX_LOOKUPS),
            own: OwnAddresses::default(),
        }
    }

    async fn resolve(&self, name: &DomainName) -> Result<Vec<IpAddr>, ResolveError> {
        let end = Instant::now() + TIMEOUT;
        let hosts = self.hosts.current(|text| Ok(Hosts::parse(text)))?;
        if let Some(addresses) = hosts.get(name.as_str()) {
            return Ok(addresses.to_vec());
        }
        let servers = self.servers.current(|text| Servers::build(&Settings::parse(text)))?;
        // Who waits is served in the order of coming, and a sandbox has few at a time.
        let _turn = timeout_at(end, self.lookups.acquire()).await.map_err(|_| ResolveError::Timeout)?;
        let addresses = servers.lookup(name, end).await?;
        match addresses.len() {
            0 => Err(ResolveError::Failed(None)),
            1..=MAX_ADDRESSES => Ok(addresses),
            _ => Err(ResolveError::TooMany),
        }
    }
}

/// What a file says, read again when the file has changed.
struct Watched<T> {
    path: PathBuf,
    current: Mutex<Option<(Stamp, Arc<T>)>>,
}

/// Tells one content of a file from another; `None` while there is no file.
type Stamp = Option<(u64, u64, u64, SystemTime)>;

impl<T> Watched<T> {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), current: Mutex::default() }
    }

    /// What the file means now; a file that is missing or can't be read is an empty one.
    fn current(&self, parse: impl FnOnce(&str) -> Result<T, NetError>) -> Result<Arc<T>, NetError> {
        let metadata = std::fs::metadata(&self.path).ok();
        let stamp =
            metadata.and_then(|found| Some((found.dev(), found.ino(), found.len(), found.modified().ok()?)));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, value)) = &*current
            && *known == stamp
        {
            return Ok(Arc::clone(value));
        }
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(&self.path) {
            // What was read before an error counts.
            let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut bytes);
        }
        let value = Arc::new(parse(&String::from_utf8_lossy(&bytes))?);
        *current = Some((stamp, Arc::clone(&value)));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::servers::script::NameServer;
    use super::*;

    /// Files of a machine, and a resolver that goes by them.
    struct Machine {
        directory: tempfile::TempDir,
        resolver: Names,
    }

    impl Machine {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let resolver = Names::new(&directory.path().join("hosts"), &directory.path().join("resolv.conf"));
            Self { directory, resolver }
        }

        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.directory.path().join(file), text).unwrap();
        }

        async fn resolve(&self, name: &str) -> Result<Vec<String>, String> {
            let answer = self.resolver.resolve(&DomainName::parse(name).unwrap()).await;
            answer
                .map(|found| found.iter().map(ToString::to_string).collect())
                .map_err(|error| error.detail())
        }
    }

    #[tokio::test]
    async fn hosts_go_before_the_dns_and_are_read_again_when_they_change() {
        let machine = Machine::new();
        // Nobody listens there: a question to the DNS would fail.
        machine.write("resolv.conf", "nameserver 127.255.255.254\noptions timeout:1 attempts:1\n");
        machine.write("hosts", "10.1.2.3 db.corp\n");
        assert_eq!(machine.resolve("db.corp").await, Ok(vec!["10.1.2.3".to_owned()]));
        assert_eq!(machine.resolve("DB.Corp").await, Ok(vec!["10.1.2.3".to_owned()]));
        machine.write("hosts", "10.1.2.3 other.corp\nfd00::7 db.corp\n");
        assert_eq!(machine.resolve("db.corp").await, Ok(vec!["fd00::7".to_owned()]));
        std::fs::remove_file(machine.directory.path().join("hosts")).unwrap();
        assert!(machine.resolve("db.corp").await.is_err());
    }

    #[tokio::test]
    async fn other_settings_mean_other_servers_and_an_empty_cache() {
        let (first, mut second) = (NameServer::start().await, NameServer::start().await);
        let resolver = Watched::<Servers>::new(Path::new("/nonexistent"));
        let name = DomainName::parse("both.test").unwrap();
        let end = Instant::now() + TIMEOUT;
        let before = resolver.current(|_| Servers::build(&first.settings())).unwrap();
        before.lookup(&name, end).await.unwrap();
        *resolver.current.lock().unwrap() = None;
        let after = resolver.current(|_| Servers::build(&second.settings())).unwrap();
        after.lookup(&name, end).await.unwrap();
        assert_eq!(second.asked().len(), 2, "the answer came from the cache of other settings");
    }
}
