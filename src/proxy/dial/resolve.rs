//! Names into addresses: asked only after the verdict (D3), once per request (D5), without search domains (D7).

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{ResolverBuilder, TokioResolver};

use crate::policy::DomainName;

/// The longest time a name is waited for.
const TIMEOUT: Duration = Duration::from_secs(10);

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

/// Asks the system, without a packet: only an address of this machine can be bound, and only from there does a
/// socket send when it is connected to there.
fn belongs_here(address: IpAddr) -> bool {
    let binds = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    let (anywhere, foreign) = match address {
        IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::new(192, 0, 2, 1))),
        IpAddr::V6(_) => {
            let example = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(example))
        }
    };
    let sends_from_there = || {
        let socket = UdpSocket::bind((anywhere, 0))?;
        socket.connect((address, DISCARD_PORT))?;
        Ok::<_, io::Error>(socket.local_addr()?.ip() == address)
    };
    // A system can be told to let every address be bound (`ip_nonlocal_bind`).
    binds(address) && (!binds(foreign) || sends_from_there().unwrap_or(true))
}

/// A port for a socket that sends nothing.
const DISCARD_PORT: u16 = 9;

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
            Self::Timeout | Self::Refused => self.to_string(),
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

/// Where the system keeps its name servers.
const SETTINGS: &str = "/etc/resolv.conf";

/// The name servers of this machine, as its settings name them now: a machine moves from network to network, and
/// a guardian runs on.
#[derive(Default)]
pub struct SystemResolver {
    current: Mutex<Option<(Stamp, Arc<Servers>)>>,
}

/// Tells one content of the settings from another; `None` while there are no settings.
type Stamp = Option<(u64, u64, SystemTime)>;

impl SystemResolver {
    /// The servers that the settings name; they are read again when they have changed.
    fn servers(&self) -> Result<Arc<Servers>, NetError> {
        let metadata = std::fs::metadata(SETTINGS).ok();
        let stamp = metadata.and_then(|found| Some((found.dev(), found.ino(), found.modified().ok()?)));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, servers)) = &*current
            && *known == stamp
        {
            return Ok(Arc::clone(servers));
        }
        let servers = Arc::new(Servers::build(TokioResolver::builder_tokio()?)?);
        *current = Some((stamp, Arc::clone(&servers)));
        Ok(servers)
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a DomainName) -> Resolving<'a> {
        Box::pin(async move { self.servers()?.lookup(name).await })
    }
}

/// Some name servers, with a cache.
struct Servers(TokioResolver);

impl Servers {
    fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, NetError> {
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        builder.build().map(Self)
    }

    async fn lookup(&self, name: &DomainName) -> Result<Vec<IpAddr>, ResolveError> {
        // The final dot makes it a full name: no search domain is tried.
        let name = Name::from_ascii(format!("{}.", name.as_str())).map_err(NetError::from)?;
        let answer = tokio::time::timeout(TIMEOUT, self.0.lookup_ip(name))
            .await
            .map_err(|_| ResolveError::Timeout)??;
        let addresses: Vec<_> = answer.iter().collect();
        if addresses.is_empty() { Err(ResolveError::Failed(None)) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use tokio::net::UdpSocket;
    use tokio::sync::mpsc;

    #[test]
    fn t11_an_address_of_this_machine_is_known() {
        for (address, own) in
            [("127.0.0.1", true), ("127.8.8.8", true), ("8.8.8.8", false), ("2001:4860::1", false)]
        {
            assert_eq!(belongs_here(address.parse().unwrap()), own, "{address}");
        }
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // Only a machine with a way out has an address besides loopback.
        if socket.connect("8.8.8.8:9").is_ok() {
            assert!(belongs_here(socket.local_addr().unwrap().ip()));
        }
    }

    use super::*;

    const A: u8 = 1;
    const AAAA: u8 = 28;

    /// A name server on loopback that tells what it is asked.
    async fn name_server() -> (u16, mpsc::UnboundedReceiver<(String, u8)>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let (asked, questions) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut packet).await {
                let (name, kind, end) = question(&packet[..length]);
                asked.send((name.clone(), kind)).unwrap();
                if let Some(answer) = answer(&packet[..end], &name, kind) {
                    socket.send_to(&answer, client).await.unwrap();
                }
            }
        });
        (port, questions)
    }

    /// The name and type that a query asks for, and where its question ends.
    fn question(query: &[u8]) -> (String, u8, usize) {
        let (mut at, mut name) = (12, String::new());
        while query[at] != 0 {
            let end = at + 1 + usize::from(query[at]);
            name += std::str::from_utf8(&query[at + 1..end]).unwrap();
            name.push('.');
            at = end;
        }
        (name, query[at + 2], at + 5)
    }

    fn answer(query: &[u8], name: &str, kind: u8) -> Option<Vec<u8>> {
        let code = match name {
            "silent.test." => return None,
            "refused.test." => 5,
            "missing.test." => 3,
            _ => 0,
        };
        let mut packet = query.to_vec();
        packet[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0]);
        let address: &[u8] = match (name, kind) {
            ("both.test." | "four.test.", A) => &[192, 0, 2, 1],
            ("both.test.", AAAA) => &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            _ => return Some(packet),
        };
        packet[7] = 1;
        packet.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, u8::try_from(address.len()).unwrap()]);
        packet.extend(address);
        Some(packet)
    }

    /// A resolver whose system has a search domain.
    fn resolver(port: u16) -> Servers {
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let mut server = NameServerConfig::udp([127, 0, 0, 1].into());
        server.connections = vec![connection];
        let search = vec![Name::from_ascii("corp.test.").unwrap()];
        let config = ResolverConfig::from_parts(search.first().cloned(), search, vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().timeout = Duration::from_millis(100);
        builder.options_mut().attempts = 0;
        Servers::build(builder).unwrap()
    }

    #[tokio::test]
    async fn d5_d7_both_families_are_asked_once_and_no_search_domain_is_tried() {
        let (port, mut questions) = name_server().await;
        let resolver = resolver(port);
        for (name, expected) in
            [("both.test", &["192.0.2.1", "2001:db8::1"][..]), ("four.test", &["192.0.2.1"])]
        {
            let addresses = resolver.lookup(&DomainName::parse(name).unwrap()).await.unwrap();
            let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(addresses, expected);
            let mut asked = Vec::new();
            while let Ok(question) = questions.try_recv() {
                asked.push(question);
            }
            asked.sort();
            assert_eq!(asked, [(format!("{name}."), A), (format!("{name}."), AAAA)]);
        }
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let (port, _questions) = name_server().await;
        let resolver = resolver(port);
        for (name, expected) in [
            ("missing.test", "cannot resolve the name"),
            ("empty.test", "cannot resolve the name"),
            ("refused.test", "the name server refused to answer"),
            ("silent.test", "the name servers did not answer in time"),
        ] {
            let error = resolver.lookup(&DomainName::parse(name).unwrap()).await.unwrap_err();
            assert_eq!(error.to_string(), expected, "{name}: {error:?}");
        }
    }
}
