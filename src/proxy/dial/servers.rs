//! The name servers of this machine, asked one after the other as its settings order them.
//!
//! Each has a cache of its own, so what one said is never taken for the word of another: with a company's network
//! the first one often knows more than the second.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::Name;
use tokio::time::{Instant as Deadline, timeout, timeout_at};

use super::resolve::{ResolveError, TIMEOUT};
use crate::policy::DomainName;

/// The port of the DNS.
const PORT: u16 = 53;
/// What the system's own resolver takes at most (resolv.conf(5)).
const MAX_SERVERS: usize = 3;
const MAX_ATTEMPTS: usize = 5;
const MAX_WAIT_SECONDS: u64 = 30;
/// How many answers are kept of one server, and how long at most: a family of a name is one answer.
const CACHE_ANSWERS: u64 = 512;
const MAX_TTL: Duration = Duration::from_mins(5);
/// How long it is believed that there is no such name.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// How long a server that did not answer is asked last.
const PENALTY: Duration = Duration::from_secs(30);
/// How long an answer about a name that nobody has may take.
const PROBE: Duration = Duration::from_secs(1);
/// How long the other family is waited for when one is known.
const GRACE: Duration = Duration::from_secs(1);
/// How many questions one server may have open.
const MAX_OPEN_QUESTIONS: usize = 256;

/// What `resolv.conf` says that matters here: search domains never do (D7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    servers: Vec<SocketAddr>,
    wait: Duration,
    attempts: usize,
    rotate: bool,
    extended: bool,
    tcp: bool,
}

impl Settings {
    /// Reads the settings; what makes no sense is left out. Without a server it is the one of this machine.
    ///
    /// A server at a link-local IPv6 address is left out, too: its interface can't be told to the library.
    pub(super) fn parse(text: &str) -> Self {
        let mut settings = Self {
            servers: Vec::new(),
            wait: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            extended: false,
            tcp: false,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => settings.servers.extend(
                    words
                        .next()
                        .and_then(|word| word.parse::<IpAddr>().ok())
                        .filter(|address| !is_link_local(*address))
                        .map(|address| SocketAddr::new(address, PORT)),
                ),
                Some("options") => words.for_each(|word| settings.set(word)),
                _ => {}
            }
        }
        settings.servers.truncate(MAX_SERVERS);
        if settings.servers.is_empty() {
            settings.servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
        }
        settings
    }

    fn set(&mut self, option: &str) {
        match option.split_once(':') {
            Some(("timeout", number)) => {
                if let Ok(seconds) = number.parse::<u64>() {
                    self.wait = Duration::from_secs(seconds.clamp(1, MAX_WAIT_SECONDS));
                }
            }
            Some(("attempts", number)) => {
                if let Ok(attempts) = number.parse::<usize>() {
                    self.attempts = attempts.clamp(1, MAX_ATTEMPTS);
                }
            }
            Some(_) => {}
            None => match option {
                "rotate" => self.rotate = true,
                "edns0" => self.extended = true,
                "use-vc" => self.tcp = true,
                _ => {}
            },
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Some name servers, each with a cache.
pub(super) struct Servers {
    list: Vec<Server>,
    attempts: usize,
    rotate: bool,
    turn: AtomicUsize,
}

struct Server {
    resolver: TokioResolver,
    wait: Duration,
    silent: Mutex<Option<Instant>>,
}

impl Servers {
    pub(super) fn build(settings: &Settings) -> Result<Self, NetError> {
        let servers = settings.servers.iter().map(|address| Server::build(*address, settings));
        Ok(Self {
            list: servers.collect::<Result<_, _>>()?,
            attempts: settings.attempts,
            rotate: settings.rotate,
            turn: AtomicUsize::new(0),
        })
    }

    /// Asks for both families, and until `end` at most. A server that does not answer, can't or won't is followed by
    /// the next one; that a name does not exist is an answer.
    pub(super) async fn lookup(&self, name: &DomainName, end: Deadline) -> Result<Vec<IpAddr>, ResolveError> {
        // The final dot makes it a full name: no search domain is tried.
        let name = Name::from_ascii(format!("{}.", name.as_str())).map_err(NetError::from)?;
        let mut failure = ResolveError::Timeout;
        for _ in 0..self.attempts {
            for server in self.order() {
                match timeout_at(end, server.ask(&name)).await {
                    Ok(Ok(addresses)) => return Ok(addresses),
                    Ok(Err(error)) if error.is_final() => return Err(error),
                    Ok(Err(error)) => failure = more_telling(failure, error),
                    Err(_) => return Err(failure),
                }
            }
        }
        Err(failure)
    }

    /// In the order of the settings, silent ones last.
    fn order(&self) -> Vec<&Server> {
        let mut order: Vec<_> = self.list.iter().collect();
        if self.rotate {
            order.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % self.list.len());
        }
        order.sort_by_cached_key(|server| server.is_silent());
        order
    }
}

impl ResolveError {
    /// Tells whether another server would say nothing else.
    fn is_final(&self) -> bool {
        matches!(self, Self::Failed(None | Some(NetError::Dns(DnsError::NoRecordsFound(_)))))
    }
}

fn more_telling(known: ResolveError, new: ResolveError) -> ResolveError {
    if matches!(known, ResolveError::Timeout) { new } else { known }
}

impl Server {
    fn build(address: SocketAddr, settings: &Settings) -> Result<Self, NetError> {
        let on_port = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        server.connections = if settings.tcp {
            vec![on_port(ConnectionConfig::tcp())]
        } else {
            vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())]
        };
        let count = u32::try_from(settings.servers.len()).unwrap_or(u32::MAX);
        // Every server gets its turn before the time is over, also behind silent ones.
        let wait = settings.wait.min((TIMEOUT / count).saturating_sub(PROBE));
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = wait;
        options.attempts = 0;
        options.edns0 = settings.extended;
        options.cache_size = CACHE_ANSWERS;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.max_active_requests = MAX_OPEN_QUESTIONS;
        Ok(Self { resolver: builder.build()?, wait, silent: Mutex::default() })
    }

    async fn ask(&self, name: &Name) -> Result<Vec<IpAddr>, ResolveError> {
        let answer = timeout(self.wait, self.ask_both(name)).await;
        let answer = answer.unwrap_or(Err(NetError::Timeout)).map_err(ResolveError::from);
        let is_silent = matches!(answer, Err(ResolveError::Timeout)) && !self.answers_at_all().await;
        let silent = is_silent.then(Instant::now);
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
        answer
    }

    /// Asks for a name that nobody has (RFC 6761). That one name gets no answer says little of the server: whoever serves the
    /// name decides that, and could choose which server answers all others.
    async fn answers_at_all(&self) -> bool {
        static PROBES: AtomicUsize = AtomicUsize::new(0);
        let number = PROBES.fetch_add(1, Ordering::Relaxed);
        let Ok(nobodys) = Name::from_ascii(format!("cloister-{}-{number}.test.", std::process::id())) else {
            return false;
        };
        let probe = timeout(PROBE, self.resolver.ipv4_lookup(nobodys)).await;
        matches!(probe, Ok(Ok(_) | Err(NetError::Dns(_))))
    }

    /// Asks for both families at once. Some networks swallow the question for one of them: once the other is
    /// known, it is not waited for long.
    async fn ask_both(&self, name: &Name) -> Result<Vec<IpAddr>, NetError> {
        let mut v4 = pin!(self.resolver.ipv4_lookup(name.clone()));
        let mut v6 = pin!(self.resolver.ipv6_lookup(name.clone()));
        let patience = |known: &Result<Lookup, NetError>| if known.is_ok() { GRACE } else { self.wait };
        let late = |_| Err(NetError::Timeout);
        let both = tokio::select! {
            v4 = &mut v4 => {
                let v6 = timeout(patience(&v4), v6).await.unwrap_or_else(late);
                (v4, v6)
            }
            v6 = &mut v6 => {
                let v4 = timeout(patience(&v6), v4).await.unwrap_or_else(late);
                (v4, v6)
            }
        };
        match both {
            // What another server may know better counts more than that there is nothing.
            (Err(NetError::Dns(DnsError::NoRecordsFound(_))), Err(error)) | (Err(error), Err(_)) => {
                Err(error)
            }
            (v4, v6) => {
                let records = v4.iter().chain(&v6).flat_map(Lookup::answers);
                Ok(records.filter_map(|record| record.data.ip_addr()).collect())
            }
        }
    }

    fn is_silent(&self) -> bool {
        let silent = *self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.is_some_and(|since| since.elapsed() < PENALTY)
    }
}

#[cfg(test)]
pub(super) mod script;
#[cfg(test)]
mod tests;
