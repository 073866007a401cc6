//! Notifications on the desktop (freedesktop.org, "Desktop Notifications" 1.3): one a cloister, which is replaced.
//!
//! A bus that is gone or hangs costs a bounded time in a task of its own, and is tried anew with the next call.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use zbus::Connection;
use zbus::Variant;
use zbus::connection::Builder;

use super::text::Note;
use super::{Bus, Tally};
use crate::name::CloisterName;
use crate::text::with_causes;

/// How long the bus may take to let this process in, and how long for one call.
const PATIENCE: Duration = Duration::from_secs(5);
const SERVICE: &str = "org.freedesktop.Notifications";
const PATH: &str = "/org/freedesktop/Notifications";
/// Neither low nor critical.
const NORMAL: u8 = 1;

/// What the desktop is to show. A later wish for a cloister takes the place of one that was not met yet.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    unmet: Mutex<BTreeMap<CloisterName, Wish>>,
    wished: Notify,
    pub(super) tally: Tally,
}

#[derive(Debug)]
enum Wish {
    Show(Note),
    Close,
}

impl Wishes {
    pub(super) fn show(&self, cloister: &CloisterName, note: Note) {
        self.wish(cloister, Wish::Show(note));
    }

    pub(super) fn close(&self, cloister: &CloisterName) {
        self.wish(cloister, Wish::Close);
    }

    fn wish(&self, cloister: &CloisterName, wish: Wish) {
        self.lock().insert(cloister.clone(), wish);
        self.wished.notify_one();
    }

    fn take(&self) -> Option<(CloisterName, Wish)> {
        self.lock().pop_first()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CloisterName, Wish>> {
        self.unmet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// There is no desktop: nobody expects a notification.
    #[error("there is no session bus")]
    NoBus,
    #[error("cannot connect to the session bus")]
    Connect(#[source] io::Error),
    #[error("cannot speak with the session bus")]
    Bus(#[source] zbus::Error),
    #[error("the notification service refused")]
    Refused(#[source] zbus::Error),
    #[error("the session bus did not answer within {} s", PATIENCE.as_secs())]
    Stalled,
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        match error {
            refused @ zbus::Error::MethodError(..) => Self::Refused(refused),
            other => Self::Bus(other),
        }
    }
}

/// Meets all wishes, one after the other.
pub(super) async fn run(bus: Bus, wishes: Arc<Wishes>) {
    let mut desktop = Desktop { bus, connection: None, open: BTreeMap::new() };
    loop {
        wishes.wished.notified().await;
        while let Some((cloister, wish)) = wishes.take() {
            match wish {
                Wish::Show(note) => desktop.show(&cloister, &note, &wishes.tally).await,
                Wish::Close => desktop.close(&cloister).await,
            }
        }
    }
}

#[derive(Debug)]
struct Desktop {
    bus: Bus,
    connection: Option<Connection>,
    /// The numbers of the notifications that may be open; they mean something on this connection only.
    open: BTreeMap<CloisterName, u32>,
}

impl Desktop {
    async fn show(&mut self, cloister: &CloisterName, note: &Note, tally: &Tally) {
        let was_connected = self.connection.is_some();
        let mut shown = self.notify(cloister, note).await;
        // The bus of the last call may be gone, and another one be there.
        if was_connected && self.connection.is_none() {
            shown = self.notify(cloister, note).await;
        }
        match shown {
            Ok(()) => tally.done(),
            Err(Failure::NoBus) => tracing::debug!("there is no session bus"),
            Err(error) => {
                tally.failed();
                tracing::warn!(error = with_causes(&error), "cannot show a notification");
            }
        }
    }

    /// Shows a notification in the place of the cloister's last one; a broken connection is let go.
    async fn notify(&mut self, cloister: &CloisterName, note: &Note) -> Result<(), Failure> {
        let connection = self.connection().await?;
        let replaced = self.open.get(cloister).copied().unwrap_or(0);
        let hints = HashMap::from([
            ("urgency", Variant::U8(NORMAL)),
            ("category", Variant::from("x-cloister.approval.waits")),
        ]);
        let actions: [&str; 0] = [];
        let expiry = i32::try_from(note.left_ms).unwrap_or(i32::MAX).max(1);
        let (summary, body) = (note.summary.as_str(), note.body.as_str());
        let arguments = ("Cloister", replaced, "dialog-question", summary, body, &actions[..], hints, expiry);
        let reply = connection.call_method(Some(SERVICE), PATH, Some(SERVICE), "Notify", &arguments);
        let id = match timeout(PATIENCE, reply).await {
            Ok(reply) => reply.and_then(|reply| reply.body().deserialize()).map_err(Failure::from),
            Err(_) => Err(Failure::Stalled),
        };
        let id = self.keep(id)?;
        self.open.insert(cloister.clone(), id);
        Ok(())
    }

    /// Closes a cloister's notification, if one may be open. The user may have closed it: that it fails says nothing.
    async fn close(&mut self, cloister: &CloisterName) {
        let (Some(id), Some(connection)) = (self.open.remove(cloister), self.connection.clone()) else {
            return;
        };
        let arguments = (id,);
        let reply =
            connection.call_method(Some(SERVICE), PATH, Some(SERVICE), "CloseNotification", &arguments);
        let closed = match timeout(PATIENCE, reply).await {
            Ok(reply) => reply.map(drop).map_err(Failure::from),
            Err(_) => Err(Failure::Stalled),
        };
        if let Err(error) = self.keep(closed) {
            tracing::debug!(error = with_causes(&error), "cannot close a notification");
        }
    }

    /// Lets the connection go with a failure that is not just a refusal.
    fn keep<T>(&mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        if matches!(result, Err(Failure::Bus(_) | Failure::Stalled)) {
            self.connection = None;
            self.open.clear();
        }
        result
    }

    async fn connection(&mut self) -> Result<Connection, Failure> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let connection = timeout(PATIENCE, connect(&self.bus)).await.map_err(|_| Failure::Stalled)??;
        self.connection = Some(connection.clone());
        Ok(connection)
    }
}

/// Connects to the first socket at which somebody listens.
async fn connect(bus: &Bus) -> Result<Connection, Failure> {
    let mut failure = Failure::NoBus;
    for socket in bus.sockets() {
        match UnixStream::connect(socket).await.and_then(UnixStream::into_std) {
            Ok(stream) => return Ok(Builder::unix_stream(stream).build().await?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = Failure::Connect(error),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests;
