//! What is open right now, so that a withdrawn rule or a revoked token ends it (T10).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::name::CloisterName;
use crate::policy::{Authority, Policy, Request, Rule, Via};

use crate::proxy::refusal::Reason;

/// Why everything of one sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its token was revoked.
    Revoked,
    /// The guardian shuts down.
    ShuttingDown,
}

impl From<Ending> for Reason {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Revoked => Self::TokenRevoked,
            Ending::ShuttingDown => Self::ShuttingDown,
        }
    }
}

/// The number of one client connection, unique while the guardian lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::proxy) struct ConnectionId(pub(in crate::proxy) u64);

/// The open tunnels and requests of one sandbox.
#[derive(Debug)]
pub(in crate::proxy) struct Tunnels {
    open: Mutex<HashMap<ConnectionId, Entry>>,
    /// Set once and never unset.
    ending: watch::Sender<Option<Ending>>,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { open: Mutex::default(), ending: watch::Sender::new(None) }
    }
}

#[derive(Debug)]
struct Entry {
    authority: Authority,
    via: Via,
    /// What a human granted to it alone.
    grant: Option<Arc<Rule>>,
    /// What was permitted; empty until then.
    addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<Reason>,
}

/// Why nothing more is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Refused {
    TooMany { limit: usize },
    Ended(Ending),
}

impl Tunnels {
    /// Enters what `connection` is about to open, unless `max` are open; dropping the registration takes it out again.
    pub(in crate::proxy) fn register(
        self: &Arc<Self>,
        connection: ConnectionId,
        request: &Request<'_>,
        max: usize,
    ) -> Result<Registration, Refused> {
        let (stop, stopped) = oneshot::channel();
        let mut open = self.lock();
        // Under the lock: `end` sets it before it takes the lock, so nothing slips in behind it.
        if let Some(ending) = *self.ending.borrow() {
            return Err(Refused::Ended(ending));
        }
        if open.len() >= max {
            return Err(Refused::TooMany { limit: max });
        }
        let Request { authority, via, grant, .. } = *request;
        let (authority, grant) = (authority.clone(), grant.map(Arc::clone));
        open.insert(connection, Entry { authority, via, grant, addresses: Vec::new(), stop });
        Ok(Registration { tunnels: Arc::clone(self), connection, stopped })
    }

    /// Stops all that `policy` does not allow any more, and says how many these were.
    ///
    /// Without a policy nothing is allowed.
    pub(in crate::proxy) fn revalidate(&self, cloister: &CloisterName, policy: Option<&Policy>) -> usize {
        let mut open = self.lock();
        let withdrawn: Vec<_> = open
            .iter()
            .filter(|(_, entry)| !policy.is_some_and(|policy| entry.is_allowed(cloister, policy)))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in &withdrawn {
            stop(open.remove(connection), Reason::RuleWithdrawn);
        }
        withdrawn.len()
    }

    /// Stops all, and lets nothing in from now on.
    pub(in crate::proxy) fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|current| current.is_none() && current.replace(ending).is_none());
        for (_, entry) in self.lock().drain() {
            stop(Some(entry), ending.into());
        }
    }

    /// Tells when everything ends.
    pub(in crate::proxy) fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// How many are open.
    pub(in crate::proxy) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Entry>> {
        // Every change under the lock is one call of the map: a panic elsewhere leaves it whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stop(entry: Option<Entry>, reason: Reason) {
    if let Some(entry) = entry {
        // The other end is gone only when the tunnel has ended by itself.
        let _ = entry.stop.send(reason);
    }
}

impl Entry {
    fn is_allowed(&self, cloister: &CloisterName, policy: &Policy) -> bool {
        let grant = self.grant.as_ref();
        let request = Request { cloister, authority: &self.authority, via: self.via, grant };
        policy.withdraws(&request, &self.addresses).is_none()
    }
}

/// The proof that something is registered; it hears when it has to stop.
#[derive(Debug)]
pub(in crate::proxy) struct Registration {
    tunnels: Arc<Tunnels>,
    connection: ConnectionId,
    stopped: oneshot::Receiver<Reason>,
}

impl Registration {
    /// Notes the addresses that were permitted, to be judged again whenever the policy changes.
    pub(in crate::proxy) fn permitted(&self, addresses: &[SocketAddr]) {
        if let Some(entry) = self.tunnels.lock().get_mut(&self.connection) {
            entry.addresses = addresses.to_vec();
        }
    }

    /// Waits until it has to stop, and says why.
    pub(in crate::proxy) async fn stopped(&mut self) -> Reason {
        // The sender is dropped unused only with the whole registry.
        (&mut self.stopped).await.unwrap_or(Reason::ShuttingDown)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.tunnels.lock().remove(&self.connection);
    }
}
