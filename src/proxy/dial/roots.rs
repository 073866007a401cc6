//! Whose certificates are believed when the company's proxy speaks TLS: those that the system believes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, Error as TlsError, RootCertStore};

/// How long the system's store is not read again: a company's certificate that was added counts soon.
const BELIEVED: Duration = Duration::from_mins(5);

/// The roots of this machine, read when they are first needed.
pub(super) static SYSTEM: Roots = Roots(Mutex::new(None));

/// Roots that were read some time ago.
pub(super) struct Roots(Mutex<Option<(Instant, Arc<ClientConfig>)>>);

impl Roots {
    /// Roots of a test, which are never read again.
    #[cfg(test)]
    pub(super) fn of(roots: RootCertStore) -> Self {
        Self(Mutex::new(Some((Instant::now(), configure(roots).unwrap()))))
    }

    /// What a connection through TLS needs.
    ///
    /// # Errors
    /// Only when the library can't do TLS at all: without any root, every certificate is refused.
    pub(super) async fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some((since, config)) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
            && since.elapsed() < BELIEVED
        {
            return Ok(Arc::clone(config));
        }
        // It reads files.
        let roots = tokio::task::spawn_blocking(read_system).await.unwrap_or_else(|_| RootCertStore::empty());
        let config = configure(roots)?;
        let kept = (Instant::now(), Arc::clone(&config));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(config)
    }
}

fn read_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(error = error as &dyn std::error::Error, "cannot read a certificate of the system");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

fn configure(roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    Ok(Arc::new(config.with_no_client_auth()))
}
