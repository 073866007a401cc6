//! How what is carried comes to an end: at a stop, when another guardian takes over, when an order comes from it.

use std::error::Error;
use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Registry, RegistryError, Served};
use crate::audit::{Event, Record};
use crate::guardian::approvals::asks;
use crate::guardian::handover::{Order, Predecessor, Successor};
use crate::guardian::ledger::Ledger;
use crate::kernel;
use crate::name::CloisterName;
use crate::proxy::{self, Ending};

/// How long tunnels that were ended may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(6);

/// Counts one sandbox's connections until they have all ended.
struct Carried(Arc<watch::Sender<usize>>);

impl Carried {
    fn enter(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(Arc::clone(count))
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Registry {
    /// Serves the clients that connect to a socket, in a thread of the sandbox's own.
    ///
    /// A sandbox can send descriptors over its socket, and closing what was sent can block for as long as the sandbox
    /// likes (a TCP socket that lingers). New kernels refuse them; under older ones the thread that blocks is the
    /// sandbox's, and all others go on.
    pub(super) fn spawn(&self, bound: &Bound, polite: Bound, served: &Served) -> io::Result<()> {
        for socket in [bound, &polite] {
            socket.set_nonblocking(true)?;
            if let Err(error) = kernel::refuse_descriptors(socket) {
                tracing::debug!(%error, "this kernel can't refuse descriptors");
            }
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (listener, polite) = {
            let _inside = runtime.enter();
            (UnixListener::from_std(bound.try_clone()?)?, UnixListener::from_std(polite)?)
        };
        runtime.spawn(asks::serve(polite, Arc::clone(&served.asks)));
        let (client, carried) = (Arc::clone(&served.client), Carried::enter(&self.carried));
        thread::Builder::new().name("sandbox".to_owned()).spawn(move || {
            // In a task of its own: a panic ends it and not the count.
            let served = runtime.block_on(runtime.spawn(proxy::serve(listener, client)));
            if let Err(error) = served {
                tracing::error!(error = &error as &dyn Error, "a sandbox is not served any more");
            }
            drop(carried);
            runtime.shutdown_background();
        })?;
        Ok(())
    }

    /// Where the records go.
    pub(in crate::guardian) fn ledger(&self) -> &Ledger {
        &self.log
    }

    /// Notes who carries tunnels from before this guardian.
    pub(in crate::guardian) fn follow(&self, predecessor: Arc<Predecessor>) {
        // There is one handover at the start of a guardian.
        let _ = self.predecessor.set(predecessor);
    }

    /// Passes an order on to the guardian before this one.
    pub(super) fn order(&self, order: Order) {
        if let Some(predecessor) = self.predecessor.get() {
            predecessor.order(order);
        }
    }

    /// Tells whether nothing is registered any more.
    pub(in crate::guardian) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// The listening sockets, to be given to another guardian.
    pub(in crate::guardian) fn listeners(&self) -> io::Result<Vec<(CloisterName, Bound)>> {
        let served = self.served();
        let listeners = served.iter().filter_map(|(name, served)| {
            served.listener.as_ref().map(|listener| Ok((name.clone(), listener.try_clone()?)))
        });
        listeners.collect()
    }

    /// Leaves everything new to another guardian, and carries what is open to its end.
    pub(in crate::guardian) fn pass(&self, successor: Arc<Successor>) {
        self.log.pass(successor);
        self.drain();
        let served: Vec<CloisterName> = self.served().keys().cloned().collect();
        for cloister in &served {
            self.guards.remove(cloister);
        }
    }

    /// Accepts nothing any more; what is open goes on.
    fn drain(&self) {
        let mut served = self.served();
        // Under the lock: a registration that comes later finds it.
        self.is_closed.store(true, Ordering::SeqCst);
        self.approvals.close();
        for served in served.values_mut() {
            served.client.drain();
            // An open descriptor would let clients connect to nobody.
            served.listener = None;
        }
    }

    /// Ends the tunnels of a sandbox that was revoked elsewhere, here and in the guardian before this one.
    pub(in crate::guardian) fn end_cloister(&self, cloister: &CloisterName) {
        if let Some(served) = self.served().get(cloister) {
            served.client.end(Ending::Revoked);
        }
        self.order(Order::Revoke { cloister: cloister.clone() });
    }

    /// Ends all tunnels, here and in the guardian before this one.
    pub(in crate::guardian) fn end_all(&self) {
        for served in self.served().values() {
            served.client.end(Ending::ShuttingDown);
        }
        self.order(Order::End);
    }

    /// How many tunnels and requests are open, here and in the guardian before this one.
    pub(in crate::guardian) fn open_tunnels(&self) -> usize {
        let own: usize = self.served().values().map(|served| served.client.open_tunnels()).sum();
        own + self.predecessor.get().map_or(0, |predecessor| predecessor.carried())
    }

    /// Waits until nothing is carried any more, here and by the guardian before this one.
    pub(in crate::guardian) async fn finished(&self) {
        // The sender is this value's own.
        let _ = self.carried.subscribe().wait_for(|count| *count == 0).await;
        if let Some(predecessor) = self.predecessor.get() {
            predecessor.gone().await;
        }
    }

    /// Accepts nothing any more, lets what is open go on for `grace`, ends the rest and closes the audit log; gives its
    /// head. A second call ends the grace of the first one.
    pub(in crate::guardian) async fn close(&self, grace: Duration) -> Result<String, RegistryError> {
        let is_first = !self.is_closed();
        self.drain();
        if is_first && timeout(grace, self.finished()).await.is_ok() {
            return self.close_log().await;
        }
        self.end_all();
        if timeout(END_PATIENCE, self.finished()).await.is_err() {
            tracing::warn!("some connections outlive the guardian's stop");
        }
        self.close_log().await
    }

    async fn close_log(&self) -> Result<String, RegistryError> {
        let stopped = self.stopped.get_or_try_init(async || {
            if !self.log.is_own() {
                return Ok::<_, RegistryError>(String::new());
            }
            // Nothing is told of settings behind the last record.
            let mut live = self.live();
            live.is_over = true;
            self.append(Record::new(Event::GuardianStop))?;
            drop(live);
            self.log.sync()?;
            Ok(self.log.head()?.to_string())
        });
        stopped.await.cloned()
    }
}
