//! The old guardian's side.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::OwnedRwLockWriteGuard;

use super::messages::{FromNew, FromOld, Order};
use super::successor::Successor;
use super::wire::Wire;
use super::{CARRY_PATIENCE, PATIENCE, WRITE_PATIENCE};
use crate::guardian::control::Control;
use crate::guardian::registry::Registry;
use crate::process::Identity;

/// How long a new guardian that gave up may take to say why and end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long one that was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(5);
/// How often it is looked whether the number of tunnels has changed.
const COUNT: Duration = Duration::from_millis(200);

/// Why a handover did not come about.
#[derive(Debug, thiserror::Error)]
enum GiveError {
    #[error("the connection broke off")]
    Io(#[from] io::Error),
    #[error("the other said {0:?} out of turn")]
    OutOfTurn(FromNew),
    #[error("the audit log can't be closed")]
    Audit(#[from] crate::audit::AuditError),
}

/// Hands this process's sockets over to the process `taker`, and then carries what is left, until the connection ends.
///
/// Meanwhile `changes` keeps everything else from changing. Returns at once when it does not come about: then this
/// process is the guardian as before.
pub(in crate::guardian) fn give(
    stream: UnixStream,
    taker: &Identity,
    control: &Arc<Control>,
    changes: OwnedRwLockWriteGuard<()>,
    runtime: &Handle,
) {
    let wire = Wire::new(stream);
    let given = wire.try_clone().map_err(GiveError::from).and_then(|writer| {
        offer(&wire, control)?;
        Ok(Arc::new(Successor::new(writer)))
    });
    let successor = match given {
        Ok(successor) => successor,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the guardian is not replaced");
            end(taker, &error);
            control.registry.ledger().take_back();
            return;
        }
    };
    control.is_replaced.store(true, Ordering::SeqCst);
    control.registry.pass(Arc::clone(&successor));
    drop(control.held());
    drop(changes);
    control.shutdown.send_replace(true);
    runtime.spawn(count(Arc::clone(&successor), Arc::clone(&control.registry)));
    obey(&wire, &successor, &control.registry);
    successor.cut();
    control.registry.end_all();
}

/// Brings the other so far that it serves.
fn offer(wire: &Wire, control: &Control) -> Result<(), GiveError> {
    let deadline = Instant::now() + PATIENCE;
    wire.set_patience(None, WRITE_PATIENCE)?;
    let listeners = control.registry.listeners()?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    wire.send(&FromOld::Offer { pid: std::process::id(), version, listeners: listeners.len() })?;
    control.lend(|held| {
        wire.send_with(&FromOld::Lock, Some(held.lock.as_fd()))?;
        wire.send_with(&FromOld::Control, Some(held.listener.as_fd()))
    })?;
    for (cloister, listener) in listeners {
        wire.send_with(&FromOld::Listener { cloister }, Some(listener.as_fd()))?;
    }
    expect(wire, deadline, &FromNew::Ready)?;
    let head = control.registry.ledger().close()?;
    wire.send(&FromOld::Yours { head: head.to_string() })?;
    expect(wire, deadline, &FromNew::Serving)?;
    wire.send(&FromOld::Done)?;
    Ok(wire.set_patience(None, CARRY_PATIENCE)?)
}

fn expect(wire: &Wire, deadline: Instant, expected: &FromNew) -> Result<(), GiveError> {
    match wire.receive_until(deadline)? {
        (message, _) if message == *expected => Ok(()),
        (message, _) => Err(GiveError::OutOfTurn(message)),
    }
}

/// Makes sure that the new guardian does not go on, whatever it was at: there must not be two.
fn end(taker: &Identity, error: &GiveError) {
    let Some(process) = taker.open() else { return };
    let gave_up = matches!(error, GiveError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof);
    if gave_up && process.wait(LAST_WORDS).unwrap_or(false) {
        return;
    }
    if !process.kill(DEATH).unwrap_or(false) {
        tracing::error!(pid = taker.pid(), "the guardian that was to take over can't be ended");
    }
}

/// Says how many tunnels are left whenever that has changed.
async fn count(successor: Arc<Successor>, registry: Arc<Registry>) {
    let mut tick = tokio::time::interval(COUNT);
    let mut told = 0;
    loop {
        tick.tick().await;
        let tunnels = registry.open_tunnels();
        if tunnels != told && successor.carries(tunnels).is_err() {
            return;
        }
        told = tunnels;
    }
}

/// Hears the new guardian out, until the connection ends.
fn obey(wire: &Wire, successor: &Successor, registry: &Arc<Registry>) {
    let (orders, received) = mpsc::channel();
    // On a thread of their own: an order may have something recorded, and this one hears that it was.
    let performer = std::thread::Builder::new().name("orders".to_owned()).spawn({
        let registry = Arc::clone(registry);
        move || received.iter().for_each(|order| perform(order, &registry))
    });
    if performer.is_err() {
        return;
    }
    loop {
        match wire.receive() {
            Ok(Some((FromNew::Written { number, error }, _))) => successor.answered(number, error),
            Ok(Some((FromNew::Order(order), _))) => {
                // The other end lives as long as this one.
                let _ = orders.send(order);
            }
            other => {
                tracing::warn!(?other, "the guardian that took over is gone");
                return;
            }
        }
    }
}

fn perform(order: Order, registry: &Registry) {
    match order {
        Order::Revoke { cloister } => registry.end_cloister(&cloister),
        // What can't be read there can't be read here either: then the rules before it hold, here and there.
        Order::Reload => drop(registry.refresh()),
        Order::End => registry.end_all(),
    }
}
