//! Names into addresses: asked only after the verdict (D3), once per request (D5), without search domains (D7).

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::Name;

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
    /// A name server refused to answer.
    #[error("the name server refused to answer")]
    Refused,
}

impl ResolveError {
    /// What the audit log keeps.
    pub(super) fn detail(&self) -> String {
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

/// The name servers of this machine.
pub struct SystemResolver(TokioResolver);

impl SystemResolver {
    /// Reads the system's configuration of name servers.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn from_system() -> Result<Self, NetError> {
        let mut builder = TokioResolver::builder_tokio()?;
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
        if addresses.is_empty() {
            Err(ResolveError::Failed(None))
        } else {
            Ok(addresses)
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a DomainName) -> Resolving<'a> {
        Box::pin(self.lookup(name))
    }
}
