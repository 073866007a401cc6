//! Sandboxes whose guards are watched, and those that have no way out as long as they are not.

use std::sync::Arc;
use std::time::Duration;

use super::{Registry, RegistryError, Served, about, report};
use crate::audit::Event;
use crate::guardian::guards::Unwatched;
use crate::guardian::handover::Order;
use crate::name::CloisterName;
use crate::sandbox::Receipt;

/// How often it is tried again to watch over a sandbox.
const RETRY: Duration = Duration::from_secs(1);

impl Registry {
    /// Watches over a registered sandbox that runs, and records it; one that is watched over already is left alone.
    ///
    /// # Errors
    /// When it can't be watched over: then it must not run.
    pub(in crate::guardian) fn confirm(&self, cloister: &CloisterName) -> Result<(), RegistryError> {
        let mut served = self.served();
        let served = served.get_mut(cloister).ok_or_else(|| RegistryError::Unknown(cloister.clone()))?;
        if served.unguarded.is_some() && self.is_closed() {
            return Err(RegistryError::Closed);
        }
        self.try_again(served)?;
        if let Some(reason) = &served.unguarded {
            return Err(RegistryError::Watch(reason.clone()));
        }
        let failed = |reason: String| RegistryError::Watch(reason);
        let receipt =
            Receipt::load(&self.paths.receipt_file(cloister)).map_err(|error| failed(error.to_string()))?;
        let Some(receipt) = receipt.filter(|receipt| !self.guards.watch_over(receipt)) else { return Ok(()) };
        self.guards.remove(cloister);
        self.guards.take_over(&receipt).map_err(|unwatched| failed(unwatched.to_string()))?;
        Ok(self.append(about(Event::SandboxStart, &served.kept))?)
    }

    /// Watches over a sandbox that an earlier guardian served.
    ///
    /// # Errors
    /// What is there and can't be watched: with a way out, what runs inside could wait for the host to replace it.
    pub(super) fn guard(&self, cloister: &CloisterName) -> Result<(), Unwatched> {
        let receipt = Receipt::load(&self.paths.receipt_file(cloister)).map_err(|error| error.to_string())?;
        let Some(receipt) = receipt.filter(Receipt::is_running) else { return Ok(()) };
        let taken = self.guards.take_over(&receipt);
        self.guards.check_kept(&receipt)?;
        match taken {
            Err(unwatched) if !unwatched.is_open => {
                self.tell_of_guards(cloister, &unwatched.to_string());
                Ok(())
            }
            other => other,
        }
    }

    pub(super) fn tell_of_guards(&self, cloister: &CloisterName, what: &str) {
        report(&self.log, cloister, Event::SandboxReseal, what);
    }

    /// Closes the tunnels of sandboxes without a way out in the guardian before this one, and tries to watch over them
    /// until all are.
    pub(in crate::guardian) fn guard_the_rest(self: &Arc<Self>) {
        let unguarded = self.unguarded();
        for cloister in &unguarded {
            self.order(Order::Revoke { cloister: cloister.clone() });
        }
        if unguarded.is_empty() {
            return;
        }
        let registry = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                let Some(registry) = registry.upgrade() else { return };
                // Covering takes processes of their own, and waits for them.
                let tried = tokio::task::spawn_blocking(move || registry.try_all_again()).await;
                if matches!(tried, Ok(true)) {
                    return;
                }
            }
        });
    }

    fn unguarded(&self) -> Vec<CloisterName> {
        let served = self.served();
        let unguarded = served.iter().filter(|(_, served)| served.unguarded.is_some());
        unguarded.map(|(cloister, _)| cloister.clone()).collect()
    }

    /// Tells whether nothing is left to be tried.
    fn try_all_again(&self) -> bool {
        for cloister in self.unguarded() {
            let mut served = self.served();
            // Under the lock: what comes after the end, or after another took over, is not opened.
            if self.is_closed() {
                return true;
            }
            if let Some(served) = served.get_mut(&cloister)
                && let Err(error) = self.try_again(served)
            {
                tracing::warn!(error = &error as &dyn std::error::Error, %cloister, "no way out yet");
            }
        }
        self.unguarded().is_empty()
    }

    /// Watches over a sandbox that could not be, and gives it its way out.
    fn try_again(&self, served: &mut Served) -> Result<(), RegistryError> {
        let Some(before) = served.unguarded.clone() else { return Ok(()) };
        let cloister = served.kept.registration.cloister.clone();
        match self.guard(&cloister) {
            Ok(()) => {
                self.open(served, None)?;
                self.publish();
                served.unguarded = None;
                self.tell_of_guards(&cloister, "the guards are watched again, and the way out is open");
            }
            Err(unwatched) => {
                let reason = unwatched.to_string();
                if reason != before {
                    self.tell_of_guards(&cloister, &no_way_out(&reason));
                }
                served.unguarded = Some(reason);
            }
        }
        Ok(())
    }
}

/// Says what it means that guards can't be watched.
pub(super) fn no_way_out(reason: &str) -> String {
    format!("{reason}; no way out until they are watched")
}
