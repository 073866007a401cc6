//! The guardian before this one, as long as it carries tunnels.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::WRITE_PATIENCE;
use super::messages::{FromNew, FromOld, Order};
use super::wire::Wire;
use crate::guardian::control::chain;
use crate::guardian::ledger::Ledger;

/// Gives orders to the guardian before this one, and writes its records.
pub(in crate::guardian) struct Predecessor {
    wire: Mutex<Wire>,
    carried: AtomicUsize,
    is_gone: watch::Sender<bool>,
}

impl Predecessor {
    /// Begins to write what the other guardian records.
    pub(super) fn spawn(wire: Wire, ledger: Arc<Ledger>) -> std::io::Result<Arc<Self>> {
        wire.set_patience(None, WRITE_PATIENCE)?;
        let predecessor = Arc::new(Self {
            wire: Mutex::new(wire.try_clone()?),
            carried: AtomicUsize::new(0),
            is_gone: watch::Sender::new(false),
        });
        std::thread::Builder::new().name("predecessor".to_owned()).spawn({
            let predecessor = Arc::clone(&predecessor);
            move || {
                predecessor.listen(&wire, &ledger);
                wire.cut();
                predecessor.carried.store(0, Ordering::Relaxed);
                predecessor.is_gone.send_replace(true);
            }
        })?;
        Ok(predecessor)
    }

    fn listen(&self, wire: &Wire, ledger: &Ledger) {
        loop {
            match wire.receive::<FromOld>() {
                Ok(Some((FromOld::Record { number, record }, _))) => {
                    let written = ledger.append(*record);
                    if let Err(error) = &written {
                        tracing::error!(
                            error = error as &dyn std::error::Error,
                            "a record of the guardian before this one is lost"
                        );
                    }
                    if let Some(number) = number {
                        let error = written.err().map(|error| chain(&error));
                        self.send(&FromNew::Written { number, error });
                    }
                }
                Ok(Some((FromOld::Carries { tunnels }, _))) => self.carried.store(tunnels, Ordering::Relaxed),
                Ok(None) => return,
                other => {
                    tracing::warn!(?other, "the guardian before this one is cut off");
                    return;
                }
            }
        }
    }

    /// Gives an order. One that can't be given breaks the connection off: then everything over there ends.
    pub(in crate::guardian) fn order(&self, order: Order) {
        self.send(&FromNew::Order(order));
    }

    fn send(&self, message: &FromNew) {
        let wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        if wire.send(message).is_err() {
            wire.cut();
        }
    }

    /// How many tunnels it carries, as it last said.
    pub(in crate::guardian) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }

    /// Waits until it carries nothing any more.
    pub(in crate::guardian) async fn gone(&self) {
        // The sender is this value's own.
        let _ = self.is_gone.subscribe().wait_for(|is_gone| *is_gone).await;
    }
}
